"""Installs categories of the lock: `python -m tools.generate.environment serving redis`.

Without arguments it installs all categories; with `--create` it creates the environment instead.
A server that is no Python package counts as a category, too: see `unpack`.
It runs before anything is installed, so it imports only the standard library.

It uses `uv`, which is several times faster than pip. But `uv` ignores pip's settings, so if there
are settings that affect what is installed, it uses pip.
"""

import argparse
import fcntl
import hashlib
import json
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Collection, Iterator
from compileall import compile_file
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

from tools.generate.requirements import RequirementsError, packages_of, render
from tools.generate.unpack import UnpackError, unpack
from tools.read.images import IMAGES, Image, on_this_machine
from tools.read.patterns import ROOT

Lock = dict[str, Any]

# The category that contains `uv` itself.
INSTALLER = "installer"
# Categories whose name in the lock differs from their name in the Pipfile.
NAMES = {"default": "packages", "develop": "dev-packages"}
# Settings of pip that do not affect what it installs or from where.
HARMLESS = {
    "break-system-packages",
    "cache-dir",
    "config-file",
    "default-timeout",
    "disable-pip-version-check",
    "no-cache-dir",
    "no-color",
    "no-input",
    "no-python-version-warning",
    "progress-bar",
    "quiet",
    "require-virtualenv",
    "retries",
    "root-user-action",
    "timeout",
    "verbose",
}
MODULES_AT_ONCE = 50
# How scripts begin if a `#!` line cannot name the interpreter: its path is too long or has spaces.
SCRIPT_OF_A_SHELL = b"#!/bin/sh\n'''exec' "


class InstallError(Exception):
    """Packages could not be installed."""


def categories_of(lock: Lock) -> list[str]:
    """Returns the Pipfile's names of all categories."""
    return sorted(NAMES.get(key, key) for key in lock if key != "_meta")


def missing(environment: Path, lock: Lock, categories: list[str]) -> dict[Path, str]:
    """Returns the marker file and its new content for each category not installed as locked."""
    markers = {}
    for category in categories:
        marker = environment / f"{category}.installed"
        # Another version of Python needs other builds.
        content = sys.implementation.cache_tag + render(lock, [category])
        digest = hashlib.sha256(content.encode()).hexdigest()
        if not marker.is_file() or marker.read_text() != digest:
            markers[marker] = digest
    return markers


def install(environment: Path, lock: Lock, categories: list[str]) -> None:
    """Installs categories with `uv` or pip, and compiles them."""
    packages = packages_of(lock, categories)
    # Twice quiet leaves only errors; a terminal shows the progress.
    quiet = [] if sys.stderr.isatty() else ["--quiet", "--quiet"]
    pip, settings = pip_of(environment)
    with_pip = [*pip, "install", "--no-compile", "--disable-pip-version-check", *quiet]
    if settings <= HARMLESS:
        try:
            uv = uv_of(environment, lock, with_pip)
            with_uv = [uv, "pip", "install", "--python", str(environment), *quiet[:1]]
            install_packages(with_uv, packages)
        except InstallError:
            # pip supports more kinds of proxies and certificates.
            print("uv could not install everything: trying pip", file=sys.stderr)
            install_packages(with_pip, packages)
    else:
        install_packages(with_pip, packages)
    quote_interpreter(environment)
    compile_modules(environment)


def pip_of(environment: Path) -> tuple[list[str], set[str]]:
    """Returns the command of a pip that installs into the environment, and its settings by name.

    Raises:
        InstallError: neither the environment nor its base Python has pip.
    """
    python = environment / "bin/python"
    # Try the base Python's pip, which may be missing or too old for --python.
    pip = [str(python.resolve()), "-m", "pip", "--python", str(python)]
    listed = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=False)
    if listed.returncode:
        run([str(python), "-m", "ensurepip"])
        pip = [str(python), "-m", "pip"]
        command = [*pip, "config", "list"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True)
    # As in `global.index-url='...'` and `:env:.find-links='...'`.
    lines = listed.stdout.splitlines()
    return pip, {line.partition("=")[0].rpartition(".")[2] for line in lines}


def uv_of(environment: Path, lock: Lock, with_pip: list[str]) -> str:
    """Returns the machine's `uv`, or installs one into the environment."""
    uv = shutil.which("uv") or str(environment / "bin/uv")
    if not Path(uv).exists():
        install_packages(with_pip, packages_of(lock, [INSTALLER]))
    return uv


def install_packages(install_with: list[str], packages: dict[str, Any]) -> None:
    """Installs the packages locked with digests, and then the rest."""
    hashed = {name: package for name, package in packages.items() if "hashes" in package}
    # The index decides which build of these packages is installed and what it depends on.
    others = {name: package for name, package in packages.items() if "hashes" not in package}
    for part, options in ((hashed, ["--no-deps", "--require-hashes"]), (others, [])):
        if part:
            with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
                requirements.write(render({"default": part}, ["packages"]))
                requirements.flush()
                run([*install_with, *options, "--requirement", requirements.name])


def servers_of(named: Collection[str]) -> list[Image]:
    """Returns the servers that are no Python packages: those named, or all that are lacking."""
    found = [image for image in IMAGES.values() if image.unpacked and image.category]
    if named:
        return [image for image in found if image.category in named]
    return [image for image in found if not on_this_machine(image)]


def other_ways(categories: Collection[str]) -> Iterator[str]:
    """Yields where else the servers of these categories can come from."""
    for image in IMAGES.values():
        if image.wheel and image.wheel.category in categories:
            commands = " or ".join(image.system_commands())
            text = f"{image.wheel.missing} make installs no {image.program} if PATH has one"
            yield f"{text.strip()}: run {commands}, or use Docker."


def run(command: list[str]) -> None:
    if subprocess.run(command, check=False).returncode:
        raise InstallError


def quote_interpreter(environment: Path) -> None:
    """Corrects scripts that name the interpreter in double quotes, in which a shell expands `$`."""
    python = shlex.quote(str(environment / "bin/python"))
    for script in (environment / "bin").iterdir():
        content = script.read_bytes()
        if content.startswith(SCRIPT_OF_A_SHELL):
            _, _, rest = content.split(b"\n", 2)
            start = SCRIPT_OF_A_SHELL + f'{python} "$0" "$@"\n'.encode()
            script.write_bytes(start + rest)


def compile_modules(environment: Path) -> None:
    """Compiles new modules on all cores, so that the first program that imports them starts fast.

    It skips the packages' tests, a quarter of all modules, which nothing imports.
    """
    modules = [
        path
        for path in (environment / "lib").rglob("*.py")
        if not {"test", "tests"} & set(path.parts) and not Path(cache_from_source(path)).exists()
    ]
    # Ignore errors: some modules are for another version of Python and do not compile.
    compile_one = partial(compile_file, quiet=2)
    with ProcessPoolExecutor() as pool:
        for _ in pool.map(compile_one, modules, chunksize=MODULES_AT_ONCE):
            pass


@contextmanager
def only_one(environment: Path) -> Iterator[None]:
    """Locks the environment, waiting for other processes that install into it."""
    with (environment / "installing").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for another make that installs into the environment", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def create(environment: Path) -> None:
    """Creates the environment, unless another process has done so meanwhile."""
    environment.mkdir(exist_ok=True)
    with only_one(environment):
        if not (environment / "bin/python").exists():
            print("Creating .venv with Python", platform.python_version(), flush=True)
            venv.create(environment, symlinks=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("categories", nargs="*", metavar="CATEGORY", help="default: all")
    parser.add_argument("--create", action="store_true", help="create the environment and end")
    parser.add_argument("--servers", action="store_true", help="install every server, too")
    arguments = parser.parse_args()
    if arguments.create:
        create(ROOT / ".venv")
        return
    environment = Path(sys.prefix)
    if sys.prefix == sys.base_prefix:
        sys.exit("error: this Python is not in an environment: run `make environment`")
    lock: Lock = json.loads((ROOT / "Pipfile.lock").read_text())
    named = set(arguments.categories)
    if arguments.servers:
        named |= {image.category for image in IMAGES.values() if image.category}
    servers = servers_of(named)
    of_lock = named - {image.category for image in servers}
    names: list[str] = []
    try:
        with only_one(environment):
            markers = missing(environment, lock, sorted(of_lock) if named else categories_of(lock))
            if markers:
                names = [marker.stem for marker in markers]
                print("Installing from the lock:", *names, flush=True)
                install(environment, lock, names)
                for marker, digest in markers.items():
                    marker.write_text(digest)
            for image in servers:
                unpack(environment, image)
    except RequirementsError as error:
        sys.exit(f"error: {error}")
    except UnpackError as error:
        if named:
            sys.exit(f"error: {error}")
        # Few patterns need these servers, and each of them says so.
        print(f"note: {error}", file=sys.stderr)
    except InstallError:
        print(
            "error: some packages could not be installed, see above: check the connection and the "
            "index in `pip config list`, then run make again",
            file=sys.stderr,
        )
        for way in other_ways(names):
            print(way, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
