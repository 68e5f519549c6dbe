"""Settings; the environment variable of each is its name in upper case."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

HERE = Path(__file__).parents[1]


class Settings(BaseSettings):
    """The defaults run on a laptop."""

    # Pydantic reserves names that begin with "model_" unless told otherwise.
    model_config = SettingsConfigDict(protected_namespaces=())

    # Of the proxy: only metadata.json, for the sample.
    model_directory: Path = HERE / "models"
    max_rows: int = Field(default=1_000, gt=0)
    max_requests_at_once: int = Field(default=256, gt=0)
    max_body_bytes: int = Field(default=131_072, gt=0)
    client_deadline_seconds: float = Field(default=5.0, gt=0)

    parameters_file: Path = HERE / "parameters/parameters.yml"
    look_seconds: float = Field(default=0.5, gt=0)
    # The parameters have an entry for each of these.
    model_urls: dict[str, str] = {
        "setosa": "http://127.0.0.1:8000",
        "versicolor": "http://127.0.0.1:8001",
        "virginica": "http://127.0.0.1:8002",
    }
