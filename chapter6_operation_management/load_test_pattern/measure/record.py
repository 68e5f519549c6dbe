"""Beside the locustfile, writes down when each request was due and when it ended."""

import os
from pathlib import Path
from time import time
from typing import Any

from locust import events

# One line per request, so that the measurement sees when the load begins.
file = Path(os.environ["RECORD"]).open("w", buffering=1)  # noqa: SIM115


def record(name: str, response_time: float, **_: Any) -> None:
    ended = time()
    file.write(f"{name}\t{ended - response_time / 1000}\t{ended}\n")


events.request.add_listener(record)
