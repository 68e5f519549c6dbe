"""Spans are received as programs send them: OTLP over HTTP."""

from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.trace import Tracer

from tools.measure.spans import Receiver, Span, all_overlap, receiving


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


@pytest.fixture
def exporter(receiver: Receiver) -> Iterator[OTLPSpanExporter]:
    sending = OTLPSpanExporter(f"{receiver.url}/v1/traces", timeout=0.2)
    yield sending
    sending.shutdown()


def tracer(exporter: OTLPSpanExporter, service: str) -> Tracer:
    provider = TracerProvider(resource=Resource({"service.name": service}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider.get_tracer("test")


def test_spans_of_several_services_arrive_with_all_that_is_known_of_them(
    receiver: Receiver, exporter: OTLPSpanExporter
) -> None:
    proxy, model = tracer(exporter, "proxy"), tracer(exporter, "model")
    with (
        proxy.start_as_current_span("fan-out"),
        model.start_as_current_span(
            "predict", attributes={"rows": 3, "label": "a", "late": False, "share": 0.5}
        ),
    ):
        pass
    inner, outer = receiver.wait_for(2)
    assert (outer.service, outer.name, outer.parent_id) == ("proxy", "fan-out", "")
    assert (inner.service, inner.name, inner.parent_id) == ("model", "predict", outer.span_id)
    assert inner.attributes == {"rows": 3, "label": "a", "late": False, "share": 0.5}
    assert 0 <= inner.seconds <= outer.seconds
    assert receiver.traces() == {outer.trace_id: [outer, inner]}
    assert inner.overlaps(outer)


def test_spans_overlap_if_there_is_a_time_at_which_both_are_under_way() -> None:
    first = Span("a", "a", "1", "1", "", start_ns=0, end_ns=10, attributes={})
    second, third = (replace(first, start_ns=5, end_ns=15), replace(first, start_ns=10, end_ns=20))
    assert first.overlaps(second)
    assert second.overlaps(third)
    assert not first.overlaps(third)
    assert all_overlap([first, second])
    assert not all_overlap([first, second, third])


def test_a_receiver_that_hangs_takes_requests_and_answers_none(
    receiver: Receiver, exporter: OTLPSpanExporter
) -> None:
    with receiver.hanging():
        assert exporter.export([]) is SpanExportResult.FAILURE
        assert (receiver.requests, receiver.spans) == (1, [])
    assert exporter.export([]) is SpanExportResult.SUCCESS


@pytest.mark.parametrize(
    ("path", "body", "status"), [("/v1/traces", b"no spans", 400), ("/v1/metrics", b"", 404)]
)
def test_anything_else_is_refused(receiver: Receiver, path: str, body: bytes, status: int) -> None:
    assert httpx.post(f"{receiver.url}{path}", content=body).status_code == status
    assert receiver.spans == []
