"""Real servers on free ports, and services of a Compose file that call each other."""

import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg2
import pytest

from tools.measure.server import ServerError
from tools.measure.servers import PostgresServer, Process, RedisServer, run_uvicorn
from tools.measure.services import (
    ServiceError,
    asgi_services,
    copy_of,
    dependencies_of,
    run_around,
    run_service,
)
from tools.read.compose import load
from tools.run.ports import free_port

# Returns the value of the environment variable named by the path, or 404.
APPLICATION = """
import os

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    name = scope["path"].strip("/").upper()
    status = 200 if name == "READY" or name in os.environ else 404
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": os.environ.get(name, "").encode()})
"""
COMPOSE = """
name: shop
services:
  api:
    build: .
    command: [uvicorn, "app.main:app", --host, 0.0.0.0, --port, "8000"]
    environment: {QUEUE: "redis://queue:6379/0", OTHER: "http://other:8001/ready", FOLDER: /data}
    ports: ["127.0.0.1:8000:8000"]
    volumes: ["folder:/data"]
    depends_on:
      queue: {condition: service_healthy}
      other: {condition: service_started}
      fill: {condition: service_completed_successfully}
  replica:
    build: .
    command: [uvicorn, "app.main:app", --host, 0.0.0.0, --port, "8002"]
    environment: {QUEUE: "redis://queue:6379/0", OTHER: "http://other:8001/ready", FOLDER: /data}
    expose: ["8002"]
  other:
    build: .
    command: [uvicorn, "app.main:app", --host, 0.0.0.0, --port, "8001"]
    ports: ["127.0.0.1:8001:8001"]
  worker:
    build: .
    command: [python, -c, "open('/data/worked', 'w').close(); import time; time.sleep(600)"]
    volumes: ["folder:/data"]
  fill:
    build: .
    command: [python, -c, "import sys; open('/data/filled', 'w').write(' '.join(sys.argv[1:]))"]
    x-quick-arguments: [--images, "60"]
    volumes: ["folder:/data"]
  page:
    build: .
    command: [python, -m, http.server, "8003"]
    ports: ["127.0.0.1:8003:8003"]
  queue:
    image: redis:8.0
    expose: ["6379"]
    healthcheck: {test: [CMD, redis-cli, ping]}
volumes:
  folder:
"""

# Two programs, whose images set the same variable to other values.
PROGRAMS = """
name: shop
services:
  web:
    build: {context: ., target: web}
    command: [uvicorn, "web.main:app", --host, 0.0.0.0, --port, "8000"]
    environment: {PREDICTOR: "http://predictor:8501", CACHE: "redis://cache:6379/0"}
    ports: ["127.0.0.1:8000:8000"]
    depends_on:
      predictor: {condition: service_started}
      cache: {condition: service_started}
  predictor:
    build: {context: ., target: predictor}
    command: [uvicorn, "predictor.main:app", --host, 0.0.0.0, --port, "8501"]
    expose: ["8501"]
  cache:
    image: redis:8.0
    expose: ["6379"]
"""
STAGES = """
FROM python:3.11-slim AS web
ENV COLOUR=red
FROM python:3.11-slim AS predictor
ENV COLOUR=blue UVICORN_HTTP=predictor.guard:BoundedProtocol
"""
GUARD = """
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

class BoundedProtocol(HttpToolsProtocol):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.server_state.default_headers.append((b"guarded", b"yes"))
"""


@pytest.fixture
def pattern(tmp_path: Path) -> Path:
    directory = tmp_path / "shop"
    (directory / "app").mkdir(parents=True)
    (directory / "app/main.py").write_text(APPLICATION)
    (directory / "docker-compose.yml").write_text(COMPOSE)
    return directory


def test_an_application_runs_with_its_settings_until_the_end_of_the_block(pattern: Path) -> None:
    with run_uvicorn("app.main:app", cwd=pattern, env={"COLOUR": "blue"}) as server:
        assert httpx.get(f"{server.url}/colour").text == "blue"
    assert server.process.returncode == -signal.SIGTERM
    port = free_port()
    with run_uvicorn("app.main:app", cwd=pattern, env={"UP": ""}, ready="/up", port=port) as server:
        assert server.url == f"http://127.0.0.1:{port}"


def test_a_missing_application_is_an_error(pattern: Path) -> None:
    with (
        pytest.raises(ServerError, match="Could not import module"),
        run_uvicorn("no:app", cwd=pattern),
    ):
        pytest.fail("there is nothing to run")


def test_a_process_can_be_killed_restarted_and_stopped_while_suspended(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", "print('here', flush=True); import time; time.sleep(600)"]
    process = Process(command, cwd=tmp_path, log=tmp_path / "log", env={"A": "b"})
    first = process.process.pid
    process.kill()
    assert not process.is_alive()
    process.start()
    assert process.is_alive()
    assert process.process.pid != first
    process.process.send_signal(signal.SIGSTOP)
    assert process.stop() == -signal.SIGTERM


def command_redis(port: int, *words: str) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(" ".join(words).encode() + b"\r\n")
        return connection.recv(1_000)


def test_redis_keeps_its_data_after_a_kill(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", "--maxmemory", "50mb") as server:
        assert command_redis(server.port, "SET", "key", "value") == b"+OK\r\n"
        server.kill()
        assert not server.answers()
        server.start()
        assert command_redis(server.port, "GET", "key") == b"$5\r\nvalue\r\n"
        assert b"52428800" in command_redis(server.port, "CONFIG", "GET", "maxmemory")
    assert not server.is_alive()


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer(user="reader", database="library") as server:
        yield server


def query(server: PostgresServer, statement: str, password: str | None = None) -> object:
    connection = psycopg2.connect(
        host="127.0.0.1",
        port=server.port,
        user=server.user,
        password=password or server.password,
        dbname=server.database,
    )
    try:
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute(statement)
        return cursor.fetchone() if cursor.description else None
    finally:
        connection.close()


def test_postgres_keeps_its_data_after_a_kill(postgres: PostgresServer) -> None:
    query(postgres, "CREATE TABLE book (title text)")
    query(postgres, "INSERT INTO book VALUES ('one')")
    postgres.kill()
    assert not postgres.answers()
    postgres.start()
    assert query(postgres, "SELECT title FROM book") == ("one",)
    with pytest.raises(psycopg2.OperationalError, match="password"):
        query(postgres, "SELECT 1", password="another")  # noqa: S106


def test_servers_are_found_with_one_of_each_replica(pattern: Path) -> None:
    assert sorted(service.name for service in asgi_services(load(pattern))) == ["api", "other"]


def test_a_service_runs_with_only_its_dependencies_and_the_workers(
    pattern: Path, tmp_path: Path
) -> None:
    compose = copy_of(pattern, tmp_path / "copy")
    assert dependencies_of(compose, {"api"}) == {"queue", "other", "fill"}
    with run_around(compose, "api"), run_service(compose, "api", COLOUR="red") as api:
        # A second one gets its own port.
        with run_service(compose, "api") as second:
            assert httpx.get(f"{second.url}/colour").status_code == 404
        assert httpx.get(f"{api.url}/colour").text == "red"
        queue = httpx.URL(httpx.get(f"{api.url}/queue").text)
        assert (queue.host, queue.port) != ("127.0.0.1", 6379)
        assert command_redis(queue.port or 0, "PING") == b"+PONG\r\n"
        assert httpx.get(httpx.get(f"{api.url}/other").text).status_code == 200
        folder = Path(httpx.get(f"{api.url}/folder").text)
        assert (folder / "filled").read_text() == "--images 60"
        (page,) = compose.services["page"].ports
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{page}")
    with pytest.raises(httpx.ConnectError):
        httpx.get(api.url)
    # The pattern itself is unchanged.
    assert (pattern / "docker-compose.yml").read_text() == COMPOSE
    assert not (pattern / ".local").exists()


TRAINER = "import os; os.mkdir('models'); open('models/metadata.json', 'w').close()\n"


def test_a_service_is_trained_and_runs_in_the_directory_below_that_it_is_built_from(
    tmp_path: Path,
) -> None:
    pattern = tmp_path / "pattern"
    for name, port in (("one", 8000), ("two", 8001)):
        below = pattern / "services" / name
        (below / "app").mkdir(parents=True)
        (below / "app/main.py").write_text(APPLICATION)
        (below / "Dockerfile").write_text(f"FROM python:3.11\nENV PLACE={name} PORT={port}\n")
        (below / "train").mkdir()
        (below / "train/__main__.py").write_text(TRAINER)
    command = 'command: [uvicorn, "app.main:app", --port, "{}"]'
    services = [
        f"  {name}:\n    build: services/{name}\n    {command.format(port)}\n"
        for name, port in (("one", 8000), ("two", 8001))
    ]
    (pattern / "docker-compose.yml").write_text("".join(["services:\n", *services]))
    compose = copy_of(pattern, tmp_path / "copy")
    assert [service.name for service in asgi_services(compose)] == ["one", "two"]
    for name in ("one", "two"):
        assert (tmp_path / "copy/services" / name / "models/metadata.json").exists()
        with run_service(compose, name) as server:
            # Its own port, and not that of the other copy.
            assert httpx.get(f"{server.url}/place").text == name
            assert httpx.get(f"{server.url}/port").text in server.url
    assert not (tmp_path / "copy/models").exists()


# A proxy that calls the API, which calls it in turn and therefore cannot depend on it.
PROXY = """
  proxy:
    image: envoyproxy/envoy:v1.40.0
    command: ["-c", /etc/envoy/envoy.yaml, -l, warn]
    ports: ["127.0.0.1:8004:8004", "127.0.0.1:9901:9901"]
    volumes: ["./envoy.yaml:/etc/envoy/envoy.yaml:ro"]
    depends_on:
      api: {condition: service_started}
    healthcheck:
      test: [CMD, bash, -c, "exec 3<>/dev/tcp/127.0.0.1/9901; printf 'GET /ready HTTP/1.1\\\\r\\\\nHost: a\\\\r\\\\nConnection: close\\\\r\\\\n\\\\r\\\\n' >&3; grep -q LIVE <&3"]
"""  # noqa: E501
ENVOY = """
admin: {address: {socket_address: {address: 0.0.0.0, port_value: 9901}}}
static_resources:
  listeners:
    - address: {socket_address: {address: 0.0.0.0, port_value: 8004}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.tcp_proxy
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
                stat_prefix: tcp
                cluster: other
  clusters:
    - name: other
      type: STRICT_DNS
      load_assignment:
        cluster_name: other
        endpoints:
          - lb_endpoints:
              - endpoint: {address: {socket_address: {address: other, port_value: 8001}}}
"""


def test_a_proxy_that_only_a_url_names_is_started_on_free_ports(
    pattern: Path, tmp_path: Path
) -> None:
    text = COMPOSE.replace("FOLDER: /data}\n    ports", "PROXY: http://proxy:8004}\n    ports")
    (pattern / "docker-compose.yml").write_text(
        text.replace("volumes:\n  folder:", f"{PROXY.strip(chr(10))}\nvolumes:\n  folder:")
    )
    (pattern / "envoy.yaml").write_text(ENVOY)
    compose = copy_of(pattern, tmp_path / "copy")
    assert dependencies_of(compose, {"api"}) == {"queue", "other", "fill", "proxy", "api"}
    with run_around(compose, "api"), run_service(compose, "api") as api:
        proxy = httpx.URL(httpx.get(f"{api.url}/proxy").text)
        assert (proxy.host, proxy.port) != ("127.0.0.1", 8004)
        # It leads to another server on a free port.
        assert httpx.get(f"{proxy}/ready").status_code == 200
    assert (pattern / "envoy.yaml").read_text() == ENVOY


def test_a_dependency_may_have_another_page_and_another_port(pattern: Path, tmp_path: Path) -> None:
    ports = '    ports: ["127.0.0.1:8003:8003"]\n'
    text = COMPOSE.replace(
        ports, f'{ports}    expose: ["7003"]\n    x-without-ready: it has pages\n'
    ).replace("    depends_on:\n", "    depends_on:\n      page: {condition: service_started}\n")
    (pattern / "docker-compose.yml").write_text(text)
    compose = copy_of(pattern, tmp_path / "copy")
    (published,) = compose.services["page"].published_ports
    with run_around(compose, "api"):
        assert httpx.get(f"http://127.0.0.1:{published.container}/").status_code == 200


def test_the_error_of_a_failed_one_shot_has_its_output(pattern: Path, tmp_path: Path) -> None:
    text = COMPOSE.replace("import sys; open", "raise SystemExit('no data'); open")
    (pattern / "docker-compose.yml").write_text(text)
    compose = copy_of(pattern, tmp_path / "copy")
    with pytest.raises(ServiceError, match="fill failed with exit code 1: no data"):
        run_around(compose, "api").__enter__()


def test_a_training_outside_the_services_is_run_and_its_error_shown(
    pattern: Path, tmp_path: Path
) -> None:
    (pattern / "train").mkdir()
    (pattern / "train/__main__.py").write_text("open('trained', 'w').close()")
    copy_of(pattern, tmp_path / "copy")
    assert (tmp_path / "copy/trained").exists()
    (pattern / "train/__main__.py").write_text("raise SystemExit('no data')")
    with pytest.raises(ServiceError, match="train failed with exit code 1: no data"):
        copy_of(pattern, tmp_path / "other")


def test_an_unsupported_image_is_named(pattern: Path, tmp_path: Path) -> None:
    text = COMPOSE.replace("redis:8.0", "prom/prometheus:v3.0.0").replace("redis-cli", "curl")
    (pattern / "docker-compose.yml").write_text(text)
    compose = copy_of(pattern, tmp_path / "copy")
    with pytest.raises(ServiceError, match=r"queue: .* cannot run prom/prometheus"):
        run_around(compose, "api").__enter__()


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    directory = tmp_path / "programs"
    for name in ("web", "predictor"):
        (directory / name).mkdir(parents=True)
        (directory / name / "main.py").write_text(APPLICATION)
    (directory / "predictor/guard.py").write_text(GUARD)
    (directory / "docker-compose.yml").write_text(PROGRAMS)
    (directory / "Dockerfile").write_text(STAGES)
    return directory


def test_each_of_several_programs_runs_as_its_image_says(programs: Path, tmp_path: Path) -> None:
    compose = copy_of(programs, tmp_path / "copy")
    assert [service.name for service in asgi_services(compose)] == ["predictor", "web"]
    with run_around(compose, "web"), run_service(compose, "web") as web:
        assert httpx.get(f"{web.url}/colour").text == "red"
        predictor = httpx.get(f"{web.url}/predictor").text
        assert predictor != "http://127.0.0.1:8501"
        answer = httpx.get(f"{predictor}/colour")
        assert answer.text == "blue"
        assert "guarded" in answer.headers
        cache = httpx.URL(httpx.get(f"{web.url}/cache").text)
        assert command_redis(cache.port or 0, "PING") == b"+PONG\r\n"
    with run_around(compose, "predictor"), run_service(compose, "predictor") as alone:
        assert httpx.get(f"{alone.url}/colour").text == "blue"


def test_measurements_start_each_of_several_programs(programs: Path) -> None:
    with run_uvicorn("web.main:app", cwd=programs, env={"COLOUR": "red"}) as server:
        assert "guarded" not in httpx.get(f"{server.url}/colour").headers
    with run_uvicorn("predictor.main:app", cwd=programs, env={"COLOUR": "red"}) as server:
        assert "guarded" in httpx.get(f"{server.url}/colour").headers
