"""Settings; the environment variable of each is its name in upper case."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The defaults run on a laptop."""

    # Pydantic reserves names that begin with "model_" unless told otherwise.
    model_config = SettingsConfigDict(protected_namespaces=())

    model_directory: Path = Path(__file__).parents[1] / "models"
    # The width of a row: a model of another width is refused.
    features: int = Field(default=64, gt=0)
    # As many as the proxy accepts; what it sends is longer than what it gets.
    max_rows: int = Field(default=200, gt=0)
    max_body_bytes: int = Field(default=262_144, gt=0)
    max_requests_at_once: int = Field(default=256, gt=0)
    client_deadline_seconds: float = Field(default=5.0, gt=0)
