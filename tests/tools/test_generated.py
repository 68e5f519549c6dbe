"""Generated files: requirements, index and new patterns; drift is detected."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.generate import alerts, files, index, new, readme, requirements
from tools.mesh import istio
from tools.read.patterns import ROOT, patterns

ORIGINAL = "chapter4_serving_patterns/web_single_pattern"
TEST = "tests/chapter4_serving_patterns/test_web_single_pattern.py"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with one pattern."""
    shutil.copytree(
        ROOT / ORIGINAL,
        tmp_path / ORIGINAL,
        ignore=shutil.ignore_patterns("models", ".local", "__pycache__"),
    )
    (tmp_path / TEST).parent.mkdir(parents=True)
    for name in (TEST, ".gitignore", "Pipfile.lock", "README.md", "COMING_FROM_THE_BOOK.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    files.write(tmp_path)
    return tmp_path


def drifting(root: Path) -> set[str]:
    return {difference.split(" ")[0] for difference in files.differences(root)}


def test_freshly_written_files_do_not_differ(root: Path) -> None:
    assert drifting(root) == set()


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "RESULTS.md",
        "CHOOSING.md",
        f"{ORIGINAL}/README.md",
        f"{ORIGINAL}/requirements.txt",
    ],
)
def test_a_manually_changed_generated_file_is_named(root: Path, name: str) -> None:
    text = (root / name).read_text()
    last = text.rstrip().splitlines()[-1]
    figures = ("| `rows_equal` | 150 |", "<!-- rows_equal --> | 150 |", "| --- |")
    marker = last if name.endswith(".txt") else next(each for each in figures if each in text)
    (root / name).write_text(text.replace(marker, marker + "0", 1))
    assert drifting(root) == {name}
    files.write(root)
    assert drifting(root) == set()


def run(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs the command of make check and make fix on another repository."""
    command = [sys.executable, "-W", "error", "-m", "tools.generate", *options, str(root)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_writes_differing_files_and_check_only_lists_them(root: Path) -> None:
    results = root / "RESULTS.md"
    right = results.read_bytes()
    # The last one differs only in its line endings.
    for wrong in (b"", right.replace(b"150", b"151", 1), right.replace(b"\n", b"\r\n", 1)):
        results.write_bytes(wrong)
        checked = run(root, "--check")
        assert (checked.returncode, checked.stdout) == (1, "")
        assert checked.stderr.startswith("error: RESULTS.md is out of date: run make")
        assert results.read_bytes() == wrong
        fixed = run(root)
        assert (fixed.returncode, fixed.stdout, fixed.stderr) == (0, "wrote RESULTS.md\n", "")
        assert results.read_bytes() == right
    nothing = run(root, "--check")
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (0, "", "")


def test_the_diff_leads_from_the_current_to_the_generated_text(root: Path) -> None:
    results = root / "RESULTS.md"
    results.write_text(results.read_text().replace("| 150 |", "| 151 |", 1))
    removed, added = (
        line for line in run(root, "--check").stderr.splitlines() if line.startswith(("-", "+"))
    )
    assert "| 151 |" in removed
    assert "| 150 |" in added


def test_the_command_names_every_wrong_mark_and_writes_nothing(root: Path) -> None:
    for name in ("one", "two"):
        (root / ORIGINAL / f"{name}.py").write_text("# Copied from nowhere.py\n")
    (root / "RESULTS.md").write_text("")
    for options in ([], ["--check"]):
        refused = run(root, *options)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert [line.split(": ")[:2] for line in refused.stderr.splitlines()] == [
            ["error", f"{ORIGINAL}/one.py"],
            ["error", f"{ORIGINAL}/two.py"],
        ]
    assert (root / "RESULTS.md").read_text() == ""


def test_an_error_in_manifests_names_the_pattern(root: Path) -> None:
    mesh = "chapter6_operation_management/circuit_breaker_pattern"
    ignored = shutil.ignore_patterns("models", ".local", "__pycache__")
    # Together with the pattern of its originals.
    for name in (mesh, "chapter4_serving_patterns/asynchronous_pattern"):
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    envoy = (root / mesh / "envoy.yaml").read_bytes()
    files.write(root)
    rule = root / mesh / "manifests/destination_rule.yml"
    right = rule.read_text()
    rule.write_text(right.replace("consecutive5xxErrors", "consecutiveErrors"))
    with pytest.raises(istio.MeshError, match=f"{mesh}: .*consecutiveErrors"):
        files.write(root)
    assert (root / mesh / "envoy.yaml").read_bytes() == envoy
    # A supported value reaches Envoy's configuration.
    rule.write_text(right.replace("consecutive5xxErrors: 5", "consecutive5xxErrors: 6"))
    assert drifting(root) == {f"{mesh}/envoy.yaml"}


def test_the_rules_of_prometheus_follow_from_the_manifest(root: Path) -> None:
    assert not (root / ORIGINAL / "rules.yml").exists()
    manifest = root / ORIGINAL / "manifests/prometheus_rule.yml"
    shutil.copy(Path(__file__).with_name("prometheus_rule.yml"), manifest)
    rules = f"{ORIGINAL}/rules.yml"
    assert drifting(root) == {rules}
    files.write(root)
    assert drifting(root) == set()
    (root / rules).write_text((root / rules).read_text().replace("0.05", "0.5"))
    assert drifting(root) == {rules}
    written = (root / rules).read_bytes()
    manifest.write_text(manifest.read_text().replace("severity: page", "severty: page"))
    for options in ([], ["--check"]):
        refused = run(root, *options)
        expected = f"error: {ORIGINAL}/manifests/prometheus_rule.yml: "
        expected += "spec.groups[0].rules[0].labels.severity is missing\n"
        assert (refused.returncode, refused.stdout, refused.stderr) == (1, "", expected)
    assert (root / rules).read_bytes() == written
    with pytest.raises(alerts.AlertError):
        files.write(root)


def test_a_readme_without_a_results_block_is_an_error(root: Path) -> None:
    path = root / ORIGINAL / "README.md"
    path.write_text(path.read_text().replace("<!-- /results -->", ""))
    with pytest.raises(readme.MarkerError, match="results"):
        files.write(root)


def test_a_readme_chooses_and_describes_its_figures(root: Path) -> None:
    path = root / ORIGINAL / "README.md"
    text = path.read_text()
    row = next(line for line in text.splitlines() if "<!-- rows_equal -->" in line)
    assert row.startswith("| rows that equal") and "| 150 | 14 | = 150: met |" in row
    with (root / ORIGINAL / "measure/words.yml").open("a", encoding="utf-8") as words:
        words.write("rows_equal: rows that equal\n")
    path.write_text(text.replace(row, "| CPU time (µs) <!-- cpu_us plain_cpu_us --> | | | |"))
    files.write(root)
    measured = json.loads((root / ORIGINAL / "measure/results.json").read_text())["figures"]
    cells = " | ".join(f"{measured[name]:g}" for name in ("cpu_us", "plain_cpu_us"))
    assert f"| CPU time (µs) <!-- cpu_us plain_cpu_us --> | {cells} |" in path.read_text()
    wrong = {
        "7 rows of results": f"{row}\n{row}\n",
        "0 rows of results": "",
        "rows_equall is not in": row.replace("rows_equal ", "rows_equall ") + "\n",
    }
    rows = re.search(r"(?:\| .*<!-- \w+(?: \w+)? --> \|.*\n)+", text)
    assert rows
    for reason, instead in wrong.items():
        kept = rows[0] if reason.startswith("7") else ""
        path.write_text(text.replace(rows[0], kept + instead))
        with pytest.raises(readme.MarkerError, match=reason):
            files.write(root)


def test_after_a_quick_measurement_the_rows_of_figures_stay_empty(root: Path) -> None:
    path = root / ORIGINAL / "measure/results.json"
    counted = json.loads(path.read_text()) | {"figures": {}}
    counted["targets"] = {"rows_equal": ["==", 150]}
    path.write_text(json.dumps(counted))
    files.write(root)
    text = (root / ORIGINAL / "README.md").read_text()
    assert "<!-- cpu_us plain_cpu_us --> |  |  |  |" in text
    assert "<!-- rows_equal --> | 150 | 14 | = 150: met |" in text


@pytest.mark.parametrize("name", ["README.md", "BOOK.md"])
def test_a_pattern_without_a_document_is_an_error(root: Path, name: str) -> None:
    (root / ORIGINAL / name).unlink()
    with pytest.raises(readme.MarkerError, match=f"has no {name}"):
        files.write(root)


def test_coming_from_the_book_has_a_section_for_every_pattern(root: Path) -> None:
    new.start(root, "chapter5_operations/hello_pattern")
    part = root / ORIGINAL / "BOOK.md"
    part.write_text(part.read_text() + "| `make tea` | `make up` | Why. |\n")
    assert "COMING_FROM_THE_BOOK.md" in drifting(root)
    files.write(root)
    collected = (root / "COMING_FROM_THE_BOOK.md").read_text()
    own, rest = collected.split(f"## [{ORIGINAL}]({ORIGINAL})\n\n")[1].split("\n## ")
    assert own == part.read_text().partition("\n\n")[2]
    assert rest.startswith("[chapter5_operations/hello_pattern](chapter5_operations/hello_pattern)")
    assert "The book has no code for it." in rest


def test_the_index_has_a_row_for_every_pattern(root: Path) -> None:
    text = (root / "README.md").read_text()
    assert f"[web_single_pattern]({ORIGINAL})" in text
    assert readme.tagline(root / ORIGINAL) in text
    (root / ORIGINAL / "measure/results.json").unlink()
    assert "not measured yet" in index.index(root)


def test_the_readme_names_the_book() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    for name in (
        "澁井雄介『AIエンジニアのための機械学習システムデザインパターン』, 翔泳社, 2021",
        "머신러닝 시스템 디자인 패턴",
        "https://github.com/mercari/ml-system-design-pattern",
        "https://github.com/shibuiwilliam/ml-system-in-actions",
    ):
        assert name in text


def test_requirements_list_the_packages_of_their_categories_with_digests() -> None:
    package = {"version": "==1.0", "hashes": ["sha256:a", "sha256:b"]}
    lock = {
        "_meta": {},
        "serving": {"b": package},
        "redis": {"a": {"version": "==2.0", "extras": ["c"], "markers": "python_version > '3'"}},
    }
    assert requirements.render(lock, ["serving", "redis"]).splitlines() == [
        "# Exported from Pipfile.lock by make lock: serving redis",
        "a[c]==2.0 ; python_version > '3'",
        "b==1.0 \\",
        "    --hash=sha256:a \\",
        "    --hash=sha256:b",
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "first line"),
        ("fastapi==1.0\n", "first line"),
        ("# Exported from Pipfile.lock by make lock: servign\n", "no category servign"),
        ("# Exported from Pipfile.lock by make lock: _meta\n", "no category _meta"),
    ],
)
def test_requirements_without_known_categories_are_an_error(
    root: Path, text: str, reason: str
) -> None:
    (root / ORIGINAL / "requirements.txt").write_text(text)
    with pytest.raises(requirements.RequirementsError, match=reason):
        requirements.exported(root)


def test_a_portable_lock_has_no_index_and_no_machine_specific_build() -> None:
    lock: dict[str, Any] = {
        "_meta": {"sources": [{"url": "https://example.org/simple"}]},
        "torch": {
            "torch": {"index": "pypi", "version": "==2.0+cpu", "hashes": ["sha256:a"]},
            "sympy": {"version": "==1.0", "hashes": ["sha256:b"]},
        },
    }
    requirements.make_portable(lock)
    assert lock == {
        "_meta": {"sources": []},
        "torch": {
            "torch": {"version": "==2.0"},
            "sympy": {"version": "==1.0", "hashes": ["sha256:b"]},
        },
    }


def test_a_category_removed_from_the_pipfile_leaves_the_lock() -> None:
    keys = ("_meta", "default", "develop", "redis", "servers")
    lock: dict[str, Any] = {key: {} for key in keys}
    requirements.remove_old_categories(lock, {"packages": {}, "dev-packages": {}, "redis": {}})
    assert (*lock,) == keys[:-1]


def test_a_repository_without_patterns_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no pattern"):
        patterns(tmp_path)


@pytest.mark.parametrize("chapter", new.CHAPTERS)
def test_a_new_pattern_is_a_marked_copy_under_its_own_name_in_every_chapter(
    root: Path, chapter: str
) -> None:
    name = f"{chapter}/hello_there_pattern"
    new.start(root, name)
    files.write(root)
    assert drifting(root) == set()
    originals = {path.relative_to(root / ORIGINAL) for path in (root / ORIGINAL).rglob("*.*")}
    started = {path.relative_to(root / name) for path in (root / name).rglob("*.*")}
    assert originals - started == {Path("measure/results.json"), Path("measure/plot.png")}
    guard = (root / name / "app/guard.py").read_text()
    assert guard.startswith(f"# Copied from {ORIGINAL}/app/guard.py\n")
    compose = (root / name / "docker-compose.yml").read_text()
    assert "name: hello-there-pattern" in compose
    assert "web-single" not in compose.split("\n", 1)[1]
    text = (root / name / "README.md").read_text()
    assert text.startswith("# Hello there pattern\n")
    for link in re.findall(r"\]\((\.\./[^)]*)\)", text):
        assert (ROOT / name / link).resolve().exists(), link
    assert f"[hello_there_pattern]({name})" in (root / "README.md").read_text()
    # A changed copy is detected.
    (root / name / "app/guard.py").write_text(guard.replace("503", "500"))
    assert drifting(root) == {f"{name}/app/guard.py"}


def test_a_new_pattern_is_the_last_in_the_reading_order_of_its_chapter(root: Path) -> None:
    tagline = readme.tagline(root / ORIGINAL)
    chapter = root / "chapter5_operations/README.md"
    for number, pattern in enumerate(("first_pattern", "second_pattern"), start=1):
        new.start(root, f"chapter5_operations/{pattern}")
        assert chapter.read_text().endswith(f"{number}. [{pattern}]({pattern}): {tagline}\n")
    assert chapter.read_text().startswith("# Chapter 5: operations\n\n## In reading order\n\n1. ")
    assert (chapter.parent / "Makefile").read_bytes() == (
        ROOT / ORIGINAL / "../Makefile"
    ).read_bytes()
    chapter = root / "chapter4_serving_patterns/README.md"
    text = "# Title\n\n1. [one](one): a\n   b\n2. [two](two): c\n\nA rest.\n\n1. Other.\n"
    chapter.write_text(text)
    new.start(root, "chapter4_serving_patterns/third_pattern")
    item = f"3. [third_pattern](third_pattern): {tagline}\n"
    assert chapter.read_text() == text.replace("\n\nA rest", f"\n{item}\nA rest")


def test_a_new_pattern_starts_with_tests_that_the_contract_test_does_not_cover(root: Path) -> None:
    name = "chapter5_operations/hello_pattern"
    new.start(root, name)
    module = root / "tests/chapter5_operations/test_hello_pattern.py"
    text = module.read_text()
    assert "web_single" not in text
    assert set(re.findall(r"def (test_\w+)", text)) == set(new.FIRST_TESTS)
    assert len(text.splitlines()) < 120
    ruff = [str(Path(sys.executable).with_name("ruff")), "check", "--select=F", str(module)]
    subprocess.run(ruff, check=True)


def test_a_missing_first_test_is_an_error() -> None:
    with pytest.raises(new.NewError, match="has no test_the_claim_holds"):
        new.first_tests("import os\n")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "lower case"),
        ("foo_pattern", "lower case"),
        ("chapter4_serving_patterns/Foo", "lower case"),
        ("chapter4_serving_patterns/../foo_pattern", "lower case"),
        ("chapter9_nothing/foo_pattern", "no such chapter"),
        (ORIGINAL, "exists already"),
    ],
)
def test_an_invalid_or_taken_name_is_rejected(root: Path, name: str, reason: str) -> None:
    with pytest.raises(new.NewError, match=reason):
        new.start(root, name)


def test_every_chapter_with_patterns_is_a_chapter_of_the_book() -> None:
    assert {pattern.parent.name for pattern in patterns()} <= set(new.CHAPTERS)


def make(*arguments: str, directory: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = ["make", "-C", str(directory), "--no-print-directory", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_variables_of_make_test_do_not_reach_nested_makes(
    tmp_path: Path,
) -> None:
    probe = tmp_path / "test_probe.py"
    told = "{'ARGS', 'MAKEFLAGS', 'MAKEOVERRIDES', 'MFLAGS', 'ONLY'} & set(os.environ)"
    probe.write_text(f"import os\n\ndef test_told() -> None:\n    assert not {told}\n")
    probed = make("test", "PROCESSES=0", "ONLY=tools", f"ARGS=-c pyproject.toml {probe}")
    assert probed.returncode == 0, probed.stdout
    assert "1 passed" in probed.stdout


def test_make_without_a_target_lists_the_targets() -> None:
    shown = make().stdout
    verbs = ("run", "test", "measure", "results", "check", "fix", "new", "dev", "dev_sync", "lock")
    assert all(f"make {verb} " in shown for verb in verbs)
    assert all(f"make {verb} " in make(directory=ROOT / ORIGINAL).stdout for verb in ("up", "down"))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["run", "PATTERN=web_singel_pattern"], "there is no pattern web_singel_pattern"),
        (["run", "PATTERN="], "there is no pattern"),
        (["run", "PATTERN=*_pattern"], "there is no pattern"),
        (["measure", "PATTERN=nothing"], "there is no pattern nothing"),
        (["test", "CHAPTER=chapter9"], "there is no chapter9"),
        (["run", "RUN=podman"], "docker or local"),
    ],
)
def test_an_unknown_name_is_a_clear_error(arguments: list[str], reason: str) -> None:
    run = make(*arguments)
    assert run.returncode == 2
    assert reason in run.stderr


@pytest.mark.parametrize("verb", ["stop", "start", "kill"])
def test_a_target_without_its_service_lists_the_services(verb: str) -> None:
    run = make(verb, "RUN=local", directory=ROOT / ORIGINAL)
    assert run.returncode == 2
    assert "SERVICE= is one of: api" in run.stderr


def test_the_lock_is_what_json_tools_can_read_back() -> None:
    text = (ROOT / "Pipfile.lock").read_text()
    assert json.dumps(json.loads(text), indent=4, sort_keys=True) + "\n" == text
