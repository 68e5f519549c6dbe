"""Writes or compares every generated file.

These are requirements, marked copies, rendered services, configurations of Envoy and Prometheus,
plots, the index, the results in READMEs, RESULTS.md and CHOOSING.md.
"""

import difflib
from collections.abc import Iterator
from pathlib import Path

from tools.generate import (
    alerts,
    choosing,
    collected,
    copies,
    index,
    readme,
    rendered,
    requirements,
)
from tools.measure import plot, results
from tools.mesh import istio
from tools.mesh import translate as mesh
from tools.read.compose import ComposeError
from tools.read.patterns import patterns

ERRORS = (
    alerts.AlertError,
    ComposeError,
    copies.MarkError,
    istio.MeshError,
    readme.MarkerError,
    rendered.RenderError,
    requirements.RequirementsError,
    results.ResultsError,
)
DIFF_LINES = 12


def generated(root: Path) -> Iterator[tuple[Path, bytes]]:
    """Yields each generated file with what it should contain, in the order to write them."""
    for path, text in requirements.exported(root).items():
        yield path, text.encode()
    for copy, text in copies.copies(root).items():
        yield root / copy, text.encode()
    # Most files of a template are copies.
    yield from rendered.rendered(root).items()
    for pattern in patterns(root):
        try:
            if mesh.is_mesh(pattern):
                yield pattern / "envoy.yaml", mesh.translate(pattern).encode()
        except istio.MeshError as error:
            raise istio.MeshError(f"{pattern.relative_to(root)}: {error}") from None
        if (rules := alerts.rules(pattern)) is not None:
            yield pattern / "rules.yml", rules.encode()
        if drawn := plot.plot_of(pattern):
            yield pattern / results.PLOT_FILE, drawn
    for path, text in index.indexed(root).items():
        yield path, text.encode()
    yield root / "RESULTS.md", collected.page(root).encode()
    yield root / "CHOOSING.md", choosing.page(root).encode()


def write(root: Path) -> None:
    """Writes every generated file that differs from what it should be."""
    for path, content in generated(root):
        if content_of(path) != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            print(f"wrote {path.relative_to(root)}")


def content_of(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def differences(root: Path) -> Iterator[str]:
    """Yields the first lines of the diff for each generated file that differs."""
    for path, content in generated(root):
        current = content_of(path)
        if current == content:
            continue
        lines = []
        if path.suffix != ".png":
            old, new = (each.decode(errors="replace").split("\n") for each in (current, content))
            lines = list(difflib.unified_diff(old, new, lineterm="", n=0))[2 : 2 + DIFF_LINES]
        shown = "\n".join(lines).replace("\r", "\\r")
        yield f"{path.relative_to(root)} is out of date: run make fix\n{shown}"
