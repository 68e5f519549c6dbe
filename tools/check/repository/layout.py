"""Rules about the files of every pattern and the names that they share."""

import re
from collections.abc import Iterator
from pathlib import Path

from tools.check.repository.imports import CHAPTER
from tools.check.repository.readmes import fences
from tools.check.repository.tree import Repository
from tools.check.rules import rule
from tools.measure.results import RESULTS_FILE, ResultsError
from tools.measure.results import load as load_results
from tools.read.compose import Compose, ComposeError, load
from tools.read.programs import packages_of

PATTERN_FILES = (
    ".dockerignore",
    "Dockerfile",
    "Makefile",
    "README.md",
    "docker-compose.yml",
    "docker.mk",
    "manifests/kustomization.yml",
    "measure/__main__.py",
    "measure/results.json",
)
TRAINER = "train/__main__.py"
# What a service needs, which may be in a directory below.
SERVICE_FILES = {".dockerignore", "Dockerfile"}


def test_module(pattern: Path) -> Path:
    return pattern.parents[1] / "tests" / pattern.parent.name / f"test_{pattern.name}.py"


@rule()
def every_directory_of_a_chapter_is_a_whole_pattern(repository: Repository) -> Iterator[str]:
    known = set(repository.files)
    for pattern in sorted({path for file in known for path in file.parents}):
        if pattern.parent.parent == repository.root and CHAPTER.match(pattern.parent.name):
            needed = (pattern / name for name in files_of(pattern))
            for path in {*needed, test_module(pattern)} - known:
                yield f"{path}: the file is missing; add it"


@rule()
def services_are_below_if_the_pattern_says_so(repository: Repository) -> Iterator[str]:
    for compose in repository.composes:
        for service in compose.built() if compose.services_below else ():
            if compose.directory_of(service) == compose.pattern_dir:
                reason = f"{service.name} is built here, not below"
                yield f"{compose.path}: {reason}; set its context, or remove x-services-below"


def files_of(pattern: Path) -> list[str]:
    """Returns the files that a pattern must have."""
    try:
        compose = load(pattern, variables={})
    except ComposeError:
        return [*PATTERN_FILES, "requirements.txt", TRAINER]
    if compose.services_below:
        return sorted(set(PATTERN_FILES) - SERVICE_FILES)
    return [*PATTERN_FILES, *files_by_programs(compose)]


def files_by_programs(compose: Compose) -> list[str]:
    """Returns the files of which a pattern has one for each of its programs, and the trainer's."""
    training = [TRAINER] if compose.without_training is None else []
    programs = [package for package in packages_of(compose) if package != "train"]
    if programs in ([], ["app"]):
        return ["requirements.txt", *training]
    own = [f"requirements-{name}.txt" for name in programs]
    return [*own, *(f"{name}/settings.py" for name in programs), *training]


@rule()
def every_test_module_of_a_chapter_belongs_to_a_pattern(repository: Repository) -> Iterator[str]:
    modules = {test_module(pattern) for pattern in repository.patterns}
    for path in repository.files_ending(".py"):
        in_chapter = CHAPTER.match(path.parent.name) and path.match("tests/*/test_*.py")
        if in_chapter and path not in modules:
            yield f"{path}: no pattern has this name; rename the file to test_PATTERN.py"


@rule()
def results_are_measured_and_hold(repository: Repository) -> Iterator[str]:
    for path in (pattern / RESULTS_FILE for pattern in repository.patterns):
        # Another rule reports a missing file.
        if not path.is_file():
            continue
        try:
            results = load_results(path.parents[1])
        except ResultsError as error:
            yield f"{path}: {error}; run make measure there"
            continue
        if results.pattern != path.parents[1].name or not results.holds:
            yield f"{path}: pattern {results.pattern}, holds {results.holds}; measure again"


@rule()
def service_has_one_name_everywhere(repository: Repository) -> Iterator[str]:
    deployed = {
        each.directory: {pair.name for pod in each.pods for c in pod.containers for pair in c.pairs}
        for each in repository.manifests
    }
    for compose in repository.composes:
        pattern, readme = compose.pattern_dir, compose.pattern_dir / "README.md"
        drawn = fences(readme) if readme.is_file() else []
        text = "".join(fence.content for fence in drawn if fence.info == "mermaid")
        for service in compose.built():
            name, directory = service.name, compose.directory_of(service)
            # What can be deployed alone has the name that its own Compose file gives it.
            is_elsewhere = directory != pattern and directory in deployed
            is_missing = name not in deployed.get(pattern, set())
            if is_missing and not (is_elsewhere or service.is_opt_in):
                yield f"{pattern}/manifests: no container is named {name}; use that name"
            if name not in re.findall(r"[\w-]+", text):
                yield f"{readme}: {name} is not in the diagram; use the name from Compose"
