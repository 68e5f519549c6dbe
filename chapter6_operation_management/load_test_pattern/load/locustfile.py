"""Offers requests on a schedule that does not wait for answers."""

from importlib import import_module
from itertools import count
from random import Random
from time import perf_counter
from typing import TYPE_CHECKING, Any

import gevent
from gevent.lock import BoundedSemaphore
from gevent.pool import Group
from locust import FastHttpUser, constant_throughput, events, task
from locust.contrib.fasthttp import LocustUserAgent

if TYPE_CHECKING:
    from . import ramp
    from .bodies import SEED, bodies
    from .settings import settings
else:
    # Locust loads this file by its path, so it is in no package.
    ramp, settings = import_module("load.ramp"), import_module("load.settings").settings
    SEED, bodies = import_module("load.bodies").SEED, import_module("load.bodies").bodies

# Locust finds it here.
Ramp = ramp.Ramp
DEADLINE_SECONDS = 5.0
RATE_PER_USER = settings.rate / settings.steps / ramp.USERS_PER_STEP
HEADERS = {"content-type": "application/json"}
BODIES = [body.decode() for body in bodies()]
connections = BoundedSemaphore(settings.connections)
numbers = count()
# Nothing else is a prediction.
LocustUserAgent.valid_response_codes = frozenset({200})


class Caller(FastHttpUser):
    """Posts rows, which differ between users but not between runs."""

    abstract = True
    network_timeout = connection_timeout = DEADLINE_SECONDS
    concurrency = settings.connections
    # A redirect may lead to another host.
    max_redirects = 0

    def on_start(self) -> None:
        worker = self.environment.runner.worker_index
        self.random = Random(f"{SEED} {worker} {next(numbers)}")  # noqa: S311

    def send(self, due: float) -> None:
        """Sends a request that is due at this time; a process has only so many connections."""
        late_ms = (perf_counter() - due) * 1000
        self.environment.stats.get(*ramp.SENT_LATE).log(round(late_ms), 0)
        body, context = self.random.choice(BODIES), {"due": due}
        name = "as a caller sees it"
        try:
            with connections:
                self.client.post("/predict", body, name=name, headers=HEADERS, context=context)
        except gevent.GreenletExit:
            count_from_the_schedule(context, TimeoutError("unfinished at the end"))
            raise


def count_from_the_schedule(
    context: dict[str, Any], exception: Exception | None = None, **_: Any
) -> None:
    """Enters a request a second time, with the time since it was due."""
    if due := context.get("due"):
        events.request.fire(
            request_type="POST",
            name=ramp.FROM_THE_SCHEDULE,
            response_time=(perf_counter() - due) * 1000,
            response_length=0,
            exception=exception,
            context={},
        )


events.request.add_listener(count_from_the_schedule)


class OpenLoop(Caller):
    """Offers requests as a Poisson process, whatever becomes of the ones before."""

    def on_start(self) -> None:
        super().on_start()
        self.requests = Group()

    @task
    def keep_the_schedule(self) -> None:
        due = perf_counter()
        while True:
            due += self.random.expovariate(RATE_PER_USER)
            gevent.sleep(max(0.0, due - perf_counter()))
            self.requests.spawn(self.send, due)

    def on_stop(self) -> None:
        # What takes longer than this has missed the objective anyway.
        self.requests.join(settings.objective_p99_ms / 1000)
        self.requests.kill()


class ClosedLoop(Caller):
    """For comparison: each caller waits for its response before it sends another request.

    None of Locust's wait times changes that. `constant_throughput` holds back a caller that is
    early; what would have been due while a caller waits is never sent, so nothing measures it.
    """

    wait_time = constant_throughput(RATE_PER_USER)

    @task
    def call(self) -> None:
        self.send(perf_counter())
