"""Settings; the environment variable of each is its name in upper case."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

HERE = Path(__file__).parents[1]


class Settings(BaseSettings):
    """The defaults run on a laptop."""

    # Pydantic reserves names that begin with "model_" unless told otherwise.
    model_config = SettingsConfigDict(protected_namespaces=())

    model_directory: Path = HERE / "models"
    max_rows: int = Field(default=1_000, gt=0)
    max_requests_at_once: int = Field(default=256, gt=0)
    max_body_bytes: int = Field(default=131_072, gt=0)
    client_deadline_seconds: float = Field(default=5.0, gt=0)

    # Where each arm leaves what an operator can read, in a folder of its name.
    evidence_directory: Path = HERE / ".local/evidence"
    log_segment_bytes: int = Field(default=8_388_608, gt=0)
    # Beyond it, records are dropped and counted; a record takes about 300 bytes.
    log_max_bytes: int = Field(default=67_108_864, gt=0)
