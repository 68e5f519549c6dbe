"""Each rule about the repository rejects its mutants of a small repository."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.check import __main__ as command
from tools.check.repository.tree import Repository
from tools.check.rules import RULES, all_rules, findings, rule
from tools.generate.copies import tracked
from tools.read.patterns import ROOT

PATTERN = "chapter4_serving_patterns/web_single_pattern"
TEST = "tests/chapter4_serving_patterns/test_web_single_pattern.py"
# Placeholders for text that would violate a rule in the file of the mutants itself.
TOKENS = {
    "PATTERN/": f"{PATTERN}/",
    "<home>": "/".join(["", "home", "ada"]),
    "<home_of_root>": "/".join(["", "root", "x"]),
    "<private_host>": ".".join(["machines", "intranet", "io"]),
}
ABOUT_THE_REPOSITORY = {rule.name for rule in all_rules() if not rule.subjects}


def mutants() -> dict[str, dict[str, dict[str, Any]]]:
    text = Path(__file__).with_name("repository_mutants.yml").read_text("utf-8")
    for token, stands_for in TOKENS.items():
        text = text.replace(token, stands_for)
    found: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load(text.replace("TEST:", f"{TEST}:"))
    return found


MUTANTS = mutants()


def change(path: Path, what: Any) -> None:
    """Changes a file as described at the top of repository_mutants.yml."""
    text = path.read_text("utf-8") if path.is_file() else ""
    if what is None:
        path.unlink()
        return
    if isinstance(what, list):
        text, count = re.subn(what[0], what[1], text, flags=re.MULTILINE)
        assert count, f"{path} holds no {what[0]}, so this is no longer a mutant"
    elif isinstance(what, str):
        text = what
    elif "append" in what:
        text += f"\n{what['append']}\n"
    else:
        content = json.loads(text)
        for place, value in what["set"].items():
            *parents, last = place.split(".")
            node = content
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
        text = json.dumps(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one pattern, its tests, and the files of its chapter and of the root."""
    root = tmp_path_factory.mktemp("small")
    whole = (f"{PATTERN}/", ".ci/", ".github/")
    directories = {"", PATTERN.partition("/")[0]}
    for name in tracked(ROOT):
        if name.rpartition("/")[0] in directories or name.startswith(whole) or name == TEST:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    subprocess.run(["git", "init", "--quiet", "--template=", root], check=True)
    return root


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small, tmp_path / "copy")


@pytest.mark.parametrize(
    ("rule", "changes"),
    [(rule, changes) for rule, named in MUTANTS.items() for changes in named.values()],
    ids=[f"{rule}: {name}" for rule, named in MUTANTS.items() for name in named],
)
def test_a_rule_rejects_its_mutant(
    small: Path, copy: Path, rule: str, changes: dict[str, Any]
) -> None:
    at, *_ = [changes["at"]] if "at" in changes else changes
    for file, what in changes.items():
        if file != "at":
            change(copy / file, what)
    if rule == "nothing_that_git_ignores_is_committed":
        subprocess.run(["git", "add", "--force", at], cwd=copy, check=True)
    before = findings(Repository(small), RULES[rule])
    found = set(findings(Repository(copy), RULES[rule])) - set(before)
    assert found, "the rule accepts the mutant"
    assert all(re.fullmatch(r"\S+: .+; .+", finding) for finding in found), found
    assert any(finding.startswith(at) for finding in found), found
    assert not any("cannot be checked" in finding for finding in found), found


def test_every_rule_has_a_mutant() -> None:
    assert set(MUTANTS) == ABOUT_THE_REPOSITORY


def test_rule_names_are_unique() -> None:
    with pytest.raises(ValueError, match="two rules named readme_pastes_no_code"):

        @rule()
        def readme_pastes_no_code(repository: Repository) -> Any:
            return iter(())


def test_a_file_that_cannot_be_parsed_is_a_finding(copy: Path) -> None:
    change(copy / PATTERN / "train/model.py", {"append": "if:"})
    (finding,) = findings(Repository(copy), RULES["no_pattern_imports_another"])
    assert finding.startswith("no_pattern_imports_another: cannot be checked: SyntaxError(")


def test_a_repository_without_patterns_fails_the_rules_about_them(tmp_path: Path) -> None:
    (finding,) = findings(Repository(tmp_path), RULES["readme_pastes_no_code"])
    assert "there is no pattern" in finding


def test_the_command_prints_each_finding_and_fails(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = [RULES["readme_pastes_no_code"]]
    monkeypatch.setattr(command, "ROOT", copy)
    monkeypatch.setattr(command, "all_rules", lambda: rules)
    assert command.main() == 0
    assert capsys.readouterr().out == "1 rules: all hold\n"
    change(copy / PATTERN / "README.md", [r"\A# ", "```python\n```\n# "])
    assert command.main() == 1
    found = f"{PATTERN}/README.md:1: python is pasted in; link to the file\n"
    assert capsys.readouterr().out == found
