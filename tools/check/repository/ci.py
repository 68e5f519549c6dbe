"""Rules about the tests and the CI that runs them."""

import ast
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import yaml

from tools.check.repository.tree import Repository, module, values_of
from tools.check.rules import rule

CI_RUN = ".ci/run"
MOST_SKIPS_OF_A_FILE = 2
# Named as in the table of budgets.
QUICK = "measure --quick"
SOFT_STEP = re.compile(
    r"\|\|\s*(?:true|:|exit 0)(?!\w)|continue-on-error|set \+e|set \+o errexit"
    r"|(?<!\S)(?:-k|--deselect|--ignore(?:-glob)?)(?![\w-])"
    # Only `make changed` may select tests.
    r"|(?<!\S)(?:ARGS|CHAPTER|ONLY|WITHOUT)=(?!\"\$changed\")"
)


def workflows(repository: Repository) -> list[Path]:
    folder = repository.root / ".github/workflows"
    found = [path for path in repository.files if path.parent == folder]
    if not found:
        raise FileNotFoundError(f"there is no workflow in {folder}")
    return found


@rule()
def no_step_of_ci_may_fail(repository: Repository) -> Iterator[str]:
    for path in (repository.root / CI_RUN, *workflows(repository)):
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            if found := SOFT_STEP.search(line.partition("#")[0]):
                yield f"{path}:{number}: `{found[0]}` hides a failure; remove it"
    tools = tomllib.loads((repository.root / "pyproject.toml").read_text("utf-8"))["tool"]
    if found := SOFT_STEP.search(" ".join(tools["pytest"]["ini_options"]["addopts"])):
        yield f"{repository.root}/pyproject.toml: `{found[0]}` skips tests; remove it"


@rule()
def a_workflow_runs_the_script_of_ci(repository: Repository) -> Iterator[str]:
    if not any(CI_RUN in path.read_text("utf-8") for path in workflows(repository)):
        yield f"{repository.root}/.github/workflows: no workflow runs {CI_RUN}; add a step"


@rule()
def actions_are_pinned_by_commit(repository: Repository) -> Iterator[str]:
    for path in workflows(repository):
        for _, action in values_of(yaml.safe_load(path.read_text("utf-8")), "uses"):
            if not re.search(r"@[0-9a-f]{40}$", action):
                yield f"{path}: {action} is not pinned; use @ and the full commit hash"


@rule()
def workflows_only_read_and_know_no_secret(repository: Repository) -> Iterator[str]:
    for path in workflows(repository):
        content = yaml.safe_load(path.read_text("utf-8"))
        if re.search(r"\bsecrets\b", path.read_text("utf-8")):
            yield f"{path}: the workflow uses a secret; remove it"
        if content.get("permissions") is None:
            yield f"{path}: permissions are not set; add permissions: contents: read"
        for _, granted in values_of(content, "permissions"):
            if not isinstance(granted, dict) or set(granted.values()) - {"read", "none"}:
                yield f"{path}: permissions are {granted}; grant only `read`, by name"


def skips(repository: Repository) -> Iterator[tuple[Path, int, str, ast.Call | None]]:
    """Yields the file, line, name and call, if any, of each skip or expected failure."""
    for path in repository.files_ending(".py"):
        nodes = list(ast.walk(module(path))) if repository.root / "tests" in path.parents else []
        calls = {id(node.func): node for node in nodes if isinstance(node, ast.Call)}
        for node in nodes:
            if isinstance(node, ast.Attribute | ast.Name):
                name = ast.unparse(node)
                if re.fullmatch(r"((pytest|mark)\.)*(importorskip|skip|skipif|xfail)", name):
                    yield path, node.lineno, name, calls.get(id(node))


@rule()
def every_skip_has_a_condition_and_a_reason(repository: Repository) -> Iterator[str]:
    for path, line, name, call in skips(repository):
        given = {keyword.arg: keyword.value for keyword in call.keywords} if call else {}
        # pytest.skip and pytest.xfail also accept the reason as their first argument.
        first = call.args[:1] if call and name in {"pytest.skip", "pytest.xfail"} else []
        reasons = [ast.unparse(reason) for reason in [*first, given.get("reason")] if reason]
        if reasons in ([], ["''"], ["None"]):
            yield f"{path}:{line}: {name} has no reason; add one"
        if name.endswith(("mark.skip", "mark.xfail")) and not (call and call.args):
            yield f"{path}:{line}: {name} is unconditional; add a condition or delete the test"


@rule()
def the_tests_of_a_pattern_skip_little(repository: Repository) -> Iterator[str]:
    lines = defaultdict(list)
    for path, line, _, _ in skips(repository):
        lines[path].append(str(line))
    for path, found in lines.items():
        if len(found) > MOST_SKIPS_OF_A_FILE:
            shown = ", ".join(found)
            yield f"{path}: skips on lines {shown}; keep at most {MOST_SKIPS_OF_A_FILE} in a file"


@rule()
def a_quick_measurement_has_its_own_budget(repository: Repository) -> Iterator[str]:
    mark = f'budget("{QUICK}")'
    for path in repository.files_ending(".py"):
        if path.match("tests/chapter*/test_*.py"):
            text = path.read_text("utf-8")
            if '"--quick"' in text and mark not in text:
                yield f"{path}: {QUICK} counts for the whole file; mark its test with {mark}"
