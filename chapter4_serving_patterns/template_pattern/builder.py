"""A file of five lines becomes a service that runs alone, and a new template becomes a merge."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import copier
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

TEMPLATE = Path(__file__).with_name("template")
# In the longest line with this text, a name of 40 characters fits into 100.
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*(_[a-z0-9]+)*$", max_length=40)]
# It becomes a docstring of one line. A full stop, and none before it, makes it one sentence.
Sentence = Annotated[str, Field(pattern=r'^[A-Z][^"\\.!?\n]*\.$', max_length=94)]


class BuilderError(Exception):
    """Nothing was written; the message has a line for each reason."""


class Parameters(BaseModel):
    """What a parameter file says, and nothing else."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Name
    tagline: Sentence
    # Without root, a container cannot listen below 1024.
    port: int = Field(ge=1024, le=65535)
    dataset: Literal["breast_cancer", "digits", "iris", "wine"]
    model: Name


def read(path: Path) -> Parameters:
    """Returns the parameters in a file, or raises a BuilderError.

    It is also an error if a service beside it has the same name or port.
    """
    content = content_of(path)
    if not isinstance(content, dict):
        raise BuilderError(f"{path}: write a line `name: value` for each parameter")
    try:
        parameters = Parameters.model_validate(content)
    except ValidationError as error:
        reasons = [
            f"{path}: {'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()
        ]
        raise BuilderError("\n".join(reasons)) from None
    for other, taken in beside(path):
        for name in ("name", "port"):
            if taken.get(name) == content[name]:
                raise BuilderError(f"{path}: {name}: {other.name} has {content[name]}, too")
    return parameters


def content_of(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BuilderError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise BuilderError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


def beside(path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yields the other parameter files in a directory that can be read."""
    for other in sorted(path.resolve().parent.glob("*.yml")):
        try:
            content = content_of(other) if other != path.resolve() else None
        except BuilderError:
            continue
        if isinstance(content, dict):
            yield other, content


def render(parameters: Parameters, output: Path, template: str = str(TEMPLATE)) -> None:
    """Renders a service into a new or empty directory, or raises a BuilderError.

    A template in a git repository is rendered in its latest tagged version.
    """
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise BuilderError(f"{output} is not empty: remove it, or update it with copier update")
    try:
        copier.run_copy(template, output, parameters.model_dump(), defaults=True, quiet=True)
    # A template of others may fail in any way.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise BuilderError(f"{template}: {type(error).__name__}: {reason}") from error


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m builder", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="parameters, in YAML")
    parser.add_argument("--output", type=Path, help="where services go; default: beside the file")
    parser.add_argument("--template", default=str(TEMPLATE), help="a directory or git repository")
    arguments = parser.parse_args()
    # Where an update finds it, whatever the directory is then.
    is_here = Path(arguments.template).is_dir()
    template = str(Path(arguments.template).resolve()) if is_here else arguments.template
    try:
        # All of them are read before the first is rendered.
        for path, parameters in [(path, read(path)) for path in arguments.files]:
            output = (arguments.output or path.parent) / parameters.name
            render(parameters, output, template)
            files = sum(file.is_file() for file in output.rglob("*"))
            url = f"http://localhost:{parameters.port}"
            sys.stdout.write(
                f"{output} has {files} files; next: make -C {output} up, python contract.py {url}\n"
            )
    except BuilderError as error:
        sys.exit("".join(f"error: {line}\n" for line in str(error).splitlines()).rstrip())


if __name__ == "__main__":
    main()
