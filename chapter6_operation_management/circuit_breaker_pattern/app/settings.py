# Copied from chapter4_serving_patterns/web_single_pattern/app/settings.py with 1_000->32
"""What can be set from outside; an environment variable is the upper-cased name."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The defaults run on a laptop."""

    # Without this, pydantic claims every name that starts with "model_" for itself.
    model_config = SettingsConfigDict(protected_namespaces=())

    model_directory: Path = Path(__file__).parents[1] / "models"
    max_rows: int = Field(default=32, gt=0)
    max_requests_at_once: int = Field(default=256, gt=0)
    max_body_bytes: int = Field(default=262_144, gt=0)
    client_deadline_seconds: float = Field(default=5.0, gt=0)
