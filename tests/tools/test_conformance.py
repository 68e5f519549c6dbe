"""Each rule of `tools/check/conformance.py` rejects at least one mutant of a small repository."""

import inspect
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tools.check import conformance as rules
from tools.check.conformance import RULES, Rule, findings
from tools.generate.copies import tracked
from tools.read.patterns import ROOT

PATTERN = "chapter4_serving_patterns/web_single_pattern"
TEST = "tests/chapter4_serving_patterns/test_web_single_pattern.py"
README = f"{PATTERN}/README.md"
COMPOSE = f"{PATTERN}/docker-compose.yml"
DOCKERFILE = f"{PATTERN}/Dockerfile"
SETTINGS = f"{PATTERN}/app/settings.py"
WORKFLOW = ".github/workflows/ci.yml"
# In pieces, so that this file keeps the rules itself.
PRIVATE_HOST = ".".join(["machines", "intranet", "io"])
HOME = "/".join(["", "home", "ada"])

Change = Callable[[Path], None]


class Mutant(NamedTuple):
    rule: Rule
    name: str
    changes: tuple[Change, ...]
    # Where the finding has to point.
    file: str


def mutant(rule: Rule, name: str, file: str, *changes: Change) -> Mutant:
    return Mutant(rule, name, changes, file)


def write(file: str, text: str) -> Change:
    def change(root: Path) -> None:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text, "utf-8")

    return change


def append(file: str, text: str) -> Change:
    return lambda root: write(file, (root / file).read_text("utf-8") + text)(root)


def replace(file: str, old: str, new: str) -> Change:
    """Replaces all that an expression finds, of which there has to be some."""

    def change(root: Path) -> None:
        text, count = re.subn(old, new, (root / file).read_text("utf-8"), flags=re.MULTILINE)
        assert count, f"{file} holds no {old}, so this is no mutant any more"
        write(file, text)(root)

    return change


def git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=root, check=True)


def remove(file: str) -> Change:
    return lambda root: (root / file).unlink()


def lock(category: str, package: str, **fields: object) -> Change:
    def change(root: Path) -> None:
        content = json.loads((root / "Pipfile.lock").read_text("utf-8"))
        content[category].setdefault(package, {}).update(fields)
        write("Pipfile.lock", json.dumps(content))(root)

    return change


def python(rule: Rule, name: str, file: str, text: str) -> Mutant:
    """A mutant that is a new Python file of the pattern, or that is added to one that is there."""

    def change(root: Path) -> None:
        path = root / PATTERN / file
        before = path.read_text("utf-8") if path.exists() else '"""Does a thing."""\n'
        write(f"{PATTERN}/{file}", before + text)(root)

    return mutant(rule, name, f"{PATTERN}/{file}", change)


def readme(rule: Rule, name: str, old: str, new: str) -> Mutant:
    return mutant(rule, name, README, replace(README, old, new))


def compose(rule: Rule, name: str, old: str, new: str) -> Mutant:
    return mutant(rule, name, COMPOSE, replace(COMPOSE, old, new))


def docker(rule: Rule, name: str, old: str, new: str) -> Mutant:
    return mutant(rule, name, DOCKERFILE, replace(DOCKERFILE, old, new))


def settings(rule: Rule, name: str, field: str) -> Mutant:
    return mutant(rule, name, SETTINGS, append(SETTINGS, f"\n    {field}\n"))


def workflow(rule: Rule, name: str, old: str, new: str) -> Mutant:
    return mutant(rule, name, WORKFLOW, replace(WORKFLOW, old, new))


def in_tests(rule: Rule, name: str, text: str) -> Mutant:
    return mutant(rule, name, TEST, append(TEST, f"\n{text}\n"))


def new(rule: Rule, name: str, file: str, text: str) -> Mutant:
    return mutant(rule, name, file, write(file, text))


RESULTS: dict[str, object] = {
    "pattern": "web_single_pattern",
    "claim": "Rows are answered.",
    "counts": {"rows": 1},
    "figures": {},
    "control": {"rows": 0},
    "holds": True,
    "targets": {},
    "machine": {},
    "measured_on": "2026-01-01",
}

TRAINING_SERVICE = """
  train:
    build: {context: ., target: train}
    image: ml-system-in-actions/web-single-pattern-train:0.1.0
    command: [redis]
"""
MUTANTS = [
    python(
        rules.no_pattern_imports_another,
        "an absolute import of another pattern",
        "measure/__main__.py",
        "from chapter4_serving_patterns.batch_pattern import train\n",
    ),
    python(
        rules.no_pattern_imports_another,
        "a relative import of another pattern",
        "measure/baselines.py",
        "from ...batch_pattern.app.main import app as other\n",
    ),
    python(
        rules.no_pattern_imports_another,
        "an import of another pattern as a name of its chapter",
        "app/other.py",
        "from ... import batch_pattern\n",
    ),
    python(
        rules.no_pattern_imports_another,
        "an import of a pattern whose name begins alike",
        "measure/baselines.py",
        "import chapter4_serving_patterns.web_single_pattern_2\n",
    ),
    python(
        rules.what_an_image_runs_imports_neither_tools_nor_tests,
        "tools in app/",
        "app/main.py",
        "from tools.measure.load import Request as Sent\n",
    ),
    python(
        rules.what_an_image_runs_imports_neither_tools_nor_tests,
        "tests in train/",
        "train/model.py",
        "import tests\n",
    ),
    python(
        rules.what_an_image_runs_imports_neither_tools_nor_tests,
        "tools deep in app/",
        "app/rows/checks.py",
        "from tools import load as sent\n",
    ),
    python(
        rules.training_imports_nothing_of_app,
        "a relative import of app/",
        "train/model.py",
        "from ..app.model import Model\n",
    ),
    python(
        rules.training_imports_nothing_of_app,
        "an absolute import of app/",
        "train/model.py",
        "import app.model\n",
    ),
    python(
        rules.a_package_imports_its_own_modules_relatively,
        "an import by the name in the image",
        "app/other.py",
        "from app.model import Model\n",
    ),
    python(
        rules.a_package_imports_its_own_modules_relatively,
        "an import by the name in the repository",
        "app/other.py",
        "from chapter4_serving_patterns.web_single_pattern.app import model\n",
    ),
    python(
        rules.a_package_imports_its_own_modules_relatively,
        "an import by the name in the directory",
        "app/other.py",
        "from guard import Guard\n",
    ),
    python(
        rules.a_package_imports_its_own_modules_relatively,
        "an import from above app/",
        "app/other.py",
        "from ..train.model import NAME\n",
    ),
    python(
        rules.a_package_imports_its_own_modules_relatively,
        "an import in train/ by the name in the image",
        "train/other.py",
        "from train.model import NAME\n",
    ),
    compose(
        rules.compose_sets_only_what_the_settings_read,
        "a variable that is no setting",
        "^    ports:",
        "    environment: {MAX_LINES: '10'}\n    ports:",
    ),
    settings(rules.every_setting_is_read, "a setting that nothing reads", "max_lines: int = 10"),
    settings(rules.every_setting_has_a_default, "no default", "max_lines: int"),
    settings(rules.every_setting_has_a_default, "dots", "max_lines: int = Field(...)"),
    settings(rules.every_setting_has_a_default, "bounds alone", "max_lines: int = Field(gt=0)"),
    mutant(
        rules.requirements_are_exported_from_the_lock,
        "a version by hand",
        f"{PATTERN}/requirements.txt",
        replace(f"{PATTERN}/requirements.txt", "^fastapi==", "fastapi>="),
    ),
    mutant(
        rules.requirements_are_exported_from_the_lock,
        "an unknown category",
        f"{PATTERN}/requirements.txt",
        replace(f"{PATTERN}/requirements.txt", ": serving$", ": serving cooking"),
    ),
    mutant(
        rules.requirements_are_exported_from_the_lock,
        "no categories",
        f"{PATTERN}/requirements.txt",
        write(f"{PATTERN}/requirements.txt", "fastapi\n"),
    ),
    mutant(
        rules.requirements_are_what_is_imported_or_started,
        "a package that nothing imports",
        f"{PATTERN}/requirements.txt",
        replace(f"{PATTERN}/requirements.txt", ": serving$", ": serving redis"),
    ),
    mutant(
        rules.requirements_are_what_is_imported_or_started,
        "a program that nothing starts any more",
        f"{PATTERN}/requirements.txt",
        replace(COMPOSE, "--loop, uvloop,", "--loop, asyncio,"),
    ),
    mutant(
        rules.requirements_are_what_is_imported_or_started,
        "an import that nothing requires",
        f"{PATTERN}/requirements.txt",
        append(f"{PATTERN}/app/model.py", "import redis\n"),
    ),
    mutant(
        rules.requirements_are_what_is_imported_or_started,
        "an import of a dependency's dependency",
        f"{PATTERN}/requirements.txt",
        append(f"{PATTERN}/app/model.py", "import anyio\n"),
    ),
    mutant(
        rules.requirements_are_what_is_imported_or_started,
        "a started program that nothing requires",
        f"{PATTERN}/requirements.txt",
        replace(COMPOSE, "--loop, uvloop,", "--loop, uvloop, --reload, watchfiles,"),
        lock("serving", "watchfiles", version="==1.0.0"),
    ),
    mutant(
        rules.requirements_are_what_is_imported_or_started,
        "a program that training starts and nothing requires",
        f"{PATTERN}/requirements-train.txt",
        append(COMPOSE, TRAINING_SERVICE),
    ),
    mutant(
        rules.requirements_are_what_is_imported_or_started,
        "training that imports what serves",
        f"{PATTERN}/requirements-train.txt",
        append(f"{PATTERN}/train/model.py", "import fastapi\n"),
    ),
    mutant(
        rules.lock_and_pipfile_name_no_index_and_no_path,
        "an index in the lock",
        "Pipfile.lock",
        lock("_meta", "requires", sources=[{"url": "https://example.org/simple"}]),
    ),
    mutant(
        rules.lock_and_pipfile_name_no_index_and_no_path,
        "the index of a locked package",
        "Pipfile.lock",
        lock("serving", "fastapi", index="local"),
    ),
    mutant(
        rules.lock_and_pipfile_name_no_index_and_no_path,
        "an index in the Pipfile",
        "Pipfile",
        append("Pipfile", '\n[[source]]\nname = "local"\nurl = "https://example.org/simple"\n'),
    ),
    mutant(
        rules.lock_and_pipfile_name_no_index_and_no_path,
        "a path in the Pipfile",
        "Pipfile",
        replace("Pipfile", "^fastapi = .*", 'fastapi = {path = "../fastapi"}'),
    ),
    mutant(
        rules.lock_has_one_version_of_a_package,
        "two versions",
        "Pipfile.lock",
        lock("training", "numpy", version="==1.0.0"),
    ),
    mutant(
        rules.torch_is_pinned_to_one_version,
        "any newer version",
        "Pipfile",
        replace("Pipfile", '^torch = "==', 'torch = ">='),
    ),
    docker(rules.dockerfiles_are_clean_for_hadolint, "a relative WORKDIR", "WORKDIR /", "WORKDIR "),
    docker(
        rules.dockerfiles_are_clean_for_hadolint,
        "a finding that is switched off",
        "^WORKDIR /",
        "# hadolint ignore=DL3000\nWORKDIR ",
    ),
    docker(rules.base_images_have_a_version, "the latest base", "FROM python:.*? ", "FROM python "),
    docker(
        rules.base_images_have_a_version,
        "a base that moves",
        "FROM python:.*? ",
        "FROM python:latest ",
    ),
    docker(
        rules.base_images_have_a_version,
        "a base that is chosen from outside",
        "FROM python:.*? ",
        "FROM python:3-$BASE ",
    ),
    docker(rules.image_runs_as_a_numeric_user_who_is_not_root, "no user", "^USER .*", ""),
    docker(rules.image_runs_as_a_numeric_user_who_is_not_root, "root", "^USER .*", "USER 0"),
    docker(
        rules.image_runs_as_a_numeric_user_who_is_not_root,
        "a user by name, which Kubernetes cannot tell from root",
        "^USER .*",
        "USER nobody",
    ),
    docker(
        rules.image_starts_what_compose_starts,
        "the shell form",
        r'^CMD \["uvicorn".*\n(.*\\\n)*.*\]',
        "CMD uvicorn app.main:app",
    ),
    docker(rules.image_starts_what_compose_starts, "another command", '"--loop", "uvloop", ', ""),
    docker(rules.image_starts_what_compose_starts, "no command", r"^CMD (.*\\\n)*.*", ""),
    docker(rules.pip_checks_hashes_in_images, "no digests", " --require-hashes", ""),
    docker(
        rules.pip_checks_hashes_in_images,
        "a second install without digests",
        "^USER ",
        "RUN true && pip install rich\nUSER ",
    ),
    docker(
        rules.pip_checks_hashes_in_images,
        "something beside PyTorch without digests",
        "^USER ",
        "RUN pip install rich -r torch.txt\nUSER ",
    ),
    new(
        rules.docker_context_begins_with_nothing,
        "a list of what to leave out",
        f"{PATTERN}/.dockerignore",
        "# Not these.\nmodels/\n",
    ),
    compose(
        rules.compose_runs_the_same_without_docker,
        "a key that has no meaning without Docker",
        "^    build: .",
        "    network_mode: host\n    build: .",
    ),
    compose(
        rules.compose_runs_the_same_without_docker,
        "a port that is open to the network",
        "127.0.0.1:8000:8000",
        "8000:8000",
    ),
    compose(rules.compose_runs_the_same_without_docker, "another name", "^name: .*", "name: web"),
    mutant(rules.compose_runs_the_same_without_docker, "no file at all", COMPOSE, remove(COMPOSE)),
    compose(
        rules.long_running_service_has_a_healthcheck,
        "no healthcheck",
        r"^    healthcheck:\n(      .*\n)+",
        "",
    ),
    compose(rules.built_service_may_do_little, "a disk to write", "read_only: true", "init: true"),
    compose(rules.built_service_may_do_little, "capabilities", "^    cap_drop: .*\n", ""),
    compose(rules.built_service_may_do_little, "new privileges", "^    security_opt: .*\n", ""),
    compose(rules.built_service_may_do_little, "all memory", "^    mem_limit: .*\n", ""),
    compose(
        rules.images_of_compose_have_a_name_and_a_version,
        "an image of another pattern",
        "actions/web-single-pattern-api:",
        "actions/batch-pattern-api:",
    ),
    compose(
        rules.images_of_compose_have_a_name_and_a_version,
        "the latest of our images",
        "pattern-api:.*",
        "pattern-api:latest",
    ),
    compose(
        rules.images_of_compose_have_a_name_and_a_version,
        "an image that is built without a name",
        "^    image: .*\n",
        "",
    ),
    compose(
        rules.images_of_compose_have_a_name_and_a_version,
        "an image of others without a tag",
        "^services:",
        "services:\n  redis:\n    image: redis",
    ),
    mutant(
        rules.tagline_is_the_docstring_of_the_main_module,
        "another docstring",
        README,
        replace(f"{PATTERN}/app/main.py", r'\A((?:#.*\n)?)""".*', r'\1"""Another thing."""'),
    ),
    readme(
        rules.tagline_is_the_docstring_of_the_main_module,
        "a tagline on another line",
        r"\A(# .*)\n",
        r"\1\n\n",
    ),
    readme(
        rules.tagline_is_the_docstring_of_the_main_module,
        "a tagline of two sentences",
        r"\A(# .*\n\n.*)\.$",
        r"\1. And more.",
    ),
    readme(rules.readme_has_the_headings_in_order, "no trade-offs", "^## Trade-offs\n", ""),
    readme(rules.readme_has_the_headings_in_order, "another level", "^## Run it", "### Run it"),
    readme(
        rules.readme_has_the_headings_in_order,
        "another order",
        "^## (When to use it|Not when)$",
        "## Not when",
    ),
    readme(rules.readme_has_a_diagram, "no diagram", "```mermaid", "```sh"),
    readme(rules.readme_plays_from_make_up_to_make_down, "no start", r"^\$ make up", "$ make"),
    readme(rules.readme_plays_from_make_up_to_make_down, "no end", r"^\$ make down\n...\n", ""),
    readme(rules.readme_plays_from_make_up_to_make_down, "an open fence", r"\Z", "\n```console\n"),
    readme(rules.readme_plays_from_make_up_to_make_down, "no session", "```console", "```sh"),
    readme(
        rules.readme_names_plain_docker_compose, "make alone", "docker compose up", "make build"
    ),
    readme(rules.readme_has_a_place_for_its_results, "no end", "<!-- /results -->", ""),
    readme(rules.readme_is_read_in_minutes, "a short one", r"\n## Run it[\s\S]*", ""),
    readme(rules.readme_is_read_in_minutes, "a long one", r"\Z", "\nmore\n" * 100),
    readme(rules.readme_pastes_no_code, "Python", r"\Z", "\n```python\nprint()\n```\n"),
    readme(rules.readme_pastes_no_code, "YAML", r"\Z", "\n```yml\na: b\n```\n"),
    readme(rules.readme_pastes_no_code, "code without a language", r"\Z", "\n```\na: b\n```\n"),
    readme(
        rules.readme_pastes_no_code,
        "indented code",
        "^## Trade-offs$",
        "## Trade-offs\n\n    x = 1",
    ),
    readme(
        rules.how_it_works_links_what_it_names,
        "a step without a link",
        "\n\n## Run it",
        "\n9. Then it happens.\n\n## Run it",
    ),
    readme(
        rules.how_it_works_links_what_it_names,
        "a file without a link",
        "\n\n## Run it",
        "\n9. [`rows_of`](app/main.py) and `app/guard.py` do it.\n\n## Run it",
    ),
    readme(
        rules.how_it_works_links_what_it_names,
        "a function of another name",
        "\n\n## Run it",
        "\n9. [`do_it`](app/main.py) does it.\n\n## Run it",
    ),
    readme(rules.every_relative_link_leads_to_a_file, "a file", r"\Z", "\n[gone](app/gone.py#x)\n"),
    readme(rules.every_relative_link_leads_to_a_file, "a directory", r"\Z", "\n[gone](../gone/)\n"),
    readme(rules.every_relative_link_leads_to_a_file, "a picture", r"\Z", "\n![gone](gone.png)\n"),
    readme(
        rules.every_relative_link_leads_to_a_file,
        "a file that git leaves out",
        r"\Z",
        "\n| a |\n| - |\n| [model](models/model.onnx) |\n",
    ),
    mutant(
        rules.every_relative_link_leads_to_a_file,
        "the runs of a workflow that is not there",
        "README.md",
        append("README.md", "\n[CI](../../actions/workflows/gone.yml)\n"),
    ),
    *(
        mutant(
            rules.every_directory_of_a_chapter_is_a_whole_pattern,
            f"no {file}",
            file,
            remove(file),
        )
        for file in [f"{PATTERN}/{name}" for name in (*rules.PATTERN_FILES, rules.TRAINER)] + [TEST]
    ),
    mutant(
        rules.every_directory_of_a_chapter_is_a_whole_pattern,
        "a directory that is not discovered",
        "chapter9_new/foo_pattern/Makefile",
        write("chapter9_new/foo_pattern/app/main.py", ""),
    ),
    new(
        rules.every_test_module_of_a_chapter_belongs_to_a_pattern,
        "tests of no pattern",
        "tests/chapter4_serving_patterns/test_web_sinlge_pattern.py",
        "",
    ),
    new(
        rules.makefile_of_a_pattern_includes_the_verbs,
        "verbs of its own",
        f"{PATTERN}/Makefile",
        "up:\n\tdocker compose up\n",
    ),
    *(
        new(
            rules.results_are_measured_and_hold,
            name,
            f"{PATTERN}/measure/results.json",
            json.dumps(changed),
        )
        for name, changed in (
            ("a claim that does not hold", RESULTS | {"holds": False}),
            ("results of another pattern", RESULTS | {"pattern": "batch_pattern"}),
            ("no control", RESULTS | {"control": {}}),
        )
    ),
    mutant(
        rules.every_pattern_has_a_row_in_the_index,
        "a new pattern without a row",
        "README.md",
        write("chapter9_new/foo_pattern/Makefile", "include ../../pattern.mk\n"),
    ),
    mutant(
        rules.service_has_one_name_everywhere,
        "another name in the manifests",
        f"{PATTERN}/manifests",
        replace(f"{PATTERN}/manifests/deployment.yml", "- name: api", "- name: web"),
    ),
    readme(rules.service_has_one_name_everywhere, "another name in the diagram", r"\bapi\b", "web"),
    *(
        new(rules.names_say_something, name, f"{PATTERN}/{name}", "#!/bin/sh\n")
        for name in ("run.sh", "app/utils.py", "app/routers/rows.py", "logging.conf", "helpers.py")
    ),
    new(rules.no_init_file_is_empty, "an empty one", f"{PATTERN}/app/__init__.py", "\n"),
    python(rules.nothing_is_left_to_do, "a note", "train/model.py", f"# {'TO' + 'DO'}: more.\n"),
    python(rules.no_code_is_commented_out, "a call", "train/model.py", "# print(NAME)\n"),
    python(
        rules.no_code_is_commented_out,
        "an excuse",
        "train/model.py",
        "# print(NAME)  # noqa: ERA001\n",
    ),
    *(
        python(
            rules.no_pattern_silences_a_whole_checker,
            comment,
            "measure/baselines.py",
            f"x = 1  # {comment}\n",
        )
        for comment in ("type: ignore", "noqa", "noqa : all", "ruff: noqa", "mypy: ignore-errors")
    ),
    *(
        new(rules.module_docstring_of_app_is_one_sentence, name, f"{PATTERN}/app/jobs.py", text)
        for name, text in {
            "no docstring": "import json\n",
            "no full stop": '"""Holds jobs"""\n',
            "two sentences": '"""Holds jobs. Gives them."""\n',
            "a paragraph": '"""Holds jobs.\n\nThey are kept.\n"""\n',
        }.items()
    ),
    mutant(
        rules.nothing_that_git_ignores_is_committed,
        "a trained model",
        f"{PATTERN}/models/model.onnx",
        write(f"{PATTERN}/models/model.onnx", "\0"),
        lambda root: git(root, "add", "--force", f"{PATTERN}/models/model.onnx"),
    ),
    python(
        rules.no_path_is_of_one_machine, "a home", "measure/baselines.py", f'HERE = "{HOME}/data"\n'
    ),
    mutant(
        rules.no_path_is_of_one_machine,
        "a home in a README",
        "README.md",
        append("README.md", f"\n`cd {HOME}`\n"),
    ),
    docker(
        rules.no_path_is_of_one_machine,
        "root's home in an image",
        "^USER ",
        f"COPY {'/'.join(['', 'root', 'x'])} x\nUSER ",
    ),
    mutant(
        rules.no_host_is_a_private_one,
        "a host in a link",
        "README.md",
        append("README.md", f"\n<https://{PRIVATE_HOST}:8443/simple>\n"),
    ),
    docker(
        rules.no_host_is_a_private_one,
        "an index",
        "pip install ",
        f"pip install --trusted-host {'.'.join(['pypi', PRIVATE_HOST])} ",
    ),
    mutant(
        rules.no_mail_address_is_in_a_file,
        "an address",
        "CONTRIBUTING.md",
        append("CONTRIBUTING.md", f"\nAsk ada@{PRIVATE_HOST}.\n"),
    ),
    *(
        mutant(
            rules.no_step_of_ci_may_fail,
            step,
            ".ci/run",
            append(".ci/run", f"\nmake check {step}\n"),
        )
        for step in (
            "|| true",
            "||:",
            "|| exit 0",
            "-k fast",
            "--deselect tests/a.py",
            "--ignore=a",
        )
    ),
    mutant(
        rules.no_step_of_ci_may_fail, "set +e", ".ci/run", append(".ci/run", "\nset +e\nmake run\n")
    ),
    workflow(
        rules.no_step_of_ci_may_fail,
        "a step that goes on",
        r"^( +)- run: (.*)$",
        r"\1- run: \2\n\1  continue-on-error: true",
    ),
    mutant(
        rules.no_step_of_ci_may_fail,
        "tests that are always left out",
        "pyproject.toml",
        replace("pyproject.toml", '^addopts = \\["', 'addopts = ["--ignore=tests/tools", "'),
    ),
    mutant(
        rules.ci_runs_the_command_of_the_readme,
        "tests of one chapter",
        ".ci/run",
        replace(".ci/run", "^make test$", "make test CHAPTER=chapter4_serving_patterns"),
    ),
    mutant(
        rules.ci_runs_the_command_of_the_readme,
        "a script that goes on",
        ".ci/run",
        replace(".ci/run", "^set -.*", ""),
    ),
    mutant(
        rules.ci_runs_the_command_of_the_readme,
        "a README without the tests",
        "README.md",
        replace("README.md", "make test", "make"),
    ),
    mutant(
        rules.ci_runs_the_command_of_the_readme,
        "a workflow with steps of its own",
        ".github/workflows",
        replace(WORKFLOW, r"bash \.ci/run", "make check"),
    ),
    workflow(rules.actions_are_pinned_by_commit, "a tag", "checkout@[0-9a-f]{40}", "checkout@v4"),
    workflow(
        rules.actions_are_pinned_by_commit,
        "a short commit",
        "checkout@([0-9a-f]{7})[0-9a-f]{33}",
        r"checkout@\1",
    ),
    workflow(
        rules.workflows_only_read_and_know_no_secret,
        "a secret",
        r"^( +)- run: (.*)$",
        r"\1- run: \2\n\1  env: {TOKEN: '${{ secrets.TOKEN }}'}",
    ),
    workflow(
        rules.workflows_only_read_and_know_no_secret,
        "what is the default",
        r"^permissions:\n( +.*\n)+",
        "",
    ),
    workflow(
        rules.workflows_only_read_and_know_no_secret,
        "a job that writes",
        r"^( +)runs-on: (.*)$",
        r"\1runs-on: \2\n\1permissions: {contents: write}",
    ),
    workflow(
        rules.workflows_only_read_and_know_no_secret,
        "everything at once",
        r"^permissions:\n( +.*\n)+",
        "permissions: write-all\n",
    ),
    *(
        in_tests(rules.every_skip_has_a_condition_and_a_reason, text, text)
        for text in (
            "pytest.skip()",
            'pytest.skip("")',
            'pytest.skip(reason="")',
            'pytest.importorskip("torch")',
            "pytest.mark.skipif(True)",
            'pytest.mark.skip("slow")',
            'pytest.mark.skip(reason="slow")',
            "pytest.mark.skip",
            'pytest.mark.xfail(reason="it fails")',
        )
    ),
    mutant(
        rules.skips_are_few,
        "one skip for each new test",
        "tests",
        append(TEST, '\npytest.skip("not here")' * (rules.MOST_SKIPS + 1)),
    ),
    mutant(
        rules.every_verb_that_is_written_down_exists,
        "a sentence in the root",
        "README.md",
        append("README.md", "\nType `make coffee`.\n"),
    ),
    mutant(
        rules.every_verb_that_is_written_down_exists,
        "a pattern's verb in the root",
        "README.md",
        append("README.md", "\n```sh\ncd x && make up\ncd ..\nmake train  # the model\n```\n"),
    ),
    readme(
        rules.every_verb_that_is_written_down_exists,
        "a verb of the root in a pattern",
        r"^\$ make down",
        "$ make dev_sync\n$ make down",
    ),
    *(
        mutant(
            rules.every_verb_with_help_is_shown_by_help,
            name,
            "pattern.mk",
            append("pattern.mk", text),
        )
        for name, text in {
            "help for two verbs": "\n.PHONY: a b\na b: ## Do it\n\ttrue\n",
            "help for a file": "\na_file: ## Do it\n\ttrue\n",
            "a name that help does not match": "\n.PHONY: a-b\na-b: ## Do it\n\ttrue\n",
            "help that says nothing": "\n.PHONY: a\na: ##\n\ttrue\n",
            "a verb that is not there": "\n.PHONY: gone\n",
        }.items()
    ),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of one pattern: its directory, its tests and the files of the root."""
    root = tmp_path_factory.mktemp("small")
    for name in tracked(ROOT):
        if "/" not in name or name.startswith((f"{PATTERN}/", ".ci/", ".github/")) or name == TEST:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    git(root, "init", "--quiet", "--template=")
    return root


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small, tmp_path / "copy")


@pytest.mark.parametrize("broken", MUTANTS, ids=lambda each: f"{each.rule.__name__}: {each.name}")
def test_a_mutant_is_rejected_by_its_rule(small: Path, copy: Path, broken: Mutant) -> None:
    for change in broken.changes:
        change(copy)
    found = set(findings(copy, broken.rule)) - set(findings(small, broken.rule))
    assert found, "the rule accepts the mutant"
    assert all(re.fullmatch(r"\S+: .+; .+", finding) for finding in found), found
    assert any(finding.startswith(broken.file) for finding in found), found
    assert not any("cannot be checked" in finding for finding in found), found


def test_every_rule_has_a_mutant_that_it_rejects() -> None:
    assert {broken.rule for broken in MUTANTS} == set(RULES)


def test_every_rule_is_registered() -> None:
    functions = [value for _, value in inspect.getmembers(rules, inspect.isfunction)]
    written = {
        function
        for function in functions
        if inspect.signature(function) == inspect.signature(rules.names_say_something)
    }
    assert written == set(RULES)


def test_a_file_that_cannot_be_parsed_is_a_finding(copy: Path) -> None:
    append(f"{PATTERN}/train/model.py", "\nif:\n")(copy)
    (finding,) = findings(copy, rules.no_pattern_imports_another)
    assert finding.startswith("no_pattern_imports_another: cannot be checked: SyntaxError(")


def test_a_repository_without_patterns_keeps_no_rule_about_them(tmp_path: Path) -> None:
    (finding,) = findings(tmp_path, rules.readme_has_a_diagram)
    assert "there is no pattern" in finding


def test_the_command_prints_each_finding_and_fails(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(f"{PATTERN}/app/__init__.py", "")(copy)
    monkeypatch.setattr(rules, "ROOT", copy)
    assert rules.main() == 1
    assert f"{PATTERN}/app/__init__.py: it is empty; delete it" in capsys.readouterr().out


def test_the_command_says_that_every_rule_holds(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rules, "ROOT", copy)
    monkeypatch.setattr(rules, "RULES", (rules.no_init_file_is_empty,))
    assert rules.main() == 0
    assert capsys.readouterr().out == "1 rules: every one holds\n"
