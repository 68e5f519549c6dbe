"""Settings; the environment variable of each is its name in upper case."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

HERE = Path(__file__).parents[1]


class Settings(BaseSettings):
    """The defaults run on a laptop."""

    # Pydantic reserves names that begin with "model_" unless told otherwise.
    model_config = SettingsConfigDict(protected_namespaces=())

    model_directory: Path = HERE / "models"
    # The name of this version in the log and in experiment.yml.
    arm: str = Field(default="svc", pattern="^[a-z0-9-]{1,30}$")
    # Without it, the users could be found by hashing all IDs. The same for both versions.
    user_salt: SecretStr = Field(default=SecretStr("for-this-machine-only"), min_length=8)
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
    # The shipper and the switch touch this file in each round, so that a probe can tell if one is
    # stuck.
    alive_file: Path | None = None

    experiment_file: Path = HERE / "experiment/experiment.yml"
    # How long a record may take to PostgreSQL.
    settle_seconds: float = Field(default=5.0, ge=0)
    # Whether the switch changes the weight, or only says that it has to be changed.
    act: bool = True
    admin_url: str = "http://127.0.0.1:9901"

    # Simulated users, and how often those of each version accept its answer.
    mesh_url: str = "http://127.0.0.1:8000"
    simulated_users: int = Field(default=600, gt=0, le=1_000_000)
    simulated_rate_svc: float = Field(default=0.8, ge=0, le=1)
    simulated_rate_rf: float = Field(default=0.95, ge=0, le=1)
