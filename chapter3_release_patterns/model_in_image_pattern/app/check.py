"""Loads the model and predicts its sample, so that a broken release is known before it serves."""

import sys

from .model import Model, ModelError
from .row import FEATURES
from .settings import Settings


def main() -> None:
    try:
        model = Model(Settings().model_directory, FEATURES)
    except ModelError as error:
        sys.exit(f"error: {error}")
    model.predict(model.sample)


if __name__ == "__main__":
    main()
