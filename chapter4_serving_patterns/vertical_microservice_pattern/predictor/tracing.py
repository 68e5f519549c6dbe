# Copied from chapter4_serving_patterns/horizontal_microservice_pattern/proxy/tracing.py
"""Sends a span of each request to `OTEL_EXPORTER_OTLP_ENDPOINT`; without one, it does nothing.

OpenTelemetry itself reads the other variables, such as the share of the requests to trace.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Tracer, use_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .guard import EXEMPT

# For a collector that hangs: of the spans that wait in memory, it then costs the oldest.
TIMEOUT_SECONDS = 2.0
MAX_BATCH = 1_024
MAX_NAME = 100

propagator = TraceContextTextMapPropagator()
tracer: Tracer | None = None
# The beginning of each name, because MLflow's page does not show what a resource is called.
name_of_service = ""


@contextmanager
def set_up(service: str) -> Iterator[None]:
    """Sends the spans of this process until the end of the block, and then those that are left."""
    global name_of_service, tracer
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        yield
        return
    resource = Resource.create({"service.name": service})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    # A thread of its own sends them, so that no request waits for the collector.
    exporter = OTLPSpanExporter(timeout=TIMEOUT_SECONDS)
    provider.add_span_processor(BatchSpanProcessor(exporter, max_export_batch_size=MAX_BATCH))
    name_of_service, tracer = service, provider.get_tracer(__name__)
    try:
        yield
    finally:
        tracer = None
        provider.shutdown()


@contextmanager
def span(name: str, headers: Mapping[str, str]) -> Iterator[Span | None]:
    """Opens a span below that of the caller, which its headers name; None without a collector."""
    if tracer is None:
        yield None
        return
    current = tracer.start_span(name, propagator.extract(headers), SpanKind.SERVER)
    try:
        with use_span(current):
            yield current
    finally:
        if current.is_recording():
            current.end()


def headers() -> dict[str, str]:
    """Returns the headers that put the span of a service below the current one."""
    found: dict[str, str] = {}
    if tracer is not None:
        propagator.inject(found)
    return found


class Traced:
    """An ASGI application with a span of each request, whose trace id is in the response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Probes of Kubernetes get no span: they would hide the requests."""
        if tracer is None or scope["type"] != "http" or scope["path"] in EXEMPT:
            await self.app(scope, receive, send)
            return
        name = f"{name_of_service} {scope['path']}"[:MAX_NAME]
        with span(name, Headers(scope=scope)) as current:
            # Of a request that is not sampled, the services have to know that it is not.
            if current is None or not current.is_recording():
                await self.app(scope, receive, send)
                return

            async def send_and_end(message: Message) -> None:
                if message["type"] == "http.response.start":
                    current.set_attribute("http.response.status_code", message["status"])
                    trace_id = f"{current.get_span_context().trace_id:032x}".encode()
                    message["headers"] = [*message["headers"], (b"x-trace-id", trace_id)]
                elif not message.get("more_body"):
                    # Before the caller has the whole response, and goes on.
                    current.end()
                await send(message)

            await self.app(scope, receive, send_and_end)
