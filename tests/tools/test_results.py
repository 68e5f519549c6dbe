"""Results are written, read and validated."""

import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tools.measure.results import Arguments, Results, ResultsError, load, quick_argument

ROOT = Path(__file__).resolve().parents[2]


def results_of(pattern: str, /, **changes: Any) -> Results:
    right: dict[str, Any] = {
        "pattern": pattern,
        "claim": "No job is lost when a worker is killed.",
        "counts": {"lost": 0, "done": 19_998},
        "figures": {"ack_p99_ms": 12.34567, "jobs_per_second": 3456.789, "start_seconds": 1},
        "control": {"lost": 56},
        "holds": True,
        "targets": {"jobs_per_second": (">=", 3000), "lost": ("==", 0), "ack_p99_ms": ("<=", 20)},
        "series": {"load_percent": [50, 100, 300], "goodput_percent": [50, 99.88888, 100]},
        "measured_on": "2025-01-31",
    }
    return Results(**{**right, **changes})


def test_results_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    written = results_of("queue_pattern")
    written.write(tmp_path / "measure")
    assert load(tmp_path) == written
    assert [path.name for path in (tmp_path / "measure").iterdir()] == ["results.json"]
    content = json.loads((tmp_path / "measure/results.json").read_text())
    assert list(content)[:6] == ["pattern", "claim", "counts", "figures", "control", "holds"]
    assert list(content["counts"]) == ["lost", "done"]
    # Figures keep four significant digits, counts all digits.
    assert content["figures"] == {
        "ack_p99_ms": 12.35,
        "jobs_per_second": 3457.0,
        "start_seconds": 1.0,
    }
    assert content["series"]["goodput_percent"] == [50.0, 99.89, 100.0]
    assert content["counts"]["done"] == 19_998
    assert content["targets"]["lost"] == ["==", 0]


def test_the_machine_is_described_and_not_named(tmp_path: Path) -> None:
    results_of("queue_pattern").write(tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    assert list(content["machine"]) == ["cpu", "cores", "memory", "os", "python"]
    assert content["machine"]["cores"] == str(os.cpu_count())
    assert platform.node() not in content["machine"].values()
    assert str(ROOT) not in json.dumps(content)


WRONG = [
    ("pattern", "", "pattern must be text"),
    ("claim", " ", "claim must be text"),
    ("claim", None, "claim must be text"),
    ("holds", "yes", "holds must be true or false"),
    ("holds", 1, "holds must be true or false"),
    ("counts", {}, "counts is empty"),
    ("counts", [["lost", 0]], "counts must be an object"),
    ("counts", {"lost": 0.5}, r"counts\.lost is 0\.5, not an int"),
    ("counts", {"lost": True}, r"counts\.lost is True, not an int"),
    ("counts", {"lost": None}, r"counts\.lost is None, not an int"),
    ("control", {}, "control is empty"),
    ("control", {"lsot": 5}, r"control\.lsot has no count"),
    ("figures", {"p99_ms": float("nan")}, r"figures\.p99_ms is nan"),
    ("figures", {"p99_ms": float("inf")}, r"figures\.p99_ms is inf"),
    ("figures", {"p99_ms": "12"}, r"figures\.p99_ms is '12'"),
    ("figures", {"p99_ms": False}, r"figures\.p99_ms is False"),
    ("figures", {"lost": 1.0}, "lost is both a count and a figure"),
    ("targets", {"p98_ms": ("<=", 1)}, r"targets\.p98_ms is neither"),
    ("targets", {"lost": ("<", 1)}, r"targets\.lost is \W'<', 1\W, not a sign and a number"),
    ("targets", {"lost": ("<=", float("nan"))}, r"targets\.lost is"),
    ("targets", {"lost": 3}, r"targets\.lost is 3"),
    ("targets", {"lost": [["<="], 3]}, r"targets\.lost is"),
    ("series", [1, 2, 3], "series must be an object"),
    ("series", {"load_percent": 3}, r"series\.load_percent must be a list"),
    ("series", {"load_percent": [1, 2]}, r"series\.load_percent has 2 points; a line needs 3"),
    ("series", {"load_percent": [1, 2, None]}, r"series\.load_percent has None, not a finite"),
    ("series", {"load_percent": [1, 2, float("inf")]}, r"series\.load_percent has inf"),
    ("machine", {"cpu": 3}, r"machine\.cpu must be text"),
    ("measured_on", "yesterday", "measured_on is 'yesterday', not a date"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_invalid_results_are_rejected_with_the_name_of_the_field(
    tmp_path: Path, name: str, value: Any, message: str
) -> None:
    with pytest.raises(ResultsError, match=message):
        results_of("queue_pattern", **{"targets": {}, name: value})
    content = {**asdict(results_of("queue_pattern", targets={})), name: value}
    (tmp_path / "measure").mkdir()
    (tmp_path / "measure/results.json").write_text(json.dumps(content))
    with pytest.raises(ResultsError, match=rf"/results\.json: {message}"):
        load(tmp_path)


def test_a_file_with_a_missing_or_unknown_field_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "measure/results.json"
    path.parent.mkdir()
    with pytest.raises(ResultsError, match=r"results\.json is missing: run make measure"):
        load(tmp_path)
    for text, message in (("{", "Expecting"), ("[]", "must be an object")):
        path.write_text(text)
        with pytest.raises(ResultsError, match=message):
            load(tmp_path)
    content = asdict(results_of("queue_pattern"))
    for name in content:
        path.write_text(json.dumps({key: content[key] for key in content if key != name}))
        with pytest.raises(ResultsError, match=f"{name} is missing"):
            load(tmp_path)
    path.write_text(json.dumps({**content, "figure": {}}))
    with pytest.raises(ResultsError, match="unknown field figure"):
        load(tmp_path)


def test_show_prints_counts_with_their_control_and_figures_with_their_target(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bounds = {"ack_p99_ms": ("<=", 10), "start_seconds": ("<=", 1), "jobs_per_second": (">=", 3457)}
    results_of("queue_pattern", targets={**bounds, "lost": ("==", 0)}).show()
    rows = {
        cells[0]: cells[1:]
        for line in capsys.readouterr().out.splitlines()
        if (cells := [cell.strip() for cell in line.strip("│").split("│")])
    }
    assert rows["lost"] == ["0", "56", "= 0: met"]
    assert rows["done"] == ["19,998", "", ""]
    # A value equal to its bound meets the target.
    assert rows["start_seconds"] == ["1", "", "≤ 1: met"]
    assert rows["jobs_per_second"] == ["3,457", "", "≥ 3,457: met"]
    assert rows["ack_p99_ms"] == ["12.35", "", "≤ 10: missed"]


@pytest.mark.parametrize(
    ("argv", "written_to"),
    [
        ([], "pattern/measure"),
        (["--quick"], None),
        (["--quick", "--output", "elsewhere"], "elsewhere"),
        (["--output", "elsewhere"], "elsewhere"),
    ],
)
def test_a_quick_run_does_not_write_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], written_to: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = quick_argument("Measures the claim.", argv)
    assert arguments.quick == ("--quick" in argv)
    assert results_of("queue_pattern").finish(arguments, tmp_path / "pattern") == 0
    written = [str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("results.json")]
    assert written == ([written_to] if written_to else [])


def test_a_claim_that_does_not_hold_is_written_and_fails(tmp_path: Path) -> None:
    results = results_of("queue_pattern", holds=False)
    assert results.finish(Arguments(quick=False, output=None), tmp_path) == 1
    assert load(tmp_path).holds is False
