"""Gives the rules access to the repository, reading the list of files and each pattern once."""

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from tools.check.manifests.subjects import Pattern
from tools.generate.copies import tracked
from tools.read.compose import FILE_NAME, Compose, ComposeError, Service, load
from tools.read.dockerfile import Stage, stages
from tools.read.patterns import patterns


class Repository:
    """A working tree: the files that git tracks or would track."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    @cached_property
    def patterns(self) -> list[Path]:
        return patterns(self.root)

    @cached_property
    def files(self) -> list[Path]:
        return [self.root / name for name in sorted(tracked(self.root))]

    def files_ending(self, *endings: str) -> list[Path]:
        return [path for path in self.files if path.name.endswith(endings)]

    def lines(self) -> Iterator[tuple[Path, str, str]]:
        """Yields the file, the place ("FILE:NUMBER") and the text of each line in text files."""
        for path in self.files:
            content = path.read_bytes()
            if b"\0" not in content:
                lines = content.decode(errors="replace").splitlines()
                for number, line in enumerate(lines, start=1):
                    yield path, f"{path}:{number}", line

    def python_of_patterns(self) -> Iterator[tuple[Path, Path]]:
        """Yields each pattern with each of its Python files."""
        found = self.files_ending(".py")
        for pattern in self.patterns:
            yield from ((pattern, path) for path in found if pattern in path.parents)

    @cached_property
    def directories(self) -> list[Path]:
        """The patterns, and the directories of their services that can also run alone."""
        found = list(self.patterns)
        for pattern in self.patterns:
            with suppress(ComposeError):
                _, *below = load(pattern, variables={}).directories()
                found += [each for each in below if (each / FILE_NAME).is_file()]
        return found

    @cached_property
    def composes(self) -> list[Compose]:
        """All valid Compose files; a rule reports the invalid ones."""
        found = []
        for directory in self.directories:
            with suppress(ComposeError):
                found.append(load(directory, variables={}))
        return found

    @cached_property
    def manifests(self) -> list[Pattern]:
        """Every directory that has manifests and a valid Compose file."""
        return [
            Pattern(each) for each in self.composes if (each.pattern_dir / "manifests").is_dir()
        ]

    @property
    def dockerfiles(self) -> list[Path]:
        found = [path for path in self.files if path.name.partition(".")[0] == "Dockerfile"]
        return [path for path in found if path.suffix != ".jinja"]

    def served_stages(self) -> Iterator[tuple[Path, Stage, list[Service]]]:
        """Yields the Dockerfile, the stage and the services for each stage that services use."""
        for compose in self.composes:
            users: dict[tuple[Path, str | None], list[Service]] = {}
            for service in compose.services.values():
                if build := service.build:
                    path = (compose.pattern_dir / build.context / build.dockerfile).resolve()
                    users.setdefault((path, build.target), []).append(service)
            for (path, target), services in users.items():
                found = stages(path)
                yield path, found[target or [*found][-1]], services

    def readmes(self) -> Iterator[tuple[Path, str]]:
        """Yields the README of each pattern with its text; another rule reports a missing one."""
        for path in (pattern / "README.md" for pattern in self.patterns):
            if path.is_file():
                yield path, path.read_text("utf-8")

    @cached_property
    def pipfile(self) -> dict[str, Any]:
        return tomllib.loads((self.root / "Pipfile").read_text("utf-8"))

    @cached_property
    def lock(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.root / "Pipfile.lock").read_text("utf-8"))
        return content

    def output_of(self, program: str, *arguments: str) -> list[str]:
        """Runs a program of the environment and returns its output."""
        command = [str(Path(sys.executable).with_name(program)), *arguments]
        found = subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=False)
        lines = (found.stdout + found.stderr).splitlines()
        failed = f"{program} ended with exit code {found.returncode}"
        return lines or [failed] * bool(found.returncode)


def module(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def imports(path: Path, root: Path) -> Iterator[tuple[str, bool]]:
    """Yields each imported name, resolved to an absolute one, and whether it was relative."""
    package = path.relative_to(root).parent.parts
    for node in ast.walk(module(path)):
        if isinstance(node, ast.Import):
            yield from ((name.name, False) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: max(0, len(package) + 1 - node.level)] if node.level else ()
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{start}.{name.name}", bool(node.level)) for name in node.names)


def values_of(content: Any, *keys: str) -> Iterator[tuple[str, Any]]:
    """Yields the values of these keys at any depth."""
    if isinstance(content, dict):
        yield from ((key, content[key]) for key in keys if key in content)
    for item in content.values() if isinstance(content, dict) else content:
        if isinstance(item, dict | list):
            yield from values_of(item, *keys)
