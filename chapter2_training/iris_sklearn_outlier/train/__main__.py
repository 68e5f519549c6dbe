"""Trains a model that finds unusual flowers without any labels."""

from functools import partial

from .artifact import command_line
from .model import HIGHEST_NU, LOWEST_NU, NAME, NU, train
from .pictures import draw_scores
from .recorded import train_recorded


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument(
        "--nu", type=float, default=NU, help="roughly this share of the rows will be outliers"
    )
    arguments = parser.parse_args()
    if not LOWEST_NU <= arguments.nu <= HIGHEST_NU:
        parser.error(f"--nu must be from {LOWEST_NU} to {HIGHEST_NU}")
    run_name = f"nu {arguments.nu}"
    train_recorded(NAME, run_name, arguments.output, partial(train, arguments.nu), draw_scores)


if __name__ == "__main__":
    main()
