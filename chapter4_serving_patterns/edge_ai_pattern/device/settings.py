"""Settings; the environment variable of each is its name in upper case."""

import os
from pathlib import Path
from typing import get_type_hints

HERE = Path(__file__).parents[1]


class Settings:
    """The defaults run on a laptop; without Pydantic, which would take 25 MB of a small device."""

    publisher_url: str = "http://127.0.0.1:8000"
    # Where the releases are that this device has taken.
    store_directory: Path = HERE / ".local" / "device"
    # The public half of the key that signs releases; it comes with the program.
    public_key_file: Path = HERE / "models" / "public_key"
    max_model_bytes: int = 1_000_000
    update_interval_seconds: float = 60.0
    # How long the publisher may take for one file.
    deadline_seconds: float = 10.0
    # More than this the process refuses itself, as a small device would.
    address_space_mb: int = 192
    # The device touches it while it works.
    alive_file: Path = HERE / ".local" / "device.alive"

    def __init__(self) -> None:
        for name, kind in get_type_hints(Settings).items():
            if text := os.environ.get(name.upper()):
                setattr(self, name, kind(text))
