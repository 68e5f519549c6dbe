"""Rules about the verbs of make, and where they are written down."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from tools.check.repository.readmes import tokens
from tools.check.repository.tree import Repository
from tools.check.rules import rule

MAKEFILES = ("Makefile", "pattern.mk", "training.mk")


def targets(makefile: Path) -> set[str]:
    text = makefile.read_text("utf-8") if makefile.is_file() else ""
    defined = re.findall(r"^([a-z_]+(?: [a-z_]+)*):(?!=)", text, re.MULTILINE)
    return {name for names in defined for name in names.split()}


def verbs(text: str) -> Iterator[tuple[str, bool]]:
    """Yields each verb of make among some commands, and whether another directory is meant."""
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
        in_root = path.parent == repository.root
        known = of_root if in_root else of_pattern | targets(path.parent / "Makefile")
        for part in (part for token in tokens(path) for part in [token, *(token.children or [])]):
            for verb, moved in verbs(part.content) if part.tag == "code" else ():
                # In a sentence of the root's README, "in the pattern's directory" stands beside it.
                elsewhere = of_pattern if moved or part.type == "code_inline" else set()
                if verb not in known | elsewhere:
                    yield f"{path}: there is no `make {verb}`; see make help"


@rule()
def every_verb_with_help_is_shown_by_help(repository: Repository) -> Iterator[str]:
    for path in (repository.root / name for name in MAKEFILES):
        text = path.read_text("utf-8")
        phony = {name for line in re.findall(r"^\.PHONY:(.*)", text, re.M) for name in line.split()}
        for name in phony - targets(path):
            yield f"{path}: .PHONY names {name}, which is not a target; remove it"
        for names, help_text in re.findall(r"^([\w .-]+):(?!=).*##(.*)", text, re.MULTILINE):
            if not re.fullmatch("[a-z_]+", names) or names not in phony or len(help_text) < 2:
                yield f"{path}: make help does not show {names}; give each target its own line"
