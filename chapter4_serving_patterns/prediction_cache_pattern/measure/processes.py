"""Starts Redis and the API on free ports, and switches mechanisms off."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import httpx

from tools.measure.server import Server
from tools.measure.servers import UVICORN_OPTIONS, RedisServer, guarded, run_uvicorn
from tools.read.compose import load

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[1]
PACKAGE = "chapter4_serving_patterns.prediction_cache_pattern"
CLIENT = httpx.Client(trust_env=False, timeout=60)
# Counts must not depend on how busy the machine is.
PATIENT = {"REDIS_DEADLINE_SECONDS": "30", "LEASE_SECONDS": "60"}


def run_redis(
    directory: Path, *options: str, port: int | None = None, cpus: set[int] | None = None
) -> RedisServer:
    """Runs Redis with the options of docker-compose.yml, which `options` override."""
    command = load(HERE).services["redis"].command
    shipped = command[command.index("--save") :]
    return RedisServer(directory, "--appendonly", "no", *shipped, *options, port=port, cpus=cpus)


def run_api(
    directory: Path,
    redis: RedisServer,
    model: Path,
    *,
    env: Mapping[str, str] | None = None,
    cpus: set[int] | None = None,
) -> AbstractContextManager[Server]:
    """Runs the API of baselines.py, in which `switch` switches mechanisms off."""
    return run_uvicorn(
        f"{PACKAGE}.measure.baselines:app",
        cwd=ROOT,
        options=[*UVICORN_OPTIONS, *guarded(f"{PACKAGE}.app")],
        env={"REDIS_URL": redis.url, "MODEL_DIRECTORY": str(model), **(env or {})},
        cpus=cpus,
        log=directory / f"{uuid4().hex}.log",
    )


def switch(api: Server, model: Path, off: str = "", **settings: object) -> None:
    """Loads a model, switches one mechanism off or none, and sets the counts to zero."""
    query = urlencode({"model": model, "off": off, **settings})
    CLIENT.post(f"{api.url}/switch?{query}").raise_for_status()


def counts_of(api: Server) -> dict[str, int]:
    """Returns the counts since the last `switch`."""
    counts: dict[str, int] = CLIENT.get(f"{api.url}/counts").raise_for_status().json()
    return counts


def body_of(rows: list[Any]) -> bytes:
    """Returns the body of a request."""
    return json.dumps({"data": rows}).encode()
