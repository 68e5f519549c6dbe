"""The Makefiles work with macOS: GNU make 3.81 without .SHELLFLAGS, and BSD `wc`."""

import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from tools.check.repository.verbs import targets
from tools.generate.copies import tracked
from tools.measure.server import wait_until
from tools.read.compose import FILE_NAME, Compose, load
from tools.read.patterns import ROOT, patterns
from tools.run.ports import free_port
from tools.run.processes import all_of, group_of, is_alive, kill_all
from tools.run.rewrite import launch_of, state_dir

PATTERN = Path("chapter4_serving_patterns/web_single_pattern")
PORT = "8000"
TRAINERS = {
    compose.name: compose for compose in map(load, patterns()) if "train" in compose.services
}
README = """# A pattern

It is played.

```console
$ make up
...
$ curl -s localhost:8000/ready
{"status":"ready"}
$ make stop
error: which service? SERVICE= is one of: api; make down stops all
make: *** ... Error 2
$ make stop SERVICE=api
...
$ make down
...
```
"""


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Path]:
    """A copy at a path hard to quote, in which the pattern has a free port and a short README."""
    root = tmp_path / "Bücher und Code" / 'ml $system, "it\'s" `new`'
    for name in tracked(ROOT):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, root / name)
    (root / ".venv").symlink_to(Path(sys.prefix))
    port = str(free_port())
    compose = root / PATTERN / "docker-compose.yml"
    compose.write_text(compose.read_text().replace(PORT, port))
    (root / PATTERN / "README.md").write_text(README.replace(PORT, port))
    yield root
    kill_all(all_of(state_dir(root / PATTERN)))


@pytest.fixture
def path_of_macos(tmp_path: Path) -> Path:
    """A directory with a `wc` that pads its numbers, and a `docker` that logs its calls."""
    directory = tmp_path / "bin"
    directory.mkdir()
    scripts = {
        "wc": f'"{shutil.which("wc")}" "$@" | sed "s/^/       /"',
        "docker": f'echo "$@" >> "{tmp_path}/calls"; exit 1',
    }
    for name, script in scripts.items():
        (directory / name).write_text(f"#!/bin/bash\n{script}\n")
        (directory / name).chmod(0o755)
    return directory


def make(
    directory: Path, path: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs make with the .SHELLFLAGS of a make that does not support them."""
    inherited = {name: value for name, value in os.environ.items() if name != "RUN"}
    inherited["PATH"] = f"{path}{os.pathsep}{inherited['PATH']}"
    return subprocess.run(
        ["make", "--no-print-directory", "-C", str(directory), ".SHELLFLAGS=-c", *arguments],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def shown_by_make(directory: Path, variable: str, environment: dict[str, str]) -> str:
    """Returns the value that a variable has for what make starts in a directory."""
    told = subprocess.run(
        ["make", "--no-print-directory", "-f", "-", "probe"],
        cwd=directory,
        env=environment,
        input=f"include Makefile\nprobe:\n\t@echo $${variable}\n",
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return told.stdout.removesuffix("\n")


COMPOSE_BELOW = """name: web-single-pattern
services:
  one:
    build: services/one
    command: [python]
  two:
    build: {context: "services/two"}
    command: [python]
"""
TRAINER = """import sys
from pathlib import Path

Path("models").mkdir(exist_ok=True)
Path("models/metadata.json").write_text(" ".join(sys.argv[1:]))
print("trained")
"""


def test_services_that_are_built_from_below_are_trained_there(
    repository: Path, path_of_macos: Path
) -> None:
    pattern = repository / PATTERN
    shutil.rmtree(pattern / "train")
    (pattern / "docker-compose.yml").write_text(COMPOSE_BELOW)
    models = []
    for name in ("one", "two"):
        (pattern / "services" / name / "train").mkdir(parents=True)
        (pattern / "services" / name / "train/__main__.py").write_text(TRAINER)
        models.append(pattern / "services" / name / "models/metadata.json")
    built = make(pattern, path_of_macos, "build", "RUN=local")
    assert built.stdout.splitlines() == ["trained"] * 2, built.stderr
    assert [model.read_text() for model in models] == ["", ""]
    # Only what is missing is trained again.
    models[0].unlink()
    assert make(pattern, path_of_macos, "build", "RUN=local").stdout == "trained\n"
    assert make(pattern, path_of_macos, "train", "ARGS=--seed 1", "RUN=local").returncode == 0
    assert [model.read_text() for model in models] == ["--seed 1"] * 2
    (pattern / "services/two/train/__main__.py").write_text("raise SystemExit(3)\n")
    failed = make(pattern, path_of_macos, "train", "RUN=local")
    assert failed.returncode == 2


def test_a_pattern_may_include_the_targets_for_directories_below_it(
    repository: Path, path_of_macos: Path
) -> None:
    pattern = repository / PATTERN
    below = pattern / "mine/one"
    (below / "train").mkdir(parents=True)
    (below / "train/__main__.py").write_text(TRAINER)
    compose = COMPOSE_BELOW.replace("web-single-pattern", "below").replace("services/one", ".")
    (below / "docker-compose.yml").write_text(compose.partition("  two:")[0])
    within = f"WITHIN := {PATTERN}/\ninclude ../../../../pattern.mk\n"
    (below / "Makefile").write_text(within)
    made = make(below, path_of_macos, "build", "ps", "RUN=local")
    assert made.stdout.splitlines() == ["trained", "below is not up"], made.stderr


@pytest.fixture
def docker_calls(tmp_path: Path) -> Path:
    return tmp_path / "calls"


def test_make_run_plays_a_pattern_and_calls_docker_once(
    repository: Path, path_of_macos: Path, docker_calls: Path
) -> None:
    for name in ("tools", "train"):
        hostile = repository.with_name("hostile") / name
        hostile.mkdir(parents=True)
        (hostile / "__init__.py").write_text("raise ImportError('this is another module')\n")
    variables = {"PYTHONPATH": str(hostile.parent), "PYTHONSAFEPATH": "1"}
    variables |= dict.fromkeys(["http_proxy", "HTTP_PROXY", "all_proxy"], "http://127.0.0.1:9")
    variables |= {"no_proxy": "", "NO_PROXY": ""}
    played = make(repository, path_of_macos, "run", f"PATTERN={PATTERN.name}", **variables)
    assert played.returncode == 0, played.stdout + played.stderr
    assert '{"status":"ready"}' in played.stdout
    assert docker_calls.read_text() == "info\n"


def test_make_run_terminated_twice_leaves_nothing_running(
    repository: Path, path_of_macos: Path
) -> None:
    readme = "```console\n$ make up\n$ echo $$ > session; sleep 600\n$ make down\n```\n"
    (repository / PATTERN / "README.md").write_text(readme)
    session = repository / PATTERN / "session"
    with subprocess.Popen(
        ["make", "-C", str(repository), "run", f"PATTERN={PATTERN.name}", "RUN=local"],
        env=os.environ | {"PATH": f"{path_of_macos}{os.pathsep}{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as playing:
        wait_until(lambda: session.exists() and session.read_text() != "", "the pattern is up")
        assert len(all_of(state_dir(repository / PATTERN))) == 2
        os.killpg(playing.pid, signal.SIGTERM)
        wait_until(lambda: not psutil.pid_exists(int(session.read_text())), "the session ends")
        os.killpg(playing.pid, signal.SIGTERM)
    wait_until(lambda: group_of(playing.pid) == [], "every process of make ends")
    wait_until(lambda: all_of(state_dir(repository / PATTERN)) == [], "the pattern ends")


def test_what_containers_mount_is_readable_whatever_the_umask(
    repository: Path, path_of_macos: Path, docker_calls: Path
) -> None:
    mounted = next(repository.glob("chapter*/*/envoy.yaml"))
    mounted.chmod(0o600)
    fake_docker(path_of_macos, ENGINE | {"ps": "exit 0", "compose up": "exit 0"})
    ports = {name: str(free_port()) for name in ("PORT", "ADMIN_PORT")}
    make(mounted.parent, path_of_macos, "up", "RUN=docker", **ports)
    assert "compose up --detach" in docker_calls.read_text()
    assert stat.S_IMODE(mounted.stat().st_mode) == 0o644


def test_help_calls_docker_once(path_of_macos: Path, docker_calls: Path) -> None:
    shown = make(ROOT / PATTERN, path_of_macos)
    assert shown.returncode == 0
    assert "now: local" in shown.stdout
    assert docker_calls.read_text() == "info\n"


@pytest.mark.parametrize("directory", [ROOT, ROOT / PATTERN], ids=["root", "pattern"])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "localhost,127.0.0.1,"),
        ({"NO_PROXY": "inner.example"}, "localhost,127.0.0.1,inner.example"),
        ({"no_proxy": "localhost,127.0.0.1,inner.example"}, "localhost,127.0.0.1,inner.example"),
    ],
    ids=["nothing", "another machine", "both"],
)
def test_make_reaches_this_machine_without_the_proxy(
    directory: Path, given: dict[str, str], expected: str
) -> None:
    cleared = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
    assert shown_by_make(directory, "no_proxy", cleared | given) == expected


@pytest.mark.parametrize("run", ["docker", "local"])
@pytest.mark.parametrize("trainer", TRAINERS.values(), ids=TRAINERS)
def test_no_process_of_a_trainer_sends_telemetry(trainer: Compose, run: str) -> None:
    cleared = {name: value for name, value in os.environ.items() if name[:7] != "MLFLOW_"}
    told = shown_by_make(trainer.pattern_dir, "MLFLOW_DISABLE_TELEMETRY", cleared | {"RUN": run})
    assert told == "true"
    for service in trainer.built():
        if service.image == trainer.services["train"].image:
            launch = launch_of(trainer, service)
            assert launch.environment["MLFLOW_DISABLE_TELEMETRY"] == "true"


@pytest.mark.parametrize("trainer", TRAINERS.values(), ids=TRAINERS)
def test_a_trainer_without_docker_records_in_the_store_that_make_names(trainer: Compose) -> None:
    """Also in a clone under /tmp, which is a tmpfs of the container."""
    name, store = "MLFLOW_TRACKING_URI", "sqlite:////tmp/clone/.local/volumes/tracking/mlflow.db"
    compose = load(trainer.pattern_dir, {name: store})
    assert launch_of(compose, compose.services["train"]).environment[name] == store
    default = load(trainer.pattern_dir, {})
    own = shown_by_make(trainer.pattern_dir, name, os.environ | {"RUN": "local"})
    assert launch_of(default, default.services["train"]).environment[name] == own


ENGINE = {
    "info": "exit 0",
    "--version": "echo Docker version 28.2.2",
    "compose version": "echo Docker Compose version v2.26.1",
}
# What the engine does not do, and part of the error message.
REFUSED_ENGINES = {
    "no engine": ({"info": "echo Is the daemon running? >&2; exit 1"}, "(Is the daemon running?)"),
    "no Compose": ({"compose version": "exit 1"}, "install docker-compose-plugin, or run without"),
    "Podman": ({"--version": "echo podman version 5.2.0"}, "`docker` is Podman, and"),
    "Podman without its machine": (
        {"info": "echo Error: cannot connect to Podman; exit 125"},
        "`docker` is Podman, and",
    ),
}


def fake_docker(directory: Path, answers: dict[str, str]) -> None:
    """Replaces the `docker` of `path_of_macos` by one that does as if; others of it fail."""
    cases = "\n".join(f"{shlex.quote(words)}*) {answer} ;;" for words, answer in answers.items())
    log = shlex.quote(str(directory.parent / "calls"))
    script = f'#!/bin/bash\necho "$*" >> {log}\ncase "$*" in\n{cases}\n*) exit 1 ;;\nesac\n'
    (directory / "docker").write_text(script)


def test_docker_is_used_if_there_are_an_engine_and_compose(
    path_of_macos: Path, docker_calls: Path
) -> None:
    fake_docker(path_of_macos, ENGINE)
    assert "now: docker" in make(ROOT / PATTERN, path_of_macos).stdout
    assert docker_calls.read_text().splitlines() == [*ENGINE]


@pytest.mark.parametrize("name", REFUSED_ENGINES)
def test_an_engine_that_cannot_be_used_says_what_to_do(path_of_macos: Path, name: str) -> None:
    answers, reason = REFUSED_ENGINES[name]
    fake_docker(path_of_macos, ENGINE | answers)
    assert "now: local" in make(ROOT / PATTERN, path_of_macos).stdout
    for verb in ("up", "build", "down", "ps", "logs"):
        refused = make(ROOT / PATTERN, path_of_macos, verb, "RUN=docker")
        assert refused.returncode == 2
        assert refused.stderr.startswith("error: ")
        assert reason in refused.stderr
        assert "or run without Docker: RUN=local\n" in refused.stderr
        assert refused.stdout == ""


def test_up_with_docker_names_who_holds_the_port_before_anything_is_built(
    path_of_macos: Path, docker_calls: Path
) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        other = shlex.quote(str(ROOT / "chapter2_training/model_db"))
        containers = {
            f"ps --filter publish={port}": f"printf 'model-db-api-1\\t%s\\n' {other}",
            "compose up": "exit 0",
        }
        fake_docker(path_of_macos, ENGINE | containers)
        refused = make(ROOT / PATTERN, path_of_macos, "up", "RUN=docker", PORT=port)
        assert f"error: port {port} on 127.0.0.1 is in use because model_db is up" in refused.stderr
        assert f"stop it with `make -C {other} down`" in refused.stderr
        assert "compose up" not in docker_calls.read_text()
        # The pattern's own container does not stand in the way.
        own = {
            name: text.replace("2_training/model_db", "4_serving_patterns/web_single_pattern")
            for name, text in containers.items()
        }
        fake_docker(path_of_macos, ENGINE | own)
        started = make(ROOT / PATTERN, path_of_macos, "up", "RUN=docker", PORT=port)
        assert started.returncode == 0, started.stderr
        assert "compose up --detach" in docker_calls.read_text()


def test_restart_with_docker_waits_until_the_service_is_ready(
    path_of_macos: Path, docker_calls: Path
) -> None:
    fake_docker(path_of_macos, ENGINE | {"compose": "exit 0"})
    done = make(ROOT / PATTERN, path_of_macos, "restart", "RUN=docker", "SERVICE=api")
    assert done.returncode == 0, done.stderr
    assert docker_calls.read_text().splitlines()[len(ENGINE) :] == [
        "compose restart api",
        "compose up --detach --no-recreate --no-deps --wait api",
    ]


@pytest.mark.parametrize("verb", ["up", "start"])
@pytest.mark.parametrize("paused", ["", "api"])
def test_docker_restarts_a_paused_service_that_is_started(
    path_of_macos: Path, docker_calls: Path, verb: str, paused: str
) -> None:
    asked = "compose ps --services --status paused" + (" api" if verb == "start" else "")
    fake_docker(path_of_macos, ENGINE | {asked: f"echo {paused}", "compose": "exit 0"})
    arguments = ["RUN=docker", "SERVICE=api", f"PORT={free_port()}"]
    done = make(ROOT / PATTERN, path_of_macos, verb, *arguments)
    assert done.returncode == 0, done.stderr
    first, second, *_ = docker_calls.read_text().splitlines()[len(ENGINE) :]
    assert first.strip() == asked
    assert second.startswith("compose restart api" if paused else "compose up ")


JOB = """
  job:
    build: .
    command: [python, -c, "raise SystemExit(3)"]
    profiles: [job]
"""


@pytest.fixture
def with_job(repository: Path) -> Path:
    """A pattern with a service that runs on demand."""
    compose = repository / PATTERN / "docker-compose.yml"
    compose.write_text(compose.read_text() + JOB)
    return compose.parent


@pytest.mark.parametrize("run", ["docker", "local"])
def test_make_run_names_the_jobs_and_other_verbs_refuse_them(
    with_job: Path, path_of_macos: Path, docker_calls: Path, run: str
) -> None:
    fake_docker(path_of_macos, ENGINE)
    assert re.search("^  make run ", make(with_job, path_of_macos).stdout, re.MULTILINE)
    for service in ("", "api", "jbo"):
        refused = make(with_job, path_of_macos, "run", f"SERVICE={service}", f"RUN={run}")
        assert refused.returncode == 2
        reason = "error: which job? SERVICE= is one of: job; make up starts the other services\n"
        assert refused.stderr.startswith(reason)
    for verb in ("start", "stop", "restart", "pause", "unpause"):
        refused = make(with_job, path_of_macos, verb, "SERVICE=job", f"RUN={run}")
        assert refused.returncode == 2
        assert refused.stderr.startswith("error: job runs on demand: make run SERVICE=job starts ")
    early = make(with_job, path_of_macos, "run", "SERVICE=job", f"RUN={run}")
    assert (early.returncode, "is not up: run `make up` first" in early.stderr) == (2, True)
    assert "compose run" not in docker_calls.read_text()


def test_make_passes_on_the_exit_code_of_a_job(with_job: Path, path_of_macos: Path) -> None:
    assert make(with_job, path_of_macos, "up", "RUN=local").returncode == 0
    ended = make(with_job, path_of_macos, "run", "SERVICE=job", "RUN=local")
    assert "Error 3\n" in ended.stderr
    assert make(with_job, path_of_macos, "down", "RUN=local").returncode == 0


def test_docker_builds_runs_and_ends_a_job(
    with_job: Path, path_of_macos: Path, docker_calls: Path
) -> None:
    runs = {"compose ps --all --quiet job": "echo 123; echo 456", "compose ps --quiet": "echo 789"}
    answers = {**ENGINE, **runs, "stop": "exit 1", "rm": "exit 0", "compose": "exit 0"}
    fake_docker(path_of_macos, answers)
    for verb in ("up", "run", "kill", "down"):
        done = make(with_job, path_of_macos, verb, "SERVICE=job", "RUN=docker")
        assert done.returncode == 0, done.stderr
    questions = (*ENGINE, "ps ", "compose ps")
    calls = docker_calls.read_text().splitlines()
    assert [call for call in calls if not call.startswith(questions)] == [
        "compose build job",
        "compose up --detach --build --wait --quiet-pull",
        "compose run --rm --no-deps --interactive=false job",
        "compose kill job",
        "stop 123 456",
        "rm --force 123 456",
        "compose down --remove-orphans",
    ]


def test_a_copied_directory_alone_ends_the_runs_of_its_jobs(
    with_job: Path, tmp_path: Path, path_of_macos: Path
) -> None:
    alone = shutil.copytree(with_job, tmp_path / "alone" / with_job.name)
    printed = make(alone, path_of_macos, "-n", "down").stdout
    assert "compose ps --all --quiet job)" in printed
    without = make(ROOT / PATTERN, path_of_macos, "-n", "-f", "docker.mk", "down").stdout
    assert "docker stop" not in without


SERVER = """
  traces:
    build: .
    command: [sleep, "600"]
    ports: ["127.0.0.1:${TRACES_PORT:-5000}:5000"]
    profiles: [traces]
    healthcheck:
      test: [CMD, "true"]
"""


@pytest.mark.parametrize("run", ["docker", "local"])
def test_make_up_refuses_a_profile_that_no_server_has(
    repository: Path, path_of_macos: Path, run: str
) -> None:
    fake_docker(path_of_macos, ENGINE)
    arguments = ["up", "PROFILE=trace", f"RUN={run}"]
    refused = make(repository / PATTERN, path_of_macos, *arguments)
    assert (refused.returncode, refused.stderr.splitlines()[0]) == (
        2,
        "error: there is no profile trace",
    )
    compose = repository / PATTERN / "docker-compose.yml"
    compose.write_text(compose.read_text() + SERVER)
    refused = make(repository / PATTERN, path_of_macos, *arguments)
    assert refused.stderr.startswith("error: there is no profile trace; PROFILE= is one of: traces")
    helped = make(repository / PATTERN, path_of_macos)
    assert (helped.returncode, "PROFILE=traces " in helped.stdout) == (0, True)


def test_docker_starts_the_servers_of_a_profile_and_takes_down_those_of_all(
    repository: Path, path_of_macos: Path, docker_calls: Path
) -> None:
    compose = repository / PATTERN / "docker-compose.yml"
    compose.write_text(compose.read_text() + SERVER)
    told = f'echo "profiles: $COMPOSE_PROFILES" >> "{docker_calls}"'
    fake_docker(path_of_macos, ENGINE | {"compose": told})
    alone = shutil.copytree(compose.parent, repository.parent / "alone" / compose.parent.name)
    for directory in (compose.parent, alone):
        docker_calls.unlink(missing_ok=True)
        for words in (["up", "PROFILE=traces"], ["up"], ["down"]):
            done = make(directory, path_of_macos, *words, "RUN=docker")
            assert done.returncode == 0, done.stderr
        calls = docker_calls.read_text().splitlines()
        profiles = [
            profile
            for call, profile in pairwise(calls)
            if call.startswith(("compose up", "compose down"))
        ]
        assert profiles == ["profiles: traces", "profiles: ", "profiles: *"]


@pytest.mark.parametrize(("port", "expected"), [("", "5000"), ("5001", "5001")])
def test_the_address_of_the_page_has_the_port_that_it_moves_to(port: str, expected: str) -> None:
    probe = 'include Makefile\nprobe:\n\t@echo "$(UI)"\n'
    told = subprocess.run(
        ["make", "--no-print-directory", "-f", "-", "probe", "RUN=local"],
        cwd=next(iter(TRAINERS.values())).pattern_dir,
        env=os.environ | {"UI_PORT": port},
        input=probe,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert told.stdout.startswith(f"http://localhost:{expected}/")


@pytest.mark.parametrize("client", sorted(ROOT.glob("*/*/client.py")), ids=lambda p: p.parent.name)
def test_a_client_calls_the_port_that_up_publishes(client: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        compose = (client.parent / FILE_NAME).read_text("utf-8")
        published = re.findall(r"\$\{(\w+):-\d+\}:\d", compose)
        calling = subprocess.Popen(
            [sys.executable, client, "model", "1", "0.9"],
            env=os.environ | dict.fromkeys(published, port),
            stderr=subprocess.DEVNULL,
        )
        try:
            server.settimeout(30)
            connection, _ = server.accept()
            with connection:
                # A photo may follow the head in the same packet.
                head = connection.recv(1000).decode("latin-1").lower()
                assert f"\r\nhost: localhost:{port}\r\n" in head
        finally:
            calling.kill()
            calling.wait()


MEASUREMENT = """
import subprocess, sys
PROGRAM = "import os, sys, time; print(*sys.argv[1:], os.getpid(), flush=True); time.sleep(600)"
try:
    with open("started", "w") as started:
        subprocess.run([sys.executable, "-c", PROGRAM, *sys.argv[1:]], stdout=started)
finally:
    print("the servers are stopped")
"""


def test_ctrl_c_ends_a_measurement_quietly(repository: Path, path_of_macos: Path) -> None:
    (repository / PATTERN / "measure/__main__.py").write_text(MEASUREMENT)
    command = ["make", "--no-print-directory", "-C", str(repository / PATTERN), "measure"]
    with subprocess.Popen(
        [*command, "RUN=local", "MODEL=", "ARGS=--quick"],
        env=os.environ | {"PATH": f"{path_of_macos}{os.pathsep}{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as making:
        started = repository / "started"
        wait_until(lambda: started.exists() and "\n" in started.read_text(), "it starts", 120)
        argument, pid = started.read_text().split()
        os.killpg(making.pid, signal.SIGINT)
        output, errors = making.communicate(timeout=60)
    assert argument == "--quick"
    assert output.endswith("the servers are stopped\n")
    assert errors.startswith("interrupted: nothing is left running\n")
    assert "Traceback" not in errors
    assert not psutil.pid_exists(int(pid)) or not is_alive(psutil.Process(int(pid)))


def test_only_up_is_told_a_port_that_moves(repository: Path, path_of_macos: Path) -> None:
    pattern, port = repository / PATTERN, free_port()
    started = make(pattern, path_of_macos, "up", "RUN=local", PORT=str(port))
    assert started.returncode == 0, started.stdout + started.stderr
    for verb in ("restart", "kill", "start"):
        done = make(pattern, path_of_macos, verb, "SERVICE=api", "RUN=local")
        assert done.returncode == 0, done.stderr
    assert f"  127.0.0.1:{port}\n" in make(pattern, path_of_macos, "ps", "RUN=local").stdout
    assert make(pattern, path_of_macos, "down", "RUN=local").stdout.endswith(" is down\n")


def test_results_stop_at_the_first_pattern_that_cannot_be_measured(
    repository: Path, path_of_macos: Path
) -> None:
    first, *others = sorted(repository.glob("chapter*/*/measure/__main__.py"))
    first.write_text("raise SystemExit('not measurable')\n")
    for other in others:
        other.write_text("raise SystemExit('measured all the same')\n")
    failed = make(repository, path_of_macos, "results", "RUN=local", "MODEL=")
    assert failed.returncode == 2
    assert "not measurable" in failed.stderr
    assert "measured all the same" not in failed.stderr


def test_a_pattern_whose_files_cannot_be_read_is_an_error(
    repository: Path, path_of_macos: Path
) -> None:
    (repository / PATTERN / "docker-compose.yml").write_text("services:\n   api: {}\n")
    refused = make(repository / PATTERN, path_of_macos, "up", "RUN=local")
    assert refused.returncode == 2
    assert "docker-compose.yml:2: indent a service" in refused.stderr
    assert "cannot be read, see above" in refused.stderr


OF_THE_BOOK = sorted(targets(ROOT / "book.mk") - {"of_the_book"})


@pytest.mark.parametrize("name", [*OF_THE_BOOK, "build_setosa", "push_proxy"])
@pytest.mark.parametrize("directory", [ROOT, ROOT / PATTERN], ids=["root", "pattern"])
def test_a_target_that_the_book_prints_names_the_one_to_use(
    path_of_macos: Path, directory: Path, name: str
) -> None:
    if directory == ROOT and name in targets(ROOT / "Makefile"):
        assert name in {"run", "dev"}
        return
    refused = make(directory, path_of_macos, name, "RUN=local")
    assert refused.returncode == 2
    begin = f"error: instead of the book's make {name}, run make "
    assert refused.stderr.startswith(begin)
    words = refused.stderr.splitlines()[0].partition(", run ")[2].partition(",")[0].split()
    root_or_pattern = {"CHAPTER/PATTERN": ROOT / PATTERN, "../..": ROOT}
    where = root_or_pattern[words[2]] if "-C" in words else directory
    makefile = ROOT / ("Makefile" if where == ROOT else "pattern.mk")
    assert words[-1] in targets(makefile)


def test_a_file_named_as_a_target_of_the_book_changes_nothing(
    repository: Path, path_of_macos: Path
) -> None:
    for name in ("c_up", "build_setosa", "of_the_book"):
        (repository / PATTERN / name).write_text("")
    for name in ("c_up", "build_setosa"):
        refused = make(repository / PATTERN, path_of_macos, name, "RUN=local")
        assert refused.stderr.startswith(f"error: instead of the book's make {name}, run make ")


@pytest.mark.parametrize("pattern", sorted(ROOT.glob("*/*/Makefile")), ids=lambda p: p.parent.name)
def test_a_copied_directory_alone_works_with_docker_alone(
    tmp_path: Path, path_of_macos: Path, pattern: Path
) -> None:
    alone = tmp_path / 'my $own, "it\'s" `new`' / pattern.parent.name
    ignored = shutil.ignore_patterns("models", ".local", "__pycache__")
    shutil.copytree(pattern.parent, alone, ignore=ignored)
    helped = make(alone, path_of_macos, RUN="local", ROOT="/")
    assert helped.returncode == 0, helped.stderr
    assert helped.stdout.startswith(f"{alone.name}: ")
    expected = {
        "up": "up --detach --build --wait",
        "down": "down --remove-orphans",
        "build": "build",
        "logs": "logs api",
        "ps": "ps api",
        "stop": "stop api",
        "start": "up --detach --no-deps --wait --no-recreate api",
        "restart": "stop api",
        "kill": "kill api",
        "run": "run --rm --no-deps --interactive=false api",
        "pause": "pause api",
        "unpause": "unpause api",
    }
    for verb, command in expected.items():
        assert f" {verb} " in helped.stdout
        printed = make(alone, path_of_macos, "-n", verb, "SERVICE=api", RUN="local")
        assert printed.returncode == 0, printed.stderr
        lines = [line.split("docker compose ") for line in printed.stdout.splitlines()]
        runs = [" ".join(words[-1].split()) for words in lines if len(words) > 1]
        assert any(run.startswith(command) for run in runs)
    without = make(alone, path_of_macos, "kill")
    assert "which service? make ps lists them" in without.stderr


def test_a_chapter_lists_its_patterns_and_runs_their_tests(
    repository: Path, path_of_macos: Path
) -> None:
    chapter = repository / PATTERN.parent
    shown = make(chapter, path_of_macos)
    assert shown.returncode == 0, shown.stderr
    assert re.search(rf"^  {PATTERN.name} +It is played\.$", shown.stdout, re.MULTILINE)
    tests = make(chapter, path_of_macos, "test", "ARGS=--collect-only -q", "PROCESSES=0")
    found = set(re.findall(r"^tests/(chapter.*)::", tests.stdout, re.MULTILINE))
    names = {path.parent.name for path in chapter.glob("*/Makefile")}
    assert found == {f"{chapter.name}/test_{name}.py" for name in names}


MAKEFILES = {
    str(path.relative_to(ROOT)): path
    for depth in ("", "*/", "*/*/")
    for path in sorted([*ROOT.glob(f"{depth}*.mk"), *ROOT.glob(f"{depth}Makefile")])
}
# Features of GNU make 3.82 or later.
LATER = {
    ".ONESHELL": r"^\.ONESHELL",
    ".SHELLFLAGS": r"^\.SHELLFLAGS",
    "!=": r"^\w+\s*!=",
    "::=": r"::=",
    "define with =": r"^define \w+\s*[:?+]?=",
    "undefine": r"^\s*undefine ",
    "private": r"^.*:\s*private ",
    "a target's own export": r"^[\w $(){}./-]+:\s*export ",
    "$(file)": r"\$\(file ",
    "$(intcmp) and $(let)": r"\$\((intcmp|let) ",
}


@pytest.mark.parametrize("makefile", MAKEFILES.values(), ids=MAKEFILES)
def test_a_makefile_uses_only_features_of_make_3_81(makefile: Path) -> None:
    text = makefile.read_text()
    found = [name for name, pattern in LATER.items() if re.search(pattern, text, re.MULTILINE)]
    assert found == []
