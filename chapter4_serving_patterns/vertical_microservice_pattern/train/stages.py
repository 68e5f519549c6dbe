"""Fits the models: one tells which way up an image is, one reads each way, and one reads again."""

import warnings
from typing import Any

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MaxAbsScaler
from sklearn.svm import SVC

from .convert import convert
from .digits import FEATURES, LABELS, SEED, Split, describe, load

VERSION = "1"
# The label of `orientation` is the name of the stage that reads.
READERS = ["upright", "turned"]
STAGES = ["orientation", *READERS, "second"]
# Of a support vector classifier. For `second`, cross-validation has chosen it among 1, 10 and 100.
STRENGTHS = {"orientation": 1.0, "second": 10.0}
FOLDS = 5


def turned(x: np.ndarray) -> np.ndarray:
    """Turns images by 180 degrees: the last pixel becomes the first."""
    return x[:, ::-1]


def both_ways(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, turned(x)])


def split_of(stage: str, images: Split) -> Split:
    """Returns the rows and labels of a stage, given upright images."""
    x_train, y_train, x_test, y_test = images
    match stage:
        case "upright":
            return images
        case "turned":
            return images._replace(x_train=turned(x_train), x_test=turned(x_test))
        case "orientation":
            ways = [np.repeat([0, 1], len(x)) for x in (x_train, x_test)]
            return Split(both_ways(x_train), ways[0], both_ways(x_test), ways[1])
        case _:
            earlier = fit_earlier(images)
            x_test = answered(earlier, both_ways(x_test))
            return Split(out_of_fold(images), np.tile(y_train, 2), x_test, np.tile(y_test, 2))


def fit(stage: str, rows: Split) -> Pipeline:
    """Fits a calibrated support vector classifier or, for a reader, a logistic regression."""
    if stage in READERS:
        # This solver takes few large steps.
        classifier: Any = LogisticRegression(solver="newton-cg")
    else:
        vectors = SVC(C=STRENGTHS[stage], random_state=SEED)
        classifier = CalibratedClassifierCV(vectors, ensemble=False)
    return make_pipeline(MaxAbsScaler(), classifier).fit(rows.x_train, rows.y_train)


def fit_earlier(images: Split) -> dict[str, Pipeline]:
    """Fits the stages before `second`."""
    return {stage: fit(stage, split_of(stage, images)) for stage in STAGES[:-1]}


def answered(earlier: dict[str, Pipeline], x: np.ndarray) -> np.ndarray:
    """Returns the input of `second`: pixels, the probability of turned, and ten of its reader."""
    ways = earlier["orientation"].predict_proba(x)
    upright, upside_down = (earlier[reader].predict_proba(x) for reader in READERS)
    read = np.where(ways[:, 1:] > ways[:, :1], upside_down, upright)
    return np.hstack([x, ways[:, 1:], read]).astype(np.float32)


def out_of_fold(images: Split) -> np.ndarray:
    """Returns the input of `second` for training.

    It comes from models that have not seen the image: those that have are surer than they will be.
    """
    x, y = images.x_train, images.y_train
    found = np.empty((2 * len(x), len(FEATURES) + 1 + len(LABELS)), np.float32)
    for others, held_out in KFold(FOLDS, shuffle=True, random_state=SEED).split(x):
        earlier = fit_earlier(images._replace(x_train=x[others], y_train=y[others]))
        places = np.concatenate([held_out, held_out + len(x)])
        found[places] = answered(earlier, both_ways(x[held_out]))
    return found


def train(stage: str) -> tuple[bytes, dict[str, Any]]:
    """Returns the model of a stage as ONNX, and its metadata."""
    rows = split_of(stage, load())
    model = fit(stage, rows)
    features = FEATURES
    if stage == "second":
        features = [*FEATURES, READERS[1], *(f"digit_{label}" for label in LABELS)]
    labels = READERS if stage == "orientation" else LABELS
    described = describe(rows, model.predict_proba(rows.x_test), labels)
    described |= {
        "input": {"name": "X", "shape": [None, len(features)], "features": features},
        "sample": rows.x_test[:1].tolist(),
    }
    with warnings.catch_warnings():
        # skl2onnx reads an attribute of SVC that scikit-learn 1.9 deprecates.
        warnings.filterwarnings("ignore", "Attribute `prob", FutureWarning)
        content = convert(model, len(features), f"digits_{stage}", {"zipmap": False})
    return content, {
        "name": f"digits_{stage}",
        "version": VERSION,
        "stage": stage,
        **described,
    }
