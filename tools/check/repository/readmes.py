"""Rules about READMEs."""

import ast
import posixpath
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tools.check.repository.tree import Repository, module
from tools.check.rules import rule
from tools.read.programs import packages_of

HEADINGS = (
    "When to use it · Not when · How it works · Run it · Break it · What it buys and costs · "
    "On Kubernetes · Make it yours · Trade-offs"
)
# A diagram, a session that tests play, and commands that they do not.
README_FENCES = {"mermaid", "console", "sh"}
CHOICE = "../../CHOOSING.md"
# The first of these that exists in the package of the API has the tagline as its docstring.
MAIN_MODULES = ("main.py", "api.py", "__main__.py")


def tokens(path: Path) -> list[Token]:
    return parsed(path.read_text("utf-8"))


def parsed(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(text)


def fences(path: Path) -> list[Token]:
    return [token for token in tokens(path) if token.type in {"fence", "code_block"}]


def sections(path: Path) -> dict[str, list[Token]]:
    """Returns the tokens under each heading of level 2."""
    found: dict[str, list[Token]] = {}
    here: list[Token] = []
    for previous, token in pairwise(tokens(path)):
        if (previous.type, previous.tag) == ("heading_open", "h2"):
            here = found.setdefault(token.content, [])
        else:
            here.append(token)
    return found


def links(inline: Token) -> Iterator[tuple[str, str]]:
    """Yields the target of each link and image of a paragraph, and the link text if it is code."""
    for token, following in pairwise([*(inline.children or []), Token("end", "", 0)]):
        if token.type in {"link_open", "image"}:
            code = following.content if following.type == "code_inline" else ""
            yield str(token.attrs.get("href") or token.attrs.get("src") or ""), code


@rule()
def tagline_is_the_docstring_of_the_main_module(repository: Repository) -> Iterator[str]:
    packages = {compose.pattern_dir: packages_of(compose) for compose in repository.composes}
    for path, text in repository.readmes():
        pattern = path.parent
        _, _, tagline, *_ = [*text.splitlines(), "", "", ""]
        candidates = [
            pattern / package / name
            for package in packages.get(pattern, [])
            for name in MAIN_MODULES
        ]
        main = next((candidate for candidate in candidates if candidate.exists()), None)
        if main and (ast.get_docstring(module(main)) or "").partition("\n")[0] != tagline:
            name = main.relative_to(pattern)
            yield f"{path}: line 3 differs from the docstring of {name}; make them equal"


@rule()
def readme_has_the_headings_in_order(repository: Repository) -> Iterator[str]:
    for path, _ in repository.readmes():
        if (seen := " · ".join(sections(path))) != HEADINGS:
            yield f"{path}: the headings are {seen}; use {HEADINGS}"


@rule()
def readme_pastes_no_code(repository: Repository) -> Iterator[str]:
    for path, _ in repository.readmes():
        for fence in fences(path):
            if fence.info not in README_FENCES:
                line = (fence.map or [0])[0] + 1
                yield f"{path}:{line}: {fence.info or 'code'} is pasted in; link to the file"


@rule()
def how_it_works_links_to_what_it_names(repository: Repository) -> Iterator[str]:
    for path, _ in repository.readmes():
        for step in sections(path).get("How it works", []):
            for target, code in links(step):
                source = path.parent / target
                if source.suffix == ".py" and code.isidentifier() and code not in defined(source):
                    yield f"{path}: {target} does not define {code}; link to the right function"


def defined(path: Path) -> set[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(module(path)) if isinstance(node, kinds)}


@rule()
def not_when_leads_to_the_choice_of_patterns(repository: Repository) -> Iterator[str]:
    for path, _ in repository.readmes():
        found = sections(path).get("Not when", [])
        if not any(target.endswith(CHOICE) for token in found for target, _ in links(token)):
            yield f"{path}: nothing under Not when leads to {CHOICE}; link to it"


@rule()
def readme_says_how_containers_can_read_what_they_mount(repository: Repository) -> Iterator[str]:
    """`make up` changes the modes; `docker compose up` does not."""
    for compose in repository.composes:
        path = compose.pattern_dir / "README.md"
        mounts = [mount for service in compose.services.values() for mount in service.mounts]
        for source in sorted({str(Path(mount.source)) for mount in mounts if not mount.named}):
            if not re.search(rf"chmod [^`]*a\+r[^`]*{re.escape(source)}`", path.read_text("utf-8")):
                reason = f"after `umask 077`, a container cannot read {source}"
                yield f"{path}: {reason}; name `chmod a+r {source}` beside `docker compose up`"


@rule()
def every_relative_link_leads_to_a_file(repository: Repository) -> Iterator[str]:
    known = set(repository.files)
    known |= {folder for path in known for folder in path.parents}
    for path in repository.files_ending(".md"):
        for target, _ in (link for token in tokens(path) for link in links(token)):
            # From the root README this is the address of a workflow's runs on GitHub.
            workflow = re.match(r"\.\./\.\./actions/(workflows/[\w.-]+)", target)
            relative = f".github/{workflow[1]}" if workflow else target.partition("#")[0]
            leads_to = Path(posixpath.normpath(path.parent / relative))
            if not re.match(r"[a-z]+:", target) and leads_to not in known:
                yield f"{path}: {target} is a broken link; correct it"


@rule()
def every_chapter_has_a_makefile_and_a_readme_of_its_patterns(
    repository: Repository,
) -> Iterator[str]:
    for pattern in repository.patterns:
        makefile, readme = (pattern.parent / name for name in ("Makefile", "README.md"))
        if not makefile.is_file():
            yield f"{makefile}: the file is missing; copy it from another chapter"
        found = tokens(readme) if readme.is_file() else []
        if pattern.name not in {target for token in found for target, _ in links(token)}:
            yield f"{readme}: there is no link to {pattern.name}; add it in reading order"
