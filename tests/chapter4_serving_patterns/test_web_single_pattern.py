"""web_single_pattern: every row gets scikit-learn's prediction, and nothing invalid gets a 200."""

import asyncio
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import PlainTextResponse
from onnx import numpy_helper
from pydantic import BaseModel
from sklearn.datasets import load_iris, load_wine

from chapter4_serving_patterns.web_single_pattern.app import guard, model
from chapter4_serving_patterns.web_single_pattern.app.route import JsonRoute
from chapter4_serving_patterns.web_single_pattern.app.schema import HIGHEST, LOWEST
from chapter4_serving_patterns.web_single_pattern.train.artifact import write_artifact
from chapter4_serving_patterns.web_single_pattern.train.iris import load
from chapter4_serving_patterns.web_single_pattern.train.model import export, fit
from tests.bad_bodies import Rows, of_any_object, of_rows
from tools.check.repository import readmes
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
DECODED = {"a byte order mark", "half a character"}
# JsonRoute does not list so many errors.
OTHER_REASONS = DECODED | {"2,000 unknown fields"}


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
                    assert places(ours) == places(theirs) or name in OTHER_REASONS, name


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


def test_a_line_of_the_log_has_a_bounded_number_of_reasons(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def refuse() -> None:
        for number in range(guard.MAX_REASONS + 80):
            guard.count_refusal(503, f"reason {number}")
            guard.count_refusal(503, "reason 0")

    asyncio.run(refuse())
    guard.log_refusals()
    (line,) = caplog.messages
    assert line.startswith("refused: 101 x 503 reason 0; 1 x 503 reason 1; ")
    assert line.endswith("; 1 x 503 reason 19; 80 x other reasons")


def test_a_refusal_is_counted_on_the_thread_of_the_event_loop_only() -> None:
    async def refuse() -> None:
        guard.count_refusal(503, "busy")
        # Not only the first one, which starts a timer.
        with pytest.raises(RuntimeError, match="no running event loop"):
            await asyncio.to_thread(guard.count_refusal, 503, "busy")

    asyncio.run(refuse())
    assert guard.refusals == {"503 busy": 1}
    guard.log_refusals()


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


HEAD = '<ir_version: 9, opset_import: ["" : 17]> g '
WEIGHTS = "<float[4,3] W = {1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0}>"
SCORES = "scores = MatMul(X, W)"
LOOP = """
    <float[4,3] W = {1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0},
     int64 n = {4611686018427387904}, bool go = {1}, float one = {1}>
    { scores = MatMul(X, W)
      probabilities = Loop <body = b (int64 i, bool c, float[N,3] v) => (bool d, float[N,3] w)
        { d = Identity(c) w = Add(v, one) }> (n, go, scores) }
"""


def graph(nodes: str, x: str = "float[N,4] X", y: str = "float[N,3] probabilities") -> str:
    return f"{HEAD}({x}) => ({y}) {WEIGHTS} {{ {SCORES} {nodes} }}"


# In ONNX's own text format.
UNFIT_MODELS = {
    "one row only": (graph("probabilities = Softmax(scores)", "float[1,4] X"), "only input"),
    "one row for all": (
        graph(
            "first = Constant<value = bool[1] {1}>()"
            " probabilities = Compress<axis = 0>(scores, first)"
        ),
        r"the shape \(1, 3\)",
    ),
    "NaN": (graph("z = Sub(scores, scores) probabilities = Div(z, z)"), "not finite"),
    "texts": (
        graph("probabilities = Cast<to = 8>(scores)", y="string[N,3] probabilities"),
        "no output probabilities",
    ),
    "truths": (
        graph("probabilities = Cast<to = 9>(scores)", y="bool[N,3] probabilities"),
        "no output probabilities",
    ),
    "two inputs": (
        graph("probabilities = Add(scores, Y)", "float[N,4] X, float[N,3] Y"),
        "only input",
    ),
    "float64": (
        f"{HEAD}(double[N,4] X) => (float[N,4] probabilities) {{probabilities = Cast<to=1>(X)}}",
        "only input",
    ),
    "rank 3": (graph("probabilities = Softmax(scores)", "float[N,2,4] X"), "only input"),
    "an endless loop": (
        f"{HEAD}(float[N,4] X) => (float[N,3] probabilities) {LOOP}",
        "cannot predict two rows",
    ),
}
UNFIT_METADATA = {
    "numbers for labels": ({"labels": [1, 2, 3]}, "labels"),
    "a text for labels": ({"labels": "abc"}, "labels"),
    "a label that is null": ({"labels": ["a", "b", None]}, "labels"),
    "a label twice": ({"labels": ["a", "b", "b"]}, "labels"),
    "too few labels": ({"labels": ["a"]}, "no output"),
    "another input": ({"input": {"name": "pixels"}}, "only input has to be pixels"),
    "a sample that is too short": ({"sample": [[1, 2]]}, "sample"),
    "no sample": ({"sample": []}, "sample"),
    "a sample of texts": ({"sample": [["a", "b", "c", "d"]]}, "sample"),
    "a wrong digest": ({"sha256": "0" * 64}, "SHA-256"),
    "no digest": ({"sha256": None}, "SHA-256"),
}


def write_model(models: Path, content: bytes, **changes: object) -> None:
    """Replaces the model and puts its digest into the metadata."""
    metadata = json.loads((models / "metadata.json").read_text())
    metadata |= {"sha256": hashlib.sha256(content).hexdigest()} | changes
    (models / "model.onnx").write_bytes(content)
    (models / "metadata.json").write_text(json.dumps(metadata))


@pytest.fixture
def broken(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the model to break."""
    monkeypatch.setattr(model, "CHECK_SECONDS", 0.3)
    return shutil.copytree(models, tmp_path / "models")


def rejected(directory: Path, reason: str) -> None:
    with pytest.raises(model.ModelError, match=reason):
        model.Model(directory, features=4)


@pytest.mark.parametrize(("text", "reason"), UNFIT_MODELS.values(), ids=UNFIT_MODELS)
def test_a_model_that_does_not_fit_the_server_is_rejected(
    broken: Path, text: str, reason: str
) -> None:
    write_model(broken, onnx.parser.parse_model(text).SerializeToString())
    rejected(broken, reason)


def test_a_model_that_fits_is_loaded(broken: Path) -> None:
    fits = onnx.parser.parse_model(graph("probabilities = Softmax(scores)"))
    write_model(broken, fits.SerializeToString())
    assert model.Model(broken, features=4).predict([SAMPLE]).shape == (1, 3)


@pytest.mark.parametrize(("changes", "reason"), UNFIT_METADATA.values(), ids=UNFIT_METADATA)
def test_metadata_that_do_not_match_the_model_are_rejected(
    broken: Path, changes: dict[str, object], reason: str
) -> None:
    write_model(broken, (broken / "model.onnx").read_bytes(), **changes)
    rejected(broken, reason)


@pytest.mark.parametrize("content", [b"a picture", b""])
def test_a_file_that_is_not_a_model_is_rejected(broken: Path, content: bytes) -> None:
    write_model(broken, content)
    rejected(broken, "not a model")


@pytest.mark.parametrize("content", ["{", "[]", "\ufeff"])
def test_metadata_that_cannot_be_read_are_rejected(broken: Path, content: str) -> None:
    (broken / "metadata.json").write_text(content)
    rejected(broken, "no usable model")


@pytest.mark.parametrize("name", ["model.onnx", "metadata.json"])
def test_a_missing_file_is_named(broken: Path, name: str) -> None:
    (broken / name).unlink()
    rejected(broken, name)


def test_weights_beside_the_model_are_rejected_because_the_digest_does_not_cover_them(
    broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = onnx.parser.parse_model(graph("probabilities = Softmax(scores)"))
    for weights in parsed.graph.initializer:
        weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights), weights.name))
    options: Any = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0}
    onnx.save(parsed, broken / "model.onnx", **options)
    write_model(broken, (broken / "model.onnx").read_bytes())
    # Where the weights would be found.
    monkeypatch.chdir(broken)
    rejected(broken, "not a model that can be run from one file")


def test_a_server_with_a_rejected_model_does_not_start(broken: Path) -> None:
    write_model(broken, b"a picture")
    with pytest.raises(ServerError, match="not a model"), start(broken):
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


def test_a_model_of_two_labels_computes_the_same_as_scikit_learn() -> None:
    split = load()
    pipeline = fit(split.x_train, (split.y_train == 1).astype(int))
    answer = onnxruntime.InferenceSession(export(pipeline)).run(
        ["probabilities"], {"X": split.x_test}
    )
    expected = pipeline.predict_proba(split.x_test)
    np.testing.assert_allclose(answer[0], expected, rtol=0, atol=1e-5)


def test_training_twice_gives_the_same_bytes(models: Path, tmp_path: Path) -> None:
    train(tmp_path)
    for name in ("model.onnx", "metadata.json"):
        assert (tmp_path / name).read_bytes() == (models / name).read_bytes()


def test_an_unwritable_output_is_reported_in_one_line() -> None:
    command = [sys.executable, "-m", "train", "--output", "/sys/models"]
    refused = subprocess.run(command, cwd=PATTERN, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert line.startswith("error: cannot write into /sys/models: ")
    assert line.endswith("; make it writable, or choose another directory")


def test_a_partial_file_follows_no_symlink(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"keep")
    models = tmp_path / "models"
    models.mkdir()
    for name in ("model.onnx", "metadata.json"):
        (models / f"{name}.partial").symlink_to(elsewhere)
    write_artifact(models, b"a model", {})
    assert elsewhere.read_bytes() == b"keep"
    assert not any(path.is_symlink() for path in models.iterdir())
    assert (models / "model.onnx").read_bytes() == b"a model"


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


# What "Make it yours" of the README says: the changes for scikit-learn's wine data.
OF_WINE = {
    ("train/iris.py", "load_iris"): (r"load_iris", "load_wine"),
    ("train/iris.py", "FEATURES"): (r"^FEATURES = .*$", "FEATURES = DATA.feature_names"),
    ("train/iris.py", "LABELS"): (r"^LABELS = .*$", 'LABELS = ["barolo", "grignolino", "barbera"]'),
    ("train/iris.py", "SAMPLE"): (r"^SAMPLE.* = .*$", "SAMPLE = DATA.data[1:2].tolist()"),
    ("train/model.py", "NAME"): (r"^NAME = .*$", 'NAME = "wine_svc"'),
    ("app/schema.py", "FEATURES"): (r"^FEATURES = .*$", "FEATURES = 13"),
}


def test_the_changes_that_the_readme_names_serve_another_model(tmp_path: Path) -> None:
    yours = readmes.sections(PATTERN / "README.md")["Make it yours"]
    named = [link for paragraph in yours for link in readmes.links(paragraph)]
    assert {(file, code) for file, code in named if code} == set(OF_WINE)
    ignored = shutil.ignore_patterns("models", "measure", ".local", "__pycache__")
    copy = shutil.copytree(PATTERN, tmp_path / "copy", ignore=ignored)
    for (file, _), (old, new) in OF_WINE.items():
        text, count = re.subn(old, new, (copy / file).read_text(), flags=re.MULTILINE)
        assert count, f"{file} holds no {old}"
        (copy / file).write_text(text)
    subprocess.run([sys.executable, "-m", "train"], cwd=copy, check=True, capture_output=True)
    rows = load_wine().data[[0, 70, 150]].tolist()
    with run_uvicorn("app.main:app", cwd=copy) as server:
        answer = httpx.post(f"{server.url}/predict/label", json={"data": rows})
        assert answer.json() == {"prediction": ["barolo", "grignolino", "barbera"]}
        narrow = httpx.post(f"{server.url}/predict/label", json={"data": [SAMPLE]})
        assert narrow.status_code == 422
        assert httpx.get(f"{server.url}/metadata").json()["name"] == "wine_svc"
