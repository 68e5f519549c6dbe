"""Writes or compares every generated file.

These are marked copies, requirements, Envoy configurations, the index, the results in READMEs and
RESULTS.md.
"""

import difflib
from collections.abc import Iterator
from pathlib import Path

from tools.generate import copies, index, requirements
from tools.measure import results
from tools.mesh import istio
from tools.mesh import translate as mesh
from tools.read.compose import ComposeError
from tools.read.patterns import patterns

ERRORS = (
    ComposeError,
    copies.MarkError,
    index.MarkerError,
    istio.MeshError,
    requirements.RequirementsError,
    results.ResultsError,
)
DIFF_LINES = 12


def generated(root: Path) -> Iterator[tuple[Path, str]]:
    """Yields each generated file with the text it should have, in the order to write them."""
    for path, text in copies.copies(root).items():
        yield root / path, text
    yield from requirements.exported(root).items()
    for pattern in patterns(root):
        try:
            if mesh.is_mesh(pattern):
                yield pattern / "envoy.yaml", mesh.translate(pattern)
        except istio.MeshError as error:
            raise istio.MeshError(f"{pattern.relative_to(root)}: {error}") from None
    yield from index.indexed(root).items()
    yield root / "RESULTS.md", results.render(root)


def write(root: Path) -> None:
    """Writes every generated file that differs from what it should be."""
    for path, text in generated(root):
        if content_of(path) != text.encode():
            path.write_bytes(text.encode())
            print(f"wrote {path.relative_to(root)}")


def content_of(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def differences(root: Path) -> Iterator[str]:
    """Yields the first lines of the diff for each generated file that differs."""
    for path, text in generated(root):
        current = content_of(path)
        if current != text.encode():
            old, new = current.decode(errors="replace").split("\n"), text.split("\n")
            lines = list(difflib.unified_diff(old, new, lineterm="", n=0))[2 : 2 + DIFF_LINES]
            shown = "\n".join(lines).replace("\r", "\\r")
            yield f"{path.relative_to(root)} is out of date: run make fix\n{shown}"
