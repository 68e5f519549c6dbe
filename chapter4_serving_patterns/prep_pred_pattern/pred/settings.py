"""Settings; the environment variable of each is its name in upper case."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The defaults run on a laptop."""

    # Pydantic reserves names that begin with "model_" unless told otherwise.
    model_config = SettingsConfigDict(protected_namespaces=())

    model_directory: Path = Path(__file__).parents[1] / "models"
    max_pictures: int = Field(default=16, gt=0)
    max_requests_at_once: int = Field(default=32, gt=0)
    # The tensors of 16 pictures of 3 x 224 x 224, and a header.
    max_body_bytes: int = Field(default=9_700_000, gt=0)
    client_deadline_seconds: float = Field(default=5.0, gt=0)
