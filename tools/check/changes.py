"""Prints what must be tested thoroughly because it differs from the last verified commit.

The output has one name a line: directories of patterns, `tools` for what belongs to no pattern, or
`everything`. The commit is `$CI_BASE` or, if that is not set, the one in `.ci/base`. If they cannot
be compared, everything counts as changed and the reason is printed to stderr.

A marked copy and exported requirements follow another file, which is tested thoroughly where it
stands. Of a Markdown file, only the console sessions count: a link from one README to another
changes nothing that runs. For all of these the usual tests, which always run, are enough, and the
nightly run tests them thoroughly too. Otherwise one line of web_single_pattern would make CI take
hours.
"""

import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tools.generate.copies import MarkError, read_mark
from tools.generate.requirements import HEADER
from tools.read.patterns import ROOT, patterns

EVERYTHING = "everything"
TOOLS = "tools"
BASE_FILE = ".ci/base"
# A change to the toolchain also runs these. Together they cover built images, Redis, Envoy, a
# worker, a mesh and every make target of a serving pattern, in minutes instead of half an hour for
# all patterns. The nightly run covers all of them.
TOOLCHAIN_PATTERNS = (
    "chapter4_serving_patterns/asynchronous_pattern",
    "chapter4_serving_patterns/web_single_pattern",
    "chapter6_operation_management/circuit_breaker_pattern",
)


class BaseError(Exception):
    """The working tree cannot be compared with a base commit."""


def git(root: Path, *arguments: str) -> str:
    """Runs git and returns its output; a BaseError has git's error message."""
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=False)
    if done.returncode != 0:
        raise BaseError(os.fsdecode(done.stderr).strip() or f"git {arguments[0]} failed")
    return os.fsdecode(done.stdout)


def base_of(root: Path) -> str:
    """Returns the last verified commit."""
    named = os.environ.get("CI_BASE")
    if named is None:
        file = root / BASE_FILE
        named = file.read_text("utf-8") if file.is_file() else ""
    if not named.strip():
        raise BaseError("no base is named")
    if git(root, "rev-parse", "--is-shallow-repository").strip() == "true":
        raise BaseError("this clone is shallow")
    try:
        found = ["rev-parse", "--quiet", "--verify", "--end-of-options"]
        base = git(root, *found, f"{named.strip()}^{{commit}}").strip()
    except BaseError:
        raise BaseError(f"the base {named.strip()} is not in this clone") from None
    try:
        git(root, "merge-base", "--is-ancestor", base, "HEAD")
    except BaseError:
        raise BaseError(f"the base {base} is not an ancestor of HEAD") from None
    return base


def changed_files(root: Path, base: str) -> set[str]:
    """Lists the files that differ from the base, including uncommitted and untracked ones."""
    differing = git(root, "diff", "--name-only", "--no-renames", "-z", base, "--")
    untracked = git(root, "ls-files", "-z", "--others", "--exclude-standard")
    return set(f"{differing}{untracked}".split("\0")) - {""}


def follows(root: Path, path: str) -> bool:
    """Tells whether a file is a marked copy or exported from the lock."""
    file = root / path
    if not file.is_file() or file.is_symlink():
        return False
    with suppress(MarkError):
        return bool(read_mark(root, path)) or file.read_bytes().startswith(HEADER.encode())
    # The malformed mark is for make check to report.
    return False


def sessions_of(text: str) -> list[str]:
    """Returns the console sessions of a Markdown file; one that is not closed goes to the end.

    This runs before anything is installed, so also without the reader of sessions in tools/play.
    """
    return re.findall(r"```console.*?(?:```|\Z)", text, re.DOTALL)


def has_the_same_sessions(root: Path, base: str, path: str) -> bool:
    """Tells whether a Markdown file differs from that of the base in its prose only."""
    if not path.endswith(".md"):
        return False
    # A file that is new or gone has no text to compare.
    with suppress(BaseError, FileNotFoundError):
        before = git(root, "show", f"{base}:{path}")
        return sessions_of(before) == sessions_of((root / path).read_text("utf-8"))
    return False


def names_of(root: Path, path: str, known: list[str]) -> set[str]:
    """Names what a file affects: patterns, the toolchain, or nothing."""
    directory = "/".join(path.split("/")[:2])
    test = re.fullmatch(r"tests/(chapter\w+)/test_(\w+)\.py", path)
    name = f"{test[1]}/{test[2]}" if test else directory
    if name in known:
        return {name}
    if path == BASE_FILE or path.endswith(("LICENSE", ".gitignore")):
        return set()
    if path.endswith(".md"):
        # A console session outside the patterns is played too, and covers the patterns it names.
        text = (root / path).read_text("utf-8") if (root / path).is_file() else ""
        words = set(re.findall(r"\w+", text)) if "```console" in text else set()
        return {name for name in known if name.rpartition("/")[2] in words}
    # Files of a deleted pattern cannot be tested.
    is_of_a_former_pattern = re.match(r"(tests/)?chapter\d+\w*/", path)
    return set() if is_of_a_former_pattern else {TOOLS, *TOOLCHAIN_PATTERNS}


def changed(root: Path) -> list[str]:
    """Returns the sorted names of what must be tested thoroughly."""
    known = [pattern.relative_to(root).as_posix() for pattern in patterns(root)]
    base = base_of(root)
    own = (
        path
        for path in changed_files(root, base)
        if not follows(root, path) and not has_the_same_sessions(root, base, path)
    )
    names = set[str]().union(*(names_of(root, path, known) for path in own))
    return [EVERYTHING] if names >= {TOOLS, *known} else sorted(names)


def main() -> int:
    root = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT
    try:
        names = changed(root)
    except BaseError as error:
        print(f"{error}: {EVERYTHING} counts as changed", file=sys.stderr)
        names = [EVERYTHING]
    print(*names, sep="\n", end="\n" if names else "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
