"""Asks questions about the records of an arm: DuckDB reads the JSON lines as they are."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import duckdb
from pydantic import BaseModel

# JSON is built in, and DuckDB downloads nothing else.
CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "memory_limit": "256MB",
    "threads": 1,
}
PARTS = Path(__file__).with_name("questions.sql").read_text("utf-8").split("-- name: ")[1:]
QUESTIONS = {name: query for name, _, query in (part.partition("\n") for part in PARTS)}
# A line that is not JSON becomes a row of NULLs.
TABLES = """
CREATE TABLE lines AS FROM read_json($files, format = 'newline_delimited', ignore_errors = true,
  columns = {kind: 'VARCHAR', id: 'VARCHAR', "at": 'TIMESTAMP', caller: 'VARCHAR',
    status: 'INTEGER', ms: 'DOUBLE', model: 'VARCHAR', replica: 'VARCHAR', "rows": 'DOUBLE[][]',
    labels: 'VARCHAR[]', "count": 'BIGINT'})
"""
VIEWS = """
CREATE VIEW requests AS SELECT * RENAME ("at" AS moment) FROM lines WHERE kind = 'request';
CREATE VIEW outcomes AS SELECT id, labels FROM lines WHERE kind = 'outcome';
"""
COUNTS = """
SELECT count(*) FILTER (kind = 'request'), count(*) FILTER (kind IS NULL),
  coalesce(sum("count") FILTER (kind = 'dropped'), 0)::BIGINT
FROM lines
"""

Rows = list[dict[str, Any]]


class Evidence(BaseModel):
    """How many requests the records are about, what is missing, and the answers."""

    requests: int
    torn: int
    dropped: int
    answers: dict[str, Rows | Literal["no data"]]


def ask(directory: Path, names: list[str], job_id: str | None = None) -> Evidence:
    """Returns the answers to these questions; without a request, each is "no data"."""
    files = sorted(map(str, directory.glob("*.jsonl")))
    if not files:
        return Evidence(requests=0, torn=0, dropped=0, answers=dict.fromkeys(names, "no data"))
    with duckdb.connect(config=CONFIG) as connection:
        connection.execute(TABLES, {"files": files})
        connection.execute(VIEWS)
        ((requests, torn, dropped),) = connection.execute(COUNTS).fetchall()
        answers: dict[str, Rows | Literal["no data"]] = {
            name: rows_of(connection, QUESTIONS[name], job_id) if requests else "no data"
            for name in names
        }
    return Evidence(requests=requests, torn=torn, dropped=dropped, answers=answers)


def rows_of(connection: duckdb.DuckDBPyConnection, query: str, job_id: str | None) -> Rows:
    found = connection.execute(query, {"job": job_id} if "$job" in query else None)
    columns = [column[0] for column in found.description or []]
    return [dict(zip(columns, map(in_utc, row), strict=True)) for row in found.fetchall()]


def in_utc(value: Any) -> Any:
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) else value
