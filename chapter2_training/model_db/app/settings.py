"""Settings; the environment variable of each is its name in upper case."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings


class Settings(BaseSettings):
    """The defaults run on a laptop, with a database in a file."""

    database_url: str = f"sqlite:///{Path(__file__).parents[1] / 'model_db.sqlite'}"
    # Separate from the URL, so that a password from a Secret needs no escaping.
    database_password: SecretStr = SecretStr("")
    # Each thread of the API has its own connection. PostgreSQL allows 100 by default. A rollout has
    # at most 5 old pods, 5 new ones and 1 surge pod; with 8 connections each, one for `migrate` and
    # the 3 that PostgreSQL reserves, that makes 92. More pods need a connection pooler.
    database_connections: int = Field(default=8, gt=0)
    # The deadline of a statement, and of waiting for a connection.
    database_deadline_seconds: float = Field(default=2.0, gt=0)

    # The names by which callers reach the API, as JSON: here, from a container of this machine, and
    # on Kubernetes by the name of the Service. IP addresses, which probes use, are always trusted.
    trusted_hosts: list[str] = [
        *("localhost", "host.docker.internal", "api", "api.model-db", "api.model-db.svc"),
        "api.model-db.svc.cluster.local",
    ]

    # How many lists and pages are built at once. Building one takes up to ten times the memory of
    # the response. With this limit, 64 concurrent requests for lists of the largest experiments
    # (8 kB each of parameters, evaluations and paths) took 132 MB of the container's 256 MB, and 64
    # pages took 181 MB. Without it, with 16 threads and 100 rows per list, the lists took 1,020 MB.
    lists_at_once: int = Field(default=4, gt=0)
    # A list request that has waited this long for its turn gets a 503.
    list_wait_seconds: float = Field(default=2.0, gt=0)

    max_requests_at_once: int = Field(default=64, gt=0)
    max_body_bytes: int = Field(default=262_144, gt=0)
    client_deadline_seconds: float = Field(default=5.0, gt=0)
