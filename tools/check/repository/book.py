"""A rule about what documents say on the book's commands."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from markdown_it.token import Token

from tools.check.repository.readmes import parsed
from tools.check.repository.tree import Repository
from tools.check.repository.verbs import MAKEFILES, targets, verbs
from tools.check.rules import rule
from tools.generate.index import COMING_FROM_THE_BOOK, PART_OF_THE_BOOK


class Row(NamedTuple):
    """The code in the first two cells of a row: what the book prints, and what it is here."""

    printed: list[str]
    here: list[str]


def rows(path: Path) -> Iterator[Row]:
    """Yields the rows of all tables of a document, without the collected ones."""
    text, _, _ = path.read_text("utf-8").partition("<!-- book -->")
    cells: list[Token] = []
    for token in parsed(text):
        if token.type == "tr_open":
            cells = []
        elif token.type == "inline":
            cells.append(token)
        elif token.type == "tr_close":
            yield Row(*([code.content for code in spans(cell)] for cell in cells[:2]))


def spans(cell: Token) -> list[Token]:
    return [child for child in cell.children or [] if child.type == "code_inline"]


def endpoints(path: Path, port: int = 8000) -> set[tuple[str, str]]:
    """Returns the path and the lower-case method of every endpoint that a document says is here.

    Those of a server on another port than 8000 are written as in `GET :8001/log`.
    """
    codes = (
        re.match(r"(GET|POST) (:\d+)?(/\S*)$", code) for row in rows(path) for code in row.here
    )
    found = (match.groups(":8000") for match in codes if match)
    return {(path, method.lower()) for method, of_port, path in found if of_port == f":{port}"}


@rule()
def every_command_of_the_book_is_answered(repository: Repository) -> Iterator[str]:
    answered = targets(repository.root / "book.mk")
    for path in repository.files_ending(PART_OF_THE_BOOK):
        makefiles = [repository.root / name for name in MAKEFILES[1:]]
        if path.name == COMING_FROM_THE_BOOK:
            makefiles.append(repository.root / "Makefile")
        known = set[str]().union(*map(targets, [*makefiles, path.with_name("Makefile")]))
        for printed, here in rows(path):
            for verb, _ in verbs("\n".join(printed)):
                if verb not in known | answered:
                    yield f"{path}: `make {verb}` of the book is not answered; add it to book.mk"
            for verb, _ in verbs("\n".join(here)):
                if verb not in known:
                    yield f"{path}: there is no `make {verb}` here; see make help"
