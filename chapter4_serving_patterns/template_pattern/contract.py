"""Checks whether a service keeps the contract of the template: python contract.py URL.

It needs nothing but Python, so that a caller of a service can run it, too.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPException
from typing import Any, NamedTuple
from urllib.parse import urlsplit

JSON = {"content-type": "application/json"}
LARGE_BYTES = 100_000_000
# What a refusal may take, so that it does not repeat the body.
MOST_BYTES = 5_000
DESCRIBED = {"name", "version", "sha256", "input", "output", "labels", "metrics", "sample"}


class Answer(NamedTuple):
    status: int
    content: Any
    length_bytes: int


class Service:
    """A running service, and what it says about its model."""

    def __init__(self, url: str) -> None:
        """Raises an OSError or HTTPException if nothing answers at the URL."""
        parts = urlsplit(url if "//" in url else f"http://{url}")
        self.address = (parts.hostname or "localhost", parts.port or 80)
        self.metadata = self.get("/metadata").content

    @property
    def labels(self) -> list[str]:
        return list(self.metadata["labels"])

    @property
    def sample(self) -> list[float]:
        return list(self.metadata["sample"][0])

    @property
    def rows(self) -> list[list[float]]:
        """Rows of which each may get another prediction."""
        return [self.sample, [value + 1 for value in self.sample], [0] * len(self.sample)]

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] = JSON
    ) -> Answer:
        connection = HTTPConnection(*self.address, timeout=10)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        try:
            content = json.loads(text)
        except ValueError:
            content = None
        return Answer(response.status, content, len(text))

    def get(self, path: str) -> Answer:
        return self.ask("GET", path)

    def predicted(self, path: str, rows: list[list[float]] | None = None) -> Any:
        """Returns the prediction of rows, or of a GET without them."""
        body = json.dumps({"data": rows}).encode() if rows else b""
        return self.ask("POST" if rows else "GET", path, body).content["prediction"]

    def refuses(self, *bodies: Any) -> bool:
        """Tells whether each body gets a 422 with its reason, and is not repeated."""
        answers = [self.ask("POST", "/predict", json.dumps(body).encode()) for body in bodies]
        return all(
            answer.status == 422 and answer.content["detail"] and answer.length_bytes < MOST_BYTES
            for answer in answers
        )

    def with_first(self, *values: Any) -> list[dict[str, Any]]:
        return [{"data": [[value, *self.sample[1:]]]} for value in values]


CLAUSES: dict[str, Callable[[Service], bool]] = {
    "GET /health says that the process lives": lambda s: s.get("/health").content["health"] == "ok",
    "GET /ready says that the model predicts": lambda s: s.get("/ready").status == 200,
    "GET /metadata describes the model": lambda s: set(s.metadata) >= DESCRIBED,
    "GET /metadata has the digest of the training data": lambda s: (
        len(s.metadata["training_data_sha256"]) == 64
    ),
    "GET /label names the label of each index": lambda s: (
        s.get("/label").content == {str(index): label for index, label in enumerate(s.labels)}
    ),
    "GET /predict/test predicts the sample": lambda s: close(
        s.predicted("/predict/test"), s.predicted("/predict", [s.sample])
    ),
    "GET /predict/test/label predicts the label of the sample": lambda s: (
        s.predicted("/predict/test/label") == s.predicted("/predict/label", [s.sample])
    ),
    "each row gets a prediction": lambda s: len(s.predicted("/predict", s.rows)) == len(s.rows),
    "a row gets the same prediction alone and among others": lambda s: close(
        s.predicted("/predict", s.rows), [s.predicted("/predict", [row])[0] for row in s.rows]
    ),
    "each label has a probability, and those of a row add up to 1": lambda s: all(
        len(row) == len(s.labels) and abs(sum(row) - 1) < 1e-3
        for row in s.predicted("/predict", s.rows)
    ),
    "the label of a row is its most probable one": lambda s: (
        s.predicted("/predict/label", s.rows)
        == [s.labels[row.index(max(row))] for row in s.predicted("/predict", s.rows)]
    ),
    "a missing field gets a 422": lambda s: s.refuses({}, []),
    "an unknown field gets a 422": lambda s: s.refuses({"data": [s.sample], "dat": []}),
    "no rows get a 422": lambda s: s.refuses({"data": []}),
    "a row of another width gets a 422": lambda s: s.refuses(
        {"data": [s.sample[1:]]}, {"data": [s.sample, [*s.sample, 0]]}
    ),
    "NaN gets a 422": lambda s: s.refuses(*s.with_first(float("nan"))),
    "infinity gets a 422": lambda s: s.refuses(*s.with_first(float("inf"), float("-inf"))),
    "true and null are not numbers": lambda s: s.refuses(*s.with_first(True, None)),
    "a text is not a number": lambda s: s.refuses(*s.with_first("1.5")),
    "a body that is not JSON gets a 422": lambda s: (
        s.ask("POST", "/predict", b'{"data": [').status == 422
    ),
    "a compressed body gets a 415": lambda s: (
        s.ask("POST", "/predict", b"x", JSON | {"content-encoding": "gzip"}).status == 415
    ),
    "a body of 100 MB gets a 413 before it is sent": lambda s: (
        s.ask("POST", "/predict", b"", JSON | {"content-length": str(LARGE_BYTES)}).status == 413
    ),
    "an unknown path gets a 404": lambda s: s.get("/nothing").status == 404,
    "the API documentation has a valid example": lambda s: (
        s.predicted("/predict", example_of(s.get("/openapi.json").content)) is not None
    ),
}


def close(one: list[list[float]], other: list[list[float]]) -> bool:
    """Tells whether two predictions have the same probabilities, but for rounding."""
    pairs = [pair for rows in zip(one, other, strict=True) for pair in zip(*rows, strict=True)]
    return all(abs(first - second) < 1e-5 for first, second in pairs)


def example_of(document: dict[str, Any]) -> Any:
    return document["components"]["schemas"]["PredictRequest"]["example"]["data"]


def broken(url: str) -> Iterator[str]:
    """Yields the clauses that a service does not keep."""
    service = Service(url)
    for clause, keeps in CLAUSES.items():
        try:
            kept = keeps(service)
        # An answer of another form breaks the clause.
        except (AttributeError, LookupError, TypeError, ValueError, OSError, HTTPException):
            kept = False
        if not kept:
            yield clause


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="of the service, such as http://localhost:8000")
    url = parser.parse_args().url
    try:
        found = list(broken(url))
    except (ValueError, OSError, HTTPException) as error:
        sys.stderr.write(f"error: {url} does not answer: {error or type(error).__name__}\n")
        return 2
    for clause in found:
        sys.stdout.write(f"broken: {clause}\n")
    sys.stdout.write(f"{len(CLAUSES) - len(found)} of {len(CLAUSES)} clauses kept\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
