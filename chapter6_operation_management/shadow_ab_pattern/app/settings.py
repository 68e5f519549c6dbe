"""Settings; the environment variable of each is its name in upper case."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

HERE = Path(__file__).parents[1]


class Settings(BaseSettings):
    """The defaults run on a laptop."""

    # Pydantic reserves names that begin with "model_" unless told otherwise.
    model_config = SettingsConfigDict(protected_namespaces=())

    model_directory: Path = HERE / "models"
    # The name of this version in the log, and whether it is the one that callers hear. A mirrored
    # request is equal to its original, so a shadow cannot see that it is one.
    arm: str = Field(default="svc", pattern="^[a-z0-9-]{1,30}$")
    role: Literal["live", "shadow"] = "live"
    max_rows: int = Field(default=1_000, gt=0)
    max_requests_at_once: int = Field(default=256, gt=0)
    max_body_bytes: int = Field(default=131_072, gt=0)
    client_deadline_seconds: float = Field(default=5.0, gt=0)

    log_directory: Path = HERE / ".local/log"
    log_segment_bytes: int = Field(default=8_388_608, gt=0)
    # Beyond it, records are dropped and counted: some hours without PostgreSQL at 100 requests per
    # second take 100 MB each.
    log_max_bytes: int = Field(default=268_435_456, gt=0)

    database_url: str = "postgresql+psycopg2://records@127.0.0.1:5432/records"
    # Separate from the URL, so that a password from a Secret needs no escaping.
    database_password: SecretStr = SecretStr("")
    database_connections: int = Field(default=10, gt=0)
    database_deadline_seconds: float = Field(default=10.0, gt=0)
    # Days are deleted as a whole, counted from when they were stored.
    retention_days: int = Field(default=30, gt=0)
    # The shipper touches this file in each round, so that a probe can tell if it is stuck.
    alive_file: Path | None = None

    # What the report compares, and by which rule.
    live_arm: str = Field(default="svc", pattern="^[a-z0-9-]{1,30}$")
    shadow_arm: str = Field(default="rf", pattern="^[a-z0-9-]{1,30}$")
    rule_file: Path = HERE / "rule/rule.yml"
    # A request counts as unpaired if one of its records is still missing after this time.
    settle_seconds: float = Field(default=5.0, ge=0)
