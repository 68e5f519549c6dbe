"""Measures the claim: what happens to one of three models does not happen to the others."""

import asyncio
import json
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from tools.measure.load import Request, Run, open_loop
from tools.measure.results import Results, quick_argument
from tools.measure.server import Server, answer_of, interleave, median_and_spread, wait_until
from tools.measure.servers import run_uvicorn

from .environments import environments, write_wheels

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[1]
PACKAGE = ".".join(HERE.relative_to(ROOT).parts)
CLAIM = (
    "If digits crashes, is updated, wants another version of a library or has a fault, it costs "
    "iris and wine nothing, as long as each model has a process of its own."
)
MODELS = ("iris", "wine", "digits")
OTHERS = ("iris", "wine")
TARGETS: dict[str, tuple[str, float]] = {
    "endpoints_lost": ("==", 1),
    "failed_requests_of_others": ("==", 0),
    "failed_by_update": ("==", 0),
    "restarts_of_others": ("==", 0),
    "environments_that_resolve": ("==", 3),
    "suspects": ("==", 1),
}
RATE, SLICE_SECONDS = 200, 0.5
# A request that gets its response late has not failed, however busy the machine is.
PATIENCE_SECONDS = 30
# Figures: so many requests to digits take more than half a core.
DIGITS_RATE, NOISE_SECONDS, ROUNDS = 60, 5, 5
NO_ANSWER = "422 the model has no finite answer"


class Arm:
    """Three models in running servers: together in one, or apart."""

    def __init__(self, is_together: bool, models: Path, stack: ExitStack) -> None:
        self.is_together = is_together
        self.stack = stack
        # The server of each model, which may be the same one.
        self.servers: dict[str, Server] = {}
        # In one process it does not matter which of its models is named.
        self.started = MODELS[:1] if is_together else MODELS
        for name in self.started:
            self.start(name, models)

    def start(self, name: str, models: Path, port: int | None = None) -> None:
        """Starts the server that holds a model, and with it whatever else it holds."""
        app, directory = ("all_in_one", models) if self.is_together else ("main", models / name)
        server = self.stack.enter_context(
            run_uvicorn(
                f"{PACKAGE}.app.{app}:app",
                cwd=ROOT,
                env={"MODEL_DIRECTORY": str(directory)},
                port=port,
            )
        )
        self.servers |= dict.fromkeys(MODELS if self.is_together else [name], server)

    def restart(self, name: str, models: Path) -> None:
        """Starts the server of a model again on its port, after it has ended."""
        self.start(name, models, int(self.servers[name].url.rpartition(":")[2]))

    def url(self, name: str) -> str:
        return f"{self.servers[name].url}{f'/{name}' if self.is_together else ''}"

    def request(self, name: str) -> Request:
        """Returns a request for the prediction of one row."""
        sample = metadata_in(HERE / "models" / name)["sample"]
        return Request(f"{self.url(name)}/predict", json.dumps({"data": sample}).encode())


def metadata_in(directory: Path) -> dict[str, Any]:
    metadata: dict[str, Any] = json.loads((directory / "metadata.json").read_bytes())
    return metadata


def new_version(directory: Path) -> Path:
    """Writes the same models, with a new digits that has forgotten its limits."""
    models = Path(shutil.copytree(HERE / "models", directory / "models"))
    metadata = metadata_in(models / "digits") | {"version": "2"}
    metadata["input"] = {"name": "X"}
    (models / "digits/metadata.json").write_text(json.dumps(metadata), "utf-8")
    return models


async def failed_while(change: Callable[[], None], requests: Callable[[], list[Request]]) -> int:
    """Counts the requests that fail from before a change until it is complete."""
    failed = 0
    changing: asyncio.Task[None] | None = None
    is_over = False
    while not is_over:
        is_over = changing is not None and changing.done()
        run = await open_loop(
            requests(),
            rate_per_second=RATE,
            seconds=SLICE_SECONDS,
            deadline_seconds=PATIENCE_SECONDS,
        )
        failed += run.sent - run.statuses[200]
        changing = changing or asyncio.create_task(asyncio.to_thread(change))
    if changing:
        await changing
    return failed


def counts_of(directory: Path, is_together: bool) -> dict[str, int]:
    """Counts what a crash, an update and a fault of digits cost, one after the other."""
    new = new_version(directory / str(is_together))
    with ExitStack() as stack:
        arm = Arm(is_together, HERE / "models", stack)
        lost: list[str] = []

        def crash() -> None:
            arm.servers["digits"].kill()
            lost.extend(name for name in MODELS if answer_of(f"{arm.url(name)}/health") != "200")
            arm.restart("digits", HERE / "models")

        def update() -> None:
            arm.servers["digits"].terminate()
            arm.servers["digits"].wait(PATIENCE_SECONDS)
            arm.restart("digits", new)

        requests = [arm.request(name) for name in OTHERS]
        failed_by_crash = asyncio.run(failed_while(crash, lambda: requests))
        before = {name: arm.servers[name].pid for name in OTHERS}
        failed_by_update = asyncio.run(failed_while(update, lambda: requests))
        return {
            "endpoints_lost": len(lost),
            "failed_requests_of_others": failed_by_crash,
            "failed_by_update": failed_by_update,
            "restarts_of_others": sum(arm.servers[name].pid != before[name] for name in OTHERS),
            "environments_that_resolve": environments(directory, is_together),
            "suspects": suspects(arm),
        }


def suspects(arm: Arm) -> int:
    """Returns how many models may have written what the log says of a fault in digits."""
    row = [3e38] * len(metadata_in(HERE / "models/digits")["sample"][0])
    answer = httpx.post(f"{arm.url('digits')}/predict", json={"data": [row]}, timeout=30)
    if answer.status_code != 422:
        raise RuntimeError(f"the planted fault has no effect: {answer.status_code}")

    def suspected() -> list[str]:
        return [name for name in MODELS if NO_ANSWER in arm.servers[name].log.read_text("utf-8")]

    wait_until(lambda: bool(suspected()), "the log to say that there was no answer")
    return len(suspected())


def rolling_update(directory: Path) -> dict[str, float]:
    """Updates two replicas with all models, one after the other, as a Deployment does."""
    new = new_version(directory / "rolling")
    with ExitStack() as stack:
        replicas = [Arm(True, HERE / "models", stack) for _ in range(2)]
        asked: list[Arm] = []
        loaded = []

        def requests() -> list[Request]:
            asked[:] = replicas
            return [arm.request(name) for arm in asked for name in OTHERS]

        def replace() -> None:
            old = replicas.pop(0)
            # As during the sleep of preStop, nobody calls a replica that is to end.
            wait_until(lambda: old not in asked, "callers to leave")
            old.servers["digits"].terminate()
            old.servers["digits"].wait(PATIENCE_SECONDS)
            replicas.append(Arm(True, new, stack))
            loaded.extend(httpx.get(f"{replicas[-1].servers['digits'].url}/metadata").json())

        def update() -> None:
            replace()
            replace()

        failed = asyncio.run(failed_while(update, requests))
    return {"rolling_update_failed": failed, "rolling_update_models_loaded": len(loaded)}


async def beside(arm: Arm, is_busy: bool) -> Run:
    """Asks for iris while digits has nothing to do, or much."""
    rates = {"iris": RATE / 2, "digits": DIGITS_RATE}
    runs = [
        open_loop(
            arm.request(name),
            rate_per_second=rates[name],
            seconds=NOISE_SECONDS,
            deadline_seconds=PATIENCE_SECONDS,
        )
        for name in (["iris", "digits"] if is_busy else ["iris"])
    ]
    return (await asyncio.gather(*runs))[0]


def response_times(arm: Arm, is_busy: bool) -> dict[str, float]:
    run = asyncio.run(beside(arm, is_busy))
    return {"p50_ms": run.p50_ms, "p99_ms": run.p99_ms, "lag_p99_ms": run.lag_p99_ms}


def memory_mb(is_together: bool) -> float:
    """Returns the memory of all servers of an arm, while no server of the other arm runs."""
    with ExitStack() as stack:
        arm = Arm(is_together, HERE / "models", stack)
        for name in MODELS:
            httpx.get(f"{arm.url(name)}/predict/test").raise_for_status()
        return sum(arm.servers[name].memory_mb() for name in arm.started)


def figures_of(directory: Path) -> dict[str, float]:
    memory = interleave({"one": partial(memory_mb, True), "three": partial(memory_mb, False)}, 3)
    with ExitStack() as stack:
        together, apart = (Arm(is_one, HERE / "models", stack) for is_one in (True, False))
        times = interleave(
            {
                "alone": partial(response_times, together, False),
                "same_process": partial(response_times, together, True),
                "apart": partial(response_times, apart, True),
            },
            ROUNDS,
        )
    one, three = (median_and_spread(memory[arm]).median for arm in ("one", "three"))
    return {
        **{
            f"iris_{arm}_{what}": median_and_spread([each[what] for each in rounds]).median
            for arm, rounds in times.items()
            for what in ("p50_ms", "p99_ms")
        },
        "generator_lag_p99_ms": max(
            each["lag_p99_ms"] for rounds in times.values() for each in rounds
        ),
        "memory_mb_together": one,
        "memory_mb_apart": three,
        "saved_memory_mb": three - one,
        **rolling_update(directory),
    }


def main() -> int:
    arguments = quick_argument(__doc__)
    with TemporaryDirectory() as name, ThreadPoolExecutor() as pool:
        directory = Path(name)
        write_wheels(directory)
        # Both at once: only counts are compared here.
        control, counts = pool.map(partial(counts_of, directory), (True, False))
        figures = {} if arguments.quick else figures_of(directory)
    holds = all(counts[name] == bound for name, (_, bound) in TARGETS.items())
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts=counts,
        control=control,
        figures=figures,
        targets=TARGETS,
        holds=holds,
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
