"""`make diff` shows only what one pattern adds to another."""

import os
import pty
import subprocess
from pathlib import Path

import pytest

from tools.generate.diff import DiffError, difference, pattern_of
from tools.read.patterns import ROOT

PLAIN, CACHE = Path("chapter4_serving/plain_pattern"), Path("chapter4_serving/cache_pattern")
COPY = f"# Copied from {PLAIN}/app/model.py\n"
FILES = {
    PLAIN / "Makefile": "include ../../pattern.mk\n",
    PLAIN / "README.md": "# Plain\n",
    PLAIN / "app/main.py": "one = 1\ntwo = 2\nname = 'plain_pattern'\n",
    PLAIN / "app/model.py": "model = 1\n",
    PLAIN / "app/old.py": "old = 1\n",
    PLAIN / "measure/results.json": "{}\n",
    PLAIN / "requirements.txt": "a==1\n",
    PLAIN / "train/model.py": "fit = 1\nscore = 2\n",
    CACHE / "Makefile": f"# Copied from {PLAIN}/Makefile\ninclude ../../pattern.mk\n",
    CACHE / "README.md": "# Cache\n",
    CACHE / "app/cache.py": "hits = 0\nmisses = 0\n",
    CACHE / "app/main.py": "one = 1\ntwo = 3\nname = 'cache_pattern'\n",
    CACHE / "app/model.py": f"{COPY}model = 1\n",
    CACHE / "measure/results.json": '{"hits": 1}\n',
    CACHE / "requirements.txt": "a==1\nb==2\n",
    CACHE / "train/model.py": "anything = else_\n",
    Path("chapter4_serving/third_pattern/Makefile"): "include ../../pattern.mk\n",
    Path("chapter4_serving/third_pattern/row.py"): "row = 1\n",
    CACHE / "row.py": "# Copied from chapter4_serving/third_pattern/row.py\nrow = 1\n",
    Path(".gitignore"): "models/\n",
    CACHE / "models/model.onnx": "not to be compared\n",
}
SHOWN = """\
copied into cache_pattern: row.py, from chapter4_serving/third_pattern/row.py
only in cache_pattern: app/cache.py, 2 lines
only in plain_pattern: app/old.py, 1 lines
rewritten in cache_pattern: train/model.py, 1 lines
diff --git plain_pattern/app/main.py cache_pattern/app/main.py
index ...
--- plain_pattern/app/main.py
+++ cache_pattern/app/main.py
@@ -1,3 +1,3 @@
 one = 1
-two = 2
+two = 3
 name = 'cache_pattern'
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path, text in FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    return tmp_path


def shown(root: Path, here: Path, other: Path) -> str:
    lines = difference(root, root / here, root / other).splitlines(keepends=True)
    return "".join("index ...\n" if line.startswith("index ") else line for line in lines)


def test_it_shows_what_differs_and_leaves_out_the_rest(root: Path) -> None:
    assert shown(root, CACHE, PLAIN) == SHOWN


def test_it_shows_a_copy_that_has_lost_its_mark(root: Path) -> None:
    (root / CACHE / "app/model.py").write_text("model = 1\nmore = 2\n")
    assert "+more = 2" in shown(root, CACHE, PLAIN)


def test_each_of_several_programs_is_compared_with_the_only_one(root: Path) -> None:
    (root / CACHE / "web").mkdir()
    (root / CACHE / "app/main.py").rename(root / CACHE / "web/main.py")
    (root / CACHE / "app/cache.py").rename(root / CACHE / "web/cache.py")
    expected = SHOWN.replace("cache_pattern/app/main", "cache_pattern/web/main")
    expected = expected.replace("cache_pattern: app/cache", "cache_pattern: web/cache")
    assert shown(root, CACHE, PLAIN) == expected.replace("plain_pattern/app", "plain_pattern/web")
    # A program of the same name comes first.
    (root / CACHE / "app/main.py").write_text("one = 1\ntwo = 2\nthree = 3\n")
    both = shown(root, CACHE, PLAIN)
    assert "+++ cache_pattern/web/main.py" in both
    assert "+three = 3" in both
    # The other way round, one of the programs is left.
    assert "only in cache_pattern: web/main.py, 3 lines" in shown(root, PLAIN, CACHE)


def test_two_patterns_with_the_same_files_do_not_differ(root: Path) -> None:
    for path in (path for path in FILES if PLAIN in path.parents):
        copy = root / "chapter4_serving/same_pattern" / path.relative_to(PLAIN)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(FILES[path].replace("plain_pattern", "same_pattern"))
    assert shown(root, Path("chapter4_serving/same_pattern"), PLAIN) == ""


def test_an_unknown_pattern_is_an_error_that_lists_the_patterns(root: Path) -> None:
    for name, reason in {"plian": "there is no pattern plian:", "": "which pattern?"}.items():
        with pytest.raises(DiffError) as error:
            pattern_of(name, root)
        assert str(error.value).startswith(reason)
        assert str(error.value).endswith("\n  cache_pattern\n  plain_pattern\n  third_pattern")


HERE = ROOT / "chapter4_serving_patterns/asynchronous_pattern"
MAKE = ["make", "-C", str(HERE), "--no-print-directory", "diff", "RUN=local"]


def test_make_diff_compares_with_the_named_pattern() -> None:
    made = subprocess.run(
        [*MAKE, "WITH=web_single_pattern"], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    assert "only in asynchronous_pattern: app/worker.py" in made.stdout
    assert "+++ asynchronous_pattern/app/main.py" in made.stdout
    # Without a terminal there are no colours.
    assert "\x1b" not in made.stdout


@pytest.mark.parametrize("name", ["", "web_singel_pattern", "asynchronous_pattern"])
def test_make_diff_lists_the_patterns_to_compare_with(name: str) -> None:
    made = subprocess.run([*MAKE, f"WITH={name}"], capture_output=True, text=True, check=False)
    assert made.returncode == 2
    assert made.stderr.startswith("error: ")
    assert "web_single_pattern" in made.stderr or "name another one" in made.stderr


def test_a_terminal_gets_colours_and_a_pager(tmp_path: Path) -> None:
    pager = tmp_path / "pager"
    pager.write_text("#!/bin/sh\necho this is the pager\nexec cat\n")
    pager.chmod(0o755)
    terminal, end = pty.openpty()
    with subprocess.Popen(
        [*MAKE, "WITH=web_single_pattern"],
        stdout=end,
        env=os.environ | {"PAGER": str(pager)},
    ) as process:
        os.close(end)
        shown = b""
        try:
            while part := os.read(terminal, 10_000):
                shown += part
        except OSError:
            # Linux raises this when the other end of the terminal is closed.
            pass
    os.close(terminal)
    assert process.returncode == 0
    assert shown.startswith(b"this is the pager")
    assert b"\x1b[32m+" in shown
