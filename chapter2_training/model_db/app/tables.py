"""Defines the tables: projects, their models, and the experiments that trained them."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import (
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import JSON

IS_CHAMPION = text("stage = 'champion'")


class UtcDateTime(TypeDecorator[datetime]):
    """A UTC time: SQLite stores no time zone, and PostgreSQL returns the session's."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or value.tzinfo is None:
            return value and value.replace(tzinfo=UTC)
        return value.astimezone(UTC)


class Table(DeclarativeBase):
    """The base of every table."""

    # A migration can only change a constraint that has a name.
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        }
    )

    created_datetime: Mapped[datetime] = mapped_column(
        UtcDateTime, default=lambda: datetime.now(UTC), sort_order=99
    )


class Project(Table):
    """A purpose that models are trained for."""

    __tablename__ = "projects"

    project_id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    project_name: Mapped[str] = mapped_column(String(255), unique=True)
    description: Mapped[str | None] = mapped_column(Text)


class Model(Table):
    """A model of a project; its versions are experiments."""

    __tablename__ = "models"
    __table_args__ = (UniqueConstraint("project_id", "model_name"),)

    model_id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    project_id: Mapped[UUID] = mapped_column(ForeignKey(Project.project_id))
    model_name: Mapped[str] = mapped_column(String(255), index=True)
    description: Mapped[str | None] = mapped_column(Text)


class Experiment(Table):
    """One training run of one version of a model, its results, and the paths of its files."""

    __tablename__ = "experiments"
    __table_args__ = (
        UniqueConstraint("model_id", "model_version_id"),
        CheckConstraint("stage IN ('candidate', 'champion', 'retired')", name="stage"),
        # The database itself allows only one champion per model.
        Index(
            "one_champion_a_model",
            "model_id",
            unique=True,
            postgresql_where=IS_CHAMPION,
            sqlite_where=IS_CHAMPION,
        ),
        Index("ix_experiments_model_id_created_datetime", "model_id", "created_datetime"),
    )

    experiment_id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    model_id: Mapped[UUID] = mapped_column(ForeignKey(Model.model_id))
    model_version_id: Mapped[str] = mapped_column(String(255), index=True)
    stage: Mapped[str] = mapped_column(String(16), default="candidate")
    parameters: Mapped[dict[str, Any]] = mapped_column(JSON)
    training_dataset: Mapped[str | None] = mapped_column(Text)
    validation_dataset: Mapped[str | None] = mapped_column(Text)
    test_dataset: Mapped[str | None] = mapped_column(Text)
    evaluations: Mapped[dict[str, Any]] = mapped_column(JSON)
    artifact_file_paths: Mapped[dict[str, str]] = mapped_column(JSON)
    artifact_sha256: Mapped[str | None] = mapped_column(String(64))
