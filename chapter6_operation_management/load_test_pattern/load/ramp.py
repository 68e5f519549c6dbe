"""Raises the rate step by step, and lets Locust's exit code say whether the objective is met."""

import logging
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from locust import LoadTestShape, User, events
from locust.env import Environment
from locust.runners import WorkerRunner
from locust.stats import RequestStats

from .objective import Step, Totals, judge
from .settings import settings

FROM_THE_SCHEDULE = "from the schedule"
# Counts every request when the generator gets to it, and how long it has been due by then.
SENT_LATE = ("sent late by", "LAG")
# The number of users decides the rate, so Locust can spread it over workers.
USERS_PER_STEP = 10
logger = logging.getLogger("load")


class Ramp(LoadTestShape):
    """Holds each step of the rate, and ends at the first that misses the objective."""

    judged: tuple[Step, ...] = ()
    before = Totals()
    began = 0.0

    def reset_time(self) -> None:
        """Begins with the first step; Locust calls it at each start."""
        self.judged, self.before, self.began = (), Totals(), perf_counter()

    def tick(self) -> tuple[int, float, list[type[User]]] | None:
        """Returns which users there should be now; Locust calls it every second."""
        if not self.runner or not may_be_loaded(self.runner.environment.host):
            return None
        if perf_counter() - self.began >= settings.step_seconds:
            self.end_step(totals(self.runner.stats))
        if self.judged and (self.judged[-1].missed or len(self.judged) == settings.steps):
            return None
        users = USERS_PER_STEP * (len(self.judged) + 1)
        loops = self.runner.user_classes_by_name
        return users, users, [loops["ClosedLoop" if len(loops) == 1 else "OpenLoop"]]

    def end_step(self, after: Totals) -> None:
        rate = settings.rate * (len(self.judged) + 1) / settings.steps
        step = judge(rate, self.before, after, settings)
        self.judged += (step,)
        logger.info("step %d of %d, %s", len(self.judged), settings.steps, step)
        self.before, self.began = after, perf_counter()


def may_be_loaded(host: str | None) -> bool:
    try:
        name = urlsplit(host or "").hostname
    except ValueError:
        name = None
    if name in settings.load_hosts.split(","):
        return True
    logger.error("refused to send load to %s: LOAD_HOSTS is %s", host, settings.load_hosts)
    return False


def totals(stats: RequestStats) -> Totals:
    scheduled, late = stats.get(FROM_THE_SCHEDULE, "POST"), stats.get(*SENT_LATE)
    return Totals(
        late.num_requests,
        scheduled.num_failures,
        dict(scheduled.response_times),
        dict(late.response_times),
    )


def exit_as_judged(environment: Environment, **_: Any) -> None:
    """Exits with 0 only if every step has held, or if this process has judged nothing."""
    ramp, options = environment.shape_class, environment.parsed_options
    environment.process_exit_code = 0
    if isinstance(environment.runner, WorkerRunner) or not isinstance(ramp, Ramp):
        return
    if ramp.judged or (options and options.headless):
        held = [step.rate for step in ramp.judged if not step.missed]
        environment.process_exit_code = 0 if len(held) == settings.steps else 1
        logger.info("the objective held up to %g/s of %g/s", max(held, default=0), settings.rate)


def show_life(**_: Any) -> None:
    """Tells the health check that the worker hears from the master."""
    if settings.alive_file:
        settings.alive_file.touch()


events.quitting.add_listener(exit_as_judged)
events.heartbeat_received.add_listener(show_life)
