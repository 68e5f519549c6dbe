"""Settings; the environment variable of each is its name in upper case."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The defaults run on a laptop."""

    # Pydantic reserves names that begin with "model_" unless told otherwise.
    model_config = SettingsConfigDict(protected_namespaces=())

    # The heavy model, for the workers; docker-compose.yml gives the API the light one.
    model_directory: Path = Path(__file__).parents[1] / "models"
    max_rows: int = Field(default=32, gt=0)
    max_requests_at_once: int = Field(default=256, gt=0)
    max_body_bytes: int = Field(default=65_536, gt=0)
    client_deadline_seconds: float = Field(default=5.0, gt=0)

    redis_url: str = "redis://127.0.0.1:6379/0"
    # The first answer waits this long for Redis to store the job of the second.
    enqueue_deadline_seconds: float = Field(default=0.05, gt=0)
    # If Redis takes longer than this, a caller who asks for a job gets a 503.
    redis_deadline_seconds: float = Field(default=1.0, gt=0)
    max_pending_jobs: int = Field(default=10_000, gt=0)
    # Callers who wait for a second answer take at most half of the requests at once.
    max_waiting: int = Field(default=128, gt=0)
    # A finished job is deleted after this time, or earlier if finished jobs take more than this
    # memory in Redis: half of it, so that the other half holds new jobs.
    result_ttl_seconds: int = Field(default=3_600, gt=0)
    max_result_bytes: int = Field(default=134_217_728, gt=0)

    # The maximum number of jobs in one call of the model.
    batch_jobs: int = Field(default=32, gt=0)
    # A job goes to another worker when its lease has not been renewed for this long.
    lease_seconds: float = Field(default=5.0, gt=0)
    max_deliveries: int = Field(default=3, gt=0)
    # A worker touches this file between batches, so that a probe can tell if it is stuck.
    alive_file: Path | None = None
