# Copied from chapter4_serving_patterns/asynchronous_pattern/train/__main__.py
"""Trains the model and writes it to models/, where the server loads it from."""

from rich.console import Console

from .artifact import command_line, summary, write_artifact, writing_to
from .model import COPIES, train


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument(
        "--copies",
        type=int,
        default=COPIES,
        help="in how many warped copies each row is classified; more copies make the model slower",
    )
    arguments = parser.parse_args()
    if arguments.copies < 1:
        parser.error("--copies must be at least 1")
    model, metadata = train(arguments.copies)
    with writing_to(arguments.output):
        written = write_artifact(arguments.output, model, metadata)
    Console(soft_wrap=True, highlight=False).print(summary(written, arguments.output))


if __name__ == "__main__":
    main()
