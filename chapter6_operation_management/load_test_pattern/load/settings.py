"""Settings; the environment variable of each is its name in upper case."""

import sys
from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings


class Settings(BaseSettings):
    """The defaults fit one API on a laptop."""

    objective_p99_ms: float = Field(default=250.0, gt=0, allow_inf_nan=False)
    objective_error_share: float = Field(default=0.001, ge=0, lt=1)
    # Requests per second, which the last of the steps offers.
    rate: float = Field(default=40.0, gt=0, le=10_000)
    steps: int = Field(default=5, ge=1, le=100)
    step_seconds: float = Field(default=10.0, ge=1, le=3_600)
    # If the generator is later than this, the figures are about the generator.
    max_lag_p99_ms: float = Field(default=20.0, gt=0)
    # What a process has in flight at most. Other requests wait, and the schedule counts that.
    connections: int = Field(default=10, ge=1, le=5_000)
    # Load goes to no other host: somebody else's service would take it for an attack.
    load_hosts: str = "api,127.0.0.1,localhost"
    # A worker touches it whenever it hears from the master.
    alive_file: Path | None = None


def read() -> Settings:
    """Reads the settings, or ends the program with one line that says which of them is wrong."""
    try:
        return Settings()
    except ValidationError as error:
        wrong = [f"{each['loc'][0]} is {each['input']!r}: {each['msg']}" for each in error.errors()]
        sys.exit(f"error: {'; '.join(wrong)}")


settings = read()
