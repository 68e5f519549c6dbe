"""Sends HTTP load to a server on this machine and records the outcome of every request."""

import asyncio
import ipaddress
import math
import resource
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from time import perf_counter
from typing import cast
from urllib.parse import urlsplit

import httptools
import numpy as np
from numpy.typing import NDArray

COUNT_LIMIT = 1_000_000
SECONDS_LIMIT = 300
OPEN_LIMIT = 10_000


@dataclass(frozen=True)
class Request:
    """A request to a server on this machine: a POST if it has a body, otherwise a GET."""

    url: str
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Computed now, so that an invalid URL fails early and encoding is not timed.
        _ = self.address, self.encoded

    @cached_property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname or ""
        try:
            is_loopback = ipaddress.IPv4Address(host).is_loopback
        except ValueError:
            is_loopback = False
        if parts.scheme != "http" or not is_loopback:
            raise ValueError(f"load goes to http://127.0.0.1 or http://localhost only: {self.url}")
        return host, parts.port or 80

    @cached_property
    def encoded(self) -> bytes:
        parts = urlsplit(self.url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [f"{'GET' if self.body is None else 'POST'} {target} HTTP/1.1"]
        headers = {"host": parts.netloc}
        if self.body is not None:
            headers |= {"content-type": "application/json", "content-length": str(len(self.body))}
        headers |= {name.lower(): value for name, value in self.headers.items()}
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + (self.body or b"")


@dataclass(frozen=True, eq=False)
class Run:
    """The outcome of each request; arrays have one entry per request, in order of sending."""

    sent: int
    # Every request is counted in exactly one of these two. The errors are `connect` (no
    # connection), `reset` (closed before the whole response), `protocol` (not HTTP) and `late`
    # (cut off at its deadline).
    statuses: Counter[int]
    errors: Counter[str]
    # A request without a response has status 0 and infinite latency, so cutting off the slowest
    # requests does not improve any percentile.
    status_of: NDArray[np.int16]
    latencies_ms: NDArray[np.float64]
    # How late the generator itself was; 0 in a closed loop, which has no schedule.
    lag_p99_ms: float
    # From the first send to the last response or deadline.
    seconds: float
    # Response bodies if requested; empty for a request without a response.
    bodies: list[bytes] | None

    @property
    def p50_ms(self) -> float:
        return self.percentile_ms(50)

    @property
    def p99_ms(self) -> float:
        return self.percentile_ms(99)

    @property
    def per_second(self) -> float:
        """Responses per second, of any status."""
        return self.statuses.total() / self.seconds

    def percentile_ms(self, percent: float, status: int | None = None) -> float:
        """The latency percentile of all requests, or of those with one status."""
        chosen = slice(None) if status is None else self.status_of == status
        return _percentile(self.latencies_ms[chosen], percent)

    def answered_within(self, milliseconds: float, status: int = 200) -> int:
        """The number of requests that got this status within this time."""
        in_time = self.latencies_ms <= milliseconds
        return int(np.count_nonzero(in_time & (self.status_of == status)))


async def closed_loop(
    requests: Request | Iterable[Request],
    *,
    connections: int,
    count: int,
    deadline_seconds: float,
    keep_bodies: bool = False,
) -> Run:
    """Sends `count` requests; each connection sends its next request after the last response.

    If there are fewer requests than `count`, they repeat in order. The deadline applies to each
    request, from sending it to the end of its response.
    """
    _check("connections", connections, 1, OPEN_LIMIT)
    load = _Load(requests, count, deadline_seconds, keep_bodies, connections)
    numbers = iter(range(count))

    async def send_in_turn() -> None:
        for number in numbers:
            await load.send(number, perf_counter())

    try:
        async with asyncio.timeout(SECONDS_LIMIT), asyncio.TaskGroup() as group:
            for _ in range(connections):
                group.create_task(send_in_turn())
    except TimeoutError:
        raise TimeoutError(f"{count:,} requests took longer than {SECONDS_LIMIT} s") from None
    return load.run(lag_p99_ms=0.0)


async def open_loop(
    requests: Request | Iterable[Request],
    *,
    rate_per_second: float,
    seconds: float,
    deadline_seconds: float,
    poisson_seed: int | None = None,
    keep_bodies: bool = False,
) -> Run:
    """Sends requests on a fixed schedule and measures latency from the scheduled time.

    The `rate_per_second * seconds` requests are evenly spaced or, with a seed, arrive as a Poisson
    process. Each is cut off `deadline_seconds` after its scheduled time, which bounds the number of
    open requests; a schedule that could open more than OPEN_LIMIT is an error.
    """
    _check("seconds", seconds, 0, SECONDS_LIMIT)
    count = round(rate_per_second * seconds)
    _check("rate_per_second * seconds", count, 1, COUNT_LIMIT)
    schedule = np.arange(count) / rate_per_second
    if poisson_seed is not None:
        # Given their number, the arrivals of a Poisson process are uniform in time.
        schedule = np.sort(np.random.default_rng(poisson_seed).uniform(0, seconds, count))
    expired = np.searchsorted(schedule, schedule - deadline_seconds)
    open_at_most = int(np.max(np.arange(1, count + 1) - expired))
    _check("number of requests open at one time", open_at_most, 1, OPEN_LIMIT)
    load = _Load(requests, count, deadline_seconds, keep_bodies, open_at_most)
    schedule += perf_counter()
    lags_ms = np.zeros(count)

    async def send_scheduled(number: int) -> None:
        lags_ms[number] = (perf_counter() - schedule[number]) * 1000
        await load.send(number, float(schedule[number]))

    started = 0
    async with asyncio.TaskGroup() as group:
        while started < count:
            # The loop's clock counts milliseconds: a shorter sleep would be a busy wait, which
            # takes the processor from the server.
            await asyncio.sleep(max(float(schedule[started]) - perf_counter(), 0.001))
            due = int(np.searchsorted(schedule, perf_counter(), side="right"))
            for number in range(started, due):
                group.create_task(send_scheduled(number))
            started = due
    return load.run(lag_p99_ms=_percentile(lags_ms, 99))


class _Connection(asyncio.Protocol):
    """A keep-alive connection with at most one request at a time.

    It uses no client library: they need four times the CPU, which the server under test shares,
    and silently resend a GET if the server has closed a keep-alive connection.
    """

    answer: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.parser = httptools.HttpResponseParser(self)

    def send(self, encoded: bytes) -> asyncio.Future[tuple[int, bytes]]:
        self.chunks: list[bytes] = []
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(encoded)
        return self.answer

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.fail(error)

    def on_body(self, chunk: bytes) -> None:
        self.chunks.append(chunk)

    def on_message_complete(self) -> None:
        status = self.parser.get_status_code()
        # Ignore interim responses such as 100.
        if status >= 200 and self.answer is not None and not self.answer.done():
            self.answer.set_result((status, b"".join(self.chunks)))
            if not self.parser.should_keep_alive():
                self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.fail(ConnectionResetError("closed before the whole response"))

    def fail(self, error: Exception) -> None:
        self.transport.abort()
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(error)


class _Load:
    """The state of one run: requests, idle connections and outcomes."""

    def __init__(
        self,
        requests: Request | Iterable[Request],
        count: int,
        deadline_seconds: float,
        keep_bodies: bool,
        open_at_most: int,
    ) -> None:
        _check("count", count, 1, COUNT_LIMIT)
        _check("deadline_seconds", deadline_seconds, 0, SECONDS_LIMIT)
        self.requests = (requests,) if isinstance(requests, Request) else tuple(requests)
        _check("number of different requests", len(self.requests), 1, COUNT_LIMIT)
        self.deadline_seconds = deadline_seconds
        self.idle: dict[tuple[str, int], list[_Connection]] = {}
        self.errors: Counter[str] = Counter()
        self.status_of = np.zeros(count, np.int16)
        self.latencies_ms = np.full(count, math.inf)
        self.bodies = [b""] * count if keep_bodies else None
        # The default limit on open files is often 1,024, but a process may raise it.
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if 0 <= soft < open_at_most + 100:
            resource.setrlimit(resource.RLIMIT_NOFILE, (open_at_most + 100, hard))
        self.start = perf_counter()

    async def send(self, number: int, since: float) -> None:
        """Sends one request and records its response or error."""
        request = self.requests[number % len(self.requests)]
        loop = asyncio.get_running_loop()
        connection = None
        try:
            async with asyncio.timeout_at(
                loop.time() + since + self.deadline_seconds - perf_counter()
            ):
                connection = self.idle_connection(request.address)
                if connection is None:
                    _, connection = await loop.create_connection(_Connection, *request.address)
                status, body = await connection.send(request.encoded)
        except TimeoutError:
            self.errors["late"] += 1
        except httptools.HttpParserError:
            self.errors["protocol"] += 1
        except OSError:
            self.errors["connect" if connection is None else "reset"] += 1
        else:
            self.latencies_ms[number] = (perf_counter() - since) * 1000
            self.status_of[number] = status
            if self.bodies is not None:
                self.bodies[number] = body
            self.idle.setdefault(request.address, []).append(connection)
            return
        if connection is not None:
            connection.transport.abort()

    def idle_connection(self, address: tuple[str, int]) -> _Connection | None:
        """Returns the most recently used connection, as the server may have closed older ones."""
        while connections := self.idle.get(address):
            connection = connections.pop()
            if not connection.transport.is_closing():
                return connection
        return None

    def run(self, lag_p99_ms: float) -> Run:
        """Closes the connections and returns the outcome."""
        seconds = perf_counter() - self.start
        for connection in (c for connections in self.idle.values() for c in connections):
            connection.transport.abort()
        return Run(
            sent=len(self.status_of),
            statuses=Counter(self.status_of[self.status_of > 0].tolist()),
            errors=self.errors,
            status_of=self.status_of,
            latencies_ms=self.latencies_ms,
            lag_p99_ms=lag_p99_ms,
            seconds=seconds,
            bodies=self.bodies,
        )


def _percentile(values: NDArray[np.float64], percent: float) -> float:
    """The nearest-rank percentile; NaN if there are no values."""
    if len(values) == 0:
        return math.nan
    return float(np.sort(values)[max(math.ceil(len(values) * percent / 100) - 1, 0)])


def _check(name: str, value: float, least: float, most: float) -> None:
    if not (value > 0 and least <= value <= most):
        raise ValueError(f"{name} is {value:,}; it must be from {least:,} to {most:,}, above 0")
