"""Rules about locked packages and the requirements of patterns."""

import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import files, packages_distributions
from pathlib import Path

from tools.check.repository.tree import Repository, imports, values_of
from tools.check.rules import rule
from tools.generate.requirements import categories
from tools.read.images import IMAGES

# Packages that may be imported without being required, as they are part of another's interface.
RE_EXPORTED = {
    "opentelemetry-api": "opentelemetry-sdk",
    "pydantic": "fastapi",
    "starlette": "fastapi",
}
# Packages that a pattern requires but does not import, because another package uses them.
USED_BY_ANOTHER = {
    # On Python before 3.11.3.
    "async-timeout": "redis",
    # What it signs with.
    "cryptography": "securesystemslib",
    "httptools": "uvicorn",
    # Its dialect is in the URL of a database.
    "psycopg2-binary": "sqlalchemy",
    # Pinned to a release that is compatible with the rest of the environment.
    "python-dateutil": "matplotlib",
    "uvloop": "uvicorn",
}


# It reads the metadata of every installed distribution.
providers = cache(packages_distributions)


def distribution_of(module: str) -> str:
    """Returns the distribution that has a module, or a name in it.

    Several distributions may share a namespace, as those of OpenTelemetry do. If they do not differ
    in the module, the one with the name of the package is meant.
    """
    top = module.partition(".")[0]
    sharing = sorted({*providers().get(top, [])})
    while sharing[1:] and top not in sharing and "." in module:
        path = module.replace(".", "/")
        for name in sharing:
            if {f"{path}.py", f"{path}/__init__.py"} & files_of(name):
                return normalized(name)
        module = module.rpartition(".")[0]
    return normalized(top if top in sharing or not sharing else providers()[top][0])


@cache
def files_of(distribution: str) -> frozenset[str]:
    return frozenset(map(str, files(distribution) or ()))


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@rule()
def requirements_are_what_is_imported_or_started(repository: Repository) -> Iterator[str]:
    commands = {
        compose.pattern_dir: [
            (service.build.target, service.command)
            for service in compose.built()
            if service.build and compose.directory_of(service) == compose.pattern_dir
        ]
        for compose in repository.composes
    }
    for pattern in repository.directories:
        paths = sorted(pattern.glob("requirements*.txt"))
        # requirements-NAME.txt is for the package NAME and for what the target NAME starts, or for
        # the program NAME.py.
        names = {path: path.stem.partition("-")[2] for path in paths}
        for path, name in names.items():
            package = name or ("app" if (pattern / "app").is_dir() else "train")
            sources = sorted((pattern / package).rglob("*.py"))
            if not sources and name and (program := pattern / f"{name}.py").is_file():
                sources = [program]
            elif not sources and not name:
                # A pattern without a program of its own has them for the modules beside.
                sources = sorted(pattern.glob("*.py"))
            started = {
                word
                for target, words in commands.get(pattern, [])
                for word in words
                if (target if target in names.values() else "") == name
            }
            yield from unequal_requirements(repository, path, sources, started)


def unequal_requirements(
    repository: Repository, path: Path, sources: Sequence[Path], words: set[str]
) -> Iterator[str]:
    """Compares the categories of a requirements file with imports and commands."""
    found = [each for source in sources for each in imports(source, repository.root)]
    names = {name for name, is_relative in found if not is_relative}
    imported = {
        distribution_of(name)
        for name in names
        if name.partition(".")[0] not in sys.stdlib_module_names
    }
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
def each_server_in_the_pipfile_is_the_wheel_of_an_image(repository: Repository) -> Iterator[str]:
    named = {name for name in repository.pipfile if name.endswith("-server")}
    known = {image.wheel.category for image in IMAGES.values() if image.wheel}
    for name in sorted(named - known):
        reason = f"no image has the category {name}, so no pattern installs it"
        yield f"{repository.root}/Pipfile: {reason}; add its image to tools/read/images.py"
    for name in sorted(known - named):
        reason = f"there is no category {name}, which an image in tools/read/images.py has"
        yield f"{repository.root}/Pipfile: {reason}; add it and run make lock"


@rule()
def lock_and_pipfile_name_no_index_and_no_path(repository: Repository) -> Iterator[str]:
    keys = ("source", "sources", "index", "path", "file", "git", "editable")
    for name, content in (("Pipfile", repository.pipfile), ("Pipfile.lock", repository.lock)):
        for key, value in values_of(content, *keys):
            if value:
                reason = f"{key} is {value}, which is specific to one machine"
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
