"""Settings; the environment variable of each is its name in upper case."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The defaults run on a laptop."""

    # Pydantic reserves names that begin with "model_" unless told otherwise.
    model_config = SettingsConfigDict(protected_namespaces=())

    model_directory: Path = Path(__file__).parents[1] / "models"
    max_rows: int = Field(default=32, gt=0)
    max_requests_at_once: int = Field(default=256, gt=0)
    max_body_bytes: int = Field(default=65_536, gt=0)
    client_deadline_seconds: float = Field(default=5.0, gt=0)

    redis_url: str = "redis://127.0.0.1:6379/0"
    # If Redis takes longer than this, the prediction is computed.
    redis_deadline_seconds: float = Field(default=0.05, gt=0)
    # A prediction that is older is computed again.
    ttl_seconds: float = Field(default=3_600.0, ge=0.001)
    # For this long, other replicas wait for the one that computes a prediction. It should be longer
    # than a request waits for the model and its predictions take.
    lease_seconds: float = Field(default=2.0, ge=0.001)
    # Whether the model waits until Redis has no prediction, or both are asked at the same time.
    lookup: Literal["sequential", "parallel"] = "sequential"
