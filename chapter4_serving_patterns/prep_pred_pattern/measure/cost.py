"""Measures what the hop costs, and which part has to be doubled for more throughput."""

import asyncio
import io
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from tools.measure.load import Request
from tools.measure.server import Server, interleave, median_and_spread

from ..prep.predictor import Predictor
from ..train.__main__ import write
from ..train.model import NAME, SHAPE, train
from .baselines import JsonPredictor
from .processes import MODELS, run_pred, run_prep, send

LARGE_SIZE, HEAVY_COPIES = (2000, 1500), 2_000
ROUNDS, CONNECTIONS = 5, 8
BINARY_CALLS, JSON_CALLS = 400, 10


def hop_cpu_ms(kind: type[Predictor], pred: Server, calls: int) -> dict[str, float]:
    """Returns the CPU time that a call takes here and in a pred without a model."""

    async def call() -> None:
        predictor = kind(pred.url, NAME, None, 60, 1)
        for _ in range(calls):
            await predictor.predict(tensors)
        await predictor.close()

    tensors = np.random.default_rng(0).standard_normal((1, *SHAPE)).astype(np.float32)
    before = time.process_time() + pred.cpu_seconds()
    asyncio.run(call())
    return {"cpu_ms": (time.process_time() + pred.cpu_seconds() - before) * 1000 / calls}


def measure_hop() -> dict[str, float]:
    with run_pred(app="measure.constant:app") as pred:
        rounds = interleave(
            {
                "hop": partial(hop_cpu_ms, Predictor, pred, BINARY_CALLS),
                "json_hop": partial(hop_cpu_ms, JsonPredictor, pred, JSON_CALLS),
            },
            ROUNDS,
        )
    figures = {
        f"{arm}_cpu_ms": median_and_spread([each["cpu_ms"] for each in values]).median
        for arm, values in rounds.items()
    }
    return figures | {"json_hop_ratio": figures["json_hop_cpu_ms"] / figures["hop_cpu_ms"]}


def throughput(preps: list[Server], picture: bytes, count: int) -> dict[str, float]:
    """Returns how many pictures the preps answer per second, in turn."""
    headers = {"content-type": "image/jpeg"}
    requests = [Request(f"{prep.url}/predict", picture, headers) for prep in preps]
    run = send(requests, count, CONNECTIONS)
    if run.statuses[200] != count:
        raise RuntimeError(f"not all pictures were answered: {run.statuses} {run.errors}")
    return {"per_second": run.per_second}


def measure_bottleneck(models: Path, picture: bytes, count: int) -> dict[str, float]:
    """Measures how much throughput a second prep or a second pred adds."""
    with ExitStack() as stack:
        preds = [stack.enter_context(run_pred(models)) for _ in range(2)]
        preps = [stack.enter_context(run_prep(preds[0].url, models)) for _ in range(2)]
        urls = " ".join(pred.url for pred in preds)
        in_turn = stack.enter_context(
            run_prep(urls.split()[0], models, "measure.baselines:in_turn", PRED_URLS=urls)
        )
        arms = {"single": preps[:1], "double_prep": preps, "double_pred": [in_turn]}
        rounds = interleave(
            {arm: partial(throughput, servers, picture, count) for arm, servers in arms.items()},
            ROUNDS,
        )
        memory = {"prep_memory_mb": preps[0].memory_mb(), "pred_memory_mb": preds[0].memory_mb()}
    ratios = {
        f"{arm}_ratio": median_and_spread(
            [
                double["per_second"] / single["per_second"]
                for double, single in zip(rounds[arm], rounds["single"], strict=True)
            ]
        ).median
        for arm in ("double_prep", "double_pred")
    }
    return ratios | memory


def measure_costs(photo: bytes) -> dict[str, float]:
    large = io.BytesIO()
    Image.open(io.BytesIO(photo)).resize(LARGE_SIZE).save(large, "JPEG", quality=90)
    figures = measure_hop() | measure_bottleneck(MODELS, large.getvalue(), 200)
    with TemporaryDirectory() as name:
        write(Path(name), train(HEAVY_COPIES))
        heavy = measure_bottleneck(Path(name), photo, 32)
    return figures | {f"{name}_heavy": heavy[name] for name in heavy if name.endswith("_ratio")}
