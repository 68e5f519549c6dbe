"""Downloads or draws the images, converts them for training and measures their colours."""

import json
from pathlib import Path

import numpy as np

from .cifar import (
    LABELS_FILE,
    PIXELS,
    RECORD,
    TEST_FILE,
    TRAIN_FILES,
    DataError,
    fetch,
    labels,
    read_archive,
    records,
)
from .parameters import Parameters
from .shapes import write_archive
from .step import Found, Inputs, StepError, bar, run

# The original file name, so you can put a download there yourself.
ARCHIVE = "cifar-10-binary.tar.gz"


def preprocess(parameters: Parameters, _: Inputs, output: Path) -> Found:
    """Writes train.bin and test.bin, in the format of CIFAR-10's files, and statistics.json.

    Raises:
        StepError: the data are missing or invalid.
    """
    try:
        if parameters.data == "synthetic":
            archive = output / ARCHIVE
            write_archive(archive, parameters.images, parameters.seed)
        else:
            archive = parameters.steps / ARCHIVE
            with bar() as progress:
                task = progress.add_task("preprocess: downloading")
                fetch(
                    parameters.archive_url,
                    parameters.archive_sha256,
                    archive,
                    lambda here, total: progress.update(task, completed=here, total=total or None),
                )
        found = unpack(archive, output, parameters.images)
        statistics = {"labels": found, **colours(output / "train.bin")}
    except DataError as error:
        raise StepError(str(error)) from error
    (output / ARCHIVE).unlink(missing_ok=True)
    (output / "statistics.json").write_text(json.dumps(statistics))
    return {
        f"{part}_images": (output / f"{part}.bin").stat().st_size // RECORD
        for part in ("train", "test")
    }


def unpack(archive: Path, output: Path, most: int) -> list[str]:
    """Writes the first images of each file to train.bin or test.bin; returns the class names."""
    found: list[str] = []
    for name, content in read_archive(archive):
        if name == LABELS_FILE:
            found = labels(content, name)
        else:
            records(content, name)
            (output / name).write_bytes(content[: most * RECORD])
    # The files can be in any order in the archive.
    with (output / "train.bin").open("wb") as train:
        for part in (output / name for name in TRAIN_FILES):
            train.write(part.read_bytes())
            part.unlink()
    (output / TEST_FILE).replace(output / "test.bin")
    return found


def colours(path: Path) -> dict[str, list[float]]:
    """Returns the mean and the standard deviation of each colour, as values from 0 to 255."""
    rows = np.memmap(path, np.uint8, "r").reshape(-1, RECORD)
    # Integer sums do not depend on the order.
    sums, squares = np.zeros(3, np.int64), np.zeros(3, np.int64)
    for start in range(0, len(rows), 1_000):
        values = rows[start : start + 1_000, 1:].reshape(-1, 3, PIXELS // 3).astype(np.int64)
        sums += values.sum((0, 2))
        squares += (values**2).sum((0, 2))
    mean = sums / (len(rows) * (PIXELS // 3))
    deviation = np.sqrt(squares / (len(rows) * (PIXELS // 3)) - mean**2)
    if not deviation.all():
        raise DataError(f"a colour in {path.name} has a single value only: {mean.tolist()}")
    return {"mean": mean.tolist(), "deviation": deviation.tolist()}


if __name__ == "__main__":
    run("preprocess", __doc__, preprocess)
