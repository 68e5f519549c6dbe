"""Loads the model and predicts its sample, to find a broken release before it serves."""

import sys

from .model import Model, ModelError
from .schema import FEATURES
from .settings import Settings


def main() -> None:
    directory = Settings().model_directory
    try:
        model = Model(directory, FEATURES)
    except ModelError as error:
        sys.exit(f"error: {error}")
    # The directory is named after the tag, and /metadata must report the same version.
    version, name = model.metadata.get("version"), directory.absolute().name
    if version != name:
        sys.exit(f"error: {directory}: metadata.json says version {version}, not {name}")
    model.predict(model.sample)


if __name__ == "__main__":
    main()
