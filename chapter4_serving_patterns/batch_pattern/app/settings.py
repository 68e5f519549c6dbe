"""Settings; the environment variable of each is its name in upper case."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The defaults run on a laptop."""

    # Pydantic reserves names that begin with "model_" unless told otherwise.
    model_config = SettingsConfigDict(protected_namespaces=())

    model_directory: Path = Path(__file__).parents[1] / "models"
    max_rows: int = Field(default=1_000, gt=0)
    max_requests_at_once: int = Field(default=64, gt=0)
    max_body_bytes: int = Field(default=1_048_576, gt=0)
    client_deadline_seconds: float = Field(default=5.0, gt=0)

    database_url: str = "postgresql+psycopg2://batch@127.0.0.1:5432/batch"
    # Separate from the URL, so that a password from a Secret needs no escaping.
    database_password: SecretStr = SecretStr("")
    # Each thread of the API has one, a job two. PostgreSQL allows 100 by default: 5 pods of the API
    # and one more during a rollout take 60.
    database_connections: int = Field(default=10, gt=0)
    # A request gets a 503 after this time, and a job ends that has done nothing for so long.
    database_deadline_seconds: float = Field(default=10.0, gt=0)
    # How many items the service `seed` stores in an empty table.
    seed_rows: int = Field(default=100_000, ge=0)

    # The rows of one transaction: what a kill takes away at most, and the memory of a job.
    chunk_rows: int = Field(default=5_000, gt=0)
    # After so many attempts a chunk is given up, whether they failed or killed their process.
    max_attempts: int = Field(default=3, gt=0)
    # What to do about a chunk that has failed: predict it again, predict all chunks of the job
    # again, or leave it to the next job.
    retry: Literal["failed", "all", "next"] = "failed"
    # How long a job may take, from its plan.
    window_seconds: float = Field(default=3_600, gt=0)
