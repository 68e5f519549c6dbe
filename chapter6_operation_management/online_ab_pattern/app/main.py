"""Each user stays with one version, and events decide by a test whose size was fixed beforehand."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any, NamedTuple

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from .arm import ArmLog
from .docs import add_docs
from .guard import count_refusal
from .log import version_of
from .model import Model, NoAnswerError
from .refusals import LoggedProtocol, LogRefusals
from .route import JsonRoute, refuse_invalid
from .schema import (
    FEATURES,
    REFUSALS,
    UNAVAILABLE,
    Event,
    Labels,
    PredictRequest,
    Probabilities,
    Written,
)
from .settings import Settings
from .user import PARAMETER, user_of

settings = Settings()
OF_USER = {"parameters": [PARAMETER]}


class Predicted(NamedTuple):
    """What the model says about each row."""

    prediction: list[list[float]]
    label: list[str]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads the model and opens the log before the port opens."""
    model = Model(settings.model_directory, FEATURES)
    app.state.model = model
    app.state.log = LoggedProtocol.log = ArmLog(settings, version_of(model.metadata))
    yield
    app.state.log.close()


app = FastAPI(
    title="online_ab_pattern",
    description=__doc__,
    version="0.1.0",
    lifespan=lifespan,
    docs_url=None,
    redoc_url=None,
    # Without this, FastAPI looks for a tracer on every request.
    telemetry={"tracing": False, "metrics": False, "logs": False},
)
app.router.route_class = JsonRoute
app.exception_handler(RequestValidationError)(refuse_invalid)
add_docs(app)


@app.exception_handler(NoAnswerError)
async def refuse_unanswerable(_: Request, error: Exception) -> JSONResponse:
    """Rejects rows for which the model computes NaN or infinity."""
    count_refusal(422, "the model has no finite answer")
    return JSONResponse({"detail": str(error)}, 422)


def model_of(request: Request) -> Model:
    """Returns the model that the lifespan loaded."""
    model: Model = request.app.state.model
    return model


def predict_and_log(request: Request, rows: list[list[float]], **marks: Any) -> Predicted:
    """Predicts rows, and writes the record before anybody gets the answer."""
    model, scope = model_of(request), request.scope
    probabilities = model.predict(rows)
    labels = [model.labels[index] for index in probabilities.argmax(axis=1)]
    predicted = Predicted(probabilities.tolist(), labels)
    request.app.state.log.append(
        "prediction",
        scope["job_id"],
        path=scope["path"],
        **marks,
        ms=round((perf_counter() - scope["began"]) * 1000, 3),
        data=rows,
        **predicted._asdict(),
    )
    return predicted


def origin_of(request: Request) -> dict[str, str]:
    """Returns what an answer says of itself: its ID, and the model that it is from."""
    return {"job_id": request.scope["job_id"], "mode": model_of(request).metadata["name"]}


def probabilities_of(request: Request, predicted: Predicted) -> Probabilities:
    return Probabilities(prediction=predicted.prediction, **origin_of(request))


def labels_of(request: Request, predicted: Predicted) -> Labels:
    return Labels(prediction=predicted.label, **origin_of(request))


@app.post("/predict", tags=["prediction"], responses=REFUSALS, openapi_extra=OF_USER)
async def predict(request: Request, body: PredictRequest) -> Probabilities:
    """Predicts the probabilities of every row."""
    return probabilities_of(request, predict_and_log(request, body.data, user=user_of(request)))


@app.post("/predict/label", tags=["prediction"], responses=REFUSALS, openapi_extra=OF_USER)
async def predict_label(request: Request, body: PredictRequest) -> Labels:
    """Predicts the label of every row."""
    return labels_of(request, predict_and_log(request, body.data, user=user_of(request)))


@app.post(
    "/event",
    tags=["event"],
    status_code=202,
    responses=REFUSALS,
    openapi_extra={"parameters": [PARAMETER | {"required": True}]},
)
async def event(request: Request, body: Event) -> Written:
    """Logs what came of a prediction, even if its ID is not known."""
    fields = body.model_dump(exclude={"job_id"}) | {"user": user_of(request, is_required=True)}
    if not request.app.state.log.append("event", body.job_id, **fields):
        # The log has counted the event that it has dropped, so the refusal needs no record.
        request.scope["is_counted"] = True
        count_refusal(503, "the log is full")
        raise HTTPException(503, "the log is full", {"retry-after": "1"})
    return Written(job_id=body.job_id, event_id=body.event_id)


@app.get("/predict/test", tags=["prediction"], responses=UNAVAILABLE)
async def predict_test(request: Request) -> Probabilities:
    """Predicts the sample row of the metadata."""
    predicted = predict_and_log(request, model_of(request).sample, test=True)
    return probabilities_of(request, predicted)


@app.get("/predict/test/label", tags=["prediction"], responses=UNAVAILABLE)
async def predict_test_label(request: Request) -> Labels:
    """Predicts the label of the sample row."""
    return labels_of(request, predict_and_log(request, model_of(request).sample, test=True))


@app.get("/health", tags=["health"])
async def health() -> dict[str, str]:
    """Reports that the process is alive."""
    return {"status": "ok", "health": "ok"}


@app.get("/ready", tags=["health"], responses=UNAVAILABLE)
async def ready(request: Request) -> dict[str, str]:
    """Reports that the model predicts; PostgreSQL is not needed for an answer."""
    model = model_of(request)
    model.predict(model.sample)
    return {"status": "ready"}


@app.get("/metadata", tags=["model"], responses=UNAVAILABLE)
async def metadata(request: Request) -> dict[str, Any]:
    """Describes the model: version, origin, input, output and metrics."""
    return model_of(request).metadata


@app.get("/label", tags=["model"], responses=UNAVAILABLE)
async def label(request: Request) -> dict[int, str]:
    """Returns the label of each index of a prediction."""
    return dict(enumerate(model_of(request).labels))


# Routes are tried in order, and FastAPI puts those of the documentation first.
app.router.routes.sort(key=lambda route: not isinstance(route, APIRoute))
# Around everything else, so that an answer to an unexpected error is logged too.
app.middleware_stack = LogRefusals(app.build_middleware_stack())
