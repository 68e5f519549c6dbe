"""The bodies of the requests: different rows, and different numbers of them."""

import json
from random import Random

SEED = 0
# A row is an image of 8 x 8 pixels between these.
FEATURES, LOWEST, HIGHEST = 64, 0, 16
# Most callers ask for one row, and a few for several, which the others then wait for.
ROWS = (1, 1, 1, 1, 1, 1, 1, 1, 2, 3)
DIFFERENT = 100


def bodies() -> list[bytes]:
    """Returns the same bodies in every process."""
    random = Random(SEED)  # noqa: S311

    def row() -> list[int]:
        return [random.randint(LOWEST, HIGHEST) for _ in range(FEATURES)]

    counts = [ROWS[number % len(ROWS)] for number in range(DIFFERENT)]
    return [json.dumps({"data": [row() for _ in range(count)]}).encode() for count in counts]
