"""A worker takes jobs off the queue, a batch at a time, and stores what the model says."""

import json
import logging
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from threading import Event, Thread
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
from redis import Redis, RedisError
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from . import jobs
from .jobs import Delivery, Outcome
from .model import Model, ModelError
from .schema import FEATURES, HIGHEST, LOWEST
from .settings import Settings

log = logging.getLogger("worker")

# How long a worker waits for a job before it looks for other work, or sees that it has to stop.
WAIT_SECONDS = 1.0
SOCKET_TIMEOUT_SECONDS = 2.0
PAUSE_SECONDS = 1.0


class Job(NamedTuple):
    """A delivery whose rows have been read."""

    delivery: Delivery
    rows: list[list[float]]


class Worker:
    """Holds the connection to Redis, the model, and the entries of the jobs under way."""

    def __init__(self, settings: Settings, model: Model) -> None:
        self.settings = settings
        self.model = model
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex}"
        # A command is tried again for a second and a half. Redis restarts in less, so what the
        # model has computed is not thrown away.
        self.redis = Redis.from_url(
            settings.redis_url,
            socket_timeout=SOCKET_TIMEOUT_SECONDS,
            socket_connect_timeout=SOCKET_TIMEOUT_SECONDS,
            retry=Retry(ExponentialBackoff(base=0.05, cap=1), retries=5),
        )
        self.held: list[bytes] = []
        self.next_look_at_expired = 0.0

    def run(self, stopping: Event) -> None:
        """Works until it is told to stop, and waits for a Redis that is gone."""
        # In a thread, because one call of the model may take longer than the lease.
        Thread(target=self.keep_leases, daemon=True).start()
        log.info("%s works", self.name)
        has_group = False
        while not stopping.is_set():
            if self.settings.alive_file:
                self.settings.alive_file.touch()
            try:
                if not has_group:
                    self.join()
                    has_group = True
                self.work()
            except RedisError as error:
                # A Redis that has lost its data has lost the group with it.
                has_group = has_group and "NOGROUP" not in str(error)
                log.warning("no work for %.1f s, Redis says: %s", PAUSE_SECONDS, error)
                stopping.wait(PAUSE_SECONDS)
        if self.settings.alive_file:
            # A probe of the next worker must not find what this one has left behind.
            self.settings.alive_file.unlink(missing_ok=True)
        log.info("%s has finished what it held, and stops", self.name)
        with suppress(RedisError):
            jobs.forget_consumers(self.redis, self.name, 10 * self.settings.lease_seconds)

    def join(self) -> None:
        """Creates the group, which a Redis without its data has lost, and clears it of the dead."""
        jobs.create_group(self.redis)
        jobs.forget_consumers(self.redis, self.name, 10 * self.settings.lease_seconds)

    def work(self) -> None:
        """Takes jobs, has them predicted in one call of the model, and finishes them at once."""
        deliveries = self.take()
        if not deliveries:
            return
        self.held = [delivery.entry for delivery in deliveries]
        try:
            outcomes = self.outcomes_of(deliveries)
            finished = jobs.finish(self.redis, outcomes, self.settings.result_ttl_seconds)
        finally:
            self.held = []
        for outcome in outcomes:
            if outcome.status == "failed":
                log.warning("%s", outcome.content)
        if finished < len(outcomes):
            log.warning("%d jobs had been finished by others", len(outcomes) - finished)

    def take(self) -> list[Delivery]:
        """Takes one job that a worker has left behind, otherwise new ones.

        What was left behind comes alone: if it kills this worker too, it harms no other job.
        """
        lease_seconds = self.settings.lease_seconds
        if time.monotonic() >= self.next_look_at_expired:
            expired = jobs.take_expired(
                self.redis, self.name, lease_seconds, self.settings.max_deliveries
            )
            if expired:
                return [expired]
            self.next_look_at_expired = time.monotonic() + lease_seconds / 4
        wait_seconds = min(WAIT_SECONDS, lease_seconds / 4)
        return jobs.take_new(self.redis, self.name, self.settings.batch_jobs, wait_seconds)

    def outcomes_of(self, deliveries: list[Delivery]) -> list[Outcome]:
        """Decides what becomes of each delivery."""
        outcomes, readable = [], []
        for delivery in deliveries:
            if delivery.number > self.settings.max_deliveries:
                reason = f"given up after {self.settings.max_deliveries} deliveries"
                outcomes.append(failed(delivery, reason))
                continue
            try:
                readable.append(Job(delivery, rows_of(delivery)))
            except Exception as error:
                # An entry can be wrong in any number of ways, none of which may end the worker.
                outcomes.append(failed(delivery, f"the job cannot be read: {error}"))
        return outcomes + self.predict(readable)

    def predict(self, batch: list[Job]) -> list[Outcome]:
        """Gives the rows of all jobs to the model in one call; if it fails, those of each job."""
        if not batch:
            return []
        try:
            probabilities = self.model.predict([row for job in batch for row in job.rows])
        except Exception as error:
            # ONNX Runtime has a class of its own for each way in which a model can fail.
            if len(batch) > 1:
                return [outcome for job in batch for outcome in self.predict([job])]
            log.exception("the model fails")
            return [failed(batch[0].delivery, f"the model fails: {type(error).__name__}")]
        ends = np.cumsum([len(job.rows) for job in batch])[:-1]
        return [
            self.answer(job.delivery, part)
            for job, part in zip(batch, np.split(probabilities, ends), strict=True)
        ]

    def answer(self, delivery: Delivery, probabilities: np.ndarray) -> Outcome:
        """Makes the outcome of a job: probabilities or, where these were asked for, labels."""
        if not np.isfinite(probabilities).all():
            return failed(delivery, "the model has no answer to these numbers")
        prediction: list[Any] = probabilities.tolist()
        if delivery.text("kind") == "label":
            prediction = [self.model.labels[index] for index in probabilities.argmax(axis=1)]
        return outcome_of(delivery, "done", prediction=prediction)

    def keep_leases(self) -> None:
        """Renews the leases of the jobs under way, for as long as the process lives."""
        while True:
            time.sleep(self.settings.lease_seconds / 3)
            try:
                if held := self.held:
                    jobs.keep(self.redis, self.name, held)
            except RedisError as error:
                log.warning("leases were not renewed: %s", error)


def rows_of(delivery: Delivery) -> list[list[float]]:
    """Reads the rows of a delivery, and checks them: a queue may hold what no API has put there.

    Raises:
        ValueError: it does not hold rows that the model takes.
    """
    rows: list[list[float]] = json.loads(delivery.text("rows"))
    values = np.asarray(rows, dtype=np.float32)
    # A comparison with NaN is false, so this finds it too.
    between = (values >= LOWEST) & (values <= HIGHEST)
    if values.ndim != 2 or values.shape[1] != FEATURES or not between.all():
        raise ValueError(f"not rows of {FEATURES} numbers from {LOWEST:g} to {HIGHEST:g}")
    return rows


def outcome_of(delivery: Delivery, status: str, **content: Any) -> Outcome:
    """Makes an outcome whose content is the answer of `GET /job/{job_id}`."""
    answer = {"job_id": delivery.text("job"), "status": status, **content}
    return Outcome(delivery, status, jobs.compact(answer))


def failed(delivery: Delivery, reason: str) -> Outcome:
    """Makes the outcome of a job that nobody tries again."""
    return outcome_of(delivery, "failed", reason=reason)


def run(settings: Settings, model: Model) -> None:
    """Works until SIGTERM; then finishes what is under way."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stopping = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    Worker(settings, model).run(stopping)


def main() -> None:
    settings = Settings()
    try:
        model = Model(settings.model_directory, FEATURES)
    except ModelError as error:
        sys.exit(f"error: {error}")
    run(settings, model)


if __name__ == "__main__":
    main()
