"""Loads the model and predicts its sample, so that a broken release is known before it serves."""

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
    # The name of the directory is the tag, and /metadata has to say the same.
    version, name = model.metadata.get("version"), directory.absolute().name
    if version != name:
        sys.exit(f"error: {directory}: metadata.json says version {version}, and not {name}")
    model.predict(model.sample)


if __name__ == "__main__":
    main()
