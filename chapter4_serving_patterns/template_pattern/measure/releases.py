"""Releases of the template: a compatible second version, and six that break callers."""

import shutil
import subprocess
from pathlib import Path

from ..builder import TEMPLATE

# The file of the template, what it holds, and what replaces that.
Changes = list[tuple[str, str, str]]

# In each file that the team of a service has edited elsewhere, and in one that it has edited here.
SECOND: Changes = [
    (
        "app/settings.py.jinja",
        "client_deadline_seconds: float = Field(default=5.0",
        "client_deadline_seconds: float = Field(default=10.0",
    ),
    ("app/main.py.jinja", "of every row.", "of every row of a request."),
    ("train/model.py.jinja", "scores it on held-out rows", "scores it on rows held out"),
    ("README.md.jinja", "Change what you like:", "Change whatever you like:"),
]
# What breaks, by what a caller would say.
BREAKING: dict[str, Changes] = {
    "renamed field": [
        ("app/schema.py.jinja", "    data: Annotated", "    rows: Annotated"),
        ("app/main.py.jinja", "body.data", "body.rows"),
    ],
    "first row only": [("app/main.py.jinja", "(body.data)", "(body.data[:1])")],
    "labels as a list": [
        ("app/main.py.jinja", "-> dict[int, str]:", "-> list[str]:"),
        (
            "app/main.py.jinja",
            "dict(enumerate(model_of(request).labels))",
            "model_of(request).labels",
        ),
    ],
    "400 instead of 422": [("app/route.py.jinja", "422", "400")],
    "NaN accepted": [
        ("app/schema.py.jinja", "allow_inf_nan=False, ge=LOWEST, le=HIGHEST", "allow_inf_nan=True"),
        (
            "app/model.py.jinja",
            "np.asarray(rows, dtype=np.float32)",
            "np.nan_to_num(np.float32(rows))",
        ),
    ],
    "no /ready": [("app/main.py.jinja", '@app.get("/ready"', '@app.get("/started"')],
}


def changed(folder: Path, changes: Changes) -> str:
    """Returns a copy of the template with changes; its path is what the builder takes."""
    shutil.copytree(TEMPLATE, folder)
    change(folder, changes)
    return str(folder)


def change(folder: Path, changes: Changes) -> None:
    for name, old, new in changes:
        path = folder / name
        text = path.read_text("utf-8")
        if old not in text:
            raise SystemExit(f"error: {path} does not hold {old!r}, so there is nothing to change")
        path.write_text(text.replace(old, new), "utf-8")


def git(folder: Path, *arguments: str) -> str:
    """Runs git as a team would, on a machine where it may not know anybody."""
    who = [
        "-c",
        "user.name=team",
        "-c",
        "user.email=team@example.org",
        "-c",
        "commit.gpgsign=false",
    ]
    command = ["git", *who, "-c", "core.hooksPath=", *arguments]
    return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout


def commit(folder: Path, message: str, tag: str = "") -> None:
    if not (folder / ".git").exists():
        git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)
    if tag:
        git(folder, "tag", tag)
