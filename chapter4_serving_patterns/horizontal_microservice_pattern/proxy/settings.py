"""Settings; the environment variable of each is its name in upper case."""

from pathlib import Path
from typing import Annotated

from pydantic import AnyHttpUrl, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

# It is a key of an answer and part of a header.
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]


class Settings(BaseSettings):
    """The defaults run on a laptop."""

    # Pydantic reserves names that begin with "model_" unless told otherwise.
    model_config = SettingsConfigDict(protected_namespaces=())

    # The label of each service is its name.
    services: dict[Name, AnyHttpUrl] = Field(
        min_length=1,
        default={
            "setosa": AnyHttpUrl("http://127.0.0.1:8000"),
            "versicolor": AnyHttpUrl("http://127.0.0.1:8001"),
            "virginica": AnyHttpUrl("http://127.0.0.1:8002"),
        },
    )
    # How long a caller waits for all services together.
    deadline_seconds: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    # Of one service; a valid answer is much smaller.
    max_answer_bytes: int = Field(default=1_000_000, gt=0)
    # Only metadata.json, for the sample.
    model_directory: Path = Path(__file__).parents[1] / "models"
    max_rows: int = Field(default=1_000, gt=0)
    max_requests_at_once: int = Field(default=256, gt=0)
    max_body_bytes: int = Field(default=131_072, gt=0)
    client_deadline_seconds: float = Field(default=5.0, gt=0)
