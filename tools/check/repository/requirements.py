"""Rules about the packages that are locked, and that a pattern asks for."""

import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

from tools.check.repository.tree import Repository, imports, values_of
from tools.check.rules import rule
from tools.generate.requirements import RequirementsError, categories, exported

# What may be imported without a line in the Pipfile, because another package is made of it.
RE_EXPORTED = {
    # FastAPI's middleware and types are Starlette's; the right version is FastAPI's to choose.
    "starlette": "fastapi",
    # FastAPI's interface is written in Pydantic's models.
    "pydantic": "fastapi",
}
# What nothing of a pattern imports or starts, because another package does where it is there.
USED_BY_ANOTHER = {
    # On Python before 3.11.3.
    "async-timeout": "redis",
    "httptools": "uvicorn",
    # Pinned beside it to the release that the rest of the environment takes.
    "python-dateutil": "matplotlib",
    "uvloop": "uvicorn",
}


@cache
def distributions() -> dict[str, str]:
    """Maps the name under which a package is imported to the one under which it is installed."""
    # A package may be made of several; the one with its own name is the one to ask for.
    return {
        name: normalized(name if name in found else found[0])
        for name, found in packages_distributions().items()
    }


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@rule()
def requirements_are_exported_from_the_lock(repository: Repository) -> Iterator[str]:
    try:
        texts = exported(repository.root)
    except RequirementsError as error:
        yield f"{repository.root}/{error}; name categories of the Pipfile and run make fix"
        return
    for path, text in texts.items():
        if path.read_text("utf-8") != text:
            yield f"{path}: it differs from the lock; run make fix"


@rule()
def requirements_are_what_is_imported_or_started(repository: Repository) -> Iterator[str]:
    commands = {
        compose.pattern_dir: [(s.build.target, s.command) for s in compose.built() if s.build]
        for compose in repository.composes
    }
    for pattern in repository.patterns:
        for path in sorted(pattern.glob("requirements*.txt")):
            # What is in requirements-train.txt is for train/ alone.
            package = path.stem.partition("-")[2]
            served = package or ("app" if (pattern / "app").is_dir() else "train")
            sources = sorted((pattern / served).rglob("*.py"))
            # A service that trains is started with requirements-train.txt, where there is one.
            apart = (pattern / "requirements-train.txt").is_file()
            started = {
                word
                for target, words in commands.get(pattern, [])
                for word in words
                if (apart and target == "train") == (package == "train")
            }
            yield from unequal_requirements(repository, path, sources, started)


def unequal_requirements(
    repository: Repository, path: Path, sources: Sequence[Path], words: set[str]
) -> Iterator[str]:
    """Compares the categories of a requirements file with imports and words of commands."""
    found = [each for source in sources for each in imports(source, repository.root)]
    tops = {name.partition(".")[0] for name, is_relative in found if not is_relative}
    tops -= sys.stdlib_module_names
    imported = {distributions().get(top, normalized(top)) for top in tops}
    tables = [repository.pipfile.get(name, {}) for name in categories(path.read_text("utf-8"))]
    required = {normalized(name) for table in tables for name in table}
    words &= {normalized(name) for table in repository.lock.values() for name in table}
    by_another = {name for name, owner in USED_BY_ANOTHER.items() if owner in imported | words}
    for name in sorted(required - imported - words - by_another):
        yield f"{path}: nothing imports or starts {name}; remove it from its category"
    covered = required | {name for name, owner in RE_EXPORTED.items() if owner in required}
    for name in sorted((imported | words) - covered):
        yield f"{path}: {name} is imported or started; add it to a category in the Pipfile"


@rule()
def lock_and_pipfile_name_no_index_and_no_path(repository: Repository) -> Iterator[str]:
    keys = ("source", "sources", "index", "path", "file", "git", "editable")
    for name, content in (("Pipfile", repository.pipfile), ("Pipfile.lock", repository.lock)):
        for key, value in values_of(content, *keys):
            if value:
                reason = f"{key} is {value}, which only one machine has"
                yield f"{repository.root}/{name}: {reason}; run make lock"


@rule()
def lock_has_one_version_of_a_package(repository: Repository) -> Iterator[str]:
    versions: dict[str, set[str]] = {}
    for packages in (table for name, table in repository.lock.items() if name != "_meta"):
        for name, package in packages.items():
            versions.setdefault(name, set()).add(package["version"])
    for name, found in versions.items():
        if len(found) > 1:
            shown = ", ".join(sorted(found))
            yield f"{repository.root}/Pipfile.lock: {name} is {shown}; lock one version"


@rule()
def torch_is_pinned_to_one_version(repository: Repository) -> Iterator[str]:
    for _, version in values_of(repository.pipfile, "torch"):
        if not isinstance(version, dict) and not re.fullmatch(r"==\d+(\.\d+)+", version):
            yield f"{repository.root}/Pipfile: torch is {version}; pin it with ==VERSION"
