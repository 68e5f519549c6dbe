"""Brings the tables of the database to what this version of the API needs."""

import logging
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, func, select

from .database import connect, is_embedded
from .settings import Settings

log = logging.getLogger("uvicorn.error")

# Any number will do that no other program takes in the same database.
LOCK = 4_711


def config() -> Config:
    """Returns what Alembic would read from a file, which an image does not need."""
    found = Config()
    found.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return found


def migrate(engine: Engine) -> None:
    """Runs the migrations that are missing, all in one transaction; several at once take turns.

    A revision that is not known here is that of a newer API. Its migrations keep what this one
    needs, otherwise no update could go on without an outage, so the tables stay as they are.
    """
    with engine.execution_options(writes=True).begin() as connection:
        # SQLite's transaction is a lock by itself.
        if not is_embedded(engine):
            connection.execute(select(func.pg_advisory_xact_lock(LOCK)))
        current = MigrationContext.configure(connection).get_current_revision()
        if current not in {None, *known_revisions()}:
            log.warning("the tables stay as they are: %s is of a newer version", current)
            return
        alembic = config()
        alembic.attributes["connection"] = connection
        command.upgrade(alembic, "head")


def known_revisions() -> set[str]:
    """Returns the revisions that this version of the API has the migrations of."""
    scripts = ScriptDirectory.from_config(config())
    return {script.revision for script in scripts.walk_revisions()}


def outdated_revisions() -> set[str | None]:
    """Returns the revisions that a migration leads away from, None for a database without tables.

    One that is not known here is not among them: with the tables of a newer API this one is ready.
    """
    heads = ScriptDirectory.from_config(config()).get_heads()
    return {None, *(known_revisions() - set(heads))}


def current_revision(engine: Engine) -> str | None:
    """Returns the revision that the database is at."""
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def main() -> None:
    # A migration may take longer than a request.
    migrate(connect(Settings(database_deadline_seconds=3_600)))


if __name__ == "__main__":
    main()
