"""Measures the claim: two services answer as one process would, and never as a mixed pair."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tools.measure.load import Request
from tools.measure.results import Results, quick_argument
from tools.measure.server import Server
from tools.measure.servers import UVICORN_OPTIONS, run_uvicorn

from ..train.digits import SEED, load
from ..train.photos import photos_of
from .baselines import one_process
from .cost import measure_costs
from .mixed import write_other_half
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
TOLERANCE = 1e-6
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


def count_500(server: Server, photo: bytes, count: int) -> int:
    """Returns how many of the mutants are answered with a server error, or not at all."""
    requests = [
        Request(f"{server.url}/predict", content, {"content-type": media_type})
        for media_type, content in mutants_of(photo, count)
    ]
    run = send(requests, count)
    answered = sum(number for status, number in run.statuses.items() if status < 500)
    return count - answered


def count_all(mutants: int) -> tuple[dict[str, int], dict[str, int], dict[str, float], bytes]:
    """Returns all counts, the same without each mechanism, figures and a photo."""
    x_train, _, x_test, y_test = load()
    photos = photos_of(x_test, SEED + 1)
    expected = one_process(MODELS, photos, PICTURES_AT_ONCE)
    with TemporaryDirectory() as name, run_pred() as pred, run_prep(pred.url) as prep:
        other = Path(name)
        write_other_half(other, x_train)
        with (
            ThreadPoolExecutor() as pool,
            run_prep(pred.url, other, ready="/health") as mixed,
            run_prep(pred.url, other, CHECK_PAIR="false") as unchecked,
            # Its log would be one traceback after the other.
            run_uvicorn(
                f"{PACKAGE}.measure.baselines:plain",
                cwd=ROOT,
                options=[*UVICORN_OPTIONS, "--log-level", "critical"],
            ) as plain,
        ):
            each_predicts = partial(predict_all, pictures=photos)
            answers, refused, accepted = pool.map(each_predicts, (prep, mixed, unchecked))
            counts = {
                "pictures": len(photos),
                "pictures_equal": equal(answers, expected),
                "foreign_modules": sum(pool.map(count_foreign, FOREIGN, FOREIGN.values())),
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
    counts, control, figures, photo = count_all(QUICK_MUTANTS if arguments.quick else MUTANTS)
    figures = {} if arguments.quick else figures | measure_costs(photo)
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
