"""Settings; the environment variable of each is its name in upper case."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The defaults run on a laptop."""

    # Pydantic reserves names that begin with "model_" unless told otherwise.
    model_config = SettingsConfigDict(protected_namespaces=())

    model_directory: Path = Path(__file__).parents[1] / "models"
    max_rows: int = Field(default=4, gt=0)
    # Each concurrent request can hold a body of the size below.
    max_requests_at_once: int = Field(default=32, gt=0)
    # One keeps a core busy; each further one needs memory for all activations of the network.
    max_predictions_at_once: int = Field(default=1, gt=0)
    # Fits `max_rows` images with all digits of every number: 25 bytes each, with comma and space.
    max_body_bytes: int = Field(default=327_680, gt=0)
    client_deadline_seconds: float = Field(default=5.0, gt=0)
