"""Settings; the environment variable of each is its name in upper case."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

MODELS = Path(__file__).parents[1] / "models"


class Settings(BaseSettings):
    """The defaults run on a laptop."""

    # Pydantic reserves names that begin with "model_" unless told otherwise.
    model_config = SettingsConfigDict(protected_namespaces=())

    # The live version, for procedures.
    model_directory: Path = MODELS
    # Only procedures reads these: the candidate, and the rows that neither version was trained on.
    candidate_directory: Path = MODELS / "plain"
    held_out_file: Path = MODELS / "held_out.npz"
    max_rows: int = Field(default=32, gt=0)
    max_requests_at_once: int = Field(default=256, gt=0)
    max_body_bytes: int = Field(default=65_536, gt=0)
    client_deadline_seconds: float = Field(default=5.0, gt=0)
