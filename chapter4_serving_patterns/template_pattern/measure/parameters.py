"""Parameter files that are wrong, each in one way."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..builder import BuilderError, read, render
from .baselines import render_with_copier

RIGHT = {
    "name": "spare",
    "tagline": "Tells one from another.",
    "port": "8009",
    "dataset": "iris",
    "model": "spare_svc",
}


def text(**changes: str) -> str:
    return "".join(f"{name}: {value}\n" for name, value in (RIGHT | changes).items())


WRONG = {
    "a missing parameter": text().replace("model: spare_svc\n", ""),
    "an unknown parameter": text(colour="red"),
    "a parameter of another type": text(port='"8009"'),
    "a name that leads elsewhere": text(name="../spare"),
    "a quote in the name": text(name="'sp\"are'"),
    "a capital in the name": text(name="Spare"),
    "port 0": text(port="0"),
    "port 99,999": text(port="99999"),
    "the port of another service": text(port="8000"),
    "an unknown data set": text(dataset="titanic"),
    "a tagline of two sentences": text(tagline="Tells one from another. It is new."),
    "an empty file": "",
    "not YAML": "name: [spare\n",
}
# The service that has the port already.
OTHER = text(name="other", port="8000")


def refusals(folder: Path) -> tuple[dict[str, bool], dict[str, bool]]:
    """Tells which wrong files the builder refuses before a file is written, and which Copier."""
    files = folder / "services"
    files.mkdir()
    (files / "other.yml").write_text(OTHER, "utf-8")
    found: dict[str, bool] = {}
    without: dict[str, bool] = {}
    for number, (name, content) in enumerate(WRONG.items()):
        path = files / "spare.yml"
        path.write_text(content, "utf-8")
        ours, copiers = folder / f"{number}", folder / f"copier-{number}"
        found[name] = refuses(partial(render_file, path, ours), ours, BuilderError)
        without[name] = refuses(partial(render_with_copier, path, copiers), copiers, Exception)
    return found, without


def render_file(path: Path, output: Path) -> None:
    render(read(path), output)


def refuses(attempt: Callable[[], None], output: Path, error: type[Exception]) -> bool:
    """Tells whether an attempt ends with an error before a file is written."""
    try:
        attempt()
    except error:
        return not output.exists()
    return False
