"""Rules about what must not stand in a comment."""

import re
import tokenize
from collections.abc import Iterator

from tools.check.repository.tree import Repository
from tools.check.rules import rule

# The brackets keep the expression from finding itself.
LEFT_OVER = re.compile(r"\b(?:[T]ODO|[F]IXME|[X]XX)\b")
SILENCED = re.compile(r"#\s*(?:type:\s*ignore(?!\[)|noqa(?!:\s*[A-Z])|ruff:|mypy:)", re.I)


@rule()
def nothing_is_left_to_do(repository: Repository) -> Iterator[str]:
    for _, place, line in repository.lines():
        if found := LEFT_OVER.search(line):
            yield f"{place}: {found[0]}; do it, or open an issue"


@rule()
def no_pattern_silences_a_whole_checker(repository: Repository) -> Iterator[str]:
    for _, path in repository.python_of_patterns():
        with tokenize.open(path) as source:
            comments = [
                token
                for token in tokenize.generate_tokens(source.readline)
                if token.type == tokenize.COMMENT
            ]
        for comment in comments:
            if SILENCED.search(comment.string):
                yield f"{path}:{comment.start[0]}: {comment.string}; name one code, or fix it"
