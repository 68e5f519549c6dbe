"""Measures the claim: two services answer as one process would, and never as a mixed pair."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tools.measure.load import Request
from tools.measure.results import Results, quick_argument
from tools.measure.server import Server
from tools.measure.servers import run_uvicorn

from ..train.digits import SEED, load
from ..train.model import FITTED_PHOTOS, fit_preprocessing
from ..train.photos import photos_of
from .baselines import one_process
from .cost import measure_costs
from .mutants import mutants_of
from .processes import (
    HERE,
    MODELS,
    PACKAGE,
    PICTURES_AT_ONCE,
    ROOT,
    predict_all,
    run_pred,
    run_prep,
    send,
)

CLAIM = (
    "prep and pred answer as one process would, each without the libraries of the other, and never "
    "as a mixed pair; no broken picture is a server error."
)
PICTURES, MUTANTS, QUICK_MUTANTS = 540, 3_000, 300
TOLERANCE, OTHER_LIGHT = 1e-6, 0.4
# What the other service, or only the training, needs.
FOREIGN = {"prep.main": "onnxruntime sklearn onnx", "pred.main": "PIL sklearn onnx aiohttp"}
COUNTED: dict[str, tuple[str, float]] = {
    "pictures_equal": ("==", PICTURES),
    "foreign_modules": ("==", 0),
    "mixed_answers": ("==", 0),
    "mutants_500": ("==", 0),
}
MEASURED: dict[str, tuple[str, float]] = {
    "hop_cpu_ms": ("<=", 1.5),
    "json_hop_ratio": (">=", 20),
    "double_prep_ratio": (">=", 1.4),
    "double_pred_ratio": ("<=", 1.25),
    "double_pred_ratio_heavy": (">=", 1.4),
    "double_prep_ratio_heavy": ("<=", 1.25),
    "prep_memory_mb": ("<=", 100),
    "pred_memory_mb": ("<=", 100),
    "prep_mutants_memory_mb": ("<=", 150),
}


def count_foreign(module: str, names: str) -> int:
    """Returns how many of these packages a program imports."""
    code = f"import sys, {PACKAGE}.{module}; print(len({set(names.split())} & sys.modules.keys()))"
    run = [sys.executable, "-c", code]
    return int(subprocess.run(run, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout)


def write_other_half(directory: Path, rows: np.ndarray) -> None:
    """Writes preprocessing that another training has fitted, on photos in less light."""
    photos = photos_of(rows[:FITTED_PHOTOS], SEED, OTHER_LIGHT)
    described = json.loads((MODELS / "preprocessing.json").read_bytes())
    described["tensor"] = asdict(fit_preprocessing(photos))
    described["model_sha256"] = hashlib.sha256(b"the model of that training").hexdigest()
    (directory / "preprocessing.json").write_text(json.dumps(described), "utf-8")
    for name in ("metadata.json", "sample.jpg"):
        shutil.copy(MODELS / name, directory)


def count_500(server: Server, photo: bytes, count: int) -> int:
    """Returns how many of the mutants are answered with a server error, or not at all."""
    requests = [
        Request(f"{server.url}/predict", content, {"content-type": media_type})
        for media_type, content in mutants_of(photo, count)
    ]
    run = send(requests, count)
    answered = sum(number for status, number in run.statuses.items() if status < 500)
    return count - answered


def count_all(
    mutants: int,
) -> tuple[dict[str, int], dict[str, int], dict[str, float], bytes]:
    """Returns all counts, the same without each mechanism, figures and a photo."""
    x_train, _, x_test, y_test = load()
    photos = photos_of(x_test, SEED + 1)
    expected = one_process(MODELS, photos, PICTURES_AT_ONCE)
    with TemporaryDirectory() as name, run_pred() as pred, run_prep(pred.url) as prep:
        other = Path(name)
        write_other_half(other, x_train)
        with (
            run_prep(pred.url, other, ready="/health") as mixed,
            run_prep(pred.url, other, CHECK_PAIR="false") as unchecked,
            run_uvicorn(f"{PACKAGE}.measure.baselines:plain", cwd=ROOT) as plain,
        ):
            answers = predict_all(prep, photos)
            refused, accepted = predict_all(mixed, photos), predict_all(unchecked, photos)
            counts = {
                "pictures": len(photos),
                "pictures_equal": equal(answers, expected),
                "foreign_modules": sum(count_foreign(*each) for each in FOREIGN.items()),
                "mixed_answers": answered(refused),
                "mutants": mutants,
                "mutants_500": count_500(prep, photos[0], mutants),
            }
            control = {
                "pictures_equal": equal(accepted, expected),
                "foreign_modules": count_foreign("measure.baselines", "PIL onnxruntime"),
                "mixed_answers": answered(accepted),
                "mutants_500": count_500(plain, photos[0], mutants),
            }
        figures = {
            "accuracy": float(np.mean(answers.argmax(axis=1) == y_test)),
            "accuracy_mixed": float(np.mean(accepted.argmax(axis=1) == y_test)),
            "prep_mutants_memory_mb": prep.memory_mb(),
        }
    return counts, control, figures, photos[0]


def equal(answers: np.ndarray, expected: np.ndarray) -> int:
    return int(np.sum(np.abs(answers - expected).max(axis=1) <= TOLERANCE))


def answered(answers: np.ndarray) -> int:
    return int(np.sum(~np.isnan(answers).any(axis=1)))


def main() -> int:
    arguments = quick_argument(__doc__)
    mutants = QUICK_MUTANTS if arguments.quick else MUTANTS
    counts, control, figures, photo = count_all(mutants)
    if arguments.quick:
        figures = {}
    else:
        figures |= measure_costs(photo)
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts=counts,
        control=control,
        figures=figures,
        targets=COUNTED | (MEASURED if figures else {}),
        series={},
        holds=all(counts[name] == count for name, (_, count) in COUNTED.items()),
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
