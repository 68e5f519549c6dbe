"""data_cache_pattern: real PostgreSQL and Redis, which hang, are killed or hold nonsense."""

import asyncio
import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import onnx
import psutil
import pytest
from PIL import Image
from redis import Redis
from sqlalchemy import delete, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError

from chapter4_serving_patterns.data_cache_pattern.app.cache import LEASE
from chapter4_serving_patterns.data_cache_pattern.app.codec import (
    decode,
    digest_of,
    encode,
    key_of,
    value_bytes,
)
from chapter4_serving_patterns.data_cache_pattern.app.images import tensor_from
from chapter4_serving_patterns.data_cache_pattern.app.model import Model
from chapter4_serving_patterns.data_cache_pattern.app.pixels import Preprocessing
from chapter4_serving_patterns.data_cache_pattern.app.seed import prewarm, seed
from chapter4_serving_patterns.data_cache_pattern.app.settings import Settings
from chapter4_serving_patterns.data_cache_pattern.app.store import (
    Store,
    UnknownPicturesError,
    connect,
    pictures,
)
from chapter4_serving_patterns.data_cache_pattern.measure.counts import QUICK, claim_holds
from chapter4_serving_patterns.data_cache_pattern.measure.processes import (
    HERE,
    PACKAGE,
    PATIENT,
    ROOT,
    run_redis,
    settings_of,
    variables_of,
    write_model,
)
from tools.measure.results import Results
from tools.measure.results import load as load_results
from tools.measure.server import Server, ServerError, wait_until
from tools.measure.servers import PostgresServer, Process, RedisServer, run_uvicorn
from tools.run.processes import family_of, pause_all, unpause_all

SIDE = 224
IDS = [f"{number:04}" for number in range(5)]


class World(NamedTuple):
    """A store with photos, a cache, and what every server needs to know of them."""

    settings: Settings
    postgres: PostgresServer
    redis: RedisServer
    photos: dict[str, bytes]

    def execute(self, *statements: Any) -> Any:
        """Executes statements as another program does; returns the rows of the last."""
        engine = connect(self.settings, 1)
        try:
            with engine.connect() as connection:
                for statement in statements:
                    found = connection.execute(statement)
                return found.all() if found.returns_rows else None
        finally:
            engine.dispose()

    def change(self, picture_id: str, image: bytes) -> None:
        own = pictures.c.picture_id == picture_id
        self.execute(update(pictures).where(own).values(image=image))

    def delete(self, picture_id: str) -> None:
        self.execute(delete(pictures).where(pictures.c.picture_id == picture_id))

    def version_of(self, picture_id: str) -> int:
        [row] = self.execute(pictures.select().where(pictures.c.picture_id == picture_id))
        return int(row.version)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("data_cache")
    models = write_model(directory / "models", len(IDS))
    with PostgresServer(user="pictures") as postgres, run_redis(directory / "redis") as redis:
        settings = settings_of(models, postgres, redis)
        assert seed(settings) == len(IDS) + 3
        photos = {path.stem: path.read_bytes() for path in (models / "photos").iterdir()}
        yield World(settings, postgres, redis, photos)


@pytest.fixture
def world(started: World) -> Iterator[World]:
    """An empty cache and the photos of the seed; both servers may be killed and suspended."""
    yield started
    for server in (started.redis, started.postgres):
        if server.is_alive():
            unpause(server)
        else:
            server.start()
    with Redis.from_url(started.redis.url) as client:
        client.flushall()
    known = pictures.c.picture_id.in_(IDS) | pictures.c.picture_id.startswith("large-")
    started.execute(delete(pictures).where(~known))
    for picture_id, image in started.photos.items():
        stored = insert(pictures).values(picture_id=picture_id, image=image)
        own = pictures.c.picture_id
        started.execute(stored.on_conflict_do_update(index_elements=[own], set_={"image": image}))


@pytest.fixture
def client(world: World) -> Iterator[Any]:
    with Redis.from_url(world.redis.url) as client:
        yield client


def family(server: Process) -> list[psutil.Process]:
    return [psutil.Process(server.process.pid), *family_of(server.process.pid)]


def pause(server: Process) -> None:
    assert pause_all(partial(family, server))


def unpause(server: Process) -> None:
    unpause_all(family(server))


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


# --- key and value --------------------------------------------------------------------------------


def test_other_pictures_versions_and_ways_to_prepare_have_other_keys() -> None:
    first = Preprocessing(256, SIDE, [0.5] * 3, [0.2] * 3)
    ways = [first, replace(first, mean=[0.5, 0.5, 0.6]), replace(first, short_side=255)]
    digests = [digest_of(way) for way in ways]
    versions = (None, 1, 2, 11)
    keys = {key_of(i, v, d) for i in ("a", "a1", "a-1") for v in versions for d in digests}
    assert len(keys) == 3 * 4 * 3
    assert digest_of(replace(first)) == digests[0]


def test_what_is_read_from_the_cache_is_what_was_prepared() -> None:
    tensors = np.random.default_rng(0).standard_normal((2, 3, SIDE, SIDE)).astype(np.float32)
    values = [encode(tensor) for tensor in tensors]
    assert {len(value) for value in values} == {value_bytes(SIDE)} == {602_112}
    np.testing.assert_array_equal(decode(values, SIDE), tensors)
    for broken in ([values[0][:-4]], [values[0], b""], [values[0] + b"1234"]):
        with pytest.raises(ValueError, match="reshape"):
            decode(broken, SIDE)


# --- the store ------------------------------------------------------------------------------------


def test_a_version_changes_with_the_picture_whoever_changes_it(world: World) -> None:
    one, other = world.photos["0000"], world.photos["0001"]
    seen = [world.version_of("0000")]
    world.change("0000", one)
    assert world.version_of("0000") == seen[0]
    for image in (other, one, other):
        world.change("0000", image)
        seen.append(world.version_of("0000"))
    world.delete("0000")
    world.execute(insert(pictures).values(picture_id="0000", image=one))
    seen.append(world.version_of("0000"))
    assert seen == sorted(set(seen))


@pytest.mark.parametrize("picture_id", ["", "../x", "a b", "a:1", "x" * 65, "a\n"])
def test_the_table_refuses_an_id_that_no_request_can_have(world: World, picture_id: str) -> None:
    with pytest.raises(IntegrityError):
        world.execute(insert(pictures).values(picture_id=picture_id, image=b"image"))


def test_the_store_names_what_it_does_not_have(world: World) -> None:
    async def test() -> None:
        store = Store(world.settings)
        assert await store.pictures([*IDS, IDS[0]]) == world.photos
        for query in (store.versions, store.pictures):
            with pytest.raises(UnknownPicturesError, match=r"^unknown pictures: no, neither$"):
                await query(["0000", "no", "neither", "no"])
        store.close()

    run(test)


def test_a_database_that_has_restarted_or_hung_is_asked_again(world: World) -> None:
    async def test() -> None:
        store = Store(world.settings.model_copy(update={"database_deadline_seconds": 0.5}))
        patient = Store(world.settings.model_copy(update={"database_deadline_seconds": 60}))
        for each in (store, patient):
            await asyncio.gather(*(each.versions(IDS) for _ in range(4)))
        pause(world.postgres)
        late = await asyncio.gather(
            *(store.versions(IDS) for _ in range(8)), return_exceptions=True
        )
        assert {type(error) for error in late} == {TimeoutError}
        unpause(world.postgres)
        assert set(await patient.versions(IDS)) == set(IDS)
        world.postgres.kill()
        world.postgres.start()
        assert set(await patient.versions(IDS)) == set(IDS)
        for each in (store, patient):
            each.close()

    run(test)


# --- the seed -------------------------------------------------------------------------------------


def test_seeding_twice_at_once_stores_once(world: World) -> None:
    world.execute(text("DROP TABLE pictures"), text("DROP SEQUENCE picture_versions CASCADE"))
    world.execute(text("DROP FUNCTION IF EXISTS raise_version"))
    with ThreadPoolExecutor() as threads:
        stored = sorted(threads.map(seed, [world.settings] * 3))
    assert stored == [0, 0, len(IDS) + 3]
    [(large,)] = world.execute(text("SELECT image FROM pictures WHERE picture_id = 'large-0000'"))
    assert Image.open(io.BytesIO(large)).size == (4_000, 3_000)


def test_prewarming_prepares_what_is_missing(world: World, client: Any) -> None:
    for _ in range(2):
        assert asyncio.run(prewarm(world.settings)) == (len(IDS) + 3, len(IDS) + 3)
        assert client.dbsize() == len(IDS) + 3
    world.redis.kill()
    assert asyncio.run(prewarm(world.settings)) == (0, len(IDS) + 3)


def test_the_seed_that_cannot_prewarm_says_so(world: World) -> None:
    world.redis.kill()
    command = [sys.executable, "-m", f"{PACKAGE}.app.seed"]
    env = variables_of(world.settings) | {"PREWARM": "true", "PATH": "/usr/bin:/bin"}
    ended = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "INFO: 0 of 8 pictures are prepared" in ended.stderr


# --- the API --------------------------------------------------------------------------------------


class Api(NamedTuple):
    server: Server
    http: httpx.Client

    def predict(self, *ids: str, path: str = "/predict") -> tuple[str, Any]:
        """Returns the Cache-Status and the prediction."""
        answer = self.http.post(path, json={"data": ids})
        assert answer.status_code == 200, answer.text
        return answer.headers["cache-status"], answer.json()["prediction"]

    def put(self, picture_id: str, content: bytes, kind: str = "image/jpeg") -> httpx.Response:
        headers = {"content-type": kind}
        return self.http.put(f"/data/{picture_id}", content=content, headers=headers)


@pytest.fixture(scope="module")
def apis(started: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Api]]:
    """Returns a function that starts the shipped API, or returns one with the same settings."""
    known: dict[str, Api] = {}
    with ExitStack() as stack:

        def start(name: str = "", **settings: str) -> Api:
            key = f"{name} {settings}"
            if key not in known:
                server = stack.enter_context(
                    run_uvicorn(
                        f"{PACKAGE}.app.main:app",
                        cwd=ROOT,
                        env=variables_of(started.settings) | PATIENT | settings,
                        log=tmp_path_factory.mktemp("api") / "log",
                    )
                )
                http = httpx.Client(base_url=server.url, timeout=60)
                known[key] = Api(server, stack.enter_context(http))
            return known[key]

        yield start


MISS, HIT, BYPASS = (
    'redis; fwd=miss; stored; detail="hits: 0 of 1"',
    'redis; hit; detail="hits: 1 of 1"',
    'redis; fwd=bypass; detail="hits: 0 of 1"',
)


def expected(world: World, *ids: str) -> Any:
    file = (world.settings.model_directory / "preprocessing.json").read_bytes()
    preprocessing = Preprocessing(**json.loads(file)["tensor"])
    tensors = np.stack([tensor_from(world.photos[each], preprocessing) for each in ids])
    return Model(world.settings.model_directory).predict(tensors)


def test_a_second_request_hits_in_every_replica_and_is_predicted_again(
    world: World, apis: Callable[..., Api], client: Any
) -> None:
    api, other = apis(), apis("another replica")
    status, prediction = api.predict("0000")
    assert status == MISS
    np.testing.assert_allclose(prediction, expected(world, "0000"), atol=1e-6)
    for each in (api, other):
        assert each.predict("0000") == (HIT, prediction)
    status, labels = other.predict("0001", "0000", "0001", path="/predict/label")
    assert status == 'redis; fwd=miss; stored; detail="hits: 1 of 3"'
    rows = expected(world, "0001", "0000", "0001")
    assert labels == [str(index) for index in rows.argmax(axis=1)]
    np.testing.assert_allclose(api.predict("0001", "0000", "0001")[1], rows, atol=1e-6)
    assert api.http.get("/predict/test").headers["cache-status"] == HIT
    assert api.http.get("/cache").json()["keys"] == client.dbsize() == 2


def test_the_answer_after_a_change_is_of_the_new_picture(
    world: World, apis: Callable[..., Api]
) -> None:
    api, other = apis(), apis("another replica")
    for picture_id in IDS[1:] * 2:
        world.change("0000", world.photos[picture_id])
        for each in (api, other):
            np.testing.assert_allclose(
                each.predict("0000")[1], expected(world, picture_id), atol=1e-6
            )
    world.delete("0000")
    answer = api.http.post("/predict", json={"data": ["0000"]})
    assert (answer.status_code, answer.json()["detail"]) == (404, "unknown pictures: 0000")


def test_unknown_ids_are_named_and_nothing_is_prepared_for_them(
    world: World, apis: Callable[..., Api], client: Any
) -> None:
    for freshness in ("version", "ttl"):
        api = apis(FRESHNESS=freshness)
        for path in ("/predict", "/predict/label"):
            answer = api.http.post(path, json={"data": ["no", "0000", "No", "no"]})
            assert answer.status_code == 404
            assert answer.json()["detail"] == "unknown pictures: no, No"
    assert client.dbsize() == 0


def test_what_is_refused_reaches_neither_store_nor_cache(
    world: World, apis: Callable[..., Api], client: Any
) -> None:
    api = apis()
    client.config_resetstat()
    world.postgres.kill()
    wrong: list[Any] = [None, 0, True, [], {}, "", " ", "é", "a\0"]
    bodies: list[Any] = [
        *({}, {"data": []}, {"data": ["0000"] * 17}, {"data": "0000"}, {"data": None}, ["0000"]),
        *({"data": ["0000"], "more": 1}, {"data": [["0000"]]}, {"data": {"0": "0000"}}),
        *({"data": ["0000", value]} for value in wrong),
        *({"data": [value]} for value in ("../x", "..", "a/b", "a:1", "x" * 65, "a.jpg", "0000\n")),
    ]
    for body in bodies:
        answer = api.http.post("/predict", json=body)
        assert answer.status_code == 422, body
    for picture_id in ("..%2Fx", "%2e%2e", "a%3A1", "a%20b", "x" * 65, "%00", "%C3%A9"):
        assert api.put(picture_id, world.photos["0000"]).status_code in (404, 422), picture_id
    assert client.dbsize() == 0
    assert not client.info("commandstats").keys() & {"cmdstat_mget", "cmdstat_set"}


def drawn(mode: str, kind: str, size: tuple[int, int] = (64, 48)) -> bytes:
    content = io.BytesIO()
    Image.new(mode, size).save(content, kind)
    return content.getvalue()


def test_a_stored_picture_hits_at_its_first_request(world: World, apis: Callable[..., Api]) -> None:
    for api, freshness in ((apis(), "version"), (apis(FRESHNESS="ttl"), "ttl")):
        new, other = f"new-{freshness}", world.photos["0002"]
        for image, code in ((world.photos["0001"], 201), (other, 204), (other, 204)):
            answer = api.put(new, image)
            assert (answer.status_code, answer.content) == (code, b"")
            assert answer.headers["cache-status"] == "redis; fwd=method; stored"
            assert api.predict(new)[0] == HIT
        np.testing.assert_allclose(api.predict(new)[1], expected(world, "0002"), atol=1e-6)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *(("L", "png"), ("LA", "png"), ("P", "png"), ("RGBA", "png"), ("I;16", "png")),
        *(("1", "png"), ("CMYK", "jpeg"), ("RGBA", "webp")),
    ],
)
def test_pictures_of_every_mode_are_prepared(
    world: World, apis: Callable[..., Api], mode: str, kind: str
) -> None:
    api = apis()
    assert api.put("mode", drawn(mode, kind), f"image/{kind}").status_code == 201
    assert api.predict("mode")[0] == HIT


def test_what_is_not_a_picture_is_refused_and_not_stored(
    world: World, apis: Callable[..., Api], client: Any
) -> None:
    api, photo = apis(), world.photos["0000"]
    wrong = {
        "nothing": b"",
        "text": b"0000",
        "zeros": bytes(1_000),
        "JSON": b'{"data": ["0000"]}',
        "SVG": b"<svg/>",
        "GIF": drawn("L", "gif"),
        "TIFF": drawn("RGB", "tiff"),
        "BMP": drawn("RGB", "bmp"),
        "half": photo[: len(photo) // 2],
        "head": photo[:100],
        "13,000 squared": drawn("1", "png", (13_000, 13_000)),
        "broken": photo[:500] + bytes(100) + photo[600:1_000],
    }
    for name, content in wrong.items():
        answer = api.put("0000", content)
        assert answer.status_code == 422, name
        assert answer.json()["detail"].startswith("picture 0000: "), name
    for kind in ("application/json", "image/gif", "text/plain", "multipart/form-data", ""):
        assert api.put("0000", photo, kind).status_code == 415, kind
    gzipped = {"content-type": "image/jpeg", "content-encoding": "gzip"}
    assert api.http.put("/data/0000", content=photo, headers=gzipped).status_code == 415
    assert api.put("0000", bytes(8_000_001)).status_code == 413
    assert client.dbsize() == 0
    assert api.predict("0000")[0] == MISS
    np.testing.assert_allclose(api.predict("0000")[1], expected(world, "0000"), atol=1e-6)


def test_a_picture_that_another_program_has_broken_is_named(
    world: World, apis: Callable[..., Api]
) -> None:
    api = apis()
    world.change("0001", b"nonsense")
    for path in ("/predict", "/predict/label"):
        answer = api.http.post(path, json={"data": ["0000", "0001"]})
        assert answer.status_code == 422
        assert answer.json()["detail"].startswith("picture 0001: not a picture")
    assert api.predict("0000")[0] == MISS


FOREIGN: dict[str, Callable[[Any, bytes], object]] = {
    "a text": lambda client, key: client.set(key, "something else"),
    "nothing": lambda client, key: client.set(key, b""),
    "a value that was cut off": lambda client, key: client.set(key, bytes(602_111)),
    "the codec of the book": lambda client, key: client.set(key, json.dumps([[0.0] * 224] * 672)),
    "a list": lambda client, key: client.rpush(key, bytes(602_112)),
    "a lease that does not expire": lambda client, key: client.set(key, LEASE + b"nobody"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_a_prepared_picture_is_prepared_again(
    world: World, apis: Callable[..., Api], client: Any, name: str
) -> None:
    api = apis("short leases", LEASE_SECONDS="0.1")
    _, prediction = api.predict("0000")
    [key] = client.keys()
    client.delete(key)
    FOREIGN[name](client, key)
    assert api.predict("0000")[1] == prediction
    assert api.predict("0000") == (HIT, prediction)


def test_without_redis_every_picture_is_prepared_and_none_is_stale(
    world: World, apis: Callable[..., Api]
) -> None:
    api = apis("impatient", REDIS_DEADLINE_SECONDS="0.2")
    wait_until(lambda: api.predict("0000")[0] == HIT, "a hit")
    pause(world.redis)
    assert api.put("0000", world.photos["0001"]).headers["cache-status"] == "redis; fwd=method"
    status, prediction = api.predict("0000")
    assert status == BYPASS
    np.testing.assert_allclose(prediction, expected(world, "0001"), atol=1e-6)
    assert api.http.get("/ready").status_code == 200
    assert api.http.get("/cache").json()["bytes"] is None
    unpause(world.redis)
    wait_until(lambda: api.predict("0000")[0] == HIT, "a hit")
    np.testing.assert_allclose(api.predict("0000")[1], expected(world, "0001"), atol=1e-6)
    world.redis.kill()
    assert api.predict("0000")[0] == BYPASS
    world.redis.start()
    wait_until(lambda: api.predict("0000")[0] == HIT, "a hit")


def test_without_the_store_hits_go_on_only_if_nobody_asks_for_versions(
    world: World, apis: Callable[..., Api]
) -> None:
    impatient = {"DATABASE_DEADLINE_SECONDS": "2"}
    api, ttl = apis(**impatient), apis(FRESHNESS="ttl", **impatient)
    for each in (api, ttl):
        each.predict("0000")
    for stop in (world.postgres.kill, lambda: pause(world.postgres)):
        stop()
        assert ttl.predict("0000")[0] == HIT
        for each, picture_id in ((api, "0000"), (ttl, "0001")):
            answer = each.http.post("/predict", json={"data": [picture_id]})
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json()["detail"].startswith("the store of the pictures, PostgreSQL")
        assert api.put("0000", world.photos["0001"]).status_code == 503
        assert [each.http.get("/ready").status_code for each in (api, ttl)] == [503, 200]
        assert api.http.get("/health").status_code == 200
        if not world.postgres.is_alive():
            world.postgres.start()
        unpause(world.postgres)
        wait_until(lambda: api.http.get("/ready").status_code == 200, "the store")
        assert api.predict("0000")[0] == HIT
    log = api.server.log.read_text()
    assert "503 the store: " in log


def test_a_database_without_the_table_is_no_store(world: World, apis: Callable[..., Api]) -> None:
    api = apis()
    world.execute(text("ALTER TABLE pictures RENAME TO elsewhere"))
    try:
        assert api.http.get("/ready").status_code == 503
        assert api.http.post("/predict", json={"data": ["0000"]}).status_code == 503
    finally:
        world.execute(text("ALTER TABLE elsewhere RENAME TO pictures"))
    assert api.predict("0000")[0] == MISS


def test_a_prepared_picture_expires(world: World, apis: Callable[..., Api], client: Any) -> None:
    api = apis("short", FRESHNESS="ttl", TTL_SECONDS="0.05")
    assert api.predict("0000")[0] == MISS
    world.change("0000", world.photos["0001"])
    wait_until(lambda: client.dbsize() == 0, "it to expire")
    status, prediction = api.predict("0000")
    assert status == MISS
    np.testing.assert_allclose(prediction, expected(world, "0001"), atol=1e-6)


# --- the model ------------------------------------------------------------------------------------


@pytest.fixture
def models(world: World, tmp_path: Path) -> Path:
    for name in ("model.onnx", "metadata.json", "preprocessing.json"):
        (tmp_path / name).write_bytes((world.settings.model_directory / name).read_bytes())
    return tmp_path


def write_changed(models: Path, content: bytes, **changes: Any) -> None:
    metadata = json.loads((models / "metadata.json").read_bytes())
    metadata |= {"sha256": hashlib.sha256(content).hexdigest(), **changes}
    (models / "model.onnx").write_bytes(content)
    (models / "metadata.json").write_text(json.dumps(metadata))


def graph(shape: list[int], *nodes: tuple[str, list[str]]) -> bytes:
    """Returns a model whose nodes follow each other, from pictures to ten numbers each."""
    inputs = onnx.helper.make_tensor_value_info("pictures", 1, [None, *shape])
    output = onnx.helper.make_tensor_value_info(str(len(nodes)), 1, [None, 10])
    made = [onnx.helper.make_node(op, names, [str(n)]) for n, (op, names) in enumerate(nodes, 1)]
    constants = [
        onnx.numpy_helper.from_array(np.array([-1, 3 * SIDE * SIDE]), "flat"),
        onnx.numpy_helper.from_array(np.eye(3 * SIDE * SIDE, 10, dtype=np.float32), "first"),
    ]
    made_graph = onnx.helper.make_graph(made, "graph", [inputs], [output], constants)
    opset = onnx.helper.make_opsetid("", 17)
    made_model = onnx.helper.make_model(made_graph, opset_imports=[opset], ir_version=9)
    return bytes(made_model.SerializeToString())


FIRST_TEN = [("Reshape", ["pictures", "flat"]), ("MatMul", ["1", "first"])]


def test_a_model_without_a_finite_answer_is_a_refusal(
    world: World, apis: Callable[..., Api], models: Path
) -> None:
    # The square root of what is darker than the mean is no number, that of the mean is.
    content = graph([3, SIDE, SIDE], *FIRST_TEN, ("Sqrt", ["2"]))
    write_changed(models, content, output={"name": "3"})
    api = apis(MODEL_DIRECTORY=str(models))
    assert api.put("dark", drawn("RGB", "png"), "image/png").status_code == 201
    answer = api.http.post("/predict", json={"data": ["dark"]})
    assert answer.status_code == 422
    assert "no finite answer" in answer.json()["detail"]


@pytest.mark.parametrize("name", ["short_side", "side"])
def test_a_model_with_the_preprocessing_of_another_is_not_served(
    world: World, models: Path, name: str
) -> None:
    file = models / "preprocessing.json"
    described = json.loads(file.read_bytes())
    described["tensor"][name] -= 1
    file.write_text(json.dumps(described))
    app = f"{PACKAGE}.app.main:app"
    env = variables_of(world.settings) | {"MODEL_DIRECTORY": str(models)}
    with (
        pytest.raises(ServerError, match="is of another model"),
        run_uvicorn(app, cwd=ROOT, env=env),
    ):
        pass


# --- the measurement ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    directory = tmp_path_factory.mktemp("measured")
    command = [sys.executable, "-m", f"{PACKAGE}.measure", "--quick"]
    subprocess.run([*command, "--output", str(directory / "measure")], check=True, cwd=ROOT)
    return load_results(directory)


@pytest.mark.budget("measure --quick")
def test_the_claim_holds(results: Results) -> None:
    assert results.holds
    assert set(results.counts) == set(load_results(HERE).counts)


CONTROL = {
    "pictures_read": QUICK.ids_sent,
    "prepared": QUICK.ids_sent,
    "stale_answers": QUICK.changes * QUICK.requests_after_a_change,
    "answers_older_than_ttl": QUICK.changes,
    "first_hits": 0,
}


def test_every_control_is_red(results: Results) -> None:
    assert {name: results.control[name] for name in CONTROL} == CONTROL
    assert results.control["entry_bytes"] > 4 * results.counts["entry_bytes"]
    assert set(results.control) == {*CONTROL, "entry_bytes"}


@pytest.mark.parametrize("name", CONTROL)
def test_the_claim_fails_with_the_count_of_a_control(results: Results, name: str) -> None:
    assert claim_holds(results.counts)
    assert not claim_holds(results.counts | {name: results.control[name]})
