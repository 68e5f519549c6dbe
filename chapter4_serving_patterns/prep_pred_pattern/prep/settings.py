"""Settings; the environment variable of each is its name in upper case."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The defaults run on a laptop."""

    # Pydantic reserves names that begin with "model_" unless told otherwise.
    model_config = SettingsConfigDict(protected_namespaces=())

    pred_url: str = "http://127.0.0.1:8001"
    # For one call to pred, with everything that belongs to it.
    deadline_seconds: float = Field(default=5.0, gt=0)
    # A server that does not know pairs needs this off; releasing it correctly is up to you.
    check_pair: bool = True
    # Only what training has found out for preprocessing: the model is with pred.
    model_directory: Path = Path(__file__).parents[1] / "models"
    max_pictures: int = Field(default=16, gt=0)
    max_requests_at_once: int = Field(default=32, gt=0)
    max_body_bytes: int = Field(default=8_000_000, gt=0)
    client_deadline_seconds: float = Field(default=5.0, gt=0)
