"""What can be set from outside; an environment variable is the upper-cased name."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings


class Settings(BaseSettings):
    """The defaults run on a laptop, with a database in a file."""

    database_url: str = f"sqlite:///{Path(__file__).parents[1] / 'model_db.sqlite'}"
    # Apart from the URL, so that it comes from a Secret as it is, whatever characters it has.
    database_password: SecretStr = SecretStr("")
    # As many threads work, each with a connection; all pods together, those that are ending too,
    # must not have more than PostgreSQL's max_connections, 100 unless it is told otherwise.
    database_connections: int = Field(default=8, gt=0)
    # A statement that takes longer is given up, and so is waiting for a connection.
    database_deadline_seconds: float = Field(default=2.0, gt=0)

    max_requests_at_once: int = Field(default=64, gt=0)
    max_body_bytes: int = Field(default=262_144, gt=0)
    body_deadline_seconds: float = Field(default=5.0, gt=0)
