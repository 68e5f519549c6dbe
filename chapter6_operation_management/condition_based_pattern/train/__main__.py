"""Trains a model for each condition: upright in models/, upside-down in models/upside-down/."""

from rich.console import Console

from .artifact import command_line, summary, write_artifact, writing_to
from .model import train


def main() -> None:
    output = command_line(__doc__).parse_args().output
    console = Console(soft_wrap=True, highlight=False)
    with writing_to(output):
        # Upright comes last: once models/metadata.json exists, everything does.
        for condition, directory in (
            ("upside-down", output / "upside-down"),
            ("upright", output),
        ):
            written = write_artifact(directory, *train(condition))
            console.print(summary(written, directory))


if __name__ == "__main__":
    main()
