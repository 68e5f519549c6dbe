"""A device: it predicts all the time, and in another thread asks for updates of its model."""

import logging
import resource
import signal
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from .settings import Settings
from .update import Installed, RefusedError, Source, key_of, load, update

log = logging.getLogger("device")

# How often the sensor has something to predict.
SENSOR_SECONDS = 1.0


class Device:
    """Holds the model that is installed, and counts what it has predicted."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = settings.store_directory
        self.store.mkdir(parents=True, exist_ok=True)
        self.source = Source(
            settings.publisher_url,
            name_of(self.store),
            key_of(settings.public_key_file),
            settings.max_model_bytes,
            settings.deadline_seconds,
        )
        self.installed: Installed | None = load(self.store)
        self.predicted = 0

    def predict(self) -> None:
        """Predicts what its sensor has seen: a simulation that shows the golden rows again."""
        if installed := self.installed:
            self.predicted += len(installed.model.run(installed.release.golden["rows"]))

    def update(self) -> str:
        """Asks for an update, and returns in words what has come of it."""
        try:
            taken = update(self.store, self.source, datetime.now(UTC))
        except RefusedError as error:
            return f"refused: {error}"
        # MemoryError: a device without memory for two models keeps the one that it has.
        except (OSError, MemoryError) as error:
            return f"no update: {type(error).__name__}"
        if taken is None:
            return "up to date"
        self.installed = taken
        return f"updated to version {taken.release.version}"

    def run_updates(self, stopping: threading.Event) -> None:
        """Asks for updates until `stopping` is set, and logs a line each time."""
        while not stopping.is_set():
            outcome = self.update()
            version = self.installed.release.version if self.installed else 0
            predicted, self.predicted = self.predicted, 0
            log.info("version %d has predicted %d rows; %s", version, predicted, outcome)
            stopping.wait(self.settings.update_interval_seconds)

    def run(self, stopping: threading.Event) -> None:
        """Predicts until `stopping` is set, whatever the network does."""
        threading.Thread(target=self.run_updates, args=[stopping], daemon=True).start()
        while not stopping.wait(SENSOR_SECONDS):
            self.predict()
            self.settings.alive_file.touch()
        # A probe of the next process must not find the file of this one.
        self.settings.alive_file.unlink(missing_ok=True)


def name_of(store: Path) -> str:
    """Returns the random name by which the publisher can count this device."""
    path = store / "name"
    if not path.exists():
        path.write_text(uuid4().hex, "utf-8")
    return path.read_text("utf-8")


def limit_address_space(megabytes: int) -> None:
    """Lets the process have no more memory than a small device; only Linux keeps to it."""
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (megabytes * 2**20, megabytes * 2**20))


def stopped_by(stopping: threading.Event) -> Callable[[int, object], None]:
    return lambda number, frame: stopping.set()


def main() -> None:
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    settings = Settings()
    limit_address_space(settings.address_space_mb)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stopped_by(stopping))
    device = Device(settings)
    log.info("device %s has started", device.source.device[:8])
    device.run(stopping)


if __name__ == "__main__":
    main()
