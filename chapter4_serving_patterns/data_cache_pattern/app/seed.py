"""Creates the table, stores sample pictures in an empty one, and can prepare all of them."""

import asyncio
import io
import logging
import sys

from PIL import Image, ImageChops
from sqlalchemy import exists, func, insert, select

from .pictures import Pictures
from .settings import Settings
from .store import connect, metadata, pictures

log = logging.getLogger("seed")
# Arbitrary, but the same for every process that seeds.
SEED_LOCK = 20_230_603
# As many pixels as a phone's camera takes. Without grain, the file would be a fifth of a camera's.
LARGE, LARGE_SIZE, GRAIN = 3, (4_000, 3_000), 12


def seed(settings: Settings) -> int:
    """Returns how many pictures it has stored; concurrent calls take turns."""
    photos = {path.stem: path for path in (settings.model_directory / "photos").iterdir()}
    engine = connect(settings, 1).execution_options(isolation_level="READ COMMITTED")
    with engine.begin() as connection:
        connection.execute(select(func.pg_advisory_xact_lock(SEED_LOCK)))
        metadata.create_all(connection)
        if connection.scalar(select(exists(select(pictures.c.picture_id)))):
            return 0
        images = {name: path.read_bytes() for name, path in sorted(photos.items())}
        grain = Image.effect_noise(LARGE_SIZE, GRAIN).convert("RGB")
        images |= {f"large-{name}": enlarged(images[name], grain) for name in [*images][:LARGE]}
        rows = [{"picture_id": name, "image": image} for name, image in images.items()]
        connection.execute(insert(pictures), rows)
    return len(rows)


def enlarged(image: bytes, grain: Image.Image) -> bytes:
    with Image.open(io.BytesIO(image)) as photo:
        large = ImageChops.add(photo.resize(LARGE_SIZE), grain, offset=-128)
    content = io.BytesIO()
    large.save(content, "JPEG")
    return content.getvalue()


async def prewarm(settings: Settings) -> tuple[int, int]:
    """Prepares the pictures that are not in the cache; returns how many are, and how many exist."""
    async with Pictures.opened(settings) as prepared:
        rows = await prepared.store.ask(select(pictures.c.picture_id))
        ids = [row.picture_id for row in rows]
        cached = 0
        for start in range(0, len(ids), settings.max_pictures):
            found = await prepared.get_many(ids[start : start + settings.max_pictures])
            cached += found.counts["hits"] + found.counts["stored"]
    return cached, len(ids)


def main() -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    settings = Settings()
    log.info("stored %d pictures", seed(settings))
    if settings.prewarm:
        cached, total = asyncio.run(prewarm(settings))
        log.info("%d of %d pictures are prepared", cached, total)
        sys.exit(cached < total)


if __name__ == "__main__":
    main()
