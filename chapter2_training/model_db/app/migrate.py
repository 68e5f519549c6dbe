"""Migrates the database to the schema that this version of the API needs."""

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

# An arbitrary number that no other program may use in the same database.
LOCK = 4_711


def config() -> Config:
    """Returns the Alembic configuration, so that the image needs no alembic.ini."""
    found = Config()
    found.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return found


def migrate(engine: Engine) -> None:
    """Runs the missing migrations in one transaction; concurrent calls take turns.

    An unknown revision comes from a newer API. Its migrations must keep what this version needs,
    because both run during a rollout, so the tables are left unchanged.
    """
    with engine.execution_options(writes=True).begin() as connection:
        # A writing SQLite transaction already locks the whole file.
        if not is_embedded(engine):
            connection.execute(select(func.pg_advisory_xact_lock(LOCK)))
        current = MigrationContext.configure(connection).get_current_revision()
        if current not in {None, *known_revisions()}:
            log.warning(
                "leaving the tables unchanged: revision %r is from a newer version", current
            )
            return
        alembic = config()
        alembic.attributes["connection"] = connection
        command.upgrade(alembic, "head")


def known_revisions() -> set[str]:
    """Returns the revisions that this version of the API has migrations for."""
    scripts = ScriptDirectory.from_config(config())
    return {script.revision for script in scripts.walk_revisions()}


def outdated_revisions() -> set[str | None]:
    """Returns the known revisions before the newest; None stands for a database without tables.

    Unknown revisions are not outdated: this API also works with the tables of a newer one.
    """
    heads = ScriptDirectory.from_config(config()).get_heads()
    return {None, *(known_revisions() - set(heads))}


def current_revision(engine: Engine) -> str | None:
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def main() -> None:
    # A migration may take longer than a request.
    migrate(connect(Settings(database_deadline_seconds=3_600)))


if __name__ == "__main__":
    main()
