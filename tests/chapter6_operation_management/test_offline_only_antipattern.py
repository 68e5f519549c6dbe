"""offline_only_antipattern: the test set and simulated traffic choose different versions."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from scipy.stats import binomtest
from sklearn.datasets import load_digits

from chapter6_operation_management.offline_only_antipattern.app import report
from chapter6_operation_management.offline_only_antipattern.app.procedures import (
    PLANNED,
    PROCEDURES,
    RULE,
    SHARE,
    Answers,
    Outcome,
    ab,
    offline,
    shadow,
)
from chapter6_operation_management.offline_only_antipattern.measure.versions import (
    Compared,
    compared,
)
from chapter6_operation_management.offline_only_antipattern.train import traffic
from chapter6_operation_management.offline_only_antipattern.train.model import (
    load,
    train,
    trained_on,
)
from chapter6_operation_management.offline_only_antipattern.train.traffic import production
from tools.measure.results import load as load_results
from tools.measure.server import Server, ServerError
from tools.measure.servers import run_uvicorn
from tools.mesh.istio import Json
from tools.mesh.proxy import Proxy, proxy, shipped, translated

ROOT = Path(__file__).resolve().parents[2]
PATTERN = ROOT / "chapter6_operation_management/offline_only_antipattern"
PACKAGE = ".".join(PATTERN.relative_to(ROOT).parts)
MODELS = PATTERN / "models"
DIRECTORIES = {"augmented": MODELS, "plain": MODELS / "plain"}
SAMPLE, SHIFTED = (
    json.loads((PATTERN / f"{name}.json").read_bytes()) for name in ("sample", "shifted")
)
USERS = [f"user-{number}" for number in range(300)]

Versions = Mapping[str, Server]


@pytest.fixture(scope="module", autouse=True)
def trained() -> None:
    """Trains the versions unless they are there already."""
    if not (MODELS / "metadata.json").exists():
        subprocess.run([sys.executable, "-m", "train"], cwd=PATTERN, check=True)


def start(app: str, **settings: Path) -> AbstractContextManager[Server]:
    env = {name: str(value) for name, value in settings.items()}
    return run_uvicorn(f"{PACKAGE}.{app}", cwd=ROOT, env=env)


@pytest.fixture(scope="module")
def versions(trained: None) -> Iterator[Versions]:
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(start("app.main:app", MODEL_DIRECTORY=directory))
            for name, directory in DIRECTORIES.items()
        }


@pytest.fixture(scope="module")
def mesh(versions: Versions) -> Iterator[Proxy]:
    with proxy(PATTERN, shipped(PATTERN), versions) as running:
        yield running


@pytest.fixture(scope="module")
def procedures(trained: None) -> Iterator[httpx.Client]:
    with start("app.report:app") as server, calling(server.url) as client:
        yield client


def calling(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=60, trust_env=False)


def version_of(client: httpx.Client, user: str | None) -> str:
    headers = {} if user is None else {"x-user-id": user}
    name: str = client.get("/metadata", headers=headers).raise_for_status().json()["name"]
    return name.removeprefix("digits_")


# --- simulated traffic ----------------------------------------------------------------------------


def test_a_digit_is_shifted_by_up_to_one_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "NOISE", 0.0)
    digit = load_digits().data[:1].astype(np.float32)
    framed = np.pad(digit.reshape(8, 8), 1)
    nine = {
        framed[top : top + 8, left : left + 8].tobytes() for top in range(3) for left in range(3)
    }
    assert len(nine) == 9
    assert {row.tobytes() for row in production(np.repeat(digit, 500, axis=0), 0)} == nine


def test_the_noise_has_the_deviation_that_is_named_and_stays_within_the_bounds() -> None:
    grey = np.full((500, 64), 8.0, np.float32)
    inner = production(grey, 0).reshape(-1, 8, 8)[:, 1:-1, 1:-1]
    assert inner.std() == pytest.approx(2.0, rel=0.02)
    assert inner.mean() == pytest.approx(8.0, rel=0.02)
    for level in (0.0, 16.0):
        sent = production(np.full((100, 64), level, np.float32), 1)
        assert sent.dtype == np.dtype(np.float32)
        assert sent.shape == (100, 64)
        assert 0 <= sent.min() <= sent.max() <= 16


def test_a_seed_decides_what_is_sent() -> None:
    rows = load_digits().data[:10]
    assert np.array_equal(production(rows, 0), production(rows, 0))
    assert not np.array_equal(production(rows, 0), production(rows, 1))


# --- training -------------------------------------------------------------------------------------


def test_augmented_has_two_copies_and_not_the_originals() -> None:
    split = load()
    x, y = trained_on("plain", split)
    assert (x is split.x_train, y is split.y_train) == (True, True)
    x, y = trained_on("augmented", split)
    assert len(x) == len(y) == 2 * len(split.x_train)
    originals = {row.tobytes() for row in split.x_train}
    assert not originals & {row.tobytes() for row in x}
    assert len({row.tobytes() for row in x}) == len(x)
    assert np.array_equal(y, np.concatenate([split.y_train, split.y_train]))


def test_the_halves_are_all_digits() -> None:
    split = load()
    rows = [row.tobytes() for row in np.concatenate([split.x_train, split.x_test])]
    assert sorted(rows) == sorted(row.tobytes() for row in load_digits().data.astype(np.float32))
    held_out = np.load(MODELS / "held_out.npz")
    assert np.array_equal(held_out["rows"], split.x_test)
    assert np.array_equal(held_out["labels"], split.y_test)


def test_training_again_gives_the_same_file() -> None:
    model, _ = train("plain")
    assert model == (MODELS / "plain/model.onnx").read_bytes()


def test_the_samples_are_the_first_held_out_row_of_each_digit() -> None:
    split = load()
    first = [int(np.flatnonzero(split.y_test == digit)[0]) for digit in range(10)]
    assert SAMPLE["data"] == split.x_test[first].tolist()
    sent = production(split.x_test[first], 0)
    assert np.allclose(SHIFTED["data"], sent, rtol=0, atol=0.0501)


# --- the servers ----------------------------------------------------------------------------------


def test_the_offline_score_is_better_and_the_answers_to_users_are_worse(
    versions: Versions,
) -> None:
    held_out = np.load(MODELS / "held_out.npz")
    rows, truth = held_out["rows"][:320], held_out["labels"][:320].astype(str)
    scores, right = {}, {}
    for name, version in versions.items():
        with calling(version.url) as client:
            scores[name] = client.get("/metadata").json()["metrics"]["accuracy"]
            found: list[str] = []
            for batch in np.split(production(rows, 0), 10):
                answer = client.post("/predict/label", json={"data": batch.tolist()})
                found += answer.raise_for_status().json()["prediction"]
            right[name] = np.mean(np.array(found) == truth)
    assert scores["plain"] > scores["augmented"] > 0.95
    assert right["augmented"] > 0.9 > 0.5 > right["plain"]


def test_the_ten_digits_of_the_readme(versions: Versions) -> None:
    digits = [str(digit) for digit in range(10)]
    for body, wrong in ((SAMPLE, {"plain": 0, "augmented": 0}), (SHIFTED, {"plain": 5})):
        for name, version in versions.items():
            answer = httpx.post(f"{version.url}/predict/label", json=body, trust_env=False)
            found = answer.raise_for_status().json()["prediction"]
            assert sum(a != b for a, b in zip(found, digits, strict=True)) == wrong.get(name, 0)


def test_a_tenth_of_the_users_gets_the_candidate_and_each_stays(mesh: Proxy) -> None:
    with calling(mesh.url) as client:
        first, second = ([version_of(client, user) for user in USERS] for _ in range(2))
        assert first == second
        assert {version_of(client, None) for _ in range(100)} == {"augmented"}
    new = first.count("plain")
    assert first.count("augmented") + new == len(USERS)
    assert binomtest(new, len(USERS), SHARE).pvalue > 0.001


def test_without_the_hash_users_change_the_version(versions: Versions) -> None:
    def change(manifest: Json) -> None:
        if manifest.get("metadata", {}).get("name") == "sticky":
            manifest.clear()

    with proxy(PATTERN, translated(PATTERN, change), versions) as drawn, calling(drawn.url) as all_:
        of_each = [{version_of(all_, user) for _ in range(10)} for user in USERS[:30]]
    assert any(len(found) == 2 for found in of_each)


def test_a_candidate_that_is_away_costs_only_its_own_users() -> None:
    with ExitStack() as stack:
        own = {
            name: stack.enter_context(start("app.main:app", MODEL_DIRECTORY=directory))
            for name, directory in DIRECTORIES.items()
        }
        mesh = stack.enter_context(proxy(PATTERN, shipped(PATTERN), own))
        client = stack.enter_context(calling(mesh.url))
        before = {user: version_of(client, user) for user in USERS[:50]}
        assert set(before.values()) == set(DIRECTORIES)
        own["plain"].kill()
        for user, version in before.items():
            answer = client.post("/predict", json=SAMPLE, headers={"x-user-id": user})
            assert answer.status_code == {"augmented": 200, "plain": 503}[version]
            if answer.status_code == 503:
                assert answer.json() == {"detail": "the version is out of reach"}
                assert answer.headers["retry-after"] == "1"


# --- what procedures serves -----------------------------------------------------------------------


@pytest.mark.parametrize("of", ["shifted", "unshifted"])
def test_each_procedure_is_served_as_it_was_replayed(
    procedures: httpx.Client, of: report.Traffic
) -> None:
    expected = report.replay(of).model_dump()
    answer = procedures.get("/procedures", params={"traffic": of}).raise_for_status().json()
    assert answer == expected
    assert set(answer["procedures"]) == {"offline", "shadow", "ab"}
    for name, found in answer["procedures"].items():
        assert procedures.get(f"/procedures/{name}", params={"traffic": of}).json() == found


def test_the_traffic_is_shifted_unless_told_otherwise(procedures: httpx.Client) -> None:
    shifted = procedures.get("/procedures?traffic=shifted").json()
    assert procedures.get("/procedures").json() == shifted
    assert procedures.get("/procedures/ab").json() == shifted["procedures"]["ab"]


@pytest.mark.parametrize(
    "name", ["luck", "Offline", "offline%20", "%00", "..%5c", "0", "a" * 2_000]
)
def test_an_unknown_procedure_is_refused(procedures: httpx.Client, name: str) -> None:
    answer = procedures.get(f"/procedures/{name}")
    assert (answer.status_code, answer.json()) == (
        404,
        {"detail": "the procedures are offline, shadow, ab"},
    )


@pytest.mark.parametrize("of", ["", "Shifted", "both", "shifted,unshifted", "1"])
def test_unknown_traffic_is_refused(procedures: httpx.Client, of: str) -> None:
    for path in ("/procedures", "/procedures/ab"):
        answer = procedures.get(path, params={"traffic": of})
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["msg"] == "Input should be 'shifted' or 'unshifted'"


def test_procedures_does_not_start_without_a_candidate_or_a_test_set(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="no usable model"):
        start("app.report:app", CANDIDATE_DIRECTORY=tmp_path).__enter__()
    with pytest.raises(ServerError, match="No such file"):
        start("app.report:app", HELD_OUT_FILE=tmp_path / "none.npz").__enter__()
    shutil.copytree(MODELS / "plain", tmp_path / "changed")
    with (tmp_path / "changed/model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ServerError, match="SHA-256"):
        start("app.report:app", CANDIDATE_DIRECTORY=tmp_path / "changed").__enter__()


# --- the procedures -------------------------------------------------------------------------------

MANY = 10_000


def answers(live: float, candidate: float, count: int = MANY, seed: int = 0) -> Answers:
    """Returns made-up answers of two versions that are right so often, one without the other."""
    draw = np.random.default_rng([seed, 2])
    live_right, candidate_right = draw.random(count) < live, draw.random(count) < candidate
    return Answers(live_right, candidate_right, live_right == candidate_right)


def test_by_the_score_alone_everybody_gets_the_candidate_whatever_it_says() -> None:
    for share in (0.0, 0.3, 1.0):
        made_up = answers(1.0, share)
        wrong = int((~made_up.candidate_right).sum())
        assert offline(made_up, 0) == Outcome(
            requests_to_detection=None, users_exposed=MANY, wrong_answers_served=wrong
        )


def test_the_shadow_exposes_nobody_to_a_candidate_that_it_rejects() -> None:
    made_up = answers(0.95, 0.5)
    wrong = int((~made_up.live_right).sum())
    assert shadow(made_up, 0) == Outcome(
        requests_to_detection=RULE.min_pairs, users_exposed=0, wrong_answers_served=wrong
    )


def test_the_shadow_releases_a_candidate_that_agrees_after_the_first_requests() -> None:
    made_up = answers(0.95, 0.95)._replace(agree=np.ones(MANY, bool))
    wrong = int((~made_up.live_right[:100]).sum() + (~made_up.candidate_right[100:]).sum())
    assert shadow(made_up, 0) == Outcome(
        requests_to_detection=None, users_exposed=MANY - 100, wrong_answers_served=wrong
    )


@pytest.mark.parametrize(("agreeing", "is_rejected"), [(0, True), (86, True), (88, False)])
def test_the_rule_of_the_shadow_is_asked_with_the_lower_bound_of_the_agreement(
    agreeing: int, is_rejected: bool
) -> None:
    agree = np.ones(MANY, bool)
    # What comes after the first requests is not judged.
    agree[agreeing:] = False
    found = shadow(answers(0.9, 0.9)._replace(agree=agree), 0)
    assert (found.requests_to_detection is not None) == is_rejected


def test_the_ab_test_exposes_a_tenth_until_it_rejects() -> None:
    made_up = answers(0.95, 0.5)
    for seed in range(20):
        found = ab(made_up, seed)
        assert found.requests_to_detection is not None
        seen, exposed = found.requests_to_detection, found.users_exposed
        assert 10 < seen < 1_000
        assert binomtest(exposed, seen, SHARE).pvalue > 1e-4
        # At most every answer of the candidate was wrong where the other would have been right.
        least = int((~made_up.live_right).sum())
        assert abs(found.wrong_answers_served - least) <= exposed


def test_the_ab_test_releases_at_the_planned_size_what_does_no_harm() -> None:
    found = ab(answers(0.9, 1.0), 0)
    assert found.requests_to_detection is None
    assert found.users_exposed == pytest.approx(MANY - PLANNED * (1 - SHARE), abs=100)


def test_the_ab_test_rejects_nothing_before_both_versions_have_users() -> None:
    for count in (1, 2, 5):
        assert ab(answers(1.0, 0.0, count), 0).requests_to_detection is None


def test_the_ab_test_seldom_rejects_a_version_that_is_as_good() -> None:
    """Of 200 simulated tests of equal versions, the interval may blame one in forty."""
    rejected = sum(
        ab(answers(0.9, 0.9, seed=seed), seed).requests_to_detection is not None
        for seed in range(200)
    )
    assert binomtest(rejected, 200, 0.025, alternative="greater").pvalue > 0.001


def test_every_procedure_is_tested_here() -> None:
    assert [*PROCEDURES.values()] == [offline, shadow, ab]


# --- manifests and measurement --------------------------------------------------------------------


def manifest(name: str) -> Any:
    return yaml.safe_load((PATTERN / f"manifests/{name}.yml").read_text("utf-8"))


def test_the_mesh_gives_the_candidate_the_share_of_the_replay() -> None:
    split, outside = manifest("virtual_service")["spec"]["http"]
    weights = {each["destination"]["subset"]: each["weight"] for each in split["route"]}
    assert weights == {"augmented": 90, "plain": round(100 * SHARE)}
    assert [each["destination"]["subset"] for each in outside["route"]] == ["augmented"]
    for name in DIRECTORIES:
        deployment = manifest(f"{name}_deployment")
        assert deployment["spec"]["selector"]["matchLabels"]["version"] == name
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        env = {each["name"]: each["value"] for each in container.get("env", [])}
        assert env == ({"MODEL_DIRECTORY": "models/plain"} if name == "plain" else {})


def test_a_winner_needs_more_than_chance() -> None:
    def of(only_plain: int, only_augmented: int) -> Compared:
        right = np.zeros((2, 1_000), bool)
        right[0, :only_plain] = right[1, only_plain : only_plain + only_augmented] = True
        return compared(*right)

    assert [of(30, 5).winner, of(5, 30).winner] == ["plain", "augmented"]
    assert [of(15, 5).winner, of(10, 10).winner, of(0, 0).winner] == 3 * ["nobody"]
    assert of(30, 5).p_value == pytest.approx(binomtest(30, 35).pvalue)


@pytest.mark.budget("measure --quick")
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
    exact = {
        "offline_winner_is_plain": (5, 0),
        "online_winner_is_augmented": (5, 0),
        "shadow_users_exposed": (0, 10_000),
        "shadow_requests_to_detection": (100, 10_000),
        "false_objections": (0, 2),
    }
    for name, both in exact.items():
        assert (results.counts[name], results.control[name]) == both
    for name in ("ab_users_exposed", "ab_requests_to_detection"):
        assert 0 < results.counts[name] <= 1_000 < results.control[name]
    for name in ("shadow_wrong_answers_served", "ab_wrong_answers_served"):
        assert results.counts[name] < 1_000 < 5_000 < results.control[name]
