"""A rule about the make targets that documents mention."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from tools.check.repository.readmes import tokens
from tools.check.repository.tree import Repository
from tools.check.rules import rule

MAKEFILES = ("Makefile", "pattern.mk", "training.mk", "jobs.mk")


def targets(makefile: Path) -> set[str]:
    text = makefile.read_text("utf-8") if makefile.is_file() else ""
    defined = re.findall(r"^([a-z_]+(?: [a-z_]+)*):(?!=)", text, re.MULTILINE)
    return {name for names in defined for name in names.split()}


def verbs(text: str) -> Iterator[tuple[str, bool]]:
    """Yields each target of make in some commands, and whether it is run in another directory."""
    moved = False
    for part in re.split(r"&&|[;|\n]|#.*", text):
        words = part.removeprefix("$ ").split()
        if words[:1] == ["cd"]:
            moved = ".." not in words[-1]
        if words[:1] == ["make"]:
            for before, word in pairwise(words):
                if re.fullmatch(r"[a-z_]+", word) and before != "-C":
                    yield word, moved or "-C" in words


@rule()
def every_verb_that_is_written_down_exists(repository: Repository) -> Iterator[str]:
    of_root = targets(repository.root / "Makefile")
    of_pattern = {name for file in MAKEFILES[1:] for name in targets(repository.root / file)}
    for path in repository.files_ending(".md"):
        # Another rule checks the documents that also print the book's targets.
        if path.name.endswith("BOOK.md"):
            continue
        in_root = path.parent == repository.root
        known = of_root if in_root else of_pattern | targets(path.parent / "Makefile")
        for part in (part for token in tokens(path) for part in [token, *(token.children or [])]):
            for verb, moved in verbs(part.content) if part.tag == "code" else ():
                # The text of the root README may mention targets of a pattern.
                elsewhere = of_pattern if moved or part.type == "code_inline" else set()
                if verb not in known | elsewhere:
                    yield f"{path}: there is no `make {verb}`; see make help"
