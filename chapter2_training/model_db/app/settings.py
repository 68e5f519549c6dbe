"""What can be set from outside; an environment variable is the upper-cased name."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings


class Settings(BaseSettings):
    """The defaults run on a laptop, with a database in a file."""

    database_url: str = f"sqlite:///{Path(__file__).parents[1] / 'model_db.sqlite'}"
    # Apart from the URL, so that it comes from a Secret as it is, whatever characters it has.
    database_password: SecretStr = SecretStr("")
    # The API has as many threads, each with a connection. In a rollout there are at most 5 pods,
    # one more, and 5 that end: (5 + 1 + 5) x 8, one for `migrate` and 3 that PostgreSQL reserves
    # are 92 of the 100 that it allows unless told otherwise. More pods need a pooler.
    database_connections: int = Field(default=8, gt=0)
    # A statement that takes longer is given up, and so is waiting for a connection.
    database_deadline_seconds: float = Field(default=2.0, gt=0)

    # How many lists and pages are put together at once, which takes up to ten times the memory of
    # the answer. 64 requests for lists of the largest experiments, with 8 kB each of parameters,
    # evaluations and paths, took 132 MB of the container's 256, and 64 pages took 181 MB. With 16
    # threads, 100 rows a list and no such bound, the lists took 1,020 MB.
    lists_at_once: int = Field(default=4, gt=0)
    # A list that has waited so long for its turn is refused, with 503.
    list_wait_seconds: float = Field(default=2.0, gt=0)

    max_requests_at_once: int = Field(default=64, gt=0)
    max_body_bytes: int = Field(default=262_144, gt=0)
    client_deadline_seconds: float = Field(default=5.0, gt=0)
