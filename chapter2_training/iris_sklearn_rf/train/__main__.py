# Copied from chapter2_training/iris_sklearn_svc/train/__main__.py with the support vector classifier that most serving patterns predict with->the random forest that challenges the support vector classifier
"""Trains the random forest that challenges the support vector classifier."""

from functools import partial

from .artifact import command_line
from .iris import SEED
from .model import NAME, train
from .pictures import draw_confusion_matrix
from .recorded import train_recorded


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument(
        "--seed", type=int, default=SEED, help="splits the rows and seeds the training"
    )
    arguments = parser.parse_args()
    if not 0 <= arguments.seed < 2**32:
        parser.error("--seed must be from 0 to 4294967295")
    run_name = f"seed {arguments.seed}"
    trains = partial(train, arguments.seed)
    train_recorded(NAME, run_name, arguments.output, trains, draw_confusion_matrix)


if __name__ == "__main__":
    main()
