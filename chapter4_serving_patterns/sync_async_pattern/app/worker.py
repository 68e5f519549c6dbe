# Copied from chapter4_serving_patterns/asynchronous_pattern/app/worker.py
"""A worker takes jobs off the queue in batches, and stores the predictions of the model."""

import json
import logging
import os
import signal
import socket
import sys
import time
from collections import Counter
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
from .model import Model, ModelError, NoAnswerError
from .schema import FEATURES, HIGHEST, LOWEST
from .settings import Settings

log = logging.getLogger("worker")

# The longest wait for new jobs before the worker checks for expired ones and for SIGTERM.
WAIT_SECONDS = 1.0
SOCKET_TIMEOUT_SECONDS = 2.0
PAUSE_SECONDS = 1.0
LOG_SECONDS = 1.0


class Job(NamedTuple):
    """A delivery whose rows have been read."""

    delivery: Delivery
    rows: list[list[float]]


class Worker:
    """Holds the connection to Redis, the model, and the entries of the current batch."""

    def __init__(self, settings: Settings, model: Model) -> None:
        self.settings = settings
        self.model = model
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex}"
        # A command is retried for a second and a half. Redis restarts in less, so predictions are
        # not thrown away.
        self.redis = Redis.from_url(
            settings.redis_url,
            socket_timeout=SOCKET_TIMEOUT_SECONDS,
            socket_connect_timeout=SOCKET_TIMEOUT_SECONDS,
            retry=Retry(ExponentialBackoff(base=0.05, cap=1), retries=5),
        )
        self.held: list[bytes] = []
        self.next_look_at_expired = 0.0
        # What was done since the last line of the log.
        self.counts: Counter[str] = Counter()
        self.next_log = 0.0

    def run(self, stopping: Event) -> None:
        """Works until `stopping` is set, and waits while Redis is down."""
        # In a thread, because a call of the model may take longer than the lease.
        Thread(target=self.keep_leases, daemon=True).start()
        log.info("%s has started", self.name)
        has_group = has_leftovers = False
        while not stopping.is_set():
            if self.settings.alive_file:
                self.settings.alive_file.touch()
            try:
                if not has_group:
                    self.join()
                    has_group = True
                if has_leftovers and self.give_back():
                    stopping.wait(PAUSE_SECONDS)
                has_leftovers = True
                self.work()
                has_leftovers = bool(self.held)
                if time.monotonic() >= self.next_log:
                    self.log_counts()
            except RedisError as error:
                # If Redis has lost its data, the group is lost too.
                has_group = has_group and "NOGROUP" not in str(error)
                log.warning("Redis error, retrying in %.1f s: %s", PAUSE_SECONDS, error)
                stopping.wait(PAUSE_SECONDS)
            except MemoryError as error:
                log.warning("short of memory, retrying in %.1f s: %r", PAUSE_SECONDS, error)
                stopping.wait(PAUSE_SECONDS)
        if self.settings.alive_file:
            # A probe of the next worker must not find the file of this one.
            self.settings.alive_file.unlink(missing_ok=True)
        self.log_counts()
        log.info("%s has finished its last batch, and stops", self.name)
        with suppress(RedisError):
            self.give_back()
            jobs.forget_consumers(self.redis, self.name, 10 * self.settings.lease_seconds)

    def join(self) -> None:
        """Creates the group if it is missing, and removes dead consumers from it."""
        jobs.create_group(self.redis)
        jobs.forget_consumers(self.redis, self.name, 10 * self.settings.lease_seconds)

    def log_counts(self) -> None:
        """Logs what was done since the last time; nothing if that is nothing."""
        if self.counts:
            counts = [self.counts[name] for name in ("batches", "jobs", "failed")]
            log.info("batches: %d, jobs: %d, failed: %d", *counts)
            self.counts.clear()
            self.next_log = time.monotonic() + LOG_SECONDS

    def work(self) -> None:
        """Takes jobs, predicts them in one call and finishes them in one transaction.

        Jobs without an outcome stay in `held`: their worker failed, not they.
        """
        deliveries = self.take()
        if not deliveries:
            return
        self.held = [delivery.entry for delivery in deliveries]
        outcomes = self.outcomes_of(deliveries)
        limits = self.settings.result_ttl_seconds, self.settings.max_result_bytes
        finished = jobs.finish(self.redis, outcomes, *limits)
        done = {outcome.delivery.entry for outcome in outcomes}
        self.held = [entry for entry in self.held if entry not in done]
        failures = [outcome for outcome in outcomes if outcome.status == "failed"]
        self.counts.update(batches=1, jobs=len(outcomes), failed=len(failures))
        for outcome in failures:
            log.warning("%s", outcome.content)
        if finished < len(outcomes):
            log.warning("%d jobs were already finished by others", len(outcomes) - finished)

    def give_back(self) -> int:
        """Returns unfinished jobs to the queue, as if they had not been delivered."""
        self.held = []
        given_back = jobs.give_back(self.redis, self.name, self.settings.lease_seconds)
        if given_back:
            log.warning("%d jobs were given back to the queue", given_back)
        return given_back

    def take(self) -> list[Delivery]:
        """Takes one expired job if there is one, otherwise new jobs.

        An expired job is taken alone: if it kills this worker too, it harms no other job.
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
        """Determines the outcome of each delivery."""
        outcomes, readable = [], []
        for delivery in deliveries:
            if delivery.number > self.settings.max_deliveries:
                reason = f"given up after {self.settings.max_deliveries} deliveries"
                outcomes.append(failed(delivery, reason))
                continue
            try:
                readable.append(Job(delivery, rows_of(delivery)))
            except MemoryError:
                raise
            except Exception as error:
                # An entry can be malformed in many ways, and none of them may end the worker.
                outcomes.append(failed(delivery, f"the job cannot be read: {error}"))
        return outcomes + self.predict(readable)

    def predict(self, batch: list[Job]) -> list[Outcome]:
        """Predicts all jobs in one call of the model; if that fails, one job at a time.

        A job has no outcome if the model failed for another reason than the job itself.
        """
        if not batch:
            return []
        try:
            probabilities = self.model.predict([row for job in batch for row in job.rows])
        except Exception as error:
            # ONNX Runtime raises a different class for each way in which a model can fail.
            if len(batch) > 1:
                return [outcome for job in batch for outcome in self.predict([job])]
            if isinstance(error, NoAnswerError):
                return [failed(batch[0].delivery, str(error))]
            if not self.is_cause(batch[0], error):
                log.warning("the model failed, but not because of the job: %r", error)
                return []
            log.exception("the model failed")
            return [failed(batch[0].delivery, f"the model failed: {type(error).__name__}")]
        ends = np.cumsum([len(job.rows) for job in batch])[:-1]
        return [
            self.answer(job.delivery, part)
            for job, part in zip(batch, np.split(probabilities, ends), strict=True)
        ]

    def is_cause(self, job: Job, error: Exception) -> bool:
        """Tells whether the job made the model fail: then a sample of the same size does not."""
        # NumPy raises MemoryError. ONNX Runtime has no class for it, only its text.
        if isinstance(error, MemoryError) or "alloc" in str(error):
            return False
        try:
            self.model.predict(self.model.sample[:1] * len(job.rows))
        except Exception:
            return False
        return True

    def answer(self, delivery: Delivery, probabilities: np.ndarray) -> Outcome:
        """Returns the outcome of a job: its probabilities, or its labels if it asked for these."""
        # Results take a third of the memory with six decimals.
        prediction: list[Any] = probabilities.astype(float).round(6).tolist()
        if delivery.text("kind") == "label":
            prediction = [self.model.labels[index] for index in probabilities.argmax(axis=1)]
        return outcome_of(delivery, "done", prediction=prediction)

    def keep_leases(self) -> None:
        """Renews the leases of the current batch, as long as the process lives."""
        while True:
            time.sleep(self.settings.lease_seconds / 3)
            try:
                if held := self.held:
                    jobs.keep(self.redis, self.name, held)
            except RedisError as error:
                log.warning("leases could not be renewed: %s", error)


def rows_of(delivery: Delivery) -> list[list[float]]:
    """Reads and checks the rows of a delivery: others than the API may write to the queue.

    Raises:
        ValueError: the rows are not valid.
    """
    rows: list[list[float]] = json.loads(delivery.text("rows"))
    values = np.asarray(rows, dtype=np.float32)
    # Comparisons with NaN are false, so NaN is refused too.
    between = (values >= LOWEST) & (values <= HIGHEST)
    if values.ndim != 2 or values.shape[1] != FEATURES or not between.all():
        raise ValueError(f"expected rows of {FEATURES} numbers from {LOWEST:g} to {HIGHEST:g}")
    return rows


def outcome_of(delivery: Delivery, status: str, **content: Any) -> Outcome:
    """Returns an outcome whose content is the response of `GET /job/{job_id}`."""
    answer = {"job_id": delivery.text("job"), "status": status, **content}
    return Outcome(delivery, status, jobs.compact(answer))


def failed(delivery: Delivery, reason: str) -> Outcome:
    """Returns the outcome of a job that is not tried again."""
    return outcome_of(delivery, "failed", reason=reason)


def run(settings: Settings, model: Model) -> None:
    """Works until SIGTERM, then finishes the current batch."""
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
