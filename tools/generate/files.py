"""Knows every file that is made from others, writes them, and tells which ones differ.

These are marked copies, requirements, Envoy configurations, the index and RESULTS.md.
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
    """Gives each generated file with what it should hold, in the order in which to write them."""
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
    """Writes every generated file that is not what it should be."""
    for path, text in generated(root):
        if content_of(path) != text.encode():
            path.write_bytes(text.encode())
            print(f"wrote {path.relative_to(root)}")


def content_of(path: Path) -> bytes:
    """Returns the content of a file that may not be there yet."""
    return path.read_bytes() if path.exists() else b""


def differences(root: Path) -> Iterator[str]:
    """Gives the beginning of each difference between what is and what should be."""
    for path, text in generated(root):
        current = content_of(path)
        if current != text.encode():
            old, new = current.decode(errors="replace").split("\n"), text.split("\n")
            lines = list(difflib.unified_diff(old, new, lineterm="", n=0))[2 : 2 + DIFF_LINES]
            shown = "\n".join(lines).replace("\r", "\\r")
            yield f"{path.relative_to(root)} is not what it is made from: run make fix\n{shown}"
