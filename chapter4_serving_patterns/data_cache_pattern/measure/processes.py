"""Starts PostgreSQL with pictures, Redis and the API, and switches mechanisms off."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import httpx
from pydantic import SecretStr
from redis import Redis
from sqlalchemy import update

from tools.measure.server import Server
from tools.measure.servers import (
    UVICORN_OPTIONS,
    PostgresServer,
    RedisServer,
    guarded,
    run_uvicorn,
)
from tools.read.compose import load

from ..app.seed import seed
from ..app.settings import Settings
from ..app.store import connect, pictures
from ..train import heavy
from ..train.__main__ import draw_photos, write
from ..train.digits import LABELS, draw_warps
from ..train.digits import load as load_digits
from ..train.model import SHAPE, UNFITTED, Trained, export

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[1]
PACKAGE = "chapter4_serving_patterns.data_cache_pattern"
CLIENT = httpx.Client(trust_env=False, timeout=60)
# Counts must not depend on how busy the machine is.
PATIENT = {
    "REDIS_DEADLINE_SECONDS": "60",
    "DATABASE_DEADLINE_SECONDS": "60",
    "LEASE_SECONDS": "60",
}
ROWS = 300


class Bench(NamedTuple):
    """The store, the cache and replicas of the API, which share a model."""

    models: Path
    postgres: PostgresServer
    redis: RedisServer
    settings: Settings
    apis: Sequence[Server]
    photos: Mapping[str, bytes]

    def switch(self, off: str = "", **settings: object) -> None:
        """Empties the cache, and switches one mechanism off in all replicas, or none."""
        with Redis.from_url(self.redis.url) as client:
            client.flushall()
        query = urlencode({"off": off, **settings})
        for api in self.apis:
            CLIENT.post(f"{api.url}/switch?{query}").raise_for_status()

    def counts(self) -> dict[str, int]:
        """Returns the counts of all replicas since the last switch."""
        found = [CLIENT.get(f"{api.url}/counts").raise_for_status().json() for api in self.apis]
        return {name: sum(each[name] for each in found) for name in found[0]}

    def change(self, images: Mapping[str, bytes]) -> None:
        """Changes pictures as another program does, which knows of no cache."""
        engine = connect(self.settings, 1)
        with engine.connect() as connection:
            for picture_id, image in images.items():
                connection.execute(of_picture(picture_id).values(image=image))
        engine.dispose()


def of_picture(picture_id: str) -> Any:
    return update(pictures).where(pictures.c.picture_id == picture_id)


def write_model(directory: Path, photos: int) -> Path:
    """Writes photos, and a classifier that was fitted on drawings instead of photos of them."""
    x_train, y_train, _, _ = load_digits()
    classifier = heavy.fit(x_train[:ROWS], y_train[:ROWS])
    model = export(heavy.export(classifier, draw_warps(1)))
    preprocessing = replace(UNFITTED, mean=[0.6] * 3, deviation=[0.15] * 3)
    described = {"model_sha256": sha256(model).hexdigest(), "tensor": asdict(preprocessing)}
    file = json.dumps(described).encode()
    metadata = {
        "name": "digits",
        "version": "1",
        "pair": sha256(file).hexdigest(),
        "labels": LABELS,
        "input": {"name": "pictures", "shape": [None, *SHAPE]},
        "output": {"name": "probabilities"},
    }
    write(directory, Trained(model, file, metadata, b""), draw_photos(photos))
    return directory


@contextmanager
def bench(
    directory: Path, *, photos: int, replicas: int = 2, cpus: Sequence[set[int] | None] = ()
) -> Iterator[Bench]:
    """Starts everything; `cpus` are the cores of the API and of Redis."""
    of_api, of_redis = cpus or (None, None)
    models = write_model(directory / "models", photos)
    with ExitStack() as stack:
        postgres = stack.enter_context(PostgresServer(user="pictures"))
        redis = stack.enter_context(run_redis(directory / "redis", cpus=of_redis))
        settings = settings_of(models, postgres, redis)
        seed(settings)
        apis = [
            stack.enter_context(
                run_uvicorn(
                    f"{PACKAGE}.measure.baselines:app",
                    cwd=ROOT,
                    options=[*UVICORN_OPTIONS, *guarded(f"{PACKAGE}.app")],
                    env=variables_of(settings) | PATIENT,
                    cpus=of_api,
                    log=directory / f"{number}.log",
                )
            )
            for number in range(replicas)
        ]
        files = sorted((models / "photos").iterdir())
        known = {path.stem: path.read_bytes() for path in files}
        yield Bench(models, postgres, redis, settings, apis, known)


def run_redis(directory: Path, cpus: set[int] | None = None) -> RedisServer:
    """Runs Redis with the options of docker-compose.yml."""
    command = load(HERE).services["redis"].command
    shipped = command[command.index("--save") :]
    return RedisServer(directory, "--appendonly", "no", *shipped, cpus=cpus)


def settings_of(models: Path, postgres: PostgresServer, redis: RedisServer) -> Settings:
    return Settings(
        model_directory=models,
        database_url=f"postgresql+psycopg2://pictures@127.0.0.1:{postgres.port}/pictures",
        database_password=SecretStr(postgres.password),
        redis_url=redis.url,
        redis_deadline_seconds=60,
    )


def variables_of(settings: Settings) -> dict[str, str]:
    """Returns the environment of a server with these settings."""
    return {
        "MODEL_DIRECTORY": str(settings.model_directory),
        "DATABASE_URL": settings.database_url,
        "DATABASE_PASSWORD": settings.database_password.get_secret_value(),
        "REDIS_URL": settings.redis_url,
    }


def body_of(ids: Sequence[str]) -> bytes:
    """Returns the body of a request."""
    return json.dumps({"data": [*ids]}).encode()
