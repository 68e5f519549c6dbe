"""Trains the small model and the big one, and writes them to models/ and models/big/."""

from rich.console import Console

from . import model, svc
from .artifact import command_line, summary, write_artifact, writing_to

# One row takes 86 ms on the machine where this was measured, nearly all of a deadline of 100 ms.
COPIES = 20_000


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument(
        "--copies",
        type=int,
        default=COPIES,
        help="in how many warped copies the big model classifies each row",
    )
    arguments = parser.parse_args()
    if arguments.copies < 1:
        parser.error("--copies must be at least 1")
    console = Console(soft_wrap=True, highlight=False)
    trained = {
        arguments.output / "big": model.train(arguments.copies),
        arguments.output: svc.train(),
    }
    for directory, artifact in trained.items():
        with writing_to(directory):
            written = write_artifact(directory, *artifact)
        console.print(summary(written, directory))


if __name__ == "__main__":
    main()
