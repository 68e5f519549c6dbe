"""Reads the settings of a pattern: what its processes can be told by environment variables."""

import ast
from collections.abc import Iterator
from pathlib import Path

FILE_NAME = "settings.py"


def settings_files(pattern: Path) -> list[Path]:
    """Lists the settings of each of a pattern's packages: `app`, or one for each service."""
    return sorted(pattern.glob(f"*/{FILE_NAME}"))


def settings_in(path: Path) -> dict[str, ast.expr | None]:
    """Returns the settings of one file by their names, with their defaults."""
    return {
        field.target.id: field.value
        for node in ast.parse(path.read_text("utf-8"), str(path)).body
        if isinstance(node, ast.ClassDef) and node.name == "Settings"
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }


def variables_of(pattern: Path) -> set[str]:
    """Returns the environment variables that the settings of a pattern read."""
    return {name.upper() for path in settings_files(pattern) for name in settings_in(path)}


def defaults_of(field: ast.expr | None) -> Iterator[ast.expr]:
    """Yields what gives a setting its value where no variable does."""
    if isinstance(field, ast.Call) and ast.unparse(field.func) == "Field":
        named = {keyword.arg: keyword.value for keyword in field.keywords}
        given = [*field.args[:1], named.get("default"), named.get("default_factory")]
    else:
        given = [field]
    yield from (value for value in given if value is not None and ast.unparse(value) != "...")
