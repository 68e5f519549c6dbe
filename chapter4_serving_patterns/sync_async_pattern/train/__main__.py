"""Trains both models: the heavy one goes to models/, the light one to models/light/."""

from rich.console import Console

from . import heavy, model
from .artifact import command_line, summary, write_artifact, writing_to


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument(
        "--copies",
        type=int,
        default=heavy.COPIES,
        help="in how many warped copies the heavy model classifies each row; more make it slower",
    )
    arguments = parser.parse_args()
    if arguments.copies < 1:
        parser.error("--copies must be at least 1")
    light, light_metadata = model.train(1)
    console = Console(soft_wrap=True, highlight=False)
    with writing_to(arguments.output):
        # The light one first: once models/metadata.json exists, everything does.
        for directory, trained in (
            (arguments.output / "light", (light, light_metadata)),
            (arguments.output, heavy.train(arguments.copies, light_metadata)),
        ):
            written = write_artifact(directory, *trained)
            console.print(summary(written, directory))


if __name__ == "__main__":
    main()
