"""The exact counts, with each mechanism and without it."""

from collections import Counter
from contextlib import ExitStack
from itertools import pairwise
from time import time_ns
from typing import NamedTuple

import numpy as np

from tools.measure.load import Run
from tools.measure.server import Server, wait_until
from tools.measure.spans import Receiver, Span, receiving
from tools.mesh.proxy import fetch

from ..train.stages import READERS
from .processes import (
    PATIENT,
    Known,
    Services,
    answers_in,
    bodies_of,
    in_one_process,
    run_proxy,
    run_services,
    send,
    traced_by,
    urls_of,
)

Counts = dict[str, int]
ROWS_A_REQUEST = 40
# The order of the stages; a row takes one of the readers.
RANKS = {"orientation": 0, "upright": 1, "turned": 1, "second": 2}
BAD_BODIES = (b"", b"{}", b'{"data": []}', b'{"data": [[1, 2, 3]]}', b'{"data": [[1, 2, 3, NaN]]}')


class Asked(NamedTuple):
    """What has become of requests of a row each: their spans by trace, in order of their start."""

    run: Run
    traces: list[list[Span]]

    @property
    def of_stage(self) -> Counter[str]:
        """How many rows each service has been asked for."""
        return Counter(span.service for spans in self.traces for span in spans)

    @property
    def of_readers(self) -> int:
        return sum(self.of_stage[reader] for reader in READERS)

    @property
    def in_order(self) -> int:
        return sum(map(is_in_order, self.traces))


def calls_of(services: Services) -> Counter[str]:
    return Counter({name: fetch(f"{server.url}/calls") for name, server in services.items()})


def count_as_in_one_process(proxy: Server, rows: np.ndarray, known: Known) -> int:
    """Counts the rows with the same stages and probabilities as in one process."""
    same = 0
    answers = answers_in(send(proxy, bodies_of(rows, ROWS_A_REQUEST)))
    predictions = [row for answer in answers for row in answer["prediction"]]
    stages = [taken for answer in answers for taken in answer["stages"]]
    for found, expected, taken, path in zip(
        predictions, known.prediction, stages, known.stages, strict=True
    ):
        same += taken == path and bool(np.abs(found - expected).max() <= 1e-5)
    return same


def ask_rows(
    proxy: Server, services: Services, receiver: Receiver, rows: np.ndarray, callers: int = 8
) -> Asked:
    """Sends a row a request, and waits until there is a span of each request and of each call."""
    before, began_ns = calls_of(services), time_ns()
    run = send(proxy, bodies_of(rows), callers)
    made = calls_of(services) - before + Counter(proxy=run.sent)

    def asked() -> Asked:
        of_requests = [
            [span for span in spans if span.name.endswith("/predict")]
            for spans in receiver.traces().values()
            if spans[0].start_ns >= began_ns
        ]
        return Asked(run, [spans for spans in of_requests if spans])

    wait_until(lambda: asked().of_stage == made, "all spans")
    return asked()


def stages_of(trace: list[Span]) -> list[Span]:
    return [span for span in trace if span.service in RANKS]


def is_in_order(trace: list[Span]) -> bool:
    """Tells whether each stage began after the end of the one before."""
    spans = stages_of(trace)
    return len(spans) > 1 and all(
        RANKS[one.service] < RANKS[other.service] and one.end_ns <= other.start_ns
        for one, other in pairwise(spans)
    )


def count_bad(proxy: Server, services: Services, requests: int) -> int:
    """Counts the calls of the stages for requests that are refused."""
    before = calls_of(services)
    send(proxy, [*BAD_BODIES] * (requests // len(BAD_BODIES)))
    return (calls_of(services) - before).total()


def count_without_second(proxy: Server, rows: np.ndarray) -> tuple[int, int]:
    """Counts the rows with an answer, and those with a whole one, a row a request."""
    answers = answers_in(send(proxy, bodies_of(rows)))
    answered = [answer for answer in answers if answer["prediction"] != [None]]
    return len(answered), sum("missing" not in answer for answer in answered)


def count_all(rows: np.ndarray, bad: int) -> tuple[Counts, Counts]:
    """Returns all counts, and the same without the mechanism."""
    known = in_one_process(rows)
    with ExitStack() as stack:
        receiver = stack.enter_context(receiving())
        variables = traced_by(receiver) | PATIENT
        services = stack.enter_context(run_services(traced_by(receiver)))
        proxy = stack.enter_context(run_proxy(urls_of(services), variables))
        without = stack.enter_context(run_proxy(urls_of(services), variables, control=True))

        def switch_to(name: str) -> None:
            fetch(f"{without.url}/control/{name}", "POST")

        asked = ask_rows(proxy, services, receiver, rows)
        counts = {
            "rows_as_in_one_process": count_as_in_one_process(proxy, rows, known),
            "asked_orientation": asked.of_stage["orientation"],
            "asked_upright_or_turned": asked.of_readers,
            "asked_second": asked.of_stage["second"],
            "stages_in_order": asked.in_order,
            "calls_for_bad_requests": count_bad(proxy, services, bad),
        }
        switch_to("at_once")
        asked = ask_rows(without, services, receiver, rows)
        control = {
            "rows_as_in_one_process": count_as_in_one_process(without, rows, known),
            "asked_upright_or_turned": asked.of_readers,
            "stages_in_order": asked.in_order,
        }
        switch_to("always_second")
        asked = ask_rows(without, services, receiver, rows)
        control["asked_second"] = asked.of_stage["second"]
        switch_to("never_second")
        asked = ask_rows(without, services, receiver, rows)
        counts["asked_second_with_threshold_0"] = asked.of_stage["second"]
        switch_to("raises")
        services["second"].kill()
        answered, whole = count_without_second(proxy, rows)
        counts |= {"answered_without_second": answered, "whole_without_second": whole}
        control["answered_without_second"], _ = count_without_second(without, rows)
    return counts, control
