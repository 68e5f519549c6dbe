"""Prints what has to be tested thoroughly: whatever differs from the last verified commit.

One name a line: patterns by their directories, `tools` for what belongs to no pattern, or
`everything`. The commit is `$CI_BASE` where that is set, and otherwise the one in `.ci/base`.
Whatever makes the comparison doubtful means `everything`; the reason is printed as an error.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from tools.generate.copies import read_mark, tracked
from tools.read.patterns import ROOT, patterns

EVERYTHING = "everything"
TOOLS = "tools"
BASE_FILE = ".ci/base"
# A change of the toolchain runs these as well. Between them they use the images that are built,
# Redis and Envoy, a worker, a mesh, and every verb of a pattern that serves; they take minutes
# where all patterns would take half an hour. The nightly run takes all patterns.
TOOLCHAIN_PATTERNS = (
    "chapter4_serving_patterns/asynchronous_pattern",
    "chapter4_serving_patterns/web_single_pattern",
    "chapter6_operation_management/circuit_breaker_pattern",
)


class BaseError(Exception):
    """Nothing can be compared with the base."""


def git(root: Path, *arguments: str) -> str:
    """Runs git and returns what it prints.

    Raises:
        BaseError: git fails; the message is its own.
    """
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=False)
    if done.returncode != 0:
        raise BaseError(os.fsdecode(done.stderr).strip() or f"git {arguments[0]} failed")
    return os.fsdecode(done.stdout)


def base_of(root: Path) -> str:
    """Returns the commit up to which everything has been verified.

    Raises:
        BaseError: there is none that the working tree could be compared with.
    """
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
        raise BaseError(f"the base {base} is no ancestor of HEAD") from None
    return base


def changed_files(root: Path, base: str) -> set[str]:
    """Lists the files that differ from the base: committed, in the working tree, or new in it."""
    differing = git(root, "diff", "--name-only", "--no-renames", "-z", base, "--")
    untracked = git(root, "ls-files", "-z", "--others", "--exclude-standard")
    return set(f"{differing}{untracked}".split("\0")) - {""}


def copies_of(root: Path) -> dict[str, set[str]]:
    """Maps each original to its marked copies; the paths are from the root."""
    found: dict[str, set[str]] = {}
    for path in tracked(root):
        if mark := read_mark(root, path):
            found.setdefault(mark[0], set()).add(path)
    return found


def names_of(root: Path, path: str, known: list[str]) -> set[str]:
    """Names what a file is an input of: patterns, the toolchain, or nothing."""
    directory = "/".join(path.split("/")[:2])
    test = re.fullmatch(r"tests/(chapter\w+)/test_(\w+)\.py", path)
    name = f"{test[1]}/{test[2]}" if test else directory
    if name in known:
        return {name}
    if path == BASE_FILE or path.endswith(("LICENSE", ".gitignore")):
        return set()
    if path.endswith(".md"):
        # A session outside of the patterns is played as well, and goes through those it names.
        text = (root / path).read_text("utf-8") if (root / path).is_file() else ""
        words = set(re.findall(r"\w+", text)) if "```console" in text else set()
        return {name for name in known if name.rpartition("/")[2] in words}
    # What is left of a pattern that is gone can no longer be tested.
    is_of_a_former_pattern = re.match(r"(tests/)?chapter\d+\w*/", path)
    return set() if is_of_a_former_pattern else {TOOLS, *TOOLCHAIN_PATTERNS}


def changed(root: Path) -> list[str]:
    """Returns the names of what has to be tested thoroughly, in order.

    Raises:
        BaseError: the working tree cannot be compared with a base.
    """
    known = [pattern.relative_to(root).as_posix() for pattern in patterns(root)]
    paths = changed_files(root, base_of(root))
    copies = copies_of(root)
    paths = paths.union(*(copies.get(path, set()) for path in paths))
    names = set[str]().union(*(names_of(root, path, known) for path in paths))
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
