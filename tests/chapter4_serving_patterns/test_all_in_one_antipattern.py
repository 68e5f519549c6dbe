"""all_in_one_antipattern: the same three models, together and apart, and what each way loses."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from sklearn.datasets import load_digits, load_iris, load_wine

from chapter4_serving_patterns.all_in_one_antipattern.app.model import Model, ModelError
from chapter4_serving_patterns.all_in_one_antipattern.app.schema import limits_of, width_in
from chapter4_serving_patterns.all_in_one_antipattern.measure import __main__ as measure
from chapter4_serving_patterns.all_in_one_antipattern.measure import environments
from chapter4_serving_patterns.all_in_one_antipattern.train import iris, iris_model, wine_model
from chapter4_serving_patterns.all_in_one_antipattern.train import wine as wine_data
from tests.bad_bodies import Rows, of_any_object, of_rows
from tools.measure.results import load as load_results
from tools.measure.server import Server, ServerError, answer_of
from tools.measure.servers import run_uvicorn

ROOT = Path(__file__).resolve().parents[2]
PATTERN = ROOT / "chapter4_serving_patterns/all_in_one_antipattern"
PACKAGE = ".".join(PATTERN.relative_to(ROOT).parts)
ROWS = {
    "iris": load_iris().data.astype(np.float32),
    "wine": load_wine().data.astype(np.float32),
    "digits": load_digits().data[:32].astype(np.float32),
}
JSON = {"content-type": "application/json"}
HIGHEST = 3.4028234663852886e38
BOUNDS = {"iris": (-HIGHEST, HIGHEST), "wine": (-HIGHEST, HIGHEST), "digits": (0, 16)}
MOST_ROWS = {"iris": 1_000, "wine": 1_000, "digits": 32}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    command = [sys.executable, "-m", "train", "--output", str(directory)]
    subprocess.run(command, cwd=PATTERN, check=True, capture_output=True)
    return directory


@pytest.fixture
def models(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "models"))


def start(stack: ExitStack, app: str, models: Path, **settings: str) -> Server:
    env = {"MODEL_DIRECTORY": str(models), **settings}
    return stack.enter_context(run_uvicorn(f"{PACKAGE}.app.{app}:app", cwd=ROOT, env=env))


@pytest.fixture(scope="module")
def urls(trained: Path) -> Iterator[dict[str, dict[str, str]]]:
    """Where each model is, together and apart."""
    with ExitStack() as stack:
        one = start(stack, "all_in_one", trained)
        yield {
            "together": {name: f"{one.url}/{name}" for name in ROWS},
            "apart": {name: start(stack, "main", trained / name).url for name in ROWS},
        }


def predicted(url: str, name: str, path: str = "/predict") -> list[Any]:
    answer = httpx.post(f"{url}{path}", json={"data": ROWS[name].tolist()}, timeout=30)
    assert answer.status_code == 200, answer.text
    found: list[Any] = answer.json()["prediction"]
    return found


# --- the two ways serve the same ------------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
def test_a_model_answers_the_same_together_and_apart(
    urls: dict[str, dict[str, str]], name: str
) -> None:
    together, apart = urls["together"][name], urls["apart"][name]
    assert predicted(together, name) == predicted(apart, name)
    labels = predicted(together, name, "/predict/label")
    assert labels == predicted(apart, name, "/predict/label")
    for path in (
        "/predict/test",
        "/predict/test/label",
        "/health",
        "/ready",
        "/metadata",
        "/label",
    ):
        assert httpx.get(together + path).content == httpx.get(apart + path).content


@pytest.mark.parametrize(
    ("name", "data", "model"), [("iris", iris, iris_model), ("wine", wine_data, wine_model)]
)
def test_every_row_is_answered_as_scikit_learn_would(
    urls: dict[str, dict[str, str]], name: str, data: Any, model: Any
) -> None:
    split = data.load()
    expected = model.fit(split.x_train, split.y_train).predict_proba(ROWS[name])
    answer = predicted(urls["together"][name], name)
    np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-5)


def test_digits_are_recognised(urls: dict[str, dict[str, str]]) -> None:
    labels = predicted(urls["together"]["digits"], "digits", "/predict/label")
    right = [
        str(true) == label for true, label in zip(load_digits().target[:32], labels, strict=True)
    ]
    assert np.mean(right) > 0.9


@pytest.mark.parametrize("name", ROWS)
def test_a_mounted_model_refuses_bad_bodies_with_the_reason(
    urls: dict[str, dict[str, str]], name: str
) -> None:
    rows = Rows(ROWS[name][0].tolist(), *BOUNDS[name], MOST_ROWS[name])
    with httpx.Client(base_url=urls["together"][name], timeout=30) as client:
        for what, bad in (of_any_object(required=True) | of_rows(rows)).items():
            answer = client.post("/predict", content=bad.body, headers=JSON)
            assert answer.status_code == 422, what
            assert bad.reason in answer.text, what


@pytest.mark.parametrize("name", ROWS)
def test_the_document_of_a_mounted_model_has_its_limits_and_its_example(
    urls: dict[str, dict[str, str]], name: str
) -> None:
    url = urls["together"][name]
    document = httpx.get(f"{url}/openapi.json").json()
    request = document["components"]["schemas"]["PredictRequest"]
    data = request["properties"]["data"]
    width = ROWS[name].shape[1]
    assert (data["minItems"], data["maxItems"]) == (1, MOST_ROWS[name])
    assert (data["items"]["minItems"], data["items"]["maxItems"]) == (width, width)
    value = data["items"]["items"]
    assert (value["minimum"], value["maximum"]) == BOUNDS[name]
    assert request["example"] == {"data": httpx.get(f"{url}/metadata").json()["sample"]}
    assert list(document["paths"])[:2] == ["/predict", "/predict/label"]
    page = httpx.get(f"{url}/docs")
    assert "'openapi.json'" in page.text
    assert httpx.get(f"{url}/docs/files/swagger-ui.css").status_code == 200


def test_the_process_describes_all_of_its_models(urls: dict[str, dict[str, str]]) -> None:
    base = urls["together"]["iris"].removesuffix("/iris")
    described = httpx.get(f"{base}/metadata").json()
    assert {name: each["name"] for name, each in described.items()} == {
        "iris": "iris_svc",
        "wine": "wine_svc",
        "digits": "digits_ensemble",
    }
    assert httpx.get(f"{base}/predict/test").status_code == 404


@pytest.mark.parametrize(
    ("name", "setting", "most"),
    [("iris", 3, 3), ("iris", 2_000, 2_000), ("digits", 3, 3), ("digits", 40, 32)],
)
def test_the_setting_lowers_the_limit_of_a_model_and_does_not_raise_it(
    trained: Path, monkeypatch: pytest.MonkeyPatch, name: str, setting: int, most: int
) -> None:
    monkeypatch.setenv("MAX_ROWS", str(setting))
    model = Model(trained / name, ROWS[name].shape[1])
    rows = TypeAdapter(Annotated[list[int], limits_of(model).rows])
    assert len(rows.validate_python([0] * most)) == most
    for wrong in (most + 1, 0):
        with pytest.raises(ValidationError):
            rows.validate_python([0] * wrong)


# --- what the models share ------------------------------------------------------------------------


def test_a_broken_model_keeps_the_others_from_starting_only_if_it_is_with_them(
    models: Path,
) -> None:
    (models / "digits/model.onnx").write_bytes(b"a picture")
    with ExitStack() as stack:
        with pytest.raises(ServerError, match="SHA-256 does not match"):
            start(stack, "all_in_one", models)
        iris_alone = start(stack, "main", models / "iris")
        assert answer_of(f"{iris_alone.url}/ready") == "200"


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "{}", '{"sample": []}', '{"sample": [1]}', '{"sample": null}'],
)
def test_metadata_without_a_sample_is_refused_with_the_reason(tmp_path: Path, content: str) -> None:
    with pytest.raises(ModelError, match=r"no sample in .* \(run python -m train\)"):
        width_in(tmp_path)
    (tmp_path / "metadata.json").write_text(content, "utf-8")
    with pytest.raises(ModelError, match="no sample in "):
        width_in(tmp_path)


# --- the environments -----------------------------------------------------------------------------


def test_models_that_want_the_same_version_resolve_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(environments.WHEELS, ("digits_model", "1"), "features<2")
    environments.write_wheels(tmp_path)
    assert environments.environments(tmp_path, is_together=True) == 1


def test_a_package_that_is_missing_is_no_conflict(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="for another reason"):
        environments.resolves(tmp_path, ["iris_model"])


# --- the claim ------------------------------------------------------------------------------------


@pytest.fixture
def models_of_the_pattern(trained: Path) -> None:
    if not (PATTERN / "models/digits/metadata.json").exists():
        shutil.copytree(trained, PATTERN / "models", dirs_exist_ok=True)


@pytest.mark.budget("measure --quick")
@pytest.mark.usefixtures("models_of_the_pattern")
def test_the_claim_holds_and_its_control_does_not(tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"{PACKAGE}.measure"]
    ended = subprocess.run(
        [*command, "--quick", "--output", str(tmp_path / "measure")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    results = load_results(tmp_path)
    assert results.holds
    assert results.counts == {name: bound for name, (_, bound) in results.targets.items()}
    exact = ("endpoints_lost", "restarts_of_others", "environments_that_resolve", "suspects")
    assert [results.control[name] for name in exact] == [3, 2, 0, 3]
    assert results.control["failed_requests_of_others"] > 0
    assert results.control["failed_by_update"] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("models_of_the_pattern")
def test_a_rolling_update_fails_no_request_and_loads_every_model_again(tmp_path: Path) -> None:
    assert measure.rolling_update(tmp_path) == {
        "rolling_update_failed": 0,
        "rolling_update_models_loaded": 6,
    }


@pytest.mark.usefixtures("models_of_the_pattern")
def test_the_update_that_is_measured_changes_digits_only(tmp_path: Path) -> None:
    new, old = measure.new_version(tmp_path), PATTERN / "models"
    for name in ("iris", "wine"):
        for file in ("model.onnx", "metadata.json"):
            assert (new / name / file).read_bytes() == (old / name / file).read_bytes()
    described = json.loads((new / "digits/metadata.json").read_bytes())
    assert described["version"] == "2"
    assert "minimum" not in described["input"]
