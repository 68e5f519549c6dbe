"""A pattern may consist of services in directories below, each of which can also run alone."""

import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.tools.test_rules import PATTERN, change, small
from tools.check.repository.tree import Repository
from tools.check.rules import RULES, all_rules, findings
from tools.generate.files import ERRORS, differences
from tools.generate.rendered import RenderError, rendered
from tools.generate.requirements import HEADER

__all__ = ["small"]

# What stays in the directory of the pattern.
ABOVE = {"README.md", "BOOK.md", "Makefile", "docker.mk", "measure"}
BELOW = "services/web_single"
KUSTOMIZATION = f"""apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources:
  - ../{BELOW}/manifests
"""
# Where the pattern is, and where its service is.
OF_THE_SERVICE = "web-single"
OF_THE_PATTERN = "web-single-pattern"


@pytest.fixture
def pattern(small: Path, tmp_path: Path) -> Path:
    """web_single_pattern with its service in a directory below."""
    directory = shutil.copytree(small, tmp_path / "copy") / PATTERN
    below = directory / BELOW
    below.mkdir(parents=True)
    for path in sorted(directory.iterdir()):
        if path.name not in {*ABOVE, "services"}:
            path.rename(below / path.name)
    shutil.copy(directory / "README.md", below / "README.md")
    compose = (below / "docker-compose.yml").read_text("utf-8")
    here = {
        OF_THE_PATTERN + "-api": f"{OF_THE_SERVICE}-api",
        "build: *build": f"build: {{<<: *build, context: {BELOW}}}",
        "  api:": "  web:",
        "x-build:": "x-services-below: a test\nx-build:",
    }
    for old, new in here.items():
        assert old in compose
        compose = compose.replace(old, new)
    (directory / "docker-compose.yml").write_text(compose)
    for path in [below / "docker-compose.yml", *(below / "manifests").iterdir()]:
        path.write_text(path.read_text("utf-8").replace(OF_THE_PATTERN, OF_THE_SERVICE))
    (directory / "manifests").mkdir()
    (directory / "manifests/kustomization.yml").write_text(KUSTOMIZATION)
    (directory / "requirements.txt").write_text(f"{HEADER}yaml\n")
    (directory / "builder.py").write_text('"""Builds."""\n\nimport yaml\n\nyaml.safe_load("")\n')
    (directory / "Dockerfile.jinja").write_text("{# Not a Dockerfile yet. #}\nFROM {{ image }}\n")
    change(directory / "README.md", [r"subgraph api \[api", "subgraph web [web"])
    return directory


def found(pattern: Path) -> set[str]:
    """Returns the findings about the files of the pattern, without those about its tests."""
    repository = Repository(pattern.parents[1])
    messages = {each for rule in all_rules() for each in findings(repository, RULES[rule.name])}
    return {each for each in messages if "services/web_single" in each or PATTERN in each}


def test_it_follows_the_rules(small: Path, pattern: Path) -> None:
    before = {
        each for rule in all_rules() for each in findings(Repository(small), RULES[rule.name])
    }
    links = {each for each in found(pattern) if "broken link" in each or "does not define" in each}
    assert found(pattern) - before - links == set()


# What a rule rejects in such a pattern, and the start of its finding.
MUTANTS = {
    "the service of another directory": (
        {"docker-compose.yml": ["ml-system-in-actions/web-single-api", "ml-system-in-actions/web"]},
        "docker-compose.yml: web is built as ml-system-in-actions/web:0.1.0; name it as",
    ),
    "another name in its own file": (
        {f"{BELOW}/docker-compose.yml": ["^name: .*", "name: other"]},
        f"{BELOW}/docker-compose.yml: the name is other; write name: web-single",
    ),
    "a container that its own file does not know": (
        {f"{BELOW}/manifests/deployment.yml": ["- name: api", "- name: web"]},
        f"{BELOW}/manifests: no container is named api",
    ),
    "manifests that the pattern leaves out": (
        {"manifests/kustomization.yml": [r"\n  - .*", " []"]},
        "manifests/kustomization.yml: Kustomization: ../services/web_single/manifests is not in",
    ),
    "a service that is not drawn": (
        {"README.md": [r"subgraph web \[web", "subgraph api [api"]},
        "README.md: web is not in the diagram",
    ),
    "a package that the builder does not import": (
        {"requirements.txt": ["yaml", "yaml redis"]},
        "requirements.txt: nothing imports or starts redis",
    ),
    "a package that the service does not import": (
        {f"{BELOW}/requirements.txt": [": serving$", ": serving redis"]},
        f"{BELOW}/requirements.txt: nothing imports or starts redis",
    ),
    "a program of its own": (
        {"docker-compose.yml": [f"context: {BELOW}", "context: ."]},
        "docker-compose.yml: web is built here, not below",
    ),
    "no docker.mk": ({"docker.mk": None}, "docker.mk: the file is missing"),
}


@pytest.mark.parametrize(("changes", "finding"), MUTANTS.values(), ids=MUTANTS)
def test_a_rule_rejects_its_mutant(pattern: Path, changes: dict[str, object], finding: str) -> None:
    before = found(pattern)
    for name, what in changes.items():
        change(pattern / name, what)
    new = found(pattern) - before
    assert any(each.split("web_single_pattern/", 1)[-1].startswith(finding) for each in new), new


BUILDER = '''"""Renders a service."""

import argparse
import pathlib
import sys

parser = argparse.ArgumentParser()
parser.add_argument("files", nargs="+", type=pathlib.Path)
parser.add_argument("--output", type=pathlib.Path)
arguments = parser.parse_args()
for path in arguments.files:
    text = path.read_text()
    if "bad" in text:
        sys.exit(f"error: {path}: it is bad")
    (arguments.output / path.stem / "app").mkdir(parents=True)
    _, template = pathlib.Path("template/main.py.jinja").read_text().split("#}")
    (arguments.output / path.stem / "app/main.py").write_text(template.lstrip() + text)
'''


@pytest.fixture
def services(pattern: Path) -> Path:
    """The pattern with a template and two parameter files."""
    shutil.rmtree(pattern / BELOW)
    for name in ("one", "two"):
        (pattern / f"services/{name}.yml").write_text(f"name: {name}\n")
    (pattern / "template").mkdir()
    (pattern / "template/copier.yml").write_text("")
    mark = "{# Copied from original.py #}\n"
    (pattern / "template/main.py.jinja").write_text(f"{mark}first\n")
    (pattern.parents[1] / "original.py").write_text("first\n")
    (pattern / "builder.py").write_text(BUILDER)
    return pattern


def test_a_service_is_rendered_for_each_parameter_file(services: Path) -> None:
    text = "first\nname: "
    assert rendered(services.parents[1]) == {
        services / f"services/{name}/app/main.py": f"{text}{name}\n".encode()
        for name in ("one", "two")
    }


def test_make_fix_writes_services_with_what_their_template_is_a_copy_of(services: Path) -> None:
    root = services.parents[1]
    command = [sys.executable, "-m", "tools.generate", str(root)]
    (root / "original.py").write_text("second\n")
    subprocess.run(command, check=False, capture_output=True)
    text = "second\nname: "
    for name in ("one", "two"):
        assert (services / f"services/{name}/app/main.py").read_text() == f"{text}{name}\n"


def test_a_service_that_differs_from_its_template_is_reported(services: Path) -> None:
    root = services.parents[1]
    edited = services / "services/two/app/main.py"
    for path, content in rendered(root).items():
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    assert not any("services/" in each for each in differences_of(root))
    edited.write_text(edited.read_text() + "edited\n")
    (reported,) = [each for each in differences_of(root) if "services/" in each]
    assert reported.startswith(f"{PATTERN}/services/two/app/main.py is out of date: run make fix")


def differences_of(root: Path) -> list[str]:
    """Returns what differs, up to the first page that collects what a small repository lacks."""
    found = []
    with suppress(*ERRORS):
        for each in differences(root):
            found.append(each)
    return found


def test_what_the_template_does_not_have_is_an_error(services: Path) -> None:
    (services / "services/one/app").mkdir(parents=True)
    (services / "services/one/app/old.py").write_text("")
    with pytest.raises(RenderError, match=r"services/one/app/old\.py is not rendered .* delete it"):
        rendered(services.parents[1])


def test_what_the_builder_refuses_is_an_error(services: Path) -> None:
    (services / "services/two.yml").write_text("bad")
    with pytest.raises(RenderError, match=f"{PATTERN}: error: services/two.yml: it is bad"):
        rendered(services.parents[1])
