"""Measures the claim: every request reaches the model for its condition, and no other one."""

import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import closing
from http.client import HTTPConnection
from urllib.parse import urlsplit

from tools.measure.load import Request, closed_loop
from tools.measure.results import Results, quick_argument
from tools.measure.server import interleave, median_and_spread
from tools.mesh.proxy import Proxy

from .accuracy import measure_accuracy
from .cases import UNKNOWN, Case, cases
from .processes import HERE, Models, run_default, run_mesh, run_models

CLAIM = (
    "Every request reaches the model for its condition, which is right more often than one model "
    "for all conditions; a request whose condition is unknown gets no prediction."
)
ROW: list[float] = json.loads((HERE / "sample.json").read_bytes())["data"][0]
NONE = "none"
CASES = cases()
COUNTED: dict[str, tuple[str, float]] = {
    "routed_right": ("==", len(CASES)),
    "unknown_answered": ("==", 0),
}
MEASURED: dict[str, tuple[str, float]] = {
    "accuracy_gain": (">=", 0.02),
    "mcnemar_p": ("<=", 0.001),
}


def models_of(url: str, requests: Sequence[Case]) -> list[str | None]:
    """Returns the model that has answered each request; None if it was refused."""
    found: list[str | None] = []
    with closing(HTTPConnection(urlsplit(url).netloc, timeout=60)) as connection:
        for request in requests:
            time = {} if request.taken_at is None else {"taken_at": request.taken_at}
            body = json.dumps({"data": [ROW], **time}).encode()
            connection.putrequest("POST", "/predict/label")
            for name, value in request.headers:
                connection.putheader(name, value)
            connection.putheader("content-length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            answer = response.read()
            if response.status not in (200, 422):
                raise ValueError(f"{request}: {response.status} {answer.decode()}")
            model = response.getheader("x-model", NONE)
            found.append(model if response.status == 200 else None)
    return found


def count_right(mesh: Proxy) -> int:
    found = models_of(mesh.url, CASES)
    return sum(model == case.model for model, case in zip(found, CASES, strict=True))


def count_unknown(mesh: Proxy) -> int:
    """Returns how many requests with an unknown condition get a prediction."""
    requests = [Case((("target", value),), None, None) for value in UNKNOWN]
    return sum(model is not None for model in models_of(mesh.url, requests))


def p50_ms(url: str) -> dict[str, float]:
    body = json.dumps({"data": [ROW]}).encode()
    request = Request(f"{url}/predict", body, {"target": "upright"})
    run = asyncio.run(closed_loop(request, connections=1, count=500, deadline_seconds=30))
    return {"p50_ms": run.p50_ms}


def measure_times(models: Models, mesh: Proxy) -> dict[str, float]:
    """Measures what the mesh and router add to the time that a caller waits."""
    timed = json.dumps({"data": [ROW], "taken_at": "2025-07-15T09:00:00+02:00"}).encode()

    def by_router() -> dict[str, float]:
        request = Request(f"{mesh.url}/predict", timed)
        run = asyncio.run(closed_loop(request, connections=1, count=500, deadline_seconds=30))
        return {"p50_ms": run.p50_ms}

    rounds = interleave(
        {
            "direct": lambda: p50_ms(models["upright"].url),
            "mesh": lambda: p50_ms(mesh.url),
            "router": by_router,
        },
        5,
    )
    direct, by_mesh, by_both = (
        median_and_spread([each["p50_ms"] for each in rounds[arm]]).median for arm in rounds
    )
    return {
        "direct_p50_ms": direct,
        "mesh_added_p50_ms": by_mesh - direct,
        "router_added_p50_ms": by_both - by_mesh,
        "memory_mb_a_model": models["upright"].memory_mb(),
    }


def main() -> int:
    arguments = quick_argument(__doc__)
    figures: dict[str, float] = {}
    with run_models() as models:
        with run_mesh(models) as mesh:
            counts = {
                "cases": len(CASES),
                "routed_right": count_right(mesh),
                "unknown": len(UNKNOWN),
                "unknown_answered": count_unknown(mesh),
            }
            if not arguments.quick:
                figures = measure_accuracy(mesh.url) | measure_times(models, mesh)
        with run_mesh(models, "measure.baselines:app") as closed:
            without = {"routed_right": count_right(closed)}
        with run_default(models) as default:
            without |= {"unknown_answered": count_unknown(default)}
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts=counts,
        control=without,
        figures=figures,
        targets=COUNTED | (MEASURED if figures else {}),
        holds=all(counts[name] == bound for name, (_, bound) in COUNTED.items()),
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
