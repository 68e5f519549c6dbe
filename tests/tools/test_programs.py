"""A pattern may have several programs, each with its package, settings, requirements and image."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.tools.test_rules import PATTERN, change, small
from tools.check.repository.requirements import distribution_of
from tools.check.repository.tree import Repository
from tools.check.rules import RULES, findings
from tools.generate.requirements import exported
from tools.read.__main__ import assignments
from tools.read.compose import load
from tools.read.patterns import ROOT
from tools.read.programs import package_of, packages_of
from tools.read.settings import variables_of

__all__ = ["small"]

PROGRAMS = ("web", "predictor")
SERVICE = """
  predictor:
    build: {<<: *build, target: predictor}
    image: ml-system-in-actions/web-single-pattern-predictor:0.1.0
    command: [uvicorn, "predictor.main:app", --host, 0.0.0.0, --port, "8501"]
    environment: {THREADS: "2"}
    expose: ["8501"]
"""
STAGE = """
FROM python:3.11-slim AS predictor
COPY requirements-predictor.txt .
COPY --chmod=755 predictor predictor
USER 10001:10001
CMD ["uvicorn", "predictor.main:app", "--host", "0.0.0.0", "--port", "8501"]
"""
RENAMED = {
    "Dockerfile": [
        ("AS serve", "AS web"),
        ("app.guard", "web.guard"),
        ("app.main", "web.main"),
        ("--chmod=755 app app", "--chmod=755 web web"),
        ("requirements.txt", "requirements-web.txt"),
    ],
    "docker-compose.yml": [
        ("  api:", "  web:"),
        ("build: *build", "build: {<<: *build, target: web}"),
        ("pattern-api:", "pattern-web:"),
        ("app.main", "web.main"),
    ],
    "manifests/deployment.yml": [("name: api", "name: web"), ("pattern-api:", "pattern-web:")],
}
EVERY_RULE = sorted(
    {
        "compose_sets_only_what_is_read",
        "environment_is_known_to_compose_or_the_settings",
        "every_directory_of_a_chapter_is_a_whole_pattern",
        "every_setting_has_a_default",
        "every_setting_is_read",
        "image_starts_what_compose_starts",
        "programs_import_nothing_of_each_other",
        "requirements_are_what_is_imported_or_started",
        "tagline_is_the_docstring_of_the_main_module",
    }
)


@pytest.fixture
def pattern(small: Path, tmp_path: Path) -> Path:
    """web_single_pattern with a second program, which has a setting of its own."""
    directory = shutil.copytree(small, tmp_path / "copy") / PATTERN
    for program in PROGRAMS:
        shutil.copytree(directory / "app", directory / program)
        shutil.copy(directory / "requirements.txt", directory / f"requirements-{program}.txt")
    shutil.rmtree(directory / "app")
    (directory / "requirements.txt").unlink()
    for name, pairs in RENAMED.items():
        path = directory / name
        text = path.read_text("utf-8")
        for old, new in pairs:
            assert old in text, f"{name} has no {old}"
            text = text.replace(old, new)
        path.write_text(text, "utf-8")
    change(directory / "Dockerfile", {"append": STAGE})
    change(directory / "docker-compose.yml", {"append": SERVICE})
    change(directory / "predictor/settings.py", {"append": "    threads: int = 1"})
    change(directory / "predictor/main.py", [r'\A(?:#.*\n)?""".*', '"""Predicts."""'])
    change(directory / "predictor/main.py", {"append": "print(settings.threads)"})
    return directory


def found(pattern: Path) -> dict[str, list[str]]:
    repository = Repository(pattern.parents[1])
    reported = {name: findings(repository, RULES[name]) for name in EVERY_RULE}
    return {name: messages for name, messages in reported.items() if messages}


def test_it_follows_the_rules(pattern: Path) -> None:
    assert found(pattern) == {}


def test_each_service_runs_a_package(pattern: Path) -> None:
    compose = load(pattern)
    assert {
        service.name: package_of(pattern, service) for service in compose.services.values()
    } == {name: name for name in PROGRAMS}
    # The API first, although its name is the last.
    assert packages_of(compose) == ["web", "predictor"]


def test_the_api_is_what_no_other_service_depends_on(pattern: Path) -> None:
    compose = pattern / "docker-compose.yml"
    # A proxy on another port, in front of a predictor on port 8000.
    change(compose, ["8000", "9000"])
    change(compose, ["8501", "8000"])
    assert packages_of(load(pattern)) == ["web", "predictor"]


@pytest.mark.parametrize(
    ("module", "distribution"),
    [
        ("opentelemetry.sdk.trace.TracerProvider", "opentelemetry-sdk"),
        ("opentelemetry.trace.Tracer", "opentelemetry-api"),
        (
            "opentelemetry.exporter.otlp.proto.http.trace_exporter.OTLPSpanExporter",
            "opentelemetry-exporter-otlp-proto-http",
        ),
        ("mlflow.tracking", "mlflow"),
        ("yaml", "pyyaml"),
        ("no_such_module.part", "no-such-module"),
    ],
)
def test_a_distribution_is_found_by_the_module_also_in_a_shared_namespace(
    module: str, distribution: str
) -> None:
    assert distribution_of(module) == distribution


@pytest.mark.parametrize(
    ("command", "package"),
    [
        (["python", "-m", "predictor"], "predictor"),
        (["uvicorn", "predictor.main:app"], "predictor"),
        (["uvicorn", "other.main:app", "--app-dir", "/web"], ""),
        (["mlflow", "server", "--host", "0.0.0.0"], ""),
        (["python", "-m", "measure.empty"], "measure"),
        (["python", "-c", ""], ""),
        (["python", "manifests"], ""),
        (["locust", "-f", "predictor/locustfile.py"], "predictor"),
        (["locust", "-f", "/predictor/locustfile.py"], ""),
    ],
)
def test_a_package_is_read_from_a_command(pattern: Path, command: list[str], package: str) -> None:
    service = load(pattern).services["web"].model_copy(update={"command": tuple(command)})
    assert package_of(pattern, service) == package


def test_a_service_that_is_built_from_below_has_its_package_and_settings_there(
    pattern: Path,
) -> None:
    below = pattern / "services/one"
    shutil.copytree(pattern / "predictor", below / "predictor")
    shutil.rmtree(pattern / "predictor")
    change(
        pattern / "docker-compose.yml",
        [r"\{<<: \*build, target: predictor\}", "{<<: *build, context: services/one}"],
    )
    service = load(pattern).services["predictor"]
    assert package_of(pattern, service) == "predictor"
    assert "THREADS" in variables_of(pattern, service)


# What each rule has to reject, as in repository_mutants.yml, and the file of its finding.
MUTANTS = {
    "a setting of another program": (
        "compose_sets_only_what_is_read",
        {"docker-compose.yml": [r"^(    ports: .*)", '    environment: {THREADS: "2"}\n\\1']},
        "docker-compose.yml",
    ),
    "a setting of another program on Kubernetes": (
        "environment_is_known_to_compose_or_the_settings",
        {
            "manifests/deployment.yml": [
                r"^( +)(imagePullPolicy: .*)",
                '\\1\\2\n\\1env: [{name: THREADS, value: "2"}]',
            ]
        },
        "manifests/deployment.yml",
    ),
    "no requirements": (
        "every_directory_of_a_chapter_is_a_whole_pattern",
        {"requirements-predictor.txt": None},
        "requirements-predictor.txt",
    ),
    "no settings": (
        "every_directory_of_a_chapter_is_a_whole_pattern",
        {"web/settings.py": None},
        "web/settings.py",
    ),
    "a setting that only the other program reads": (
        "every_setting_is_read",
        {"web/settings.py": {"append": "    threads: int = 1"}},
        "web/settings.py",
    ),
    "a setting without a default": (
        "every_setting_has_a_default",
        {"predictor/settings.py": {"append": "    copies: int"}},
        "predictor/settings.py",
    ),
    "another command in the image": (
        "image_starts_what_compose_starts",
        {"Dockerfile": ["predictor.main:app", "predictor.other:app"]},
        "Dockerfile",
    ),
    "a module of the other program": (
        "programs_import_nothing_of_each_other",
        {"web/main.py": {"append": "from predictor.model import Model as Theirs"}},
        "web/main.py",
    ),
    "a module of the other program, relatively": (
        "programs_import_nothing_of_each_other",
        {"predictor/main.py": {"append": "from ..web import schema as theirs"}},
        "predictor/main.py",
    ),
    "an import that its requirements lack": (
        "requirements_are_what_is_imported_or_started",
        {"web/main.py": {"append": "import redis"}},
        "requirements-web.txt",
    ),
    "a started program that its requirements lack": (
        "requirements_are_what_is_imported_or_started",
        {"docker-compose.yml": [r"\[uvicorn, \"predictor", '[redis, "predictor']},
        "requirements-predictor.txt",
    ),
    "the tagline of another program": (
        "tagline_is_the_docstring_of_the_main_module",
        {"web/main.py": [r'\A(?:#.*\n)?""".*', '"""Asks."""']},
        "README.md",
    ),
}


def test_every_rule_has_a_mutant() -> None:
    assert sorted({rule for rule, _, _ in MUTANTS.values()}) == EVERY_RULE


@pytest.mark.parametrize(("rule", "changes", "file"), MUTANTS.values(), ids=MUTANTS)
def test_a_rule_rejects_its_mutant(
    pattern: Path, rule: str, changes: dict[str, object], file: str
) -> None:
    for name, what in changes.items():
        change(pattern / name, what)
    messages = found(pattern)[rule]
    assert all(message.startswith(f"{PATTERN}/{file}:") for message in messages), messages
    assert not any("cannot be checked" in message for message in messages), messages


def test_make_installs_what_every_program_requires(pattern: Path) -> None:
    change(pattern / "requirements-web.txt", [": serving$", ": api client"])
    categories = [line for line in assignments(pattern) if line.startswith("CATEGORIES")]
    names = ("packages", "serving", "training", "export", "api", "client")
    assert categories == [f"CATEGORIES+={name}" for name in names]
    texts = exported(pattern.parents[1])
    assert "aiohttp==" in texts[pattern / "requirements-web.txt"]
    assert "onnxruntime==" not in texts[pattern / "requirements-web.txt"]
    assert "onnxruntime==" in texts[pattern / "requirements-predictor.txt"]


def test_make_trains_a_model_for_programs_of_any_name(pattern: Path) -> None:
    root = pattern.parents[1]
    for name in ("tools", ".venv"):
        (root / name).symlink_to(ROOT / name)
    command = ["make", "-C", str(pattern), "--dry-run", "--no-print-directory", "up", "RUN=local"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "-m train" in told
    shutil.rmtree(pattern / "train")
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "-m train" not in told
