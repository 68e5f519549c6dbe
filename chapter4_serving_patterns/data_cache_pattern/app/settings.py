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
    # In one request. A prepared picture takes 0.6 MB, so these two decide how much memory it takes.
    max_pictures: int = Field(default=16, gt=0)
    max_requests_at_once: int = Field(default=16, gt=0)
    # The largest picture that can be stored.
    max_body_bytes: int = Field(default=8_000_000, gt=0)
    client_deadline_seconds: float = Field(default=5.0, gt=0)

    database_url: str = "postgresql+psycopg2://pictures@127.0.0.1:5432/pictures"
    # Separate from the URL, so that a password from a Secret needs no escaping.
    database_password: SecretStr = SecretStr("")
    # PostgreSQL allows 100 by default: 10 pods and one more during a rollout take 44.
    database_connections: int = Field(default=4, gt=0)
    # A request that needs the database gets a 503 after this time.
    database_deadline_seconds: float = Field(default=2.0, gt=0)

    redis_url: str = "redis://127.0.0.1:6379/0"
    # If Redis takes longer than this, the pictures are fetched and prepared.
    redis_deadline_seconds: float = Field(default=0.1, gt=0)
    # For this long, other replicas wait for the one that prepares a picture.
    lease_seconds: float = Field(default=2.0, ge=0.001)
    # Whether each request asks the database for the versions of its pictures, or a prepared picture
    # is used until it expires, whatever has become of the original.
    freshness: Literal["version", "ttl"] = "version"
    # After this time a prepared picture expires.
    ttl_seconds: float = Field(default=3_600.0, ge=0.001)
    # Whether the service `seed` also prepares all pictures.
    prewarm: bool = False
