# Copied from chapter4_serving_patterns/web_single_pattern/app/settings.py
"""Settings; the environment variable of each is its name in upper case."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The defaults run on a laptop."""

    # Pydantic reserves names that begin with "model_" unless told otherwise.
    model_config = SettingsConfigDict(protected_namespaces=())

    model_directory: Path = Path(__file__).parents[1] / "models"
    max_rows: int = Field(default=1_000, gt=0)
    max_requests_at_once: int = Field(default=256, gt=0)
    max_body_bytes: int = Field(default=131_072, gt=0)
    client_deadline_seconds: float = Field(default=5.0, gt=0)
