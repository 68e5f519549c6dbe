"""Creates the tables, and stores sample items in an empty one."""

import logging

import numpy as np
from sqlalchemy import exists, func, select

from .rows import write_items
from .schema import HIGHEST, LOWEST
from .settings import Settings
from .tables import connect, items, metadata

log = logging.getLogger("seed")
# Arbitrary, but the same for every process that seeds.
SEED_LOCK = 20_230_602
BATCH_ROWS = 10_000
# The standard deviation of what is added to a pixel, so that no two items are equal.
NOISE = 0.5


def seed(settings: Settings) -> int:
    """Returns how many items it has stored; concurrent calls take turns."""
    rows = np.load(settings.model_directory / "rows.npy")
    random = np.random.default_rng(0)
    stored = 0
    with connect(settings).begin() as connection:
        connection.execute(select(func.pg_advisory_xact_lock(SEED_LOCK)))
        metadata.create_all(connection)
        if not connection.scalar(select(exists(select(items)))):
            cursor = connection.connection.cursor()
            for first in range(0, settings.seed_rows, BATCH_ROWS):
                batch = np.arange(first, min(first + BATCH_ROWS, settings.seed_rows)) % len(rows)
                noise = random.normal(0, NOISE, (len(batch), rows.shape[1]))
                values = np.clip(rows[batch] + noise, LOWEST, HIGHEST).astype(np.float32)
                write_items(cursor, values)
                stored += len(batch)
    return stored


def main() -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    log.info("stored %d items", seed(Settings()))


if __name__ == "__main__":
    main()
