"""The exact counts, with each mechanism and without it."""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from time import time_ns

from sklearn.datasets import load_iris

from tools.measure.server import Server, suspended, wait_until
from tools.measure.spans import Receiver, Span, all_overlap, receiving
from tools.mesh.proxy import fetch

from ..proxy.calls import Reply
from ..proxy.fan_out import labels_of
from ..train.iris import LABELS
from .baselines import best_of_the_rest
from .processes import (
    PATIENT,
    Services,
    answers_in,
    run_all,
    run_proxy,
    run_services,
    send,
    traced_by,
    urls_of,
)

Counts = dict[str, int]
# Longer than any two services are apart, however busy the machine is.
WAIT_MS = 250
AT_ONCE = 32
# Of a request: the proxy's, and one of each service.
SPANS = 4
DEADLINE_SECONDS = 0.5
CONTROLS = ("in_sequence", "gathered", "sent_at_once")
HUNG = "virginica"
BAD_BODIES = (b"", b"{}", b'{"data": []}', b'{"data": [[1, 2, 3]]}', b'{"data": [[1, 2, 3, NaN]]}')


def calls_of(services: Services) -> Counts:
    return {name: fetch(f"{server.url}/calls") for name, server in services.items()}


def count_calls(proxy: Server, services: Services, requests: int) -> Counts:
    """Counts the calls of the services for requests, good and bad ones."""
    before = calls_of(services)
    send(f"{proxy.url}/predict", requests)
    after = calls_of(services)
    made = [after[name] - before[name] for name in services]
    for body in BAD_BODIES:
        send(f"{proxy.url}/predict", requests // len(BAD_BODIES), body=body)
    for_bad = sum(calls_of(services).values()) - sum(after.values())
    return {
        "calls": sum(made),
        "most_calls_of_a_service": max(made),
        "calls_for_bad_requests": for_bad,
    }


def count_overlapping(
    proxy: Server, services: Services, receiver: Receiver, requests: int
) -> tuple[int, list[Span]]:
    """Counts the requests whose three services worked at the same time; returns one's spans."""
    began_ns = time_ns()

    def traces() -> list[list[Span]]:
        found = receiver.traces().values()
        return [spans for spans in found if spans[0].start_ns >= began_ns]

    send(f"{proxy.url}/predict", requests, callers=AT_ONCE)
    wait_until(lambda: sum(map(len, traces())) >= requests * SPANS, "all spans")
    of_services = [[span for span in spans if span.service in services] for spans in traces()]
    whole = [spans for spans in of_services if len(spans) == len(services)]
    return sum(map(all_overlap, whole)), traces()[-1]


def count_answered(proxy: Server, requests: int, deadline_seconds: float) -> tuple[int, float]:
    """Counts the answers in time that say who is missing; returns how late they are, too."""
    run = send(f"{proxy.url}/predict", requests, AT_ONCE, deadline_seconds=deadline_seconds)
    partial = [HUNG in answer.get("missing", {}) for answer in answers_in(run)]
    return sum(partial), run.p99_ms - DEADLINE_SECONDS * 1000


def count_labels_that_differ(
    proxy: Server, labels: Callable[[Sequence[Reply]], list[str | None]] = labels_of
) -> int:
    """Counts the labels that a missing service changes into another one."""
    rows = load_iris().data.tolist()
    (answer,) = answers_in(send(f"{proxy.url}/predict", 1, 1, json.dumps({"data": rows}).encode()))
    whole = [Reply(name, answer[name]["prediction"], "", 0.0) for name in LABELS]
    expected = labels_of(whole)
    differ = 0
    for missing in LABELS:
        replies = [
            reply._replace(prediction=None) if reply.service == missing else reply
            for reply in whole
        ]
        pairs = zip(labels(replies), expected, strict=True)
        differ += sum(label not in (None, right) for label, right in pairs)
    return differ


def count_failed(proxy: Server, requests: int, deadline_seconds: float = 30) -> int:
    run = send(f"{proxy.url}/predict", requests, AT_ONCE, deadline_seconds=deadline_seconds)
    return run.sent - run.statuses[200]


def count_all(requests: int, missing: int, margin_seconds: float) -> tuple[Counts, Counts, float]:
    """Returns all counts, the same without the mechanism, and by how much answers are late."""
    with ExitStack() as stack:
        receiver = stack.enter_context(receiving())
        traced = traced_by(receiver)
        services = stack.enter_context(run_services(variables=traced))
        arms = {"proxy": "", "patient": "", **{arm: arm for arm in CONTROLS}}
        proxies = {
            name: run_proxy(
                urls_of(services), arm, {**traced, **({} if name == "proxy" else PATIENT)}
            )
            for name, arm in arms.items()
        }
        proxy, patient, in_sequence, gathered, sent_at_once = stack.enter_context(
            run_all(proxies)
        ).values()
        counts = count_calls(patient, services, requests)
        counts["labels_that_differ"] = count_labels_that_differ(patient)
        control = {"labels_that_differ": count_labels_that_differ(patient, best_of_the_rest)}
        for server in services.values():
            fetch(f"{server.url}/wait/{WAIT_MS}", "POST")
        counts["overlapping"], _ = count_overlapping(patient, services, receiver, requests)
        control["overlapping"], _ = count_overlapping(in_sequence, services, receiver, AT_ONCE)
        for server in services.values():
            fetch(f"{server.url}/wait/0", "POST")
        with receiver.hanging():
            counts["failed_while_traces_hang"] = count_failed(patient, missing)
            # The first request takes as long as the receiver: two seconds.
            control["failed_while_traces_hang"] = count_failed(sent_at_once, AT_ONCE, 1.0)
        with suspended(services[HUNG]):
            counts["answered_in_time_one_hung"], late_ms = count_answered(
                proxy, missing, DEADLINE_SECONDS + margin_seconds
            )
            control["answered_in_time_one_hung"], _ = count_answered(gathered, AT_ONCE, 1.0)
        services[HUNG].kill()
        counts["answered_one_killed"], _ = count_answered(proxy, missing, 60)
        control["answered_one_killed"], _ = count_answered(gathered, missing, 60)
    return counts, control, late_ms
