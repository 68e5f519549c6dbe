"""npm installs what is locked, and Biome checks the style of JavaScript."""

import re
from pathlib import Path

import pytest

from tools.check import javascript
from tools.check.javascript import BIOME, check, scripts
from tools.read.patterns import ROOT
from tools.run import npm
from tools.run.npm import NpmError, install

GOOD = 'const answer = 42;\nconsole.log(answer, "yes");\n'
BAD = "const answer = 42\nconsole.log(answer,'yes')"


def test_the_repository_has_scripts_to_check() -> None:
    names = scripts(ROOT)
    assert "chapter4_serving_patterns/edge_ai_pattern/web/update.js" in names
    assert not [name for name in names if "node_modules" in name or "runtime" in name]


def test_a_script_in_another_style_is_found_and_fixed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "page.js"
    path.write_text(GOOD)
    assert check(tmp_path, ["page.js"], fix=False) == 0
    assert capfd.readouterr().out == ""
    path.write_text(BAD)
    assert check(tmp_path, ["page.js"], fix=False) != 0
    assert "page.js" in capfd.readouterr().out
    assert check(tmp_path, ["page.js"], fix=True) == 0
    assert path.read_text() == GOOD


def test_a_mistake_is_found(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "page.js").write_text("for (const a of [1]) {\n  var a = 2;\n  a == 3;\n}\n")
    assert check(tmp_path, ["page.js"], fix=False) != 0
    assert "noDoubleEquals" in capfd.readouterr().out


def test_without_scripts_nothing_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(javascript, "install", lambda directory: pytest.fail("installed"))
    assert check(tmp_path, [], fix=False) == 0


def test_what_is_installed_as_locked_is_not_installed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def fake(arguments: list[str], cwd: Path) -> int:
        calls.append(arguments)
        (cwd / "node_modules").mkdir(exist_ok=True)
        return 0

    monkeypatch.setattr(npm, "npm", fake)
    lock = tmp_path / "package-lock.json"
    for content, times in (("{}", 1), ("{}", 1), ('{"a": 1}', 2)):
        lock.write_text(content)
        install(tmp_path)
        assert len(calls) == times
    assert calls[0][0] == "ci"
    # No package may run a script of its own.
    assert "--ignore-scripts" in calls[0]


def test_a_failed_installation_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "package-lock.json").write_text("no JSON")
    (tmp_path / "package.json").write_text("{}")
    with pytest.raises(NpmError, match=r"package-lock\.json, see above"):
        install(tmp_path)
    assert "npm error" in capfd.readouterr().err


def test_biome_is_pinned() -> None:
    package = (BIOME / "package.json").read_text()
    assert re.search(r'"@biomejs/biome": "\d+\.\d+\.\d+"', package)
