"""Renders the services of a pattern that has a template, as the pattern's own builder does."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.generate.copies import tracked
from tools.read.patterns import patterns

TEMPLATE = "template/copier.yml"
SERVICES = "services"


class RenderError(Exception):
    """A service cannot be rendered, or has a file that its template does not have."""


def rendered(root: Path) -> dict[Path, bytes]:
    """Returns the content that each file of each rendered service should have."""
    found: dict[Path, bytes] = {}
    for pattern in patterns(root):
        if (pattern / TEMPLATE).is_file():
            found |= services_of(root, pattern)
    return found


def services_of(root: Path, pattern: Path) -> dict[Path, bytes]:
    """Renders a service for each parameter file of a pattern."""
    files = [path.relative_to(pattern) for path in sorted((pattern / SERVICES).glob("*.yml"))]
    with TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "builder", *map(str, files), "--output", directory]
        run = subprocess.run(command, cwd=pattern, capture_output=True, text=True, check=False)
        if run.returncode:
            raise RenderError(f"{pattern.relative_to(root)}: {run.stderr.strip()}")
        found = {
            pattern / SERVICES / path.relative_to(directory): path.read_bytes()
            for path in sorted(Path(directory).rglob("*"))
            if path.is_file()
        }
    inputs = {pattern / path for path in files}
    there = {
        root / name for name in tracked(root) if (root / name).is_relative_to(pattern / SERVICES)
    }
    for path in sorted(there - inputs - found.keys()):
        raise RenderError(f"{path.relative_to(root)} is not rendered from the template: delete it")
    return found
