"""Updates a service that its team has edited to the next version of its template."""

import resource
from pathlib import Path

import copier

from ..builder import read, render
from .baselines import render_with_copier
from .releases import SECOND, change, changed, commit, git

ENDPOINT = """@app.get("/team", tags=["health"])
async def team() -> str:
    return "ours"


"""
# What a team changes in its service: the file, the place, and the text that it has then.
EDITS = {
    "an endpoint": ("app/main.py", '@app.get("/health"', ENDPOINT + '@app.get("/health"'),
    "a penalty": ("train/model.py", "PENALTY = 1.0", "PENALTY = 0.5"),
    "a line of the README": ("README.md", "make down\n```\n", "make down\n```\n\nAsk Ada.\n"),
}
# The second version changes this line, too.
CONFLICT = ("app/settings.py", "Field(default=5.0", "Field(default=2.0")


def edit(service: Path) -> None:
    for name, old, new in (*EDITS.values(), CONFLICT):
        change(service, [(name, old, new)])


def kept(service: Path) -> int:
    """Returns how many edits a service has, if it also has the second version."""
    is_second = all(
        new in (service / name.removesuffix(".jinja")).read_text("utf-8") for name, _, new in SECOND
    )
    texts = {name: (service / name).read_text("utf-8") for name, _, _ in EDITS.values()}
    return sum(new in texts[name] for name, _, new in EDITS.values()) if is_second else 0


def conflicts(service: Path) -> int:
    """Returns how many conflicting edits git reports with both texts in the file."""
    name, _, ours = CONFLICT
    text = (service / name).read_text("utf-8")
    is_unmerged = git(service, "status", "--porcelain", name).startswith("U")
    return int(is_unmerged and "<<<<<<<" in text and ours in text and SECOND[0][2] in text)


def cpu_seconds() -> float:
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def update(parameters: Path, folder: Path) -> tuple[dict[str, int], dict[str, int], float]:
    """Returns the counts of an update, those of rendering anew, and the CPU time of the update."""
    template = folder / "template"
    changed(template, [])
    commit(template, "The first version", tag="v1")
    services = folder / "updated", folder / "anew"
    for service in services:
        render(read(parameters), service, str(template))
        commit(service, "Rendered")
        edit(service)
        commit(service, "Edited")
    change(template, SECOND)
    commit(template, "The second version", tag="v2")
    updated, anew = services
    before = cpu_seconds()
    copier.run_update(updated, defaults=True, overwrite=True, quiet=True)
    used = cpu_seconds() - before
    render_with_copier(parameters, anew, str(template))
    return (
        {"edits_kept": kept(updated), "conflicts_reported": conflicts(updated)},
        {"edits_kept": kept(anew), "conflicts_reported": conflicts(anew)},
        used,
    )
