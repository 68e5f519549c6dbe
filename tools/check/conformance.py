"""Holds the repository to its conventions: what is not identical in two patterns is still alike.

`python -m tools.check.conformance` prints one line per finding, "FILE: what is wrong; what to do",
and exits 1 on any. A rule is a function that yields findings; its name says what holds when it is
silent. Manifests have rules of their own, in `tools/check/manifests.py`.
"""

import ast
import json
import posixpath
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.metadata import packages_distributions
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tools.check import manifests
from tools.generate.copies import tracked
from tools.generate.requirements import RequirementsError, categories, exported
from tools.measure.results import RESULTS_FILE, ResultsError
from tools.measure.results import load as load_results
from tools.play.readme import ReadmeError, parse
from tools.read.compose import Compose, ComposeError, Service, load
from tools.read.patterns import ROOT, patterns

Rule = Callable[[Path], Iterator[str]]

# A pattern that trains nothing: its name, and the reason.
WITHOUT_TRAINING: dict[str, str] = {
    "model_db": "it keeps what others have trained",
}
TRAINER = "train/__main__.py"
# What a service is told for another program in its image than the one that reads settings.py.
PROGRAM_VARIABLES = frozenset({"MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "MLFLOW_TRACKING_URI"})
# What may be imported without a line in the Pipfile, because another package is made of it.
RE_EXPORTED = {
    # FastAPI's middleware and types are Starlette's; the right version is FastAPI's to choose.
    "starlette": "fastapi",
    # FastAPI's interface is written in Pydantic's models.
    "pydantic": "fastapi",
}
# What another package asks for only where it is not locked: on an older release of Python.
ASKED_FOR_ELSEWHERE = {
    # Before Python 3.11.3.
    "async-timeout": "redis",
}
# What an image holds of a pattern.
PACKAGES = {"app", "train"}
PATTERN_FILES = (
    ".dockerignore",
    "Dockerfile",
    "Makefile",
    "README.md",
    "docker-compose.yml",
    "manifests/kustomization.yml",
    "measure/__main__.py",
    "measure/results.json",
    "requirements.txt",
)
HEADINGS = (
    "When to use it · Not when · How it works · Run it · Break it · What it buys and costs · "
    "On Kubernetes · Trade-offs"
)
README_LINES = range(60, 201)
# A diagram, a session that is played, and commands that are not.
README_FENCES = {"mermaid", "console", "sh"}
MEANINGLESS = re.compile(
    r"(common|configurations|constants|helpers?|managers?|routers|utils?)(\.\w+)?"
    r"|run\.sh|logging\.conf"
)
MOST_SKIPS = 6
# The sites that a file may name; another is added once it is known to be public.
PUBLIC_HOSTS = {"github.com", "www.cs.toronto.edu"}
RESERVED_HOST = re.compile(r"(.+\.)?(example(\.com|\.net|\.org)?|invalid|test|local)")
CI_RUN = ".ci/run"
# PyTorch is locked without a digest: the reader's pip chooses its build. It is installed alone.
UNHASHED = ["-r", "torch.txt"]

CHAPTER = re.compile(r"chapter\d+_\w+")
SOFT_STEP = re.compile(
    r"\|\|\s*(?:true|:|exit 0)(?!\w)|continue-on-error|set \+e|set \+o errexit"
    r"|(?<!\S)(?:-k|--deselect|--ignore(?:-glob)?)(?![\w-])"
)
# A cache mount of a Dockerfile is a place in the image, not on a machine.
MACHINE_PATH = re.compile(
    r"(?<![\w.~-])(?<!type=cache,target=)/(?:root|(?:home|Users)/\w+|opt|mnt)(?![\w-])"
)
URL_HOST = re.compile(r"\bhttps?://((?:[\w-]+\.)+[a-z]{2,})(?![\w.-])")
INDEX_HOST = re.compile(r"\b(?:pypi|artifactory|devpi|nexus)(?:\.[\w-]+)+", re.I)
MAIL_HOST = re.compile(r"(?<![\w.+:/-])[\w.+-]+@((?:[\w-]+\.)+[a-z]{2,})\b")
# The brackets keep the expression from finding itself.
LEFT_OVER = re.compile(r"\b(?:[T]ODO|[F]IXME|[X]XX)\b")
SILENCED = re.compile(r"#\s*(?:type:\s*ignore(?!\[)|noqa(?!:\s*[A-Z])|ruff:|mypy:)", re.I)


# ---- What the rules read -------------------------------------------------------------------------


def files(root: Path, *endings: str) -> list[Path]:
    """Lists what git tracks or would track, so nothing that was made on this machine."""
    return [root / name for name in sorted(tracked(root)) if name.endswith(endings or "")]


def lines_of(root: Path) -> Iterator[tuple[Path, str, str]]:
    """Yields each line of every text file with its file, and with its place in a finding."""
    for path in files(root):
        content = path.read_bytes()
        if b"\0" not in content:
            for number, line in enumerate(content.decode(errors="replace").splitlines(), start=1):
                yield path, f"{path}:{number}", line


def output(root: Path, program: str, *arguments: str) -> list[str]:
    """Runs a program of the environment and returns the lines that it prints."""
    command = [str(Path(sys.executable).with_name(program)), *arguments]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    lines = (found.stdout + found.stderr).splitlines()
    return lines or [f"{program} ended with exit code {found.returncode}"] * bool(found.returncode)


def python_of_patterns(root: Path) -> Iterator[tuple[Path, Path]]:
    """Yields each pattern with each of its Python files."""
    found = files(root, ".py")
    for pattern in patterns(root):
        yield from ((pattern, path) for path in found if pattern in path.parents)


def module(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def imports(path: Path, root: Path) -> Iterator[tuple[str, bool]]:
    """Yields each name that a file imports, from the root on, and whether it does so relatively."""
    package = path.relative_to(root).parent.parts
    for node in ast.walk(module(path)):
        if isinstance(node, ast.Import):
            yield from ((name.name, False) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: max(0, len(package) + 1 - node.level)] if node.level else ()
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{start}.{name.name}", bool(node.level)) for name in node.names)


class Import(NamedTuple):
    path: Path
    # The file or directory of the pattern that imports, as in app or measure.
    part: str
    # Both end with a dot, so that a name begins with that of its package and no other.
    pattern: str
    name: str
    is_relative: bool


def imports_of_patterns(root: Path) -> Iterator[Import]:
    for pattern, path in python_of_patterns(root):
        package = f"{pattern.parent.name}.{pattern.name}."
        for name, is_relative in imports(path, root):
            part = path.relative_to(pattern).parts[0]
            yield Import(path, part, package, f"{name}.", is_relative)


@cache
def distributions() -> dict[str, str]:
    """Maps the name under which a package is imported to the one under which it is installed."""
    # A package may be made of several; the one with its own name is the one to ask for.
    return {
        name: normalized(name if name in found else found[0])
        for name, found in packages_distributions().items()
    }


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def settings_of(pattern: Path) -> dict[str, ast.expr | None]:
    """Returns the settings of a pattern by their names, with their defaults."""
    path = pattern / "app/settings.py"
    return {
        field.target.id: field.value
        for node in (module(path).body if path.is_file() else [])
        if isinstance(node, ast.ClassDef) and node.name == "Settings"
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }


def pipfile(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "Pipfile").read_text("utf-8"))


def lock(root: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((root / "Pipfile.lock").read_text("utf-8"))
    return content


def values_of(content: Any, *keys: str) -> Iterator[tuple[str, Any]]:
    """Yields whatever stands under one of the keys, however deep."""
    if isinstance(content, dict):
        yield from ((key, content[key]) for key in keys if key in content)
    for item in content.values() if isinstance(content, dict) else content:
        if isinstance(item, dict | list):
            yield from values_of(item, *keys)


def composes(root: Path) -> Iterator[Compose]:
    """Yields each pattern's Compose file that can be read; that it can is a rule of its own."""
    for pattern in patterns(root):
        try:
            yield load(pattern)
        except ComposeError:
            continue


def built(compose: Compose) -> list[Service]:
    return [service for service in compose.services.values() if service.build]


class Stage(NamedTuple):
    image: str
    # Those of an earlier stage that it continues come first.
    instructions: list[tuple[str, str]]

    def last(self, keyword: str) -> str:
        return next((rest for word, rest in reversed(self.instructions) if word == keyword), "")


def dockerfiles(root: Path) -> Iterator[Path]:
    return (path for path in files(root) if re.fullmatch(r"Dockerfile(\..+)?", path.name))


def stages(dockerfile: Path) -> dict[str, Stage]:
    """Returns the stages of a Dockerfile by their names, the final one last."""
    found: dict[str, Stage] = {}
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text("utf-8"), flags=re.MULTILINE)
    for line in text.replace("\\\n", " ").splitlines():
        keyword, _, rest = line.strip().partition(" ")
        if keyword == "FROM":
            image, *named = [word for word in rest.split() if not word.startswith("--")]
            earlier = found[image].instructions if image in found else []
            found[named[-1] if named else str(len(found))] = Stage(image, [*earlier])
        elif keyword and found:
            [*found.values()][-1].instructions.append((keyword, rest.strip()))
    return found


def served(root: Path) -> Iterator[tuple[Path, Stage, list[Service]]]:
    """Yields each stage that services are built from, with its Dockerfile and those services."""
    for compose in composes(root):
        users: dict[tuple[Path, str | None], list[Service]] = {}
        for service in compose.services.values():
            if build := service.build:
                path = (compose.pattern_dir / build.context / build.dockerfile).resolve()
                users.setdefault((path, build.target), []).append(service)
        for (path, target), services in users.items():
            found = stages(path)
            yield path, found[target or [*found][-1]], services


def readmes(root: Path) -> Iterator[tuple[Path, str]]:
    """Yields the README of each pattern with its text; that it is there is a rule of its own."""
    for path in (pattern / "README.md" for pattern in patterns(root)):
        if path.is_file():
            yield path, path.read_text("utf-8")


def tokens(path: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(path.read_text("utf-8"))


def fences(path: Path) -> list[Token]:
    return [token for token in tokens(path) if token.type in {"fence", "code_block"}]


def sections(path: Path) -> dict[str, list[Token]]:
    """Returns what stands under each heading of level 2."""
    found: dict[str, list[Token]] = {}
    here: list[Token] = []
    for previous, token in pairwise(tokens(path)):
        if (previous.type, previous.tag) == ("heading_open", "h2"):
            here = found.setdefault(token.content, [])
        else:
            here.append(token)
    return found


def links(inline: Token) -> Iterator[tuple[str, str]]:
    """Yields where each link and picture of a paragraph leads, and the code that is its text."""
    for token, following in pairwise([*(inline.children or []), Token("end", "", 0)]):
        if token.type in {"link_open", "image"}:
            code = following.content if following.type == "code_inline" else ""
            yield str(token.attrs.get("href") or token.attrs.get("src") or ""), code


def is_sentence(text: str) -> bool:
    return bool(re.fullmatch(r"\S.*[^.\s]\.", text)) and not re.search(r"[.!?] +[A-Z`]", text)


def workflows(root: Path) -> list[Path]:
    found = [path for path in files(root) if path.parent == root / ".github/workflows"]
    if not found:
        raise FileNotFoundError(f"there is no workflow in {root}/.github/workflows")
    return found


# ---- Imports -------------------------------------------------------------------------------------


def no_pattern_imports_another(root: Path) -> Iterator[str]:
    for path, _, own, name, _ in imports_of_patterns(root):
        if CHAPTER.match(name) and not name.startswith(own):
            yield f"{path}: it imports {name[:-1]}; copy the file with a mark instead"


def what_an_image_runs_imports_neither_tools_nor_tests(root: Path) -> Iterator[str]:
    for path, part, _, name, _ in imports_of_patterns(root):
        if part in PACKAGES and name.startswith(("tests.", "tools.")):
            yield f"{path}: it imports {name[:-1]}, which no image holds; write what it needs"


def training_imports_nothing_of_app(root: Path) -> Iterator[str]:
    for path, part, own, name, _ in imports_of_patterns(root):
        if part == "train" and name.startswith((f"{own}app.", "app.")):
            yield f"{path}: it imports {name[:-1]}; the two meet only in models/"


def a_package_imports_its_own_modules_relatively(root: Path) -> Iterator[str]:
    installed = distributions().keys() | sys.stdlib_module_names
    for path, part, own, name, is_relative in imports_of_patterns(root):
        siblings = {sibling.stem for sibling in path.parent.glob("*.py")} - installed | PACKAGES
        if part in PACKAGES and is_relative and not name.startswith(f"{own}{part}."):
            yield f"{path}: it imports {name[:-1]} from outside {part}/; move that into {part}/"
        by_its_whole_name = name.startswith(own) or name.partition(".")[0] in siblings
        if part in PACKAGES and not is_relative and by_its_whole_name:
            yield f"{path}: it imports {name[:-1]} by its whole name; write a relative import"


# ---- Settings ------------------------------------------------------------------------------------


def compose_sets_only_what_the_settings_read(root: Path) -> Iterator[str]:
    for compose in composes(root):
        known = {name.upper() for name in settings_of(compose.pattern_dir)} | PROGRAM_VARIABLES
        for service in built(compose):
            for name in sorted(set(service.environment) - known):
                yield f"{compose.path}: {service.name} is told {name}, which is no setting; add it"


def every_setting_is_read(root: Path) -> Iterator[str]:
    for pattern in patterns(root):
        read = set()
        for path in (pattern / "app").rglob("*.py"):
            for node in ast.walk(module(path)):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    owner = ast.unparse(node.value).lower()
                    if "settings" in owner or (owner, path.name) == ("self", "settings.py"):
                        read.add(node.attr)
        for name in settings_of(pattern).keys() - read:
            yield f"{pattern}/app/settings.py: nothing reads {name}; take it out"


def every_setting_has_a_default(root: Path) -> Iterator[str]:
    for pattern in patterns(root):
        for name, value in settings_of(pattern).items():
            default: list[ast.expr | None] = [value]
            if isinstance(value, ast.Call) and ast.unparse(value.func) == "Field":
                named = {keyword.arg: keyword.value for keyword in value.keywords}
                default = [*value.args[:1], named.get("default"), named.get("default_factory")]
            if all(given is None or ast.unparse(given) == "..." for given in default):
                yield f"{pattern}/app/settings.py: {name} has no default; give a laptop's"


# ---- Requirements and lock -----------------------------------------------------------------------


def requirements_are_exported_from_the_lock(root: Path) -> Iterator[str]:
    try:
        texts = exported(root)
    except RequirementsError as error:
        yield f"{root}/{error}; name categories of the Pipfile there and run make fix"
        return
    for path, text in texts.items():
        if path.read_text("utf-8") != text:
            yield f"{path}: it is not what the lock exports; run make fix"


def requirements_are_what_is_imported_or_started(root: Path) -> Iterator[str]:
    commands = {
        compose.pattern_dir: [(s.build.target, s.command) for s in built(compose) if s.build]
        for compose in composes(root)
    }
    for pattern in patterns(root):
        for path in sorted(pattern.glob("requirements*.txt")):
            # What is in requirements-train.txt is for train/ alone.
            package = path.stem.partition("-")[2]
            served = package or ("app" if (pattern / "app").is_dir() else "train")
            sources = sorted((pattern / served).rglob("*.py"))
            # A service that trains is started with requirements-train.txt, where there is one.
            apart = (pattern / "requirements-train.txt").is_file()
            started = {
                word
                for target, words in commands.get(pattern, [])
                for word in words
                if (apart and target == "train") == (package == "train")
            }
            yield from unequal_requirements(root, path, sources, started)


def unequal_requirements(
    root: Path, path: Path, sources: Sequence[Path], words: set[str]
) -> Iterator[str]:
    """Compares the categories of a requirements file with imports and words of commands."""
    found = {name for source in sources for name, relative in imports(source, root) if not relative}
    tops = {name.partition(".")[0] for name in found} - sys.stdlib_module_names
    imported = {distributions().get(top, normalized(top)) for top in tops}
    tables = [pipfile(root).get(name, {}) for name in categories(path.read_text("utf-8"))]
    required = {normalized(name) for table in tables for name in table}
    words &= {normalized(name) for table in lock(root).values() for name in table}
    elsewhere = {name for name, owner in ASKED_FOR_ELSEWHERE.items() if owner in imported}
    for name in sorted(required - imported - words - elsewhere):
        yield f"{path}: nothing imports or starts {name}; take it out of its category"
    covered = required | {name for name, owner in RE_EXPORTED.items() if owner in required}
    for name in sorted((imported | words) - covered):
        yield f"{path}: {name} is imported or started; add it to a category in the Pipfile"


def lock_and_pipfile_name_no_index_and_no_path(root: Path) -> Iterator[str]:
    keys = ("source", "sources", "index", "path", "file", "git", "editable")
    for name, content in (("Pipfile", pipfile(root)), ("Pipfile.lock", lock(root))):
        for key, value in values_of(content, *keys):
            if value:
                yield f"{root}/{name}: {key} is {value}, which is one machine's; run make lock"


def lock_has_one_version_of_a_package(root: Path) -> Iterator[str]:
    versions: dict[str, set[str]] = {}
    for packages in (table for name, table in lock(root).items() if name != "_meta"):
        for name, package in packages.items():
            versions.setdefault(name, set()).add(package["version"])
    for name, found in versions.items():
        if len(found) > 1:
            yield f"{root}/Pipfile.lock: {name} is {', '.join(sorted(found))}; lock one version"


def torch_is_pinned_to_one_version(root: Path) -> Iterator[str]:
    for _, version in values_of(pipfile(root), "torch"):
        if not isinstance(version, dict) and not re.fullmatch(r"==\d+(\.\d+)+", version):
            yield f"{root}/Pipfile: torch is {version}; write ==VERSION"


# ---- Docker --------------------------------------------------------------------------------------


def dockerfiles_are_clean_for_hadolint(root: Path) -> Iterator[str]:
    options = ["--no-color", "--disable-ignore-pragma"]
    for line in output(root, "hadolint", *options, *map(str, dockerfiles(root))):
        yield re.sub(r":(\d+) ", r":\1: ", f"{line}; see hadolint's wiki", count=1)


def base_images_have_a_version(root: Path) -> Iterator[str]:
    for path in dockerfiles(root):
        found = stages(path)
        for image in {stage.image for stage in found.values()} - found.keys():
            if not has_version(image):
                yield f"{path}: {image} has no fixed version; write IMAGE:VERSION"


def has_version(image: str) -> bool:
    tag = image.rpartition("/")[2].partition("@")[0].partition(":")[2]
    return bool(re.search(r"\d", tag)) and "$" not in image


def image_runs_as_a_numeric_user_who_is_not_root(root: Path) -> Iterator[str]:
    for path, stage, _ in served(root):
        if not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", user := stage.last("USER")):
            yield f"{path}: USER is {user or 'root'}; write a number, as in 10001:10001"


def image_starts_what_compose_starts(root: Path) -> Iterator[str]:
    address: Callable[[list[str]], list[str]]
    for path, stage, services in served(root):
        try:
            command = list(json.loads(stage.last("CMD")))
        except ValueError:
            yield f'{path}: CMD is not in the exec form; write CMD ["program", "argument"]'
            continue
        # Replicas have an address of their own in Compose, and the image's in Kubernetes.
        replicas = any(service.labels for service in services)
        address = manifests.without_address if replicas else list
        if address(command) not in [address(list(service.command)) for service in services]:
            names = ", ".join(service.name for service in services)
            yield f"{path}: CMD is not the command of {names} in docker-compose.yml; use the same"


def pip_checks_hashes_in_images(root: Path) -> Iterator[str]:
    for path in dockerfiles(root):
        runs = " && ".join(rest for s in stages(path).values() for _, rest in s.instructions)
        for words in (part.split() for part in re.split(r"&&|[;|]", runs)):
            hashed = "--require-hashes" in words or words[-3:] == ["install", *UNHASHED]
            if {"pip", "install"} <= set(words) and not hashed:
                yield f"{path}: `{' '.join(words)}` takes any file; add --require-hashes"


def docker_context_begins_with_nothing(root: Path) -> Iterator[str]:
    for path in files(root, ".dockerignore"):
        lines = [line for line in path.read_text("utf-8").splitlines() if line[:1] not in {"", "#"}]
        if lines[:1] != ["*"]:
            yield f"{path}: it lists what to leave out; write `*`, then `!` with what is copied"


# ---- Compose -------------------------------------------------------------------------------------


def compose_runs_the_same_without_docker(root: Path) -> Iterator[str]:
    for pattern in patterns(root):
        name = pattern.name.replace("_", "-")
        try:
            if (found := load(pattern).name) != name:
                yield f"{pattern}/docker-compose.yml: its name is {found}; write name: {name}"
        except ComposeError as error:
            yield f"{pattern}/docker-compose.yml: {error}; see tools/read/compose.py"


def long_running_service_has_a_healthcheck(root: Path) -> Iterator[str]:
    for compose in composes(root):
        for service in compose.services.values():
            if service.health is None and service.name not in compose.one_shots():
                yield f"{compose.path}: {service.name} has no healthcheck; say when it is ready"


def built_service_may_do_little(root: Path) -> Iterator[str]:
    for compose in composes(root):
        services = yaml.safe_load(compose.path.read_text("utf-8"))["services"]
        for name in (service.name for service in built(compose)):
            raw = {"security_opt": [], **services[name]}
            missing = {
                "read_only: true": raw.get("read_only") is not True,
                "cap_drop: [ALL]": raw.get("cap_drop") != ["ALL"],
                "no-new-privileges:true": "no-new-privileges:true" not in raw["security_opt"],
                "mem_limit": "mem_limit" not in raw,
            }
            for what in (what for what, is_missing in missing.items() if is_missing):
                yield f"{compose.path}: {name} may do more than it has to; add {what}"


def images_of_compose_have_a_name_and_a_version(root: Path) -> Iterator[str]:
    for compose in composes(root):
        ours = f"ml-system-in-actions/{compose.pattern_dir.name.replace('_', '-')}-"
        for service in compose.services.values():
            image = service.image or "none"
            if service.build and not re.fullmatch(rf"{ours}[a-z0-9-]+:\d+\.\d+\.\d+", image):
                yield f"{compose.path}: {service.name} is built as {image}; write {ours}...:1.2.3"
            elif not has_version(image):
                yield f"{compose.path}: {image} has no fixed version; write IMAGE:VERSION"


# ---- READMEs -------------------------------------------------------------------------------------


def tagline_is_the_docstring_of_the_main_module(root: Path) -> Iterator[str]:
    for path, text in readmes(root):
        title, above, tagline, below, *_ = [*text.splitlines(), "", "", "", ""]
        if not title.startswith("# ") or above or below or not is_sentence(tagline):
            yield f"{path}: it has not a title on line 1 and a sentence on line 3; write them"
        names = ("app/main.py", "app/api.py", TRAINER)
        main = next((path.parent / name for name in names if (path.parent / name).exists()), None)
        if main and (ast.get_docstring(module(main)) or "").partition("\n")[0] != tagline:
            yield f"{path}: line 3 is not the docstring of {main.name}; write the same in both"


def readme_has_the_headings_in_order(root: Path) -> Iterator[str]:
    for path, _ in readmes(root):
        if (seen := " · ".join(sections(path))) != HEADINGS:
            yield f"{path}: its headings are {seen}; write {HEADINGS}"


def readme_has_a_diagram(root: Path) -> Iterator[str]:
    for path, _ in readmes(root):
        if not any(fence.info == "mermaid" for fence in fences(path)):
            yield f"{path}: it has no diagram; add a mermaid fence"


def readme_plays_from_make_up_to_make_down(root: Path) -> Iterator[str]:
    for path, text in readmes(root):
        try:
            commands = [step.command for step in parse(text)] or ["none"]
        except ReadmeError as error:
            yield f"{path}: {error}; see tools/play/readme.py"
            continue
        if (commands[0], commands[-1]) != ("make up", "make down"):
            yield f"{path}: its commands go from {commands[0]} to {commands[-1]}; play all of it"


def readme_names_plain_docker_compose(root: Path) -> Iterator[str]:
    for path, text in readmes(root):
        if "docker compose up" not in text:
            yield f"{path}: it hides how it starts without make; name `docker compose up`"


def readme_has_a_place_for_its_results(root: Path) -> Iterator[str]:
    for path, text in readmes(root):
        if [text.count(f"<!-- {slash}results -->") for slash in ("", "/")] != [1, 1]:
            yield f"{path}: it holds no results; add <!-- results --> and <!-- /results -->"


def readme_is_read_in_minutes(root: Path) -> Iterator[str]:
    for path, text in readmes(root):
        if (count := len(text.splitlines())) not in README_LINES:
            yield f"{path}: it has {count} lines; write {README_LINES[0]} to {README_LINES[-1]}"


def readme_pastes_no_code(root: Path) -> Iterator[str]:
    for path, _ in readmes(root):
        for fence in fences(path):
            if fence.info not in README_FENCES:
                line = (fence.map or [0])[0] + 1
                yield f"{path}:{line}: {fence.info or 'code'} is pasted; link the file instead"


def how_it_works_links_what_it_names(root: Path) -> Iterator[str]:
    known = set(files(root))
    for path, _ in readmes(root):
        for step in sections(path).get("How it works", []):
            linked = list(links(step))
            # The items of a list are deeper than a paragraph around them.
            if step.type == "inline" and step.level > 1 and not linked:
                yield f"{path}: the step `{step.content[:40]}...` has no link; link its function"
            for name in (part.content for part in step.children or [] if part.tag == "code"):
                if path.parent / name in known and name not in {code for _, code in linked}:
                    yield f"{path}: {name} is named and not linked; link it"
            for target, code in linked:
                source = path.parent / target
                if source.suffix == ".py" and code.isidentifier() and code not in defined(source):
                    yield f"{path}: {target} defines no {code}; link what does the step"


def defined(path: Path) -> set[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(module(path)) if isinstance(node, kinds)}


def every_relative_link_leads_to_a_file(root: Path) -> Iterator[str]:
    known = set(files(root))
    known |= {folder for path in known for folder in path.parents}
    for path in files(root, ".md"):
        for target, _ in (link for token in tokens(path) for link in links(token)):
            # From the README of the root, GitHub shows the runs of a workflow at this address.
            workflow = re.match(r"\.\./\.\./actions/(workflows/[\w.-]+)", target)
            relative = f".github/{workflow[1]}" if workflow else target.partition("#")[0]
            leads_to = Path(posixpath.normpath(path.parent / relative))
            if not re.match(r"[a-z]+:", target) and leads_to not in known:
                yield f"{path}: {target} leads to no file of the repository; correct the link"


# ---- What every pattern has ----------------------------------------------------------------------


def test_module(pattern: Path) -> Path:
    return pattern.parents[1] / "tests" / pattern.parent.name / f"test_{pattern.name}.py"


def every_directory_of_a_chapter_is_a_whole_pattern(root: Path) -> Iterator[str]:
    known = set(files(root))
    for pattern in sorted({path for file in known for path in file.parents}):
        if pattern.parent.parent == root and CHAPTER.match(pattern.parent.name):
            training = () if pattern.name in WITHOUT_TRAINING else (TRAINER,)
            needed = (pattern / name for name in (*PATTERN_FILES, *training))
            for path in {*needed, test_module(pattern)} - known:
                yield f"{path}: there is no such file; every pattern has one"


def every_test_module_of_a_chapter_belongs_to_a_pattern(root: Path) -> Iterator[str]:
    modules = {test_module(pattern) for pattern in patterns(root)}
    for path in files(root, ".py"):
        in_chapter = CHAPTER.match(path.parent.name) and path.match("tests/*/test_*.py")
        if in_chapter and path not in modules:
            yield f"{path}: there is no such pattern; name it test_PATTERN.py"


def makefile_of_a_pattern_includes_the_verbs(root: Path) -> Iterator[str]:
    for path in (pattern / "Makefile" for pattern in patterns(root)):
        if "include ../../pattern.mk" not in path.read_text("utf-8").splitlines():
            yield f"{path}: it has not the verbs of a pattern; write include ../../pattern.mk"


def results_are_measured_and_hold(root: Path) -> Iterator[str]:
    for path in (pattern / RESULTS_FILE for pattern in patterns(root)):
        # That it is there is a rule of its own.
        if not path.is_file():
            continue
        try:
            results = load_results(path.parents[1])
        except ResultsError as error:
            yield f"{path}: {error}; run make measure there"
            continue
        if results.pattern != path.parents[1].name or not results.holds:
            yield f"{path}: it is of {results.pattern} and holds: {results.holds}; measure again"


def every_pattern_has_a_row_in_the_index(root: Path) -> Iterator[str]:
    index = root / "README.md"
    rows = [line for line in index.read_text("utf-8").splitlines() if line.startswith("| [")]
    for link in (f"({pattern.relative_to(root).as_posix()})" for pattern in patterns(root)):
        if not any(link in row for row in rows):
            yield f"{index}: the index has no row of {link}; run make fix"


def service_has_one_name_everywhere(root: Path) -> Iterator[str]:
    for compose in composes(root):
        pattern, readme = compose.pattern_dir, compose.pattern_dir / "README.md"
        pods = manifests.Pattern(pattern).pods if (pattern / "manifests").is_dir() else []
        deployed = {pair.name for pod in pods for each in pod.containers for pair in each.pairs}
        drawn = (
            [fence for fence in fences(readme) if fence.info == "mermaid"]
            if readme.is_file()
            else []
        )
        words = {word for fence in drawn for word in re.findall(r"[\w-]+", fence.content)}
        for name in (service.name for service in built(compose)):
            if name not in deployed:
                yield f"{pattern}/manifests: no container is {name}; call it as in Compose"
            if name not in words:
                yield f"{readme}: {name} is not in the diagram; call it as in Compose"


# ---- Names and comments --------------------------------------------------------------------------


def names_say_something(root: Path) -> Iterator[str]:
    for path in files(root):
        for part in path.relative_to(root).parts:
            if MEANINGLESS.fullmatch(part):
                yield f"{path}: {part} says nothing; name it for what it does"


def no_init_file_is_empty(root: Path) -> Iterator[str]:
    for path in files(root, "__init__.py"):
        if not path.read_text("utf-8").strip():
            yield f"{path}: it is empty; delete it"


def nothing_is_left_to_do(root: Path) -> Iterator[str]:
    for _, place, line in lines_of(root):
        if found := LEFT_OVER.search(line):
            yield f"{place}: {found[0]}; do it, or open an issue"


def no_code_is_commented_out(root: Path) -> Iterator[str]:
    options = ["--select=ERA", "--no-cache", "--quiet", "--ignore-noqa"]
    for line in output(root, "ruff", "check", *options, "--output-format=concise", "."):
        yield f"{root}/{line}; delete it"


def no_pattern_silences_a_whole_checker(root: Path) -> Iterator[str]:
    for _, path in python_of_patterns(root):
        with tokenize.open(path) as source:
            comments = [
                token
                for token in tokenize.generate_tokens(source.readline)
                if token.type == tokenize.COMMENT
            ]
        for comment in comments:
            if SILENCED.search(comment.string):
                yield f"{path}:{comment.start[0]}: {comment.string}; name one code, or correct it"


def module_docstring_of_app_is_one_sentence(root: Path) -> Iterator[str]:
    for pattern, path in python_of_patterns(root):
        text = " ".join((ast.get_docstring(module(path)) or "").split())
        if pattern / "app" in path.parents and not is_sentence(text):
            yield f"{path}: its docstring is not one sentence; say what the module does"


# ---- Nothing of one machine ----------------------------------------------------------------------


def nothing_that_git_ignores_is_committed(root: Path) -> Iterator[str]:
    command = ["git", "ls-files", "-z", "--cached", "--ignored", "--exclude-standard"]
    listing = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    for name in filter(None, listing.stdout.split("\0")):
        yield f"{root}/{name}: it is made on one machine; git rm --cached it"


def no_path_is_of_one_machine(root: Path) -> Iterator[str]:
    for _, place, line in lines_of(root):
        if found := MACHINE_PATH.search(line):
            yield f"{place}: {found[0]} is on one machine; write a relative path"


def no_host_is_a_private_one(root: Path) -> Iterator[str]:
    for _, place, line in lines_of(root):
        hosts = {host for host in URL_HOST.findall(line) if not RESERVED_HOST.fullmatch(host)}
        for host in sorted(hosts - PUBLIC_HOSTS | set(INDEX_HOST.findall(line))):
            yield f"{place}: {host} is not known as public; take it out, or into PUBLIC_HOSTS"


def no_mail_address_is_in_a_file(root: Path) -> Iterator[str]:
    for path, place, line in lines_of(root):
        mails = [host for host in MAIL_HOST.findall(line) if not RESERVED_HOST.fullmatch(host)]
        if mails and path.name not in {"LICENSE", "AUTHORS"}:
            yield f"{place}: it holds a mail address at {mails[0]}; take it out"


# ---- Tests and CI --------------------------------------------------------------------------------


def no_step_of_ci_may_fail(root: Path) -> Iterator[str]:
    for path in (root / CI_RUN, *workflows(root)):
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            if found := SOFT_STEP.search(line.partition("#")[0]):
                yield f"{path}:{number}: `{found[0]}` hides a failure; take it out"
    options = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["pytest"]
    if found := SOFT_STEP.search(" ".join(options["ini_options"]["addopts"])):
        yield f"{root}/pyproject.toml: `{found[0]}` leaves tests out; take it out"


def ci_runs_the_command_of_the_readme(root: Path) -> Iterator[str]:
    script = (root / CI_RUN).read_text("utf-8").splitlines()
    shown = "".join(fence.content for fence in fences(root / "README.md"))
    if not re.search(r"^(\$ )?make test( *#|$)", shown, re.MULTILINE):
        yield f"{root}/README.md: it does not show `make test`; show how to test"
    if "make test" not in script or not any(re.match(r"set -\w*e", line) for line in script):
        yield f"{root}/{CI_RUN}: it has no `set -e` or no `make test`; write both"
    if not any(CI_RUN in path.read_text("utf-8") for path in workflows(root)):
        yield f"{root}/.github/workflows: none runs {CI_RUN}; run it"


def actions_are_pinned_by_commit(root: Path) -> Iterator[str]:
    for path in workflows(root):
        for _, action in values_of(yaml.safe_load(path.read_text("utf-8")), "uses"):
            if not re.search(r"@[0-9a-f]{40}$", action):
                yield f"{path}: {action} can change; write @ and the 40 digits of its commit"


def workflows_only_read_and_know_no_secret(root: Path) -> Iterator[str]:
    for path in workflows(root):
        content = yaml.safe_load(path.read_text("utf-8"))
        if re.search(r"\bsecrets\b", path.read_text("utf-8")):
            yield f"{path}: it uses a secret; take it out"
        if content.get("permissions") is None:
            yield f"{path}: it may do whatever is the default; write permissions: contents: read"
        for _, granted in values_of(content, "permissions"):
            if not isinstance(granted, dict) or set(granted.values()) - {"read", "none"}:
                yield f"{path}: it is granted {granted}; grant `read` by name"


def skips(root: Path) -> Iterator[tuple[str, str, ast.Call | None]]:
    """Yields each skip or expected failure: its place, its name and, if it is one, its call."""
    for path in files(root, ".py"):
        nodes = list(ast.walk(module(path))) if root / "tests" in path.parents else []
        calls = {id(node.func): node for node in nodes if isinstance(node, ast.Call)}
        for node in nodes:
            if isinstance(node, ast.Attribute | ast.Name):
                name = ast.unparse(node)
                if re.fullmatch(r"((pytest|mark)\.)*(importorskip|skip|skipif|xfail)", name):
                    yield f"{path}:{node.lineno}", name, calls.get(id(node))


def every_skip_has_a_condition_and_a_reason(root: Path) -> Iterator[str]:
    for place, name, call in skips(root):
        given = {keyword.arg: keyword.value for keyword in call.keywords} if call else {}
        # Inside a test the reason may come first; of a mark and of importorskip it is named.
        first = call.args[:1] if call and name in {"pytest.skip", "pytest.xfail"} else []
        reasons = [ast.unparse(reason) for reason in [*first, given.get("reason")] if reason]
        if reasons in ([], ["''"], ["None"]):
            yield f"{place}: {name} has no reason; say why"
        if name.endswith(("mark.skip", "mark.xfail")) and not (call and call.args):
            yield f"{place}: {name} has no condition; delete the test, or say when"


def skips_are_few(root: Path) -> Iterator[str]:
    places = [place for place, _, _ in skips(root)]
    if len(places) > MOST_SKIPS:
        yield f"{root}/tests: {len(places)} skips ({', '.join(places)}); have {MOST_SKIPS} at most"


# ---- Verbs of make -------------------------------------------------------------------------------


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


def every_verb_that_is_written_down_exists(root: Path) -> Iterator[str]:
    of_root = targets(root / "Makefile")
    of_pattern = targets(root / "pattern.mk") | targets(root / "training.mk")
    for path in files(root, ".md"):
        in_root = path.parent == root
        known = of_root if in_root else of_pattern | targets(path.parent / "Makefile")
        for part in (part for token in tokens(path) for part in [token, *(token.children or [])]):
            for verb, moved in verbs(part.content) if part.tag == "code" else ():
                # In a sentence of the root's README, "in the pattern's directory" stands beside it.
                elsewhere = of_pattern if moved or part.type == "code_inline" else set()
                if verb not in known | elsewhere:
                    yield f"{path}: there is no `make {verb}`; see make help"


def every_verb_with_help_is_shown_by_help(root: Path) -> Iterator[str]:
    for path in (root / "Makefile", root / "pattern.mk", root / "training.mk"):
        text = path.read_text("utf-8")
        phony = {name for line in re.findall(r"^\.PHONY:(.*)", text, re.M) for name in line.split()}
        for name in phony - targets(path):
            yield f"{path}: .PHONY names {name}, which is no target; take it out"
        for names, help_text in re.findall(r"^([\w .-]+):(?!=).*##(.*)", text, re.MULTILINE):
            if not re.fullmatch("[a-z_]+", names) or names not in phony or len(help_text) < 2:
                yield f"{path}: make help does not show {names}; give each a line of its own"


RULES: tuple[Rule, ...] = (
    no_pattern_imports_another,
    what_an_image_runs_imports_neither_tools_nor_tests,
    training_imports_nothing_of_app,
    a_package_imports_its_own_modules_relatively,
    compose_sets_only_what_the_settings_read,
    every_setting_is_read,
    every_setting_has_a_default,
    requirements_are_exported_from_the_lock,
    requirements_are_what_is_imported_or_started,
    lock_and_pipfile_name_no_index_and_no_path,
    lock_has_one_version_of_a_package,
    torch_is_pinned_to_one_version,
    dockerfiles_are_clean_for_hadolint,
    base_images_have_a_version,
    image_runs_as_a_numeric_user_who_is_not_root,
    image_starts_what_compose_starts,
    pip_checks_hashes_in_images,
    docker_context_begins_with_nothing,
    compose_runs_the_same_without_docker,
    long_running_service_has_a_healthcheck,
    built_service_may_do_little,
    images_of_compose_have_a_name_and_a_version,
    tagline_is_the_docstring_of_the_main_module,
    readme_has_the_headings_in_order,
    readme_has_a_diagram,
    readme_plays_from_make_up_to_make_down,
    readme_names_plain_docker_compose,
    readme_has_a_place_for_its_results,
    readme_is_read_in_minutes,
    readme_pastes_no_code,
    how_it_works_links_what_it_names,
    every_relative_link_leads_to_a_file,
    every_directory_of_a_chapter_is_a_whole_pattern,
    every_test_module_of_a_chapter_belongs_to_a_pattern,
    makefile_of_a_pattern_includes_the_verbs,
    results_are_measured_and_hold,
    every_pattern_has_a_row_in_the_index,
    service_has_one_name_everywhere,
    names_say_something,
    no_init_file_is_empty,
    nothing_is_left_to_do,
    no_code_is_commented_out,
    no_pattern_silences_a_whole_checker,
    module_docstring_of_app_is_one_sentence,
    nothing_that_git_ignores_is_committed,
    no_path_is_of_one_machine,
    no_host_is_a_private_one,
    no_mail_address_is_in_a_file,
    no_step_of_ci_may_fail,
    ci_runs_the_command_of_the_readme,
    actions_are_pinned_by_commit,
    workflows_only_read_and_know_no_secret,
    every_skip_has_a_condition_and_a_reason,
    skips_are_few,
    every_verb_that_is_written_down_exists,
    every_verb_with_help_is_shown_by_help,
)


def findings(root: Path, rule: Rule) -> list[str]:
    """Returns what is against a rule, with paths from the root on."""
    root = root.resolve()
    try:
        found = sorted(rule(root))
    # A file that is missing or malformed, in whatever way, is a finding and no traceback.
    except Exception as error:
        found = [f"{rule.__name__}: cannot be checked: {error!r}; write or correct that file"]
    return [finding.replace(f"{root}/", "") for finding in found]


def main() -> int:
    found = [finding for rule in RULES for finding in findings(ROOT, rule)]
    print(*found or [f"{len(RULES)} rules: every one holds"], sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
