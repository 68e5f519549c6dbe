"""web_single_pattern: every row gets scikit-learn's prediction, and nothing invalid gets a 200."""

import asyncio
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel
from sklearn.datasets import load_iris

from chapter4_serving_patterns.web_single_pattern.app.route import JsonRoute
from chapter4_serving_patterns.web_single_pattern.app.schema import HIGHEST, LOWEST
from chapter4_serving_patterns.web_single_pattern.train.iris import load
from chapter4_serving_patterns.web_single_pattern.train.model import fit
from tests.bad_bodies import Rows, of_any_object, of_rows
from tools.measure.results import load as load_results
from tools.measure.server import Server, ServerError
from tools.measure.servers import run_uvicorn

ROOT = Path(__file__).resolve().parents[2]
PATTERN = ROOT / "chapter4_serving_patterns/web_single_pattern"
SAMPLE = [5.1, 3.5, 1.4, 0.2]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    train(directory)
    return directory


def train(directory: Path) -> None:
    command = [sys.executable, "-m", "train", "--output", str(directory)]
    subprocess.run(command, cwd=PATTERN, check=True, capture_output=True)


def start(
    models: Path, app: str = "app.main:app", **settings: str
) -> AbstractContextManager[Server]:
    package = ".".join(PATTERN.relative_to(ROOT).parts)
    env = {"MODEL_DIRECTORY": str(models), **settings}
    return run_uvicorn(f"{package}.{app}", cwd=ROOT, env=env)


@pytest.fixture(scope="module")
def client(models: Path) -> Iterator[httpx.Client]:
    with start(models) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def test_every_row_of_iris_is_answered_as_scikit_learn_would(client: httpx.Client) -> None:
    rows = load_iris().data.astype(np.float32)
    split = load()
    expected = fit(split.x_train, split.y_train).predict_proba(rows)
    answer = client.post("/predict", json={"data": rows.tolist()}).json()["prediction"]
    np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-5)
    labels = client.post("/predict/label", json={"data": rows.tolist()}).json()["prediction"]
    names = load_iris().target_names
    assert labels == [names[index] for index in expected.argmax(axis=1)]


VALID_BODIES = {
    "a row": f'{{"data": [{SAMPLE}]}}',
    "rows": f'{{"data": [{SAMPLE}, [6.7, 3.0, 5.2, 2.3], [0, -0.0, 1e30, 3.4e38]]}}',
    "white space": f' {{ "data" :\n[ {SAMPLE} ] }} ',
    "a field twice": f'{{"data": [], "data": [{SAMPLE}]}}',
}
BAD_BODIES = {
    name: bad.body
    for corpus in (of_any_object(required=True), of_rows(Rows(SAMPLE, LOWEST, HIGHEST, 1000)))
    for name, bad in corpus.items()
}
# Python's JSON parser decodes these; Pydantic's reads only UTF-8.
DECODED = {"a byte order mark", "UTF-16", "half a character"}


def test_without_json_route_the_responses_are_the_same(client: httpx.Client, models: Path) -> None:
    headers = {"content-type": "application/json"}
    rest = ["/predict/test", "/predict/test/label", "/health", "/ready", "/metadata", "/label"]
    with (
        start(models, "measure.baselines:without_json_route") as server,
        httpx.Client(base_url=server.url, headers=headers, timeout=10) as fastapi,
    ):
        for path in [*rest, "/openapi.json"]:
            assert client.get(path).content == fastapi.get(path).content, path
        for path in ("/predict", "/predict/label"):
            for name, body in (BAD_BODIES | VALID_BODIES).items():
                ours = client.post(path, content=body, headers=headers)
                theirs = fastapi.post(path, content=body)
                if theirs.status_code == 400:
                    # Python's parser rejects these without a reason.
                    assert (ours.status_code, name) == (422, name)
                elif ours.content != theirs.content:
                    assert (ours.status_code, theirs.status_code) == (422, 422), name
                    assert places(ours) == places(theirs) or name in DECODED, name


def places(answer: httpx.Response) -> list[list[str]]:
    """Returns the locations of the errors, without the offset at which a body stops being JSON."""
    reasons = answer.json()["detail"]
    return [reason["loc"][:1] if "JSON" in reason["msg"] else reason["loc"] for reason in reasons]


def test_a_body_is_read_as_json_whatever_its_content_type(client: httpx.Client) -> None:
    content_types = ["application/x-www-form-urlencoded", "text/plain", "nonsense", ""]
    for content_type in content_types:
        headers = [("content-type", content_type), ("content-type", "application/xml")]
        answer = client.post("/predict", content=VALID_BODIES["a row"], headers=headers)
        assert answer.status_code == 200, content_type


def test_a_route_keeps_its_fastapi_options() -> None:
    def deny() -> None:
        raise HTTPException(401)

    class Some(BaseModel):
        a: int = 1
        b: int | None = None

    async def some(_: Request) -> Some:
        return Some()

    app = FastAPI()
    app.router.route_class = JsonRoute
    app.get("/denied", dependencies=[Depends(deny)])(some)
    app.get("/text", response_class=PlainTextResponse)(lambda: "hi")
    app.get("/some", response_model_exclude_none=True)(some)
    transport = httpx.ASGITransport(app)

    async def answers() -> list[tuple[int, str]]:
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            paths = ("/denied", "/text", "/some")
            return [
                (found.status_code, found.text) for found in [await client.get(p) for p in paths]
            ]

    denied, text, excluded = asyncio.run(answers())
    assert denied[0] == 401
    assert text == (200, "hi")
    assert excluded == (200, '{"a":1}')


def test_the_openapi_example_is_the_sample_of_the_model(client: httpx.Client) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    sample = client.get("/metadata").json()["sample"]
    assert schemas["PredictRequest"]["example"] == {"data": sample}


@pytest.mark.parametrize(("rows", "status"), [(3, 200), (4, 422)])
def test_the_maximum_number_of_rows_can_be_set(few_rows: str, rows: int, status: int) -> None:
    answer = httpx.post(f"{few_rows}/predict", json={"data": [SAMPLE] * rows})
    assert answer.status_code == status


@pytest.fixture(scope="module")
def few_rows(models: Path) -> Iterator[str]:
    with start(models, MAX_ROWS="3") as server:
        yield server.url


def break_digest(models: Path) -> None:
    content = bytearray((models / "model.onnx").read_bytes())
    content[100] ^= 1
    (models / "model.onnx").write_bytes(content)


def write_model(models: Path, content: bytes, **changes: object) -> None:
    """Replaces the model and puts its digest into the metadata."""
    metadata = json.loads((models / "metadata.json").read_text())
    metadata |= {"sha256": hashlib.sha256(content).hexdigest()} | changes
    (models / "model.onnx").write_bytes(content)
    (models / "metadata.json").write_text(json.dumps(metadata))


BROKEN_MODELS = {
    "no model": (lambda models: (models / "model.onnx").unlink(), "no usable model"),
    "no metadata": (lambda models: (models / "metadata.json").unlink(), "no usable model"),
    "wrong digest": (break_digest, "SHA-256"),
    "not onnx": (lambda models: write_model(models, b"a picture"), "not a model"),
    "empty": (lambda models: write_model(models, b""), "not a model"),
    "wrong input": (
        lambda models: write_model(
            models, (models / "model.onnx").read_bytes(), input={"name": "pixels", "shape": [1]}
        ),
        "no input pixels",
    ),
    "wrong number of labels": (
        lambda models: write_model(models, (models / "model.onnx").read_bytes(), labels=["a"]),
        "no output",
    ),
    "metadata is not json": (
        lambda models: (models / "metadata.json").write_text("{"),
        "no usable model",
    ),
    "metadata is a list": (
        lambda models: (models / "metadata.json").write_text("[]"),
        "no usable model",
    ),
}


@pytest.mark.parametrize(("damage", "reason"), BROKEN_MODELS.values(), ids=BROKEN_MODELS)
def test_a_model_that_does_not_match_its_metadata_is_never_served(
    models: Path, tmp_path: Path, damage: Any, reason: str
) -> None:
    shutil.copytree(models, tmp_path / "models")
    damage(tmp_path / "models")
    with pytest.raises(ServerError, match=reason), start(tmp_path / "models"):
        pass


def test_the_converted_model_computes_the_same_as_scikit_learn(models: Path) -> None:
    split = load()
    # Real flowers, and rows far away from any of them.
    rows = np.vstack([load_iris().data, np.random.default_rng(0).uniform(-50, 50, (200, 4))])
    rows = rows.astype(np.float32)
    session = onnxruntime.InferenceSession(models / "model.onnx")
    answer = session.run(["probabilities"], {"X": rows})[0]
    expected = fit(split.x_train, split.y_train).predict_proba(rows)
    np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-5)


def test_training_twice_gives_the_same_bytes(models: Path, tmp_path: Path) -> None:
    train(tmp_path)
    for name in ("model.onnx", "metadata.json"):
        assert (tmp_path / name).read_bytes() == (models / name).read_bytes()


@pytest.mark.budget("measure --quick")
def test_the_claim_holds_and_its_control_does_not(tmp_path: Path) -> None:
    if not (PATTERN / "models/metadata.json").exists():
        train(PATTERN / "models")
    module = "chapter4_serving_patterns.web_single_pattern.measure"
    command = [sys.executable, "-m", module, "--quick", "--output", str(tmp_path / "measure")]
    subprocess.run(command, cwd=PATTERN.parents[1], check=True, capture_output=True)
    results = load_results(tmp_path)
    assert results.counts == {"rows_answered": 150, "rows_equal": 150}
    # One row of each of the fifteen requests, and a prediction for the request without rows.
    assert results.control == {"rows_answered": 15, "rows_equal": 14}
