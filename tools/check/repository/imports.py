"""Rules about imports."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tools.check.repository.requirements import providers
from tools.check.repository.tree import Repository, imports
from tools.check.rules import rule

CHAPTER = re.compile(r"chapter\d+_\w+")
SILENCE = 'os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")'
# This package of a pattern runs only in the repository, so it may use `tools`.
LABORATORY = "measure"


class Import(NamedTuple):
    path: Path
    # The importing file or directory of the pattern, such as app or measure.
    part: str
    # Both end with a dot, so that a prefix is always a whole package name.
    pattern: str
    name: str
    is_relative: bool
    # The package of the pattern that is imported; empty if it is anything else.
    package: str


def imports_of_patterns(repository: Repository) -> Iterator[Import]:
    for pattern, path in repository.python_of_patterns():
        own = f"{pattern.parent.name}.{pattern.name}."
        packages = {module.parent.name for module in pattern.glob("*/*.py")}
        for name, is_relative in imports(path, repository.root):
            part = path.relative_to(pattern).parts[0]
            top = name.removeprefix(own).partition(".")[0]
            package = top if top in packages else ""
            yield Import(path, part, own, f"{name}.", is_relative, package)


@rule()
def no_pattern_imports_another(repository: Repository) -> Iterator[str]:
    for path, _, own, name, *_ in imports_of_patterns(repository):
        if CHAPTER.match(name) and not name.startswith(own):
            yield f"{path}: imports {name[:-1]}; make a marked copy instead"


@rule()
def what_an_image_runs_imports_neither_tools_nor_tests(repository: Repository) -> Iterator[str]:
    for path, part, _, name, *_ in imports_of_patterns(repository):
        if part != LABORATORY and name.startswith(("tests.", "tools.")):
            yield f"{path}: imports {name[:-1]}, which is not in the image; remove the import"


@rule()
def programs_import_nothing_of_each_other(repository: Repository) -> Iterator[str]:
    for path, part, _, name, _, package in imports_of_patterns(repository):
        is_program = part not in (LABORATORY, path.name)
        if is_program and package not in ("", part):
            yield f"{path}: imports {name[:-1]}; {part}/ and {package}/ run apart, so copy it"


@rule()
def a_package_imports_its_own_modules_relatively(repository: Repository) -> Iterator[str]:
    installed = providers().keys() | sys.stdlib_module_names
    for path, part, own, name, is_relative, _ in imports_of_patterns(repository):
        if part == LABORATORY:
            continue
        if is_relative and not name.startswith(f"{own}{part}."):
            yield f"{path}: imports {name[:-1]} from outside {part}/; move it into {part}/"
        siblings = {sibling.stem for sibling in path.parent.glob("*.py")} - installed
        by_its_whole_name = name.startswith(own) or name.partition(".")[0] in siblings | {part}
        if not is_relative and by_its_whole_name:
            yield f"{path}: imports {name[:-1]} by its absolute name; use a relative import"


@rule()
def onnxruntime_is_imported_without_its_telemetry(repository: Repository) -> Iterator[str]:
    for _, path in repository.python_of_patterns():
        names = {name.partition(".")[0] for name, _ in imports(path, repository.root)}
        silent = f"\n{SILENCE}\nimport onnxruntime\n" in path.read_text("utf-8")
        if "onnxruntime" in names and not silent:
            yield f"{path}: imports onnxruntime; put {SILENCE} on the line above"
