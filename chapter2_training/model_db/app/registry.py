"""Reads and writes the registry so that concurrent writers never overwrite each other."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, func, inspect, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased, defer

from .schema import check_size
from .tables import Experiment, Model, Project, Table

Stored = TypeVar("Stored", bound=Table)
Named = TypeVar("Named", Project, Model)


class UnknownError(Exception):
    """No row has this id or name."""


class ConflictError(Exception):
    """The request contradicts the stored state."""


def get(session: Session, table: type[Stored], row_id: UUID) -> Stored:
    """Returns a row by its id.

    Raises:
        UnknownError: it does not exist.
    """
    if row := session.get(table, row_id):
        return row
    raise UnknownError(f"there is no {table.__name__.lower()} {row_id}")


def project_of_name(session: Session, project_name: str) -> Project:
    """Returns a project by its name.

    Raises:
        UnknownError: it does not exist.
    """
    if project := session.scalar(select(Project).where(Project.project_name == project_name)):
        return project
    raise UnknownError(f"there is no project {project_name}")


def select_page(
    session: Session,
    table: type[Stored],
    conditions: Sequence[ColumnElement[bool]],
    limit: int,
    offset: int,
) -> tuple[int, Sequence[Stored]]:
    """Returns how many rows meet the conditions, and one page of them, oldest first.

    Rows are timestamped before commit, so paging during writes can repeat a row or miss a late one.
    """
    total = session.scalar(select(func.count()).select_from(table).where(*conditions))
    keys = inspect(table).primary_key
    rows = select(table).where(*conditions).order_by(table.created_datetime, *keys)
    return total or 0, session.scalars(rows.limit(limit).offset(offset)).all()


def insert(session: Session, row: Table) -> bool:
    """Inserts a row; returns False if its name is taken, even by a concurrent insert."""
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:
        return False
    return True


def find_or_add(session: Session, same: ColumnElement[bool], row: Named) -> tuple[Named, bool]:
    """Returns the row with this name, and whether this call added it.

    Raises:
        ConflictError: it exists with a different description.
    """
    found = select(type(row)).where(same)
    existing = session.scalar(found)
    if existing is None and insert(session, row):
        return row, True
    existing = existing or session.scalars(found).one()
    if row.description not in (None, existing.description):
        raise ConflictError("it already exists with a different description")
    return existing, False


def add_project(session: Session, project: Project) -> tuple[Project, bool]:
    """Returns the project with this name, and whether this call added it."""
    return find_or_add(session, Project.project_name == project.project_name, project)


def add_model(session: Session, model: Model) -> tuple[Model, bool]:
    """Returns the model with this name in its project, and whether this call added it.

    Raises:
        UnknownError: the project does not exist.
    """
    get(session, Project, model.project_id)
    same = (Model.project_id == model.project_id) & (Model.model_name == model.model_name)
    return find_or_add(session, same, model)


def add_experiment(session: Session, experiment: Experiment) -> Experiment:
    """Adds the experiment of a new version.

    Raises:
        UnknownError: the model does not exist.
        ConflictError: the model already has this version.
    """
    get(session, Model, experiment.model_id)
    if insert(session, experiment):
        return experiment
    existing = session.scalars(
        select(Experiment.experiment_id).where(
            Experiment.model_id == experiment.model_id,
            Experiment.model_version_id == experiment.model_version_id,
        )
    ).one()
    raise ConflictError(
        f"version {experiment.model_version_id} already exists as experiment {existing}"
    )


def merge(
    session: Session,
    experiment_id: UUID,
    column: Literal["evaluations", "artifact_file_paths"],
    added: dict[str, Any],
) -> Experiment:
    """Adds keys to a column of an experiment and keeps those that others have added.

    Raises:
        UnknownError: the experiment does not exist.
        ConflictError: together with the stored keys it would be too large.
    """
    # Locked before it is read, so that a concurrent merge sees the keys written here.
    experiment = session.get(Experiment, experiment_id, with_for_update=True)
    if experiment is None:
        raise UnknownError(f"there is no experiment {experiment_id}")
    # SQLAlchemy does not notice a change inside the old dict, so this makes a new one.
    merged = {**getattr(experiment, column), **added}
    try:
        setattr(experiment, column, check_size(merged))
    except ValueError as error:
        raise ConflictError(f"together with the stored keys, {error}") from None
    return experiment


def promote(session: Session, experiment_id: UUID, expected: UUID | None) -> Experiment:
    """Makes an experiment the champion of its model in place of the expected one.

    Raises:
        UnknownError: the experiment does not exist.
        ConflictError: the current champion is not the expected one.
    """
    # The lock makes promotions of the same model take turns, so the second sees the first.
    model = session.scalar(
        select(Model)
        .join(Experiment)
        .where(Experiment.experiment_id == experiment_id)
        .with_for_update(of=Model)
    )
    if model is None:
        raise UnknownError(f"there is no experiment {experiment_id}")
    experiment = session.scalars(
        select(Experiment).where(Experiment.experiment_id == experiment_id)
    ).one()
    # A caller that retries after a lost response gets the same response.
    if experiment.stage == "champion":
        return experiment
    champion = champion_of(session, model.model_id)
    if (champion and champion.experiment_id) != expected:
        current = champion.experiment_id if champion else "none"
        raise ConflictError(f"the champion is {current}, not {expected or 'none'}")
    if champion:
        champion.stage = "retired"
        # The unique index allows one champion at a time, so the old one is retired first.
        session.flush()
    experiment.stage = "champion"
    return experiment


def champion_of(session: Session, model_id: UUID) -> Experiment | None:
    """Returns the champion of a model, None before the first promotion."""
    champions = select(Experiment).where(
        Experiment.model_id == model_id, Experiment.stage == "champion"
    )
    return session.scalar(champions)


def champion_of_name(session: Session, model_name: str, project_name: str | None) -> Experiment:
    """Returns the champion of the model with this name.

    Raises:
        UnknownError: the model does not exist or has no champion.
        ConflictError: several projects have a model with this name, and none was given.
    """
    models = select(Model).where(Model.model_name == model_name)
    if project_name is not None:
        models = models.where(Model.project_id == project_of_name(session, project_name).project_id)
    match session.scalars(models.limit(2)).all():
        case []:
            raise UnknownError(f"there is no model {model_name}")
        case [model]:
            if champion := champion_of(session, model.model_id):
                return champion
            raise UnknownError(f"model {model_name} has no champion yet")
    raise ConflictError(f"several projects have a model {model_name}: add project_name")


class Overview(NamedTuple):
    """A model with its project, its newest experiments and its champion."""

    project: Project
    model: Model
    experiments: list[Experiment]
    # The number of all its experiments.
    total: int


def overviews(session: Session, limit: int, offset: int, newest: int) -> list[Overview]:
    """Returns one page of models, ordered by project and name, with their experiments."""
    models = session.execute(
        select(Project, Model)
        .join(Model)
        .order_by(Project.project_name, Model.model_name)
        .limit(limit)
        .offset(offset)
    ).all()
    rank = func.row_number().over(
        partition_by=Experiment.model_id,
        order_by=(Experiment.created_datetime.desc(), Experiment.experiment_id),
    )
    every = func.count().over(partition_by=Experiment.model_id)
    # One query for all models.
    ranked = (
        select(Experiment, rank.label("rank"), every.label("total"))
        .where(Experiment.model_id.in_([model.model_id for _, model in models]))
        .subquery()
    )
    experiment = aliased(Experiment, ranked)
    shown = session.execute(
        select(experiment, ranked.c.total)
        .where((ranked.c.rank <= newest) | (experiment.stage == "champion"))
        .order_by(ranked.c.rank)
        # The page shows neither column, and it holds more experiments than a list does.
        .options(defer(experiment.parameters), defer(experiment.artifact_file_paths))
    ).all()
    totals = {found.model_id: total for found, total in shown}
    return [
        Overview(
            project,
            model,
            [found for found, _ in shown if found.model_id == model.model_id],
            totals.get(model.model_id, 0),
        )
        for project, model in models
    ]
