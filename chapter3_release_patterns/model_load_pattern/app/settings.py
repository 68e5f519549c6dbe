"""Settings; the environment variable of each is its name in upper case."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

HERE = Path(__file__).parents[1]


class Settings(BaseSettings):
    """The defaults run on a laptop."""

    # Pydantic reserves names that begin with "model_" unless told otherwise.
    model_config = SettingsConfigDict(protected_namespaces=())

    # The address of the model's metadata.json, and its SHA-256. If both are empty, the champion of
    # the registry is loaded.
    model_uri: str = ""
    model_sha256: str = ""
    champion_url: str = "http://127.0.0.1:8001/iris_svc/champion.json"
    # The stores, as in `["https://models.example.com", "s3://models"]`, in which a champion may be.
    # The store of the champion's own address is always allowed.
    champion_stores: list[str] = []
    # The init step writes the model here, and the server reads it.
    model_directory: Path = HERE / ".local/model"
    max_model_bytes: int = Field(default=50_000_000, gt=0)
    load_deadline_seconds: float = Field(default=30.0, gt=0, le=86_400)
    # The directory that the store serves.
    store_directory: Path = HERE / "models"

    max_rows: int = Field(default=1_000, gt=0)
    max_requests_at_once: int = Field(default=256, gt=0)
    max_body_bytes: int = Field(default=131_072, gt=0)
    client_deadline_seconds: float = Field(default=5.0, gt=0)
