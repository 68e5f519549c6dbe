"""Counts what Prometheus scrapes: requests, predictions, outliers, durations and the model."""

from functools import cache
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from .log import Log
from .refusals import LoggedProtocol

REQUESTS = Counter("http_requests", "Responses", ["path", "status"])
SECONDS = Histogram(
    "prediction_seconds",
    "From the request to its record",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
PREDICTIONS = Counter("predictions", "Predicted rows of callers", ["label"])
OUTLIERS = Counter("outliers", "Rows of callers that are outliers")
MODEL = Gauge("model_info", "The model of this process", ["name", "version", "sha256"])


# Finding a counter by its labels takes four times as long as counting.
@cache
def responses(path: str, status: int) -> Counter:
    return REQUESTS.labels(path, status)


@cache
def predictions(label: str) -> Counter:
    return PREDICTIONS.labels(label)


class CountRequests:
    """Counts the responses of an application by the path of the route and the status."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def count_and_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                # Callers can invent paths, but not routes.
                path = getattr(scope.get("route"), "path", "")
                responses(path, message["status"]).inc()
            await send(message)

        await self.app(scope, receive, count_and_send)


class CountedProtocol(LoggedProtocol):
    """Counts what the guard refuses before the application sees it."""

    def refuse(self, status: int, detail: str, cycle: RequestResponseCycle | None) -> None:
        responses("", status).inc()
        super().refuse(status, detail, cycle)


class CountedLog(Log):
    """Counts the predictions that it writes; one of a sample stands for those that are left out."""

    def append(self, kind: str, record_id: str, **fields: Any) -> bool:
        if kind == "prediction" and "test" not in fields:
            weight = 1 / fields["share"]
            for label in fields["label"]:
                predictions(label).inc(weight)
            OUTLIERS.inc(sum(fields["is_outlier"]) * weight)
            SECONDS.observe(fields["ms"] / 1000)
        return super().append(kind, record_id, **fields)
