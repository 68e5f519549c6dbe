"""Compares renderings with the exemplar, with the committed services, and with each other."""

from collections.abc import Sequence
from pathlib import Path

from ..builder import TEMPLATE, Parameters, read, render
from .baselines import lines_that_differ

HERE = Path(__file__).parents[1]
FILES = sorted((HERE / "services").glob("*.yml"))
EXEMPLAR = HERE.parent / "web_single_pattern"
OF_EXEMPLAR = Parameters(
    name="web_single_pattern",
    tagline=(EXEMPLAR / "README.md").read_text("utf-8").splitlines()[2],
    port=8000,
    dataset="iris",
    model="iris_svc",
)
# What a service has alone: the README of the exemplar shows what was measured.
OWN = (".gitignore", "README.md")
Counts = dict[str, int]


def rendered(folder: Path, template: str, files: Sequence[Path] = FILES) -> list[Path]:
    """Renders services from a template into a folder."""
    for path in files:
        render(read(path), folder / path.stem, template)
    return [folder / path.stem for path in files]


def files_in(folder: Path) -> dict[str, bytes]:
    """Returns the content of each rendered file by name, without what training has left."""
    return {
        name: path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not {"models", "__pycache__", ".local"} & {*path.relative_to(folder).parts}
        and (name := path.relative_to(folder).as_posix())
    }


def count_equal_files(folder: Path) -> tuple[int, Counts, Counts]:
    """Compares renderings with the exemplar, with the services, and with each other."""
    render(OF_EXEMPLAR, folder / "exemplar")
    all_files = files_in(folder / "exemplar")
    exemplar = {name: content for name, content in all_files.items() if name not in OWN}
    services = {path.stem: files_in(HERE / "services" / path.stem) for path in FILES}
    once = {each.name: files_in(each) for each in rendered(folder / "once", str(TEMPLATE))}
    again = {each.name: files_in(each) for each in rendered(folder / "again", str(TEMPLATE))}
    other = {name: count_equal(files, exemplar) for name, files in once.items()}
    return (
        len(exemplar),
        {
            "files_equal_to_web_single": sum(
                (EXEMPLAR / name).read_bytes() == content for name, content in exemplar.items()
            ),
            "renderings_equal": sum(once[name] == again[name] for name in once),
            "hand_written_lines": sum(
                lines_that_differ(once[name], services[name]) for name in services
            ),
        },
        {
            # With the parameters of another service.
            "files_equal_to_web_single": other["iris"],
            "renderings_equal": sum(files == all_files for files in once.values()),
            # In copies of the exemplar.
            "hand_written_lines": sum(
                lines_that_differ(all_files, files) for files in services.values()
            ),
        },
    )


def count_equal(one: dict[str, bytes], other: dict[str, bytes]) -> int:
    return sum(other.get(name) == content for name, content in one.items())
