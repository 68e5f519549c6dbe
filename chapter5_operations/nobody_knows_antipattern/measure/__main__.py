"""Measures the claim: a wrong unit is refused, and every fact of the card can be checked."""

import json
import shutil
import subprocess
import sys
import time
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp
from sklearn.datasets import load_iris

from tools.measure.results import Results, quick_argument
from tools.measure.server import Server, ServerError, median_and_spread
from tools.measure.servers import run_uvicorn

from ..app.audit import audit, sha256

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[1]
PACKAGE = ".".join(HERE.relative_to(ROOT).parts)
CLAIM = "No row in a wrong unit is answered, and every fact of the model's card is checked."
GOOD, BAD = "app.main:app", "app.bad:app"
IRIS = load_iris()
CM_PER_INCH, YARDS_PER_METRE = 2.54, 1.094
TARGETS: dict[str, tuple[str, float]] = {
    "wrong_unit_answered": ("==", 0),
    "questions_answered": ("==", 10),
    "retrained_equal": ("==", 1),
    "unreviewed_started": ("==", 0),
}
FIGURE_TARGETS: dict[str, tuple[str, float]] = {"audit_seconds": ("<=", 20)}
# A monitor compares every window of so many rows with the training rows, at this level.
WINDOWS, ALPHA, RUNS, SEED = (10, 20, 30, 60, 120, 240, 480), 0.001, 200, 0

Rows = NDArray[np.float64]


def server(app: str, models: Path, records: Path) -> AbstractContextManager[Server]:
    env = {
        "MODEL_DIRECTORY": str(models),
        "RECORDS_DIRECTORY": str(records),
        "AUDIT_FILE": str(models / "audit.json"),
    }
    return run_uvicorn(f"{PACKAGE}.{app}", cwd=ROOT, env=env)


def trained(program: str, directory: Path) -> Path:
    command = [sys.executable, "-m", f"{PACKAGE}.{program}", "--output", str(directory)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return directory


def labels(running: Server, rows: Rows, unit: str | None) -> list[str | None]:
    """Returns the label of each row that the server answers; each row is a request."""
    said = {} if unit is None else {"unit": unit}
    with httpx.Client(base_url=running.url, timeout=30) as client:
        answers = [
            client.post("/predict/label", json=said | {"data": [row]}) for row in rows.tolist()
        ]
    return [
        answer.json()["prediction"][0] if answer.status_code == 200 else None for answer in answers
    ]


def answered(found: list[str | None]) -> int:
    return sum(label is not None for label in found)


def accuracy(found: list[str | None]) -> float:
    truth = IRIS.target_names[IRIS.target]
    return float(np.mean([label == name for label, name in zip(found, truth, strict=True)]))


def are_equal(one: Path, other: Path) -> int:
    """Returns 1 if two trainings gave the same file."""
    return int(sha256(one / "model.onnx") == sha256(other / "model.onnx"))


def starts(app: str, models: Path, records: Path) -> int:
    """Returns 1 if the server starts."""
    try:
        with server(app, models, records):
            return 1
    except ServerError:
        return 0


def rows_until_seen(factor: float) -> float:
    """Returns how many rows a monitor needs, as the median of many simulated streams of rows.

    A window is seen as different if the two-sample Kolmogorov-Smirnov test of any feature is below
    the level, divided by the number of features (Bonferroni).
    """
    draw = np.random.default_rng(SEED)
    needed = []
    for _ in range(RUNS):
        stream = IRIS.data[draw.integers(0, len(IRIS.data), WINDOWS[-1])] * factor
        seen = (size for size in WINDOWS if differs(stream[:size]))
        needed.append(float(next(seen, np.inf)))
    return float(median_and_spread(needed).median)


def differs(window: Rows) -> bool:
    level = ALPHA / window.shape[1]
    return any(
        ks_2samp(one, other).pvalue < level
        for one, other in zip(window.T, IRIS.data.T, strict=True)
    )


def main() -> int:
    arguments = quick_argument(__doc__)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory()))
        models = trained("train", directory / "models")
        bare = directory / "bare"
        bare.mkdir()
        shutil.copy(models / "model.onnx", bare)
        records = Path(shutil.copytree(HERE / "records", directory / "records"))
        began = time.monotonic()
        facts = audit(models, records)
        seconds = time.monotonic() - began
        digest = sha256(models / "model.onnx")
        (models / "audit.json").write_text(json.dumps({"sha256": digest, "facts": facts}))
        good = stack.enter_context(server(GOOD, models, records))
        bad = stack.enter_context(server(BAD, models, records))
        inches = IRIS.data / CM_PER_INCH
        of_bad = labels(bad, inches, None)
        changed = Path(shutil.copytree(records, directory / "changed"))
        (changed / "parameters.json").write_text('{"margin_share": 1.0}')
        counts = {
            "wrong_unit_answered": answered(labels(good, inches, "inch")),
            "questions_answered": sum(not wrong for wrong in facts.values()),
            "retrained_equal": are_equal(models, trained("train", directory / "again")),
            "unreviewed_started": starts(GOOD, models, changed),
        }
        control = {
            "wrong_unit_answered": answered(of_bad),
            "questions_answered": sum(not wrong for wrong in audit(bare, records).values()),
            "retrained_equal": are_equal(
                *(trained("measure.baselines", directory / name) for name in ("first", "second"))
            ),
            "unreviewed_started": starts("measure.baselines:without_review", models, changed),
        }
        figures: dict[str, float] = {}
        if not arguments.quick:
            yards = IRIS.data * YARDS_PER_METRE
            figures = {
                "audit_seconds": seconds,
                "accuracy_cm": accuracy(labels(bad, IRIS.data, None)),
                "accuracy_inches": accuracy(of_bad),
                "accuracy_yards": accuracy(labels(bad, yards, None)),
                "inches_called_cm_answered": answered(labels(good, inches, "cm")),
                "yards_answered": answered(labels(good, yards, "cm")),
                "rows_until_a_monitor_sees_inches": rows_until_seen(1 / CM_PER_INCH),
                "rows_until_a_monitor_sees_yards": rows_until_seen(YARDS_PER_METRE),
                "bad_memory_mb": bad.memory_mb(),
                "memory_mb": good.memory_mb(),
            }
    holds = list(counts.values()) == [0, 10, 1, 0]
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts=counts,
        control=control,
        figures=figures,
        targets=TARGETS | (FIGURE_TARGETS if figures else {}),
        holds=holds,
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
