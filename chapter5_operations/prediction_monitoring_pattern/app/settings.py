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
    outlier_model_directory: Path = HERE / "models/outlier"
    # A row with a lower score is an outlier.
    outlier_lower_threshold: float = Field(default=0.0, allow_inf_nan=False)
    max_rows: int = Field(default=1_000, gt=0)
    max_requests_at_once: int = Field(default=256, gt=0)
    max_body_bytes: int = Field(default=131_072, gt=0)
    client_deadline_seconds: float = Field(default=5.0, gt=0)

    log_directory: Path = HERE / ".local/log"
    log_segment_bytes: int = Field(default=8_388_608, gt=0)
    # Beyond it, records are dropped and counted: some hours without PostgreSQL at 100 requests per
    # second take 100 MB each.
    log_max_bytes: int = Field(default=268_435_456, gt=0)
    # The share of predictions that is logged; refusals, outliers and events always are.
    log_sample: float = Field(default=1.0, gt=0, le=1)
    # Whether a prediction without a record gets a 503.
    log_required: bool = False

    database_url: str = "postgresql+psycopg2://records@127.0.0.1:5432/records"
    # Separate from the URL, so that a password from a Secret needs no escaping.
    database_password: SecretStr = SecretStr("")
    database_connections: int = Field(default=10, gt=0)
    database_deadline_seconds: float = Field(default=10.0, gt=0)
    # Days are deleted as a whole, counted from when they were stored.
    retention_days: int = Field(default=30, gt=0)
    # What the windows of a model are compared with: its first predictions.
    baseline_rows: int = Field(default=1_000, ge=60)
    # How long outcomes of the baseline may take.
    baseline_wait_seconds: float = Field(default=5.0, ge=0)
    window_seconds: float = Field(default=60.0, gt=0)
    # How long a window waits for what other replicas have to ship.
    window_grace_seconds: float = Field(default=1.0, ge=0)

    # What the simulated callers do.
    api_url: str = "http://127.0.0.1:8000"
    api_deadline_seconds: float = Field(default=5.0, gt=0)
    requests_per_second: float = Field(default=20.0, gt=0)
    # Sent at once, so that there is a baseline.
    first_requests: int = Field(default=1_000, ge=0)
    outcome_share: float = Field(default=0.3, ge=0, le=1)
    outcome_delay_seconds: float = Field(default=2.0, ge=0)

    # The shipper touches this file in each round, so that a probe can tell if it is stuck.
    alive_file: Path | None = None
