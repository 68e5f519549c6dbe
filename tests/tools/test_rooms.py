"""The rooms of `tools/` are layers: imports lead to the same room or to a lower one."""

from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tools.check.repository.tree import imports
from tools.read.patterns import ROOT

# From the lowest layer to the highest.
ROOMS = ("read", "run", "measure", "mesh", "play", "generate", "check")


def graph_of(root: Path) -> dict[str, set[str]]:
    """Returns the modules of tools/ with their imports among each other."""
    modules = {
        ".".join(path.relative_to(root).with_suffix("").parts): path
        for path in (root / "tools").rglob("*.py")
    }
    graph: dict[str, set[str]] = defaultdict(set)
    for module, path in modules.items():
        for name, _ in imports(path, root):
            # An import names a module or something inside one.
            found = {name, name.rpartition(".")[0]} & modules.keys()
            graph[module] |= found - {module}
    return graph


def arrows_up(graph: dict[str, set[str]]) -> list[str]:
    """Lists the imports from a higher room."""
    level = {room: number for number, room in enumerate(ROOMS)}
    return [
        f"{module} imports {imported}"
        for module, found in graph.items()
        for imported in sorted(found)
        if level[imported.split(".")[1]] > level[module.split(".")[1]]
    ]


def test_every_room_is_listed() -> None:
    assert {path.parent.name for path in (ROOT / "tools").glob("*/*.py")} == set(ROOMS)


def test_no_import_leads_up_or_in_a_circle() -> None:
    graph = graph_of(ROOT)
    assert graph["tools.check.rules"] >= {"tools.check.repository.tree", "tools.read.patterns"}
    assert arrows_up(graph) == []
    # A CycleError names the cycle.
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("name", ["from tools.check import rules", "import tools.check.rules"])
def test_an_import_that_leads_up_is_found(tmp_path: Path, name: str) -> None:
    for file, text in (("read/patterns.py", name), ("check/rules.py", "import re")):
        (tmp_path / "tools" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tools" / file).write_text(text)
    found = arrows_up(graph_of(tmp_path))
    assert found == ["tools.read.patterns imports tools.check.rules"]
