"""Reads the settings of a pattern, which environment variables can change."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tools.read.compose import Service
from tools.read.programs import package_of

FILE_NAME = "settings.py"


def settings_files(pattern: Path) -> list[Path]:
    """Lists the settings files of a pattern: one in `app`, or one for each program."""
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


def variables_of(pattern: Path, service: Service) -> set[str]:
    """Returns the environment variables that the settings of a service's program read."""
    path = pattern / service.context / package_of(pattern, service) / FILE_NAME
    return {name.upper() for name in settings_in(path)} if path.is_file() else set()


def defaults_of(field: ast.expr | None) -> Iterator[ast.expr]:
    """Yields the expressions that give a setting its default value."""
    if isinstance(field, ast.Call) and ast.unparse(field.func) == "Field":
        named = {keyword.arg: keyword.value for keyword in field.keywords}
        given = [*field.args[:1], named.get("default"), named.get("default_factory")]
    else:
        given = [field]
    yield from (value for value in given if value is not None and ast.unparse(value) != "...")
