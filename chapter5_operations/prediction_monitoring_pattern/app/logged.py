# Copied from chapter5_operations/prediction_log_pattern/app/main.py with _log_->_monitoring_
"""Every prediction is written down once, with input, model and outcome, whatever is killed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from .docs import add_docs
from .guard import count_refusal
from .log import Log, is_sampled, version_of
from .model import Model, NoAnswerError
from .outlier import OutlierModel
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

settings = Settings()


class NotLoggedError(Exception):
    """The log is full, and there must be no answer without a record."""


class Predicted(NamedTuple):
    """What the two models say about each row."""

    prediction: list[list[float]]
    label: list[str]
    is_outlier: list[bool]
    outlier_score: list[float]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads the models and opens the log before the port opens."""
    model = Model(settings.model_directory, FEATURES)
    outlier = OutlierModel(settings.outlier_model_directory, model.sample)
    (score,) = outlier.score(model.sample[:1]).tolist()
    model.metadata |= {
        "outlier_type": "bool,float32",
        "outlier_structure": "(1,2)",
        "outlier_sample": [score < settings.outlier_lower_threshold, score],
    }
    log = Log(settings.log_directory, settings.log_segment_bytes, settings.log_max_bytes)
    app.state.model, app.state.outlier, app.state.log = model, outlier, log
    app.state.version = version_of(model.metadata)
    LoggedProtocol.log = log
    yield
    log.close()


app = FastAPI(
    title="prediction_monitoring_pattern",
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


@app.exception_handler(NotLoggedError)
async def refuse_unlogged(request: Request, _: Exception) -> JSONResponse:
    """The log has counted the record that it has dropped, so the refusal needs none."""
    request.scope["is_counted"] = True
    detail = "the log is full"
    count_refusal(503, detail)
    return JSONResponse({"detail": detail}, 503, {"retry-after": "1"})


def model_of(request: Request) -> Model:
    """Returns the model that the lifespan loaded."""
    model: Model = request.app.state.model
    return model


def predict_and_log(request: Request, rows: list[list[float]], **marks: bool) -> Predicted:
    """Predicts rows, and writes the record before anybody gets the answer.

    Raises:
        NotLoggedError: the record does not fit, and the settings require it.
    """
    model, scope = model_of(request), request.scope
    probabilities = model.predict(rows)
    scores = request.app.state.outlier.score(rows)
    predicted = Predicted(
        probabilities.tolist(),
        [model.labels[index] for index in probabilities.argmax(axis=1)],
        (scores < settings.outlier_lower_threshold).tolist(),
        scores.tolist(),
    )
    share = 1.0 if any(predicted.is_outlier) else settings.log_sample
    if not is_sampled(scope["job_id"], share):
        return predicted
    is_written = request.app.state.log.append(
        "prediction",
        scope["job_id"],
        path=scope["path"],
        **marks,
        share=share,
        ms=round((perf_counter() - scope["began"]) * 1000, 3),
        model=request.app.state.version,
        data=rows,
        **predicted._asdict(),
    )
    if settings.log_required and not is_written:
        raise NotLoggedError
    return predicted


def probabilities_of(request: Request, predicted: Predicted) -> Probabilities:
    _, _, is_outlier, score = predicted
    return Probabilities(
        job_id=request.scope["job_id"],
        prediction=predicted.prediction,
        is_outlier=is_outlier,
        outlier_score=score,
    )


def labels_of(request: Request, predicted: Predicted) -> Labels:
    _, label, is_outlier, score = predicted
    job_id = request.scope["job_id"]
    return Labels(job_id=job_id, prediction=label, is_outlier=is_outlier, outlier_score=score)


@app.post("/predict", tags=["prediction"], responses=REFUSALS)
async def predict(request: Request, body: PredictRequest) -> Probabilities:
    """Predicts the probabilities of every row."""
    return probabilities_of(request, predict_and_log(request, body.data))


@app.post("/predict/label", tags=["prediction"], responses=REFUSALS)
async def predict_label(request: Request, body: PredictRequest) -> Labels:
    """Predicts the label of every row."""
    return labels_of(request, predict_and_log(request, body.data))


@app.post("/event", tags=["event"], status_code=202, responses=REFUSALS)
async def event(request: Request, body: Event) -> Written:
    """Logs what came of a prediction, even if its ID is not known."""
    fields = body.model_dump(exclude={"job_id"})
    if not request.app.state.log.append("event", body.job_id, **fields):
        raise NotLoggedError
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
    """Reports that the models predict; PostgreSQL is not needed for an answer."""
    model = model_of(request)
    model.predict(model.sample)
    request.app.state.outlier.score(model.sample)
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
