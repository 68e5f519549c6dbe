"""nobody_knows_antipattern: a wrong unit is refused; a model starts only with a true card."""

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
import pytest
import yaml
from sklearn.datasets import load_iris

from chapter5_operations.nobody_knows_antipattern.app.audit import audit
from chapter5_operations.nobody_knows_antipattern.app.range import CardError, bounds_of
from chapter5_operations.nobody_knows_antipattern.app.reviewed import UnreviewedError, load
from tools.measure.results import load as load_results
from tools.measure.server import Server, ServerError
from tools.measure.servers import run_uvicorn

ROOT = Path(__file__).resolve().parents[2]
PATTERN = ROOT / "chapter5_operations/nobody_knows_antipattern"
RECORDS = PATTERN / "records"
CM_PER_INCH = 2.54
FACTS = {
    *("owner", "training_data_sha256", "code_sha256", "split", "unit", "versions", "retrain"),
    *("rollback_sha256", "dependents", "range"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    train(directory)
    audited = [sys.executable, "-m", "app.audit", "--models", str(directory)]
    subprocess.run([*audited, "--output", str(directory / "audit.json")], cwd=PATTERN, check=True)
    return directory


def train(directory: Path) -> None:
    command = [sys.executable, "-m", "train", "--output", str(directory)]
    subprocess.run(command, cwd=PATTERN, check=True, capture_output=True)


@pytest.fixture
def models(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "models"))


@pytest.fixture
def trained_again(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes what a training has given, instead of training once more for each false fact."""
    again = json.loads((trained / "metadata.json").read_bytes())
    monkeypatch.setattr(f"{audit.__module__}.retrained", lambda _: again)


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RECORDS, tmp_path / "records"))


def start(
    models: Path, app: str = "app.main:app", records: Path = RECORDS
) -> AbstractContextManager[Server]:
    package = ".".join(PATTERN.relative_to(ROOT).parts)
    env = {
        "MODEL_DIRECTORY": str(models),
        "RECORDS_DIRECTORY": str(records),
        "AUDIT_FILE": str(models / "audit.json"),
    }
    return run_uvicorn(f"{package}.{app}", cwd=ROOT, env=env)


@pytest.fixture(scope="module")
def good(trained: Path) -> Iterator[httpx.Client]:
    with start(trained) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def bad(trained: Path) -> Iterator[httpx.Client]:
    server = start(trained, "app.bad:app")
    with server as running, httpx.Client(base_url=running.url, timeout=30) as client:
        yield client


def write(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


# --- requests -------------------------------------------------------------------------------------


def test_rows_in_centimetres_are_answered_alike(good: httpx.Client, bad: httpx.Client) -> None:
    rows = load_iris().data.tolist()
    ours = good.post("/predict", json={"unit": "cm", "data": rows})
    theirs = bad.post("/predict", json={"data": rows})
    assert ours.status_code == theirs.status_code == 200
    assert ours.json() == theirs.json()


def test_rows_in_inches_are_refused_and_the_bad_server_answers(
    good: httpx.Client, bad: httpx.Client
) -> None:
    rows = (load_iris().data / CM_PER_INCH).tolist()
    assert bad.post("/predict/label", json={"data": rows}).json()["prediction"] == 150 * ["setosa"]
    for unit in ("inch", "in", "CM", "mm", "", None, 1, ["cm"]):
        answer = good.post("/predict/label", json={"unit": unit, "data": rows})
        assert (answer.status_code, "'cm'" in answer.text) == (422, True), unit
    without = good.post("/predict/label", json={"data": rows})
    assert (without.status_code, "Field required" in without.text) == (422, True)


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        (0, 3.3, "greater than or equal to 3.4: sepal length (cm)"),
        (0, 8.9, "less than or equal to 8.8: sepal length (cm)"),
        (3, -0.6, "greater than or equal to -0.5: petal width (cm)"),
        (3, 3.2, "less than or equal to 3.1: petal width (cm)"),
    ],
)
def test_a_value_far_from_the_training_is_refused_by_name(
    good: httpx.Client, column: int, value: float, reason: str
) -> None:
    row = [5.1, 3.5, 1.4, 0.2]
    row[column] = value
    for data in ([row], [[5.1, 3.5, 1.4, 0.2], row]):
        answer = good.post("/predict", json={"unit": "cm", "data": data})
        assert answer.status_code == 422
        assert reason in answer.json()["detail"][0]["msg"]


def test_the_document_shows_the_bounds_of_every_column(good: httpx.Client) -> None:
    schemas = good.get("/openapi.json").json()["components"]["schemas"]
    row = schemas["MeasuredRequest"]["properties"]["data"]["items"]
    assert [(one["minimum"], one["maximum"]) for one in row["prefixItems"]] == [
        pytest.approx(pair) for pair in ((3.4, 8.8), (1.4, 5.0), (-0.475, 8.375), (-0.5, 3.1))
    ]


def test_the_audit_is_shown(good: httpx.Client, trained: Path) -> None:
    shown = good.get("/audit").json()
    assert shown["sha256"] == hashlib.sha256((trained / "model.onnx").read_bytes()).hexdigest()
    assert shown["facts"] == dict.fromkeys(FACTS, "")


# --- the audit ------------------------------------------------------------------------------------


def test_all_ten_facts_hold(models: Path) -> None:
    assert audit(models, RECORDS) == dict.fromkeys(FACTS, "")


def test_a_bare_file_answers_nothing(models: Path, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    shutil.copy(models / "model.onnx", tmp_path / "bare")
    assert audit(tmp_path / "bare", RECORDS) == dict.fromkeys(FACTS, "is missing")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"owner": NaN'])
def test_a_card_that_is_no_object_answers_nothing(models: Path, content: str) -> None:
    (models / "metadata.json").write_text(content, "utf-8")
    assert audit(models, RECORDS) == dict.fromkeys(FACTS, "is missing")


@pytest.mark.usefixtures("trained_again")
@pytest.mark.parametrize(
    ("fact", "false"),
    [
        ("owner", "gone@example.org"),
        ("training_data_sha256", "0" * 64),
        ("code_sha256", "0" * 64),
        ("split", {"seed": 1, "train_rows": 105, "test_rows": 45}),
        ("unit", "inch"),
        ("versions", {"scikit-learn": "0.1"}),
        ("versions", {"no-such-library": "1"}),
        ("rollback_sha256", "0" * 64),
        ("dependents", ["client.py", "nobody.py"]),
        ("range", {"sepal length (cm)": [0, 1]}),
    ],
)
def test_a_false_fact_is_found(models: Path, fact: str, false: Any) -> None:
    write(models / "metadata.json", **{fact: false})
    found = audit(models, RECORDS)
    assert found.pop(fact).startswith(f"is {false}, not ")
    assert not any(found.values())


@pytest.mark.usefixtures("trained_again")
@pytest.mark.parametrize("fact", sorted(FACTS - {"retrain"}))
def test_a_missing_fact_is_named(models: Path, fact: str) -> None:
    card = json.loads((models / "metadata.json").read_text("utf-8"))
    del card[fact]
    (models / "metadata.json").write_text(json.dumps(card), "utf-8")
    found = audit(models, RECORDS)
    assert {name for name, wrong in found.items() if wrong} == {fact}
    assert found[fact] == "is missing"


@pytest.mark.parametrize(
    "command", [None, [], "python -m train", ["rm", "-rf", "x"], ["python", "-m", "no_such_module"]]
)
def test_without_a_command_that_trains_nothing_of_the_training_is_known(
    models: Path, command: Any
) -> None:
    write(models / "metadata.json", retrain=command)
    found = audit(models, RECORDS)
    of_training = {"training_data_sha256", "code_sha256", "split", "unit", "range", "retrain"}
    assert {name for name, wrong in found.items() if wrong} == of_training


@pytest.mark.usefixtures("trained_again")
def test_another_file_than_the_card_describes_is_found(models: Path) -> None:
    shutil.copy(models / "rollback/model.onnx", models / "model.onnx")
    found = audit(models, RECORDS)
    assert {name for name, wrong in found.items() if wrong} == {"retrain"}


def test_an_owner_that_has_left_ends_the_audit(models: Path, records: Path) -> None:
    write(records / "team.json", members=["second@example.org"])
    command = [sys.executable, "-m", "app.audit", "--models", str(models)]
    options = ["--records", str(records), "--output", str(models / "audit.json")]
    done = subprocess.run(
        [*command, *options], cwd=PATTERN, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "ERROR: owner is flowers@example.org, not in the team" in done.stderr
    with pytest.raises(ServerError, match="the audit was of another model, or it failed"):
        start(models, records=records).__enter__()


# --- what the server starts with ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"unit": "inch"}, "the unit of the model is 'inch'"),
        ({"unit": None}, "the unit of the model is None"),
        ({"range": None}, "the card needs a range for each of 4 features"),
        ({"range": {"petal width": [0, 1]}}, "the card needs a range for each of 4 features"),
    ],
)
def test_a_card_without_unit_or_range_is_refused(
    models: Path, changes: dict[str, Any], reason: str
) -> None:
    write(models / "metadata.json", **changes)
    with pytest.raises(ServerError, match=reason):
        start(models).__enter__()


@pytest.mark.parametrize(
    "pair",
    [
        *([1.0], [], [2.0, 1.0], [1.0, 1.0], [1.0, 2.0, 3.0], None, "12", ["1", "2"], [0, 1e999]),
        *([float("nan"), 1.0], [0.0, float("nan")], [-float("inf"), 0.0]),
    ],
)
def test_a_range_that_is_none_is_refused(pair: Any) -> None:
    with pytest.raises(CardError, match="is no range from a lower to a higher value"):
        bounds_of({"unit": "cm", "range": {"a": pair}}, 1, 0.25)


def test_a_margin_widens_both_sides() -> None:
    assert bounds_of({"unit": "cm", "range": {"a": [1, 3]}}, 1, 0.25) == [("a", 0.5, 3.5)]
    assert bounds_of({"unit": "cm", "range": {"a": [1, 3]}}, 1, 0) == [("a", 1, 3)]


def test_parameters_changed_without_a_review_are_refused_by_name(
    models: Path, records: Path
) -> None:
    write(records / "parameters.json", margin_share=1.0)
    digest = hashlib.sha256((records / "parameters.json").read_bytes()).hexdigest()
    reason = f"nobody but its author has reviewed parameters.json with SHA-256 {digest}"
    with pytest.raises(ServerError, match=reason):
        start(models, records=records).__enter__()


@pytest.mark.parametrize(
    ("author", "reviewer", "is_reviewed"),
    [
        ("flowers@example.org", "second@example.org", True),
        ("flowers@example.org", "flowers@example.org", False),
        ("flowers@example.org", "stranger@example.org", False),
    ],
)
def test_a_review_is_by_somebody_else_of_the_team(
    records: Path, author: str, reviewer: str, is_reviewed: bool
) -> None:
    write(records / "parameters.json", margin_share=0.5)
    digest = hashlib.sha256((records / "parameters.json").read_bytes()).hexdigest()
    review = {"sha256": digest, "author": author, "reviewer": reviewer}
    (records / "reviews.json").write_text(json.dumps([review]), "utf-8")
    if is_reviewed:
        assert load(records).margin_share == 0.5
    else:
        with pytest.raises(UnreviewedError, match="nobody but its author"):
            load(records)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("parameters.json", ""),
        ("parameters.json", "{}"),
        ("parameters.json", '{"margin_share": NaN}'),
        ("parameters.json", '{"margin_share": -0.1}'),
        ("parameters.json", '{"margin_share": 1.1}'),
        ("parameters.json", '{"margin_share": "0.1"}'),
        ("parameters.json", '{"margin_share": 0.1, "other": 1}'),
        ("reviews.json", ""),
        ("reviews.json", "{}"),
        ("reviews.json", "[{}]"),
        ("team.json", "[]"),
        ("team.json", "{}"),
    ],
)
def test_invalid_records_are_refused(records: Path, file: str, content: str) -> None:
    (records / file).write_text(content, "utf-8")
    with pytest.raises(UnreviewedError):
        load(records)
    (records / file).unlink()
    with pytest.raises(UnreviewedError):
        load(records)


def test_the_config_map_is_the_folder() -> None:
    manifest = yaml.safe_load((PATTERN / "manifests/records.yml").read_text("utf-8"))
    assert manifest["data"] == {
        path.name: path.read_text("utf-8") for path in RECORDS.glob("*.json")
    }


# --- the claim ------------------------------------------------------------------------------------


@pytest.mark.budget("measure --quick")
def test_the_claim_holds_and_its_control_does_not(tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"{'.'.join(PATTERN.relative_to(ROOT).parts)}.measure"]
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
    assert results.counts == {
        "wrong_unit_answered": 0,
        "questions_answered": 10,
        "retrained_equal": 1,
        "unreviewed_started": 0,
    }
    assert results.control == {
        "wrong_unit_answered": 150,
        "questions_answered": 0,
        "retrained_equal": 0,
        "unreviewed_started": 1,
    }
