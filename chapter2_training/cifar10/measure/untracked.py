"""Runs the pipeline like `python -m train`, but without MLflow, which the claim does not need."""

import sys
from contextlib import closing

from ..train.parameters import parse
from ..train.pipeline import pipeline
from ..train.step import StepError, end_in_order


def main() -> None:
    end_in_order()
    try:
        with closing(pipeline(parse("train", __doc__))) as events:
            for _ in events:
                pass
    except StepError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
