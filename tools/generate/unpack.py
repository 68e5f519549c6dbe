"""Unpacks the server of a distribution's package into the environment, which any user may do.

It runs before anything is installed, so it imports only the standard library.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools.read.images import Image, has_server

# Otherwise root's apt-get downloads as another user, who may not write into the environment, and
# takes a quarter of a minute to find out that there is no network.
APT = ("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=1")


class UnpackError(Exception):
    """A package could not be downloaded or unpacked."""


def unpack(environment: Path, known: Image) -> None:
    """Downloads and unpacks the package of a server, unless it is there or a wheel has it."""
    source = known.unpacked
    if not source or has_server(source.root(environment) / source.folder, known):
        return
    print(f"Unpacking {known.program} from a package of this distribution", flush=True)
    with tempfile.TemporaryDirectory(dir=environment) as temporary:
        try:
            package = download(source.package, Path(temporary))
            unpacked = Path(temporary) / "unpacked"
            run(["dpkg", "-x", str(package), str(unpacked)], package.parent)
            if not has_server(unpacked / source.folder, known):
                with_others = " with ".join(["", *known.companions])
                raise UnpackError(f"it is not in {package.name}{with_others}")
        except UnpackError as error:
            ways = " or ".join(known.system_commands())
            problem = f"{known.program} could not be unpacked: {error}"
            raise UnpackError(f"{problem}; run {ways}, or use Docker") from None
        shutil.rmtree(source.root(environment), ignore_errors=True)
        source.root(environment).parent.mkdir(exist_ok=True)
        unpacked.rename(source.root(environment))


def download(package: str, folder: Path) -> Path:
    """Downloads a package, with lists of its own if those of the machine are missing or old."""
    try:
        run([*APT, "download", package], folder)
    except UnpackError as first:
        lists = folder / "lists"
        (lists / "partial").mkdir(parents=True)
        with_own = [*APT, "-o", f"Dir::State::lists={lists}"]
        try:
            run([*with_own, "update"], folder)
            run([*with_own, "download", package], folder)
        except UnpackError as second:
            # The update is no error for apt-get if it reaches nothing, so the first says more.
            raise UnpackError(f"{first}; with new lists: {second}") from None
    (found,) = folder.glob("*.deb")
    return found


def run(command: Sequence[str], folder: Path) -> None:
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if ended.returncode:
        said = "; ".join(ended.stderr.splitlines()) or f"exit code {ended.returncode}"
        raise UnpackError(f"{command[0]}: {said}")
