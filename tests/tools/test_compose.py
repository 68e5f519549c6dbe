"""Compose files: what is supported, what is rejected, and how addresses are rewritten."""

import json
import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.read.compose import ComposeError, PublishedPort, Service, load
from tools.read.images import repository
from tools.run import __main__ as command
from tools.run.binaries import MissingServerError, find
from tools.run.rewrite import (
    addressed_without_port,
    host_paths,
    launch_of,
    rewriter,
    rewritten_arguments,
    rewritten_config,
)

GOOD: dict[str, Any] = {
    "name": "good",
    "services": {
        "api": {
            "build": {
                "context": ".",
                "dockerfile": "Dockerfile",
                "target": "serve",
                "args": {"A": "1", "HTTP_PROXY": None},
                "secrets": ["index"],
            },
            "command": ["uvicorn", "app.main:app", "--port", "8000"],
            "environment": {"REDIS_URL": "redis://redis:6379/0", "WORKERS": 2, "RATE": 0.5},
            "ports": ["127.0.0.1:${PORT:-8000}:8000"],
            "volumes": ["./models:/app/models:ro"],
            "depends_on": {
                "redis": {"condition": "service_healthy"},
                "migrate": {"condition": "service_completed_successfully"},
            },
            "healthcheck": {
                "test": ["CMD", "python", "-c", "pass"],
                "interval": "1m30s",
                "timeout": "500ms",
                "retries": 4,
                "start_period": "0.5s",
                "start_interval": "100ms",
            },
            "restart": "on-failure",
            "stop_signal": "SIGINT",
            "stop_grace_period": "25s",
            "labels": {"tier": "front"},
            "read_only": True,
            "tmpfs": ["/cache"],
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
            "user": "10001:10001",
            "init": True,
            "mem_limit": "256m",
            "cpus": 1,
            "pids_limit": 100,
        },
        "worker": {
            "build": ".",
            "command": ["python", "-m", "app.worker"],
            "depends_on": ["redis"],
            "deploy": {"replicas": 2},
        },
        "migrate": {"build": ".", "command": ["python", "-m", "app.migrate"]},
        "job": {
            "build": ".",
            "command": ["python", "-m", "app.job"],
            "depends_on": ["redis"],
            "profiles": ["job"],
        },
        "traces": {
            "build": ".",
            "command": ["traces"],
            "ports": ["127.0.0.1:${TRACES_PORT:-5000}:5000"],
            "profiles": ["traces"],
            "healthcheck": {"test": ["CMD", "true"]},
        },
        "redis": {
            "image": "redis:8.0",
            "expose": ["6379"],
            "volumes": ["data:/data"],
            "healthcheck": {"test": ["CMD", "redis-cli", "ping"]},
        },
    },
    "volumes": {"data": None},
    "secrets": {"index": {"environment": "PIP_INDEX_URL"}},
}


def write(directory: Path, document: object) -> Path:
    text = document if isinstance(document, str) else yaml.safe_dump(document, sort_keys=False)
    (directory / "docker-compose.yml").write_text(text, encoding="utf-8")
    return directory


def changed(service: str, **keys: Any) -> dict[str, Any]:
    document = deepcopy(GOOD)
    document["services"][service] |= keys
    return document


def message_of(directory: Path, document: object) -> str:
    with pytest.raises(ComposeError) as caught:
        load(write(directory, document))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_file_with_every_supported_key_is_read(tmp_path: Path) -> None:
    compose = load(write(tmp_path, GOOD))
    assert compose.name == "good"
    api, redis, worker = (compose.services[name] for name in ("api", "redis", "worker"))
    assert api.build is not None
    assert (api.build.target, api.build.args) == ("serve", {"A": "1", "HTTP_PROXY": None})
    assert (api.build.secrets, compose.secrets) == (("index",), {"index": "PIP_INDEX_URL"})
    assert api.environment == {"REDIS_URL": "redis://redis:6379/0", "WORKERS": "2", "RATE": "0.5"}
    assert api.health is not None
    assert (api.health.interval_seconds, api.health.timeout_seconds) == (90, 0.5)
    assert (api.health.retries, api.health.start_period_seconds) == (4, 0.5)
    assert (api.restart, api.stop_signal, api.stop_grace_seconds) == ("on-failure", "SIGINT", 25)
    assert (api.ports, redis.published_ports, redis.ports) == ((8000,), (), (6379,))
    assert (api.published_ports, compose.published()) == (
        (PublishedPort(8000, 8000),),
        {8000: 8000},
    )
    assert (worker.replicas, worker.ports, worker.stop_grace_seconds) == (2, (), 10)
    assert compose.one_shots() == {"migrate"}
    assert compose.jobs() == ["job"]
    assert compose.of_up().keys() == compose.services.keys() - {"job", "traces"}
    # Limits of containers are kept for the rules that check them.
    assert (api.read_only, api.tmpfs, api.cap_drop) == (True, ("/cache",), ("ALL",))
    assert (api.security_opt, api.user) == (("no-new-privileges:true",), "10001:10001")
    assert (api.memory_limit_bytes, api.cpus, api.pids_limit) == (256 * 2**20, "1", 100)


def test_a_server_with_a_profile_starts_if_its_profile_is_active(tmp_path: Path) -> None:
    pattern = write(tmp_path, changed("api", environment={"A": "${COMPOSE_PROFILES:+on}!"}))
    for profiles, servers, value in (
        ("", set(), "!"),
        ("job", set(), "on!"),
        ("traces", {"traces"}, "on!"),
        ("job,traces", {"traces"}, "on!"),
    ):
        compose = load(pattern, {"COMPOSE_PROFILES": profiles})
        assert compose.of_up().keys() == compose.services.keys() - {"job", "traces"} | servers
        assert compose.published().keys() == {8000} | ({5000} if servers else set())
        assert compose.jobs() == ["job"]
        assert compose.services["api"].environment["A"] == value


def test_exceptions_to_rules_are_read_with_their_reasons(tmp_path: Path) -> None:
    reason = "it keeps what others have trained"
    of_a_service = {
        "x-without-ready": "it only says whether it lives",
        "x-without-other-models": "it refuses them",
    }
    document = changed("api", **of_a_service)
    compose = load(write(tmp_path, document | {"x-without-training": reason}))
    assert compose.without_training == reason
    assert compose.services["api"].without_ready == "it only says whether it lives"
    assert compose.services["api"].without_other_models == "it refuses them"
    assert load(write(tmp_path, GOOD)).without_training is None


def test_services_are_in_start_order(tmp_path: Path) -> None:
    names = list(load(write(tmp_path, GOOD)).services)
    assert names.index("api") > max(names.index("redis"), names.index("migrate"))
    assert names.index("worker") > names.index("redis")


def test_variables_come_from_the_environment_or_their_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"A": "${LEVEL:-info}", "B": "${OTHER:-x y}", "C": "$$HOME", "D": "${EMPTY:-full}"}
    monkeypatch.setenv("LEVEL", "debug")
    monkeypatch.delenv("OTHER", raising=False)
    monkeypatch.setenv("EMPTY", "")
    api = load(write(tmp_path, changed("api", environment=values))).services["api"]
    assert api.environment == {"A": "debug", "B": "x y", "C": "$HOME", "D": "full"}


def test_a_variable_moves_a_published_port_but_not_that_of_the_container(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    for variables, host in (({"PORT": "8123"}, 8123), ({"PORT": ""}, 8000), ({}, 8000)):
        compose = load(tmp_path, variables)
        assert compose.published() == {8000: host}
        assert compose.services["api"].ports == (8000,)
    with pytest.raises(ComposeError, match=r'ports: "127\.0\.0\.1:http:8000" is not'):
        load(tmp_path, {"PORT": "http"})


def test_a_path_from_the_shell_is_one_of_this_machine(tmp_path: Path) -> None:
    """A clone may be under a folder that a container has too."""
    url = "sqlite:///${STORE:-/data/runs.db}?cache=/data/${NAME:-x}"
    test = ["CMD", "sh", "-c", "find ${STORE:-/data} /data/${NAME:-x} && nc ${PEER:-redis}:6379"]
    document = changed("redis", environment={"URL": url}, healthcheck={"test": test})
    for shell, store in (
        ({}, ""),
        ({"STORE": "/data/clone/.local", "PEER": "redis"}, "/data/clone"),
    ):
        compose = load(write(tmp_path, document), shell)
        launch = launch_of(compose, compose.services["redis"])
        data = f"{compose.pattern_dir}/.local/volumes/data"
        runs, folder = (f"{store}/.local",) * 2 if store else (f"{data}/runs.db", data)
        assert launch.environment["URL"] == f"sqlite:///{runs}?cache={data}/x"
        assert launch.health_command[-1] == f"find {folder} {data}/x && nc 127.0.0.1:6379"


@pytest.mark.docker
def test_compose_itself_fills_in_the_same_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"A": "${LEVEL:-info}", "B": "${OTHER:-http://x:1/ y-z}", "C": "$$HOME$${A:-b}"}
    values |= {"D": "${EMPTY:-full}", "E": "${SPACE:-full}", "F": "${UNSET:-}"}
    for name, value in {"LEVEL": "$OTHER", "EMPTY": "", "SPACE": " ", "PORT": "8123"}.items():
        monkeypatch.setenv(name, value)
    services = {"api": GOOD["services"]["api"] | {"environment": values, "depends_on": []}}
    write(tmp_path, {"services": services, "secrets": GOOD["secrets"]})
    command = ["docker", "compose", "config", "--format", "json"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    expected = json.loads(shown.stdout)["services"]["api"]
    compose = load(tmp_path)
    # What Compose prints has each `$` twice, so that it is a Compose file again.
    printed = {name: value.replace("$$", "$") for name, value in expected["environment"].items()}
    assert compose.services["api"].environment == printed
    (port,) = expected["ports"]
    assert compose.published() == {port["target"]: int(port["published"])}


def test_a_file_of_variables_that_only_docker_reads_is_rejected(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    (tmp_path / ".env").write_text("PORT=8123\n")
    with pytest.raises(ComposeError, match="env is read by Docker only; use the environment"):
        load(tmp_path)


def test_the_ports_of_a_service_include_those_in_addresses(tmp_path: Path) -> None:
    compose = load(
        write(
            tmp_path,
            {
                "services": {
                    "api": {
                        "build": ".",
                        "command": ["serve"],
                        "environment": {"MODEL": "http://model:8001/", "CACHE": "cache:6390"},
                    },
                    "model": {"build": ".", "command": ["serve"]},
                    "cache": {"image": "redis:8.0", "command": ["redis-server", "--port", "6390"]},
                    "store": {"image": "redis:8.0"},
                    "log": {"build": ".", "command": ["serve", "--port=8002"]},
                }
            },
        )
    )
    ports = {name: service.ports for name, service in compose.services.items()}
    assert ports == {
        "api": (),
        "model": (8001,),
        "cache": (6390,),
        "store": (6379,),
        "log": (8002,),
    }


REFUSED_KEYS = {
    "network_mode": "host",
    "env_file": ".env",
    "entrypoint": ["x"],
    "networks": ["n"],
    "volumes_from": ["x"],
    "extends": {"service": "x"},
    "secrets": ["x"],
    "Command": ["x"],
}


@pytest.mark.parametrize("key", REFUSED_KEYS)
def test_an_unsupported_key_is_rejected_with_file_service_and_supported_keys(
    tmp_path: Path, key: str
) -> None:
    message = message_of(tmp_path, changed("api", **{key: REFUSED_KEYS[key]}))
    start = f'docker-compose.yml: service "api": the key "{key}" is not supported without Docker; '
    assert message.startswith(start + "supported keys: build, image, command")


HEALTH = {"test": ["CMD", "true"]}
# What is added to the service "api", and part of the error message.
REFUSED_VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "command as text": ({"command": "python x"}, "command: must be a list"),
    "command with a number": (
        {"command": ["serve", 1]},
        "command: must be text, not 1; put it in quotes",
    ),
    "no command": ({"command": []}, "needs a `command`"),
    "environment as list": ({"environment": ["A=1"]}, "environment: must be a mapping"),
    "environment with a boolean": ({"environment": {"A": True}}, "environment: A: must be text"),
    "environment from outside": ({"environment": {"A": None}}, "environment: A: must be text"),
    "port on every address": ({"ports": ["8000:8000"]}, 'ports: "8000:8000" is not supported'),
    "any port": ({"ports": ["127.0.0.1:0:8000"]}, 'write "127.0.0.1:${PORT:-8000}:8000"'),
    "port range": ({"ports": ["127.0.0.1:1-2:1-2"]}, 'write "127.0.0.1:${PORT:-8000}:8000"'),
    "port too large": ({"ports": ["127.0.0.1:70000:8000"]}, 'write "127.0.0.1:${PORT:-8000}:'),
    "port twice": (
        {"ports": ["127.0.0.1:80:8000", "127.0.0.1:80:8001"]},
        "port 80 of this machine is published twice",
    ),
    "expose of a word": ({"expose": ["http"]}, "expose: 'http' is not a port"),
    "volume outside": ({"volumes": ["../x:/x"]}, "is outside the pattern"),
    "volume above": ({"volumes": ["./a/../../x:/x"]}, "is outside the pattern"),
    "volume of the machine": ({"volumes": ["/etc:/x"]}, "is outside the pattern"),
    "volume not declared": ({"volumes": ["other:/x"]}, '"other" is not declared'),
    "volume without target": ({"volumes": ["/x"]}, 'write "./directory:/path[:ro]"'),
    "volume with options": ({"volumes": ["./x:/x:z"]}, 'write "./directory:/path[:ro]"'),
    "volume in long form": (
        {"volumes": [{"type": "bind"}]},
        "volumes: \"{'type': 'bind'}\": write",
    ),
    "unknown dependency": ({"depends_on": ["rediss"]}, 'no service "rediss"; services: api'),
    "unknown condition": (
        {"depends_on": {"redis": {"condition": "service_ready"}}},
        "'service_ready' is not one of 'service_started'",
    ),
    "restart of dependency": (
        {"depends_on": {"redis": {"restart": True}}},
        'depends_on: redis: the key "restart"',
    ),
    "health of a service without": (
        {"depends_on": {"worker": {"condition": "service_healthy"}}},
        '"worker" has no healthcheck',
    ),
    "shell health check": ({"healthcheck": {"test": ["CMD-SHELL", "x"]}}, 'write it as ["CMD"'),
    "health check as text": ({"healthcheck": {"test": "curl x"}}, "test: must be a list"),
    "disabled health check": ({"healthcheck": {"disable": True}}, 'the key "disable"'),
    "interval without unit": ({"healthcheck": HEALTH | {"interval": 5}}, "must be a duration"),
    "retries of zero": ({"healthcheck": HEALTH | {"retries": 0}}, "must be a whole number"),
    "restart policy": ({"restart": "sometimes"}, "'sometimes' is not one of 'no', 'on-failure'"),
    "stop signal": ({"stop_signal": "SIGNOTHING"}, '"SIGNOTHING" is not the name of a signal'),
    "grace period": ({"stop_grace_period": "soon"}, "must be a duration such as 10s"),
    "limits": ({"deploy": {"resources": {}}}, 'deploy: the key "resources"'),
    "replicas with a port": ({"deploy": {"replicas": 2}}, "2 replicas cannot all listen on port"),
    "unknown secret": (
        {"build": {"secrets": ["x"]}},
        'build: secrets: "x" is not declared under the top-level `secrets`',
    ),
    "plain variable": ({"environment": {"A": "$HOME"}}, 'environment: A: the "$" in "$HOME"'),
    "variable without default": ({"environment": {"A": "${HOME}"}}, "write ${NAME:-default}"),
    "nested variable": ({"environment": {"A": "${A:-${B:-c}}"}}, "write ${NAME:-default}"),
    "required variable": ({"command": ["${A:?missing}"]}, "write ${NAME:-default}"),
    "port of another service": ({"expose": ["6379"]}, "both use port 6379"),
    "several profiles": ({"profiles": ["a", "b"]}, "write the name of one profile, as in [job]"),
    "no profile": ({"profiles": []}, "write the name of one profile, as in [job]"),
    "profile as text": ({"profiles": "job"}, "profiles: must be a list"),
    "profile and restart": (
        {"profiles": ["job"], "healthcheck": None},
        "ends by itself: remove `restart`",
    ),
    "profile and replicas": (
        {"profiles": ["job"], "healthcheck": None, "restart": "no", "deploy": {"replicas": 2}},
        "run a service with `profiles` several times: remove `replicas`",
    ),
    "profile and port": (
        {"profiles": ["job"], "healthcheck": None, "restart": "no"},
        "a service with `profiles` has no port, because it can run several times at once; "
        "a server needs a healthcheck",
    ),
    "dependency with a profile": (
        {"depends_on": {"job": {}}},
        'depends_on: "job" has `profiles`, so `up` does not start it',
    ),
    "quoted boolean": ({"read_only": "true"}, "read_only: must be true or false, not 'true'"),
    "memory in an unknown unit": ({"mem_limit": "256x"}, "such as 256m or 1g, not '256x'"),
    "memory without unit": ({"mem_limit": 256}, "must be an amount of memory such as 256m"),
    "exception that no rule has": ({"x-slow": "yes"}, 'the key "x-slow" is not supported'),
    "exception without a reason": (
        {"x-program-variables": {"A": ""}},
        "x-program-variables: A: must not be empty",
    ),
}


@pytest.mark.parametrize("case", REFUSED_VALUES)
def test_an_unsupported_value_is_rejected_with_the_reason(tmp_path: Path, case: str) -> None:
    keys, reason = REFUSED_VALUES[case]
    message = message_of(tmp_path, changed("api", **keys))
    assert message.startswith("docker-compose.yml: ")
    assert reason in message
    if "both use" not in message and "twice" not in message:
        assert 'service "api"' in message


def multiplying(form: str) -> str:
    """Returns six anchors that each refer ten times to the previous one: 10^6 values."""
    references = [",".join([f"*a{number}"] * 10) for number in range(6)]
    lines = [f"a{n}: &a{n} {form.format(parts)}" for n, parts in enumerate(references, 1)]
    return "\n".join(["a0: &a0 {x: 1}", *lines])


REFUSED_FILES: dict[str, tuple[object, str]] = {
    "empty": ("", "must be a mapping"),
    "no services": ({"services": {}}, "there are no services that `up` starts"),
    "only jobs": (
        {"services": {"job": {"build": ".", "command": ["x"], "profiles": ["job"]}}},
        "there are no services that `up` starts",
    ),
    "image with a profile": (
        {"services": {"redis": {"image": "redis:8.0", "profiles": ["job"]}}},
        'service "redis": only a service that is built can have `profiles`',
    ),
    "not YAML": ("services: [", "not valid YAML"),
    "thousands of levels": ("a: " + "[" * 5000 + "]" * 5000, "nested too deeply; write fewer"),
    "anchor in itself": ("services: &a {api: *a}", "an anchor refers to itself; write out"),
    "anchors that multiply": (multiplying("[{}]"), "anchors stand for more than 100000 values"),
    "merges that multiply": (multiplying("{{<<: [{}]}}"), "stand for more than 100000 values"),
    "a list as a key": ("? [a]\n: b", "a key or a value cannot be read: unhashable"),
    "a day that does not exist": ("a: 2020-99-01", "cannot be read: month must be in 1..12"),
    "two documents": ("services:\n  a: {build: .}\n---\nservices: {}\n", "several documents"),
    "key twice": ("services:\n  a: {build: .}\n  a: {build: .}\n", 'duplicate key "a"'),
    "unknown top key": (GOOD | {"networks": {}}, 'the key "networks" is not supported'),
    "version": (GOOD | {"version": "3"}, 'the key "version" is not supported'),
    "volume with driver": (GOOD | {"volumes": {"data": {"driver": "x"}}}, "options are not"),
    "service name": ({"services": {"a b": {"image": "redis:8"}}}, "a service name may contain"),
    "neither build nor image": ({"services": {"a": {"command": ["x"]}}}, "`build` or `image`"),
    "unknown image": (
        {"services": {"mail": {"image": "mailhog/mailhog:v1"}}},
        'service "mail": the image "mailhog/mailhog:v1" is not known without Docker; known images: '
        "redis, postgres, envoyproxy/envoy, prom/prometheus",
    ),
    "image of another owner": (
        {"services": {"a": {"image": "someone/redis:8"}}},
        '"someone/redis:8" is not known',
    ),
    "circle": (
        {
            "services": {
                "a": {"build": ".", "command": ["x"], "depends_on": ["b"]},
                "b": {"build": ".", "command": ["x"], "depends_on": ["a"]},
            }
        },
        "services depend on each other",
    ),
}


@pytest.mark.parametrize("case", REFUSED_FILES)
def test_an_unsupported_file_is_rejected_with_the_reason(tmp_path: Path, case: str) -> None:
    document, reason = REFUSED_FILES[case]
    assert reason in message_of(tmp_path, document)


def test_a_missing_file_and_a_binary_file_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ComposeError, match="does not exist; name the directory of a pattern"):
        load(tmp_path)
    (tmp_path / "docker-compose.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ComposeError, match="cannot be read"):
        load(tmp_path)


def test_the_runner_prints_why_it_rejects_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["up", str(write(tmp_path, changed("api", ipc="host")))]) == 1
    assert capsys.readouterr().err.startswith("error: docker-compose.yml: service")


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("redis", "redis"),
        ("redis:8.0", "redis"),
        ("redis:8.0@sha256:0123", "redis"),
        ("docker.io/library/postgres:17", "postgres"),
        ("envoyproxy/envoy:v1.40.0", "envoyproxy/envoy"),
        ("localhost:5000/redis:8", "localhost:5000/redis"),
    ],
)
def test_an_image_is_identified_by_its_repository(image: str, expected: str) -> None:
    assert repository(image) == expected


# --- rewriting ------------------------------------------------------------------------------------

MOVED = {8000: 8123, 6379: 40001}
NAMES = ("api", "redis", "redis-replica", "worker")
PATHS = {"/data": Path("/srv/me/a b/.local/volumes/data"), "/app/models": Path("/srv/me/models")}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis:6379", "127.0.0.1:6379"),
        ("redis://redis:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://redis/0", "redis://127.0.0.1/0"),
        ("http://api", "http://127.0.0.1"),
        ("postgresql://u:p@redis:5432/api", "postgresql://u:p@127.0.0.1:5432/api"),
        ("amqp://u:p@redis/api", "amqp://u:p@127.0.0.1/api"),
        ("redis-replica:6380,redis:6379", "127.0.0.1:6380,127.0.0.1:6379"),
        ("0.0.0.0:8000", "127.0.0.1:8000"),
        ("10.0.0.0", "10.0.0.0"),
        ("my-redis:6379", "my-redis:6379"),
        ("redis.example.org:6379", "redis.example.org:6379"),
        ("app.api:app", "app.api:app"),
        ("worker", "worker"),
        ("/data", "/srv/me/a b/.local/volumes/data"),
        ("--dir=/data/x", "--dir=/srv/me/a b/.local/volumes/data/x"),
        ("/app/models/model.onnx", "/srv/me/models/model.onnx"),
        ("/database /app/data /data2", "/database /app/data /data2"),
        ("sqlite:////data/log.db", "sqlite:////srv/me/a b/.local/volumes/data/log.db"),
    ],
)
def test_addresses_and_mounted_paths_become_local_ones(text: str, expected: str) -> None:
    assert rewriter(NAMES, PATHS)(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis://redis:6379/0", "redis://127.0.0.1:40001/0"),
        ("redis:6379,api:8000", "127.0.0.1:40001,127.0.0.1:8123"),
        ("http://127.0.0.1:8000/ready", "http://127.0.0.1:8123/ready"),
        ("http://localhost:8000", "http://localhost:8123"),
        ("0.0.0.0:8000", "127.0.0.1:8123"),
        ("exec 3<>/dev/tcp/127.0.0.1/8000", "exec 3<>/dev/tcp/127.0.0.1/8123"),
        ("/dev/tcp/redis/6379", "/dev/tcp/127.0.0.1/40001"),
        ("http://api:9000", "http://127.0.0.1:9000"),
        ("http://example.org:8000", "http://example.org:8000"),
        ("8000", "8000"),
        ("http://api/8000", "http://127.0.0.1/8000"),
    ],
)
def test_ports_in_addresses_become_those_of_this_machine(text: str, expected: str) -> None:
    assert rewriter(NAMES, {}, MOVED)(text) == expected


def test_a_number_is_a_port_only_as_the_value_of_a_port(tmp_path: Path) -> None:
    rewrite = rewriter(NAMES, {}, MOVED)
    for given, expected in (
        (("serve", "--port", "8000", "--limit", "8000"), ("--port", "8123", "--limit", "8000")),
        (("serve", "--admin-port=8000", "-p", "6379"), ("--admin-port=8123", "-p", "40001")),
    ):
        assert rewritten_arguments(given, NAMES, rewrite, MOVED) == ("serve", *expected)
    variables = {"UVICORN_PORT": "8000", "LIMIT": "8000", "REDIS_HOST": "redis"}
    compose = load(write(tmp_path, changed("api", environment=variables)))
    environment = launch_of(compose, compose.services["api"], MOVED).environment
    assert {name: environment[name] for name in variables} == {
        "UVICORN_PORT": "8123",
        "LIMIT": "8000",
        "REDIS_HOST": "127.0.0.1",
    }


def test_the_programs_of_an_image_are_told_a_port_that_has_moved(tmp_path: Path) -> None:
    compose = load(write(tmp_path, GOOD))
    launch = launch_of(compose, compose.services["redis"], MOVED)
    assert launch.command[-2:] == ("--port", "40001")
    assert launch.health_command == ("redis-cli", "-p", "40001", "ping")
    unmoved = launch_of(compose, compose.services["redis"])
    assert "--port" not in unmoved.command
    assert unmoved.health_command == ("redis-cli", "ping")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"REDIS_URL": "redis://redis:6379/0"}, set()),
        ({"REDIS_URL": "redis://redis/0"}, {"redis"}),
        ({"REDIS_URL": "redis://user:word@redis/0"}, {"redis"}),
        ({"REDIS_HOST": "redis"}, {"redis"}),
        ({"REDIS_HOST": "redis", "REDIS_PORT": "6379"}, set()),
    ],
)
def test_a_port_that_is_not_written_down_cannot_move(
    tmp_path: Path, environment: dict[str, str], expected: set[str]
) -> None:
    compose = load(write(tmp_path, changed("api", environment=environment)))
    assert addressed_without_port(compose) == expected


def test_a_bare_name_is_an_address_only_as_the_value_of_a_host() -> None:
    rewrite = rewriter(NAMES, {})
    for given, expected in (
        (("redis-cli", "-h", "redis", "ping"), ("redis-cli", "-h", "127.0.0.1", "ping")),
        (("wait", "--redis-host", "redis"), ("wait", "--redis-host", "127.0.0.1")),
        (("wait", "--host=api"), ("wait", "--host=127.0.0.1")),
        (("python", "-m", "worker"), ("python", "-m", "worker")),
    ):
        assert rewritten_arguments(given, NAMES, rewrite) == expected


def test_addresses_in_an_envoy_file_are_rewritten_and_names_are_kept() -> None:
    given = {
        "name": "api",
        "endpoints": [{"socket_address": {"address": "api", "port_value": 8000}}],
        "listener": {"address": {"socket_address": {"address": "0.0.0.0"}}},
        "targets": ["redis:6379"],
    }
    assert rewritten_config(given, NAMES, rewriter(NAMES, {})) == {
        "name": "api",
        "endpoints": [{"socket_address": {"address": "127.0.0.1", "port_value": 8000}}],
        "listener": {"address": {"socket_address": {"address": "127.0.0.1"}}},
        "targets": ["127.0.0.1:6379"],
    }


def test_ports_in_an_envoy_file_are_rewritten_beside_a_local_address() -> None:
    def address(host: str, port: int) -> dict[str, Any]:
        return {"socket_address": {"address": host, "port_value": port}}

    given = [address("0.0.0.0", 8000), address("redis", 6379), address("example.org", 8000)]
    expected = [
        address("127.0.0.1", 8123),
        address("127.0.0.1", 40001),
        address("example.org", 8000),
    ]
    assert rewritten_config(given, NAMES, rewriter(NAMES, {}, MOVED), MOVED) == expected


def test_the_data_of_an_image_is_in_its_volume_or_in_a_scratch_folder(tmp_path: Path) -> None:
    compose = load(write(tmp_path, GOOD))
    assert data_folder(tmp_path, compose.services["redis"]) == ".local/volumes/data"
    document = changed("redis", volumes=[])
    service = load(write(tmp_path, document)).services["redis"]
    assert data_folder(tmp_path, service) == ".local/scratch/redis"


def data_folder(directory: Path, service: Service) -> str:
    path = host_paths(load(directory), service)["/data"]
    return str(path.relative_to(directory.resolve()))


def test_a_built_service_runs_in_the_directory_that_it_is_built_from(tmp_path: Path) -> None:
    build = {"context": "services/iris"}
    compose = load(write(tmp_path, changed("api", build=build)))
    below = tmp_path.resolve() / "services/iris"
    assert launch_of(compose, compose.services["api"]).directory == below
    assert compose.directories() == [tmp_path.resolve(), below]
    # An image has no such directory, and the usual context is that of the file.
    assert compose.directory_of(compose.services["redis"]) == tmp_path.resolve()
    compose = load(write(tmp_path, GOOD))
    assert launch_of(compose, compose.services["api"]).directory == tmp_path.resolve()


def test_the_variables_of_an_image_also_apply_without_docker(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(
        "FROM python:3.11 AS train\nENV UVICORN_PORT=1\n"
        "FROM python:3.11 AS serve\n# Comment.\nENV UVICORN_HOST=0.0.0.0 \\\n"
        '    UVICORN_LIFESPAN="on" PATH=/venv/bin:$PATH HOME=/nowhere REPORTS=off\n'
    )
    compose = load(write(tmp_path, changed("api", environment={"UVICORN_LIFESPAN": "off"})))
    environment = launch_of(compose, compose.services["api"]).environment
    told = {"REPORTS": "off", "UVICORN_HOST": "127.0.0.1", "UVICORN_LIFESPAN": "off"}
    assert told.items() <= environment.items()
    assert "UVICORN_PORT" not in environment
    assert environment["HOME"] != "/nowhere"
    assert "/venv/bin" not in environment["PATH"].split(os.pathsep)


def test_a_service_reaches_only_other_machines_through_the_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", "inner.example")
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    compose = load(write(tmp_path, GOOD))
    environment = launch_of(compose, compose.services["api"]).environment
    assert environment["https_proxy"] == "http://proxy.example:3128"
    assert environment["no_proxy"] == "localhost,127.0.0.1,inner.example"
    assert environment["NO_PROXY"] == environment["no_proxy"]


def test_a_mounted_configuration_folder_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "envoy").mkdir()
    services = {"envoy": {"image": "envoyproxy/envoy:v1.40.0", "volumes": ["./envoy:/etc/envoy"]}}
    assert command.main(["up", str(write(tmp_path, {"services": services}))]) == 1


def test_each_known_server_is_found() -> None:
    servers = {"redis:8": "redis-server", "postgres:17": "postgres"}
    for image, program in (servers | {"prom/prometheus:v2.53.3": "prometheus"}).items():
        assert find(image).name == program


def test_an_unpacked_server_is_found_last_and_only_with_its_companions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    image, unpacked = "prom/prometheus:v2.53.3", tmp_path / "debian/prometheus/usr/bin"
    unpacked.mkdir(parents=True)
    (unpacked / "prometheus").touch(0o755)
    missing = (
        "prometheus is not installed: run `apt install prometheus` or `brew install prometheus`"
    )
    with pytest.raises(MissingServerError, match=f"^{missing}$"):
        find(image)
    (tmp_path / "apt-get").touch(0o755)
    with pytest.raises(MissingServerError, match=f"^{missing} or `make servers`$"):
        find(image)
    (unpacked / "promtool").touch(0o755)
    assert find(image) == unpacked / "prometheus"
    for name in ("prometheus", "promtool"):
        (tmp_path / name).touch(0o755)
    assert find(image) == tmp_path / "prometheus"
