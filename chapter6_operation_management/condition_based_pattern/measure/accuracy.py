"""Measures how often the routed models are right, and how often a single model would be."""

from math import comb
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from ..train.model import CONDITIONS, LABELS, classifier, load, seen

ROWS_AT_ONCE = 32
# The condition as a feature, 0 or the value of a white pixel.
WHITE = 16

Right = NDArray[np.bool_]


def logistic() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1_000))


def tuned() -> Any:
    """Returns a classifier with the parameters that are best for one that sees the condition."""
    return SVC(C=10, gamma=0.001)


def routed_right(url: str, *, misrouted: bool = False) -> Right:
    """Tells for every test row, in both conditions, whether its label is right."""
    split = load()
    expected = [LABELS[label] for label in split.y_test]
    right: list[bool] = []
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        for condition, other in zip(CONDITIONS, reversed(CONDITIONS), strict=True):
            headers = {"target": other if misrouted else condition}
            rows = seen(split.x_test, condition).tolist()
            labels: list[str] = []
            for at in range(0, len(rows), ROWS_AT_ONCE):
                body = {"data": rows[at : at + ROWS_AT_ONCE]}
                answer = client.post("/predict/label", json=body, headers=headers)
                labels += answer.raise_for_status().json()["prediction"]
            right += [label == true for label, true in zip(labels, expected, strict=True)]
    return np.array(right)


def single_right(estimator: Any, *, rows: int, condition_weight: float = 0) -> Right:
    """Tells the same for one model of both conditions.

    It is trained on as many rows as each routed model, every second one upside down, or on twice
    as many: each in both conditions.
    """
    split = load()
    views = [seen(split.x_train, condition) for condition in CONDITIONS]
    turned = np.arange(len(split.x_train)) % 2
    x, y, flags = np.where(turned[:, None], views[1], views[0]), split.y_train, turned
    if rows > len(x):
        x, y = np.concatenate(views), np.tile(split.y_train, 2)
        flags = np.repeat([0, 1], len(split.x_train))
    x_test = np.concatenate([seen(split.x_test, condition) for condition in CONDITIONS])
    test_flags = np.repeat([0, 1], len(split.x_test))
    if condition_weight:
        x = np.column_stack([x, condition_weight * flags])
        x_test = np.column_stack([x_test, condition_weight * test_flags])
    right: Right = estimator.fit(x, y).predict(x_test) == np.tile(split.y_test, 2)
    return right


def each_alone(make: Any) -> Right:
    """Tells the same for other models that are trained for one condition each."""
    split = load()
    right: Right = np.concatenate(
        [
            make().fit(seen(split.x_train, each), split.y_train).predict(seen(split.x_test, each))
            == split.y_test
            for each in CONDITIONS
        ]
    )
    return right


def mcnemar_p(ours: Right, theirs: Right) -> float:
    """Returns the exact two-sided p of McNemar's test, from the rows on which they differ."""
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    count = only_ours + only_theirs
    tail = sum(comb(count, k) for k in range(max(only_ours, only_theirs), count + 1))
    return min(1.0, float(2 * tail / 2**count))


def measure_accuracy(url: str) -> dict[str, float]:
    """Returns the accuracies for the 1,798 test rows: 899 digits, each in both conditions."""
    once, twice = len(load().x_train), 2 * len(load().x_train)
    routed = routed_right(url)
    single = single_right(classifier(), rows=once)
    rights = {
        "routed": routed,
        "global": single,
        "with_condition": single_right(classifier(), rows=once, condition_weight=WHITE),
        "misrouted": routed_right(url, misrouted=True),
        "global_twice_the_rows": single_right(classifier(), rows=twice),
        "with_condition_twice_the_rows": single_right(
            classifier(), rows=twice, condition_weight=WHITE
        ),
        "tuned_routed": each_alone(tuned),
        "tuned_with_condition": single_right(tuned(), rows=twice, condition_weight=4 * WHITE),
        "logistic_routed": each_alone(logistic),
        "logistic_with_condition": single_right(logistic(), rows=twice, condition_weight=WHITE),
    }
    figures = {f"accuracy_{name}": float(right.mean()) for name, right in rights.items()}
    return figures | {
        "accuracy_gain": figures["accuracy_routed"] - figures["accuracy_global"],
        "mcnemar_p": mcnemar_p(routed, single),
    }
