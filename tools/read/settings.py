"""Reads the settings of a pattern, which environment variables can change."""

import ast
from collections.abc import Iterator
from pathlib import Path

FILE_NAME = "settings.py"


def settings_files(pattern: Path) -> list[Path]:
    """Lists the settings files of a pattern: one in `app`, or one for each service."""
    return sorted(pattern.glob(f"*/{FILE_NAME}"))


def settings_in(path: Path) -> dict[str, ast.expr | None]:
    """Returns the settings of one file with their default expressions."""
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
    """Yields the expressions that give a setting its default value."""
    if isinstance(field, ast.Call) and ast.unparse(field.func) == "Field":
        named = {keyword.arg: keyword.value for keyword in field.keywords}
        given = [*field.args[:1], named.get("default"), named.get("default_factory")]
    else:
        given = [field]
    yield from (value for value in given if value is not None and ast.unparse(value) != "...")
