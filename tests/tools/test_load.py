"""The load generator against real servers that are healthy, slow, stalled, broken or gone."""

import asyncio
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import pytest
import uvloop

from tools.measure.load import Request, Run, closed_loop, open_loop
from tools.measure.server import Server, serve
from tools.run.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
# Far longer than any response takes that is not delayed on purpose.
STALL_SECONDS = 4.0
STALLED = 50

Message = MutableMapping[str, Any]
served = 0


async def app(
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """Echoes a body; ?status= selects the status; /stall and /die stop that at one request."""
    global served
    message = await receive()
    if scope["type"] == "lifespan":
        return
    if scope["path"] == "/served":
        message["body"] = str(served).encode()
    else:
        served += 1
    if scope["path"] == "/stall" and served == STALLED:
        time.sleep(STALL_SECONDS)  # noqa: ASYNC251
    if scope["path"] == "/die" and served == STALLED:
        os.kill(os.getpid(), signal.SIGKILL)
    status = int(parse_qs(scope["query_string"].decode()).get("status", ["200"])[0])
    headers = [(b"location", b"http://192.0.2.1/")] if status == 302 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": message["body"]})


@contextmanager
def fresh_server() -> Iterator[Server]:
    port = free_port()
    options = ["--port", str(port), "--app-dir", str(Path(__file__).parent), "--lifespan", "off"]
    with serve(
        [sys.executable, "-m", "uvicorn", "test_load:app", "--loop", "uvloop", *options],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        ready_url=f"http://127.0.0.1:{port}/served",
        port=port,
    ) as server:
        yield server


@pytest.fixture
def server() -> Iterator[Server]:
    with fresh_server() as server:
        yield server


@contextmanager
def rude_server(converse: Callable[[socket.socket], None]) -> Iterator[Request]:
    """Passes every connection to a function that may violate HTTP."""

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            converse(self.request)

    class RudeServer(ThreadingTCPServer):
        daemon_threads = True
        request_queue_size = 1000

    with RudeServer(("127.0.0.1", 0), Handler) as rude:
        Thread(target=rude.serve_forever, args=(0.05,), daemon=True).start()
        yield Request(f"http://127.0.0.1:{rude.server_address[1]}/")
        rude.shutdown()


def reset(connection: socket.socket) -> None:
    """Closes the connection with a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def assert_every_request_is_accounted_for(run: Run, sent: int) -> None:
    assert run.sent == sent
    assert run.statuses.total() + run.errors.total() == sent
    assert np.count_nonzero(run.status_of) == run.statuses.total()
    assert np.count_nonzero(np.isfinite(run.latencies_ms)) == run.statuses.total()


def served_by(server: Server) -> int:
    request = Request(f"{server.url}/served")
    run = uvloop.run(
        closed_loop(request, connections=1, count=1, deadline_seconds=9, keep_bodies=True)
    )
    assert run.bodies is not None
    return int(run.bodies[0])


@pytest.mark.parametrize("connections", [1, 16, 300])
def test_a_closed_loop_sends_exactly_the_requested_number(server: Server, connections: int) -> None:
    requests = [Request(f"{server.url}/", str(number).encode()) for number in range(100)]
    run = uvloop.run(
        closed_loop(
            requests, connections=connections, count=250, deadline_seconds=30, keep_bodies=True
        )
    )
    assert_every_request_is_accounted_for(run, 250)
    assert run.statuses == {200: 250}
    assert served_by(server) == 250
    # Responses are in the order of the requests, which repeat.
    assert run.bodies == [str(number % 100).encode() for number in range(250)]
    assert 0 < run.p50_ms <= run.p99_ms
    assert run.per_second == pytest.approx(250 / run.seconds)


@pytest.mark.parametrize("poisson_seed", [None, 1])
def test_an_open_loop_sends_its_rate_for_its_time(server: Server, poisson_seed: int | None) -> None:
    run = uvloop.run(
        open_loop(
            Request(f"{server.url}/", b"body"),
            rate_per_second=300,
            seconds=1,
            deadline_seconds=30,
            poisson_seed=poisson_seed,
        )
    )
    assert_every_request_is_accounted_for(run, 300)
    assert run.statuses == {200: 300}
    assert served_by(server) == 300
    # All 300 random arrivals are before 0.9 s with a probability of 0.9**300, nearly 0.
    assert run.seconds > 0.9
    assert run.lag_p99_ms >= 0


def test_an_open_loop_sees_the_queue_that_a_closed_loop_hides() -> None:
    with fresh_server() as server:
        stall = Request(f"{server.url}/stall")
        closed = uvloop.run(closed_loop(stall, connections=1, count=200, deadline_seconds=30))
    with fresh_server() as server:
        stall = Request(f"{server.url}/stall")
        opened = uvloop.run(open_loop(stall, rate_per_second=100, seconds=2, deadline_seconds=30))
    assert closed.statuses == opened.statuses == {200: 200}
    # A client that waits for its response meets the stall once. Of 100 arrivals a second, those in
    # the first half of the stall wait longer than the other half.
    half_ms = 1000 * STALL_SECONDS / 2
    assert 1 <= closed.sent - closed.answered_within(half_ms) <= 5
    assert opened.sent - opened.answered_within(half_ms) >= 50


def test_latencies_can_be_selected_by_status(server: Server) -> None:
    requests = [Request(f"{server.url}/?status={status}") for status in (200, 200, 503)]
    run = uvloop.run(closed_loop(requests, connections=4, count=30, deadline_seconds=30))
    assert run.statuses == {200: 20, 503: 10}
    assert run.answered_within(30_000) == 20
    assert run.answered_within(30_000, status=503) == 10
    assert run.answered_within(0) == 0
    assert run.percentile_ms(100, status=503) == run.latencies_ms[run.status_of == 503].max()
    assert np.isnan(run.percentile_ms(50, status=404))


def test_a_redirect_is_not_followed(server: Server) -> None:
    run = uvloop.run(
        closed_loop(
            Request(f"{server.url}/?status=302"), connections=1, count=3, deadline_seconds=9
        )
    )
    assert run.statuses == {302: 3}


def test_headers_and_body_arrive_as_given() -> None:
    seen: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        seen.append(connection.recv(10_000))
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)

    with rude_server(answer) as request:
        posted = Request(f"{request.url}predict?user=1", b"{}", {"Idempotency-Key": "7"})
        run = uvloop.run(closed_loop(posted, connections=1, count=1, deadline_seconds=9))
    # An interim response does not count.
    assert run.statuses == {200: 1}
    head, _, body = seen[0].partition(b"\r\n\r\n")
    first, *headers = head.decode().split("\r\n")
    assert first == "POST /predict?user=1 HTTP/1.1"
    assert "idempotency-key: 7" in headers
    assert "content-length: 2" in headers
    assert body == b"{}"


def test_an_open_loop_does_not_wait_for_responses() -> None:
    held: list[int] = [0]

    def hold(connection: socket.socket) -> None:
        with lock:
            held.append(held[-1] + 1)
        # The generator closes the connection at its deadline.
        while connection.recv(10_000):
            pass
        with lock:
            held.append(held[-1] - 1)

    lock = Lock()
    with rude_server(hold) as request:
        run = uvloop.run(open_loop(request, rate_per_second=100, seconds=1, deadline_seconds=3))
    assert_every_request_is_accounted_for(run, 100)
    assert run.errors == {"late": 100}
    assert run.p50_ms == np.inf
    # All are open at once, because none ever gets a response.
    assert max(held) == 100


def test_the_lag_of_the_generator_is_reported_and_counts_as_latency(server: Server) -> None:
    async def lag_in_the_middle() -> Run:
        asyncio.get_running_loop().call_later(0.25, time.sleep, 0.5)
        request = Request(f"{server.url}/")
        return await open_loop(request, rate_per_second=100, seconds=1, deadline_seconds=30)

    run = uvloop.run(lag_in_the_middle())
    assert run.statuses == {200: 100}
    # 50 requests were due while the generator was blocked, half of them for 250 ms or more.
    assert run.lag_p99_ms > 250
    assert run.sent - run.answered_within(250) >= 20


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n"])
def test_the_deadline_applies_to_the_whole_response(start: bytes) -> None:
    def drip(connection: socket.socket) -> None:
        connection.recv(10_000)
        connection.sendall(start)
        try:
            for byte in b"HTTP/1.1 200 OK\r\nx: " + b"x" * 10_000:
                connection.sendall(bytes([byte]))
                time.sleep(0.02)
        except OSError:
            return

    with rude_server(drip) as request:
        run = uvloop.run(closed_loop(request, connections=4, count=8, deadline_seconds=0.3))
    assert_every_request_is_accounted_for(run, 8)
    assert run.errors == {"late": 8}


@pytest.mark.parametrize("before", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhal"])
def test_a_connection_that_breaks_during_the_response_is_a_reset(before: bytes) -> None:
    def break_off(connection: socket.socket) -> None:
        connection.recv(10_000)
        connection.sendall(before)
        reset(connection)

    with rude_server(break_off) as request:
        run = uvloop.run(closed_loop(request, connections=4, count=40, deadline_seconds=9))
    assert_every_request_is_accounted_for(run, 40)
    assert run.errors == {"reset": 40}


def test_a_connection_that_breaks_before_the_request_is_a_reset_too() -> None:
    with rude_server(reset) as request:
        run = uvloop.run(closed_loop(request, connections=4, count=200, deadline_seconds=30))
    assert_every_request_is_accounted_for(run, 200)
    # Depending on when it breaks, it counts as connect or reset, but nothing waits.
    assert set(run.errors) <= {"connect", "reset"}


def test_no_request_is_resent_when_a_keep_alive_connection_is_closed() -> None:
    seen: list[bytes] = []

    def answer_once_and_close(connection: socket.socket) -> None:
        seen.append(connection.recv(10_000))
        connection.sendall(OK)
        # The second request of a connection is read but gets no response.
        if second := connection.recv(10_000):
            seen.append(second)

    with rude_server(answer_once_and_close) as request:
        requests = [Request(f"{request.url}{number}") for number in range(50)]
        run = uvloop.run(closed_loop(requests, connections=1, count=50, deadline_seconds=9))
    assert_every_request_is_accounted_for(run, 50)
    assert run.statuses == {200: 25}
    assert run.errors == {"reset": 25}
    assert len(seen) == len(set(seen)) == 50


def test_a_response_that_is_not_http_is_a_protocol_error() -> None:
    def answer_as_another_protocol(connection: socket.socket) -> None:
        connection.recv(10_000)
        connection.sendall(b"-ERR unknown command\r\n")

    with rude_server(answer_as_another_protocol) as request:
        run = uvloop.run(closed_loop(request, connections=2, count=10, deadline_seconds=9))
    assert_every_request_is_accounted_for(run, 10)
    assert run.errors == {"protocol": 10}


def test_a_missing_server_is_a_connect_error() -> None:
    # The port is bound, so that no other process gets it, but nobody listens.
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        nobody = Request(f"http://127.0.0.1:{bound.getsockname()[1]}/")
        closed = uvloop.run(closed_loop(nobody, connections=3, count=20, deadline_seconds=9))
        opened = uvloop.run(open_loop(nobody, rate_per_second=100, seconds=0.2, deadline_seconds=9))
    assert closed.errors == opened.errors == {"connect": 20}
    assert closed.per_second == 0


def test_every_request_is_counted_when_the_server_is_killed(server: Server) -> None:
    request = Request(f"{server.url}/die")
    run = uvloop.run(open_loop(request, rate_per_second=200, seconds=1, deadline_seconds=30))
    # The server ended without having been stopped, which is an error.
    server.kill()
    assert_every_request_is_accounted_for(run, 200)
    assert 0 < run.statuses[200] < STALLED
    assert set(run.errors) <= {"connect", "reset"}


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "http://10.0.0.1:8000/",
        "http://0.0.0.0:8000/",
        "http://127.0.0.1@192.0.2.1/",
        "http://127.0.0.1.example.com/",
        "https://127.0.0.1/",
        "127.0.0.1:8000",
        "http:///predict",
    ],
)
def test_load_for_another_machine_is_rejected(url: str) -> None:
    with pytest.raises(ValueError, match=r"http://127\.0\.0\.1 or http://localhost only"):
        Request(url)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 1_000_001}, "count is 1,000,001"),
        ({"count": 0}, "count is 0"),
        ({"connections": 0}, "connections is 0"),
        ({"connections": 10_001}, "connections is 10,001"),
        ({"deadline_seconds": 0}, "deadline_seconds is 0"),
        ({"deadline_seconds": float("nan")}, "deadline_seconds is nan"),
        ({"requests": []}, "number of different requests is 0"),
    ],
)
def test_a_closed_loop_outside_the_limits_is_rejected(wrong: dict[str, Any], message: str) -> None:
    right = {"requests": Request("http://127.0.0.1:1/"), "connections": 1, "count": 1}
    with pytest.raises(ValueError, match=message):
        uvloop.run(closed_loop(**{**right, "deadline_seconds": 1, **wrong}))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seconds": 301}, "seconds is 301"),
        ({"seconds": 0}, "seconds is 0"),
        ({"rate_per_second": 1_000_001}, "rate_per_second"),
        ({"rate_per_second": -1}, "rate_per_second"),
        ({"rate_per_second": 20_000}, "requests open at one time is 20,000"),
        ({"deadline_seconds": 301}, "deadline_seconds is 301"),
    ],
)
def test_an_open_loop_outside_the_limits_is_rejected(wrong: dict[str, Any], message: str) -> None:
    right = {"requests": Request("http://127.0.0.1:1/"), "rate_per_second": 1, "seconds": 1}
    with pytest.raises(ValueError, match=message):
        uvloop.run(open_loop(**{**right, "deadline_seconds": 1, **wrong}))
