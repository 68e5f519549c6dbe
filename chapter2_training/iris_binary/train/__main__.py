"""Trains a classifier that tells one iris from the other two."""

from functools import partial

from .artifact import command_line
from .iris import LABELS, SEED
from .model import train
from .pictures import draw_confusion_matrix
from .recorded import train_recorded

EXPERIMENT = "iris_binary"


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument(
        "--positive", choices=LABELS, default="virginica", help="the iris whose label is 1"
    )
    parser.add_argument(
        "--seed", type=int, default=SEED, help="splits the rows and seeds the training"
    )
    arguments = parser.parse_args()
    if not 0 <= arguments.seed < 2**32:
        parser.error("--seed must be from 0 to 4294967295")
    run_name = f"{arguments.positive} seed {arguments.seed}"
    trains = partial(train, arguments.positive, arguments.seed)
    train_recorded(EXPERIMENT, run_name, arguments.output, trains, draw_confusion_matrix)


if __name__ == "__main__":
    main()
