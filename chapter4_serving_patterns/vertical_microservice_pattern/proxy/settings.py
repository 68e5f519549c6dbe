"""Settings; the environment variable of each is its name in upper case."""

from pathlib import Path

from pydantic import AnyHttpUrl, BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Urls(BaseModel):
    """Where each stage is."""

    model_config = ConfigDict(extra="forbid")

    orientation: AnyHttpUrl
    upright: AnyHttpUrl
    turned: AnyHttpUrl
    second: AnyHttpUrl


class Settings(BaseSettings):
    """The defaults run on a laptop."""

    # Pydantic reserves names that begin with "model_" unless told otherwise.
    model_config = SettingsConfigDict(protected_namespaces=())

    services: Urls = Urls(
        orientation=AnyHttpUrl("http://127.0.0.1:8001"),
        upright=AnyHttpUrl("http://127.0.0.1:8002"),
        turned=AnyHttpUrl("http://127.0.0.1:8003"),
        second=AnyHttpUrl("http://127.0.0.1:8004"),
    )
    # Rows below it are read again: none with 0, and all with more than 1.
    min_confidence: float = Field(default=0.9, ge=0, allow_inf_nan=False)
    # How long a caller waits for all stages together.
    deadline_seconds: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    # Of one stage; a valid answer is much smaller.
    max_answer_bytes: int = Field(default=1_000_000, gt=0)
    # Only metadata.json, for the sample.
    model_directory: Path = Path(__file__).parents[1] / "models"
    # So that a request of all of them fits into a body.
    max_rows: int = Field(default=200, gt=0)
    max_requests_at_once: int = Field(default=256, gt=0)
    max_body_bytes: int = Field(default=131_072, gt=0)
    client_deadline_seconds: float = Field(default=5.0, gt=0)
