"""Endpoints for projects, models and experiments; each request is one transaction."""

from typing import Annotated, Any, TypeVar
from uuid import UUID

from fastapi import APIRouter, Query, Response
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from . import registry
from .capacity import Paging, PagingQuery
from .database import Database, reading, writing
from .foreign import OwnSite
from .route import JsonRoute
from .schema import (
    CONFLICT,
    INVALID,
    REFUSALS,
    UNKNOWN,
    ExperimentRow,
    ModelRow,
    Name,
    NewArtifactFilePaths,
    NewEvaluations,
    NewExperiment,
    NewModel,
    NewProject,
    Page,
    ProjectRow,
    Promotion,
    Row,
)
from .tables import Experiment, Model, Project, Table

api = APIRouter(
    prefix="/v0.1/api", responses=INVALID, route_class=JsonRoute, dependencies=[OwnSite]
)

Found = TypeVar("Found", bound=Row)


def page(
    session: Session,
    row_model: type[Found],
    table: type[Table],
    paging: Paging,
    *conditions: ColumnElement[bool],
) -> Page[Found]:
    """Returns one page of the rows that meet the conditions."""
    total, rows = registry.select_page(session, table, conditions, *paging)
    return Page(total=total, rows=[row_model.model_validate(row) for row in rows])


def existing(row_model: type[Row]) -> dict[int | str, dict[str, Any]]:
    """Documents the responses, other than 201, of a POST that finds or adds a row."""
    return {200: {"model": row_model, "description": "It already existed"}, **CONFLICT, **REFUSALS}


# --- projects -------------------------------------------------------------------------------------


@api.get("/projects/all", tags=["projects"])
def all_projects(database: Database, paging: PagingQuery) -> Page[ProjectRow]:
    """Lists all projects."""
    with reading(database) as session:
        return page(session, ProjectRow, Project, paging)


@api.get("/projects/id/{project_id}", tags=["projects"], responses=UNKNOWN)
def project_by_id(database: Database, project_id: UUID) -> ProjectRow:
    """Finds a project by its id."""
    with reading(database) as session:
        return ProjectRow.model_validate(registry.get(session, Project, project_id))


@api.get("/projects/name/{project_name}", tags=["projects"], responses=UNKNOWN)
def project_by_name(database: Database, project_name: Name) -> ProjectRow:
    """Finds a project by its name."""
    with reading(database) as session:
        return ProjectRow.model_validate(registry.project_of_name(session, project_name))


@api.post("/projects", tags=["projects"], status_code=201, responses=existing(ProjectRow))
def add_project(database: Database, new: NewProject, response: Response) -> ProjectRow:
    """Adds a project, or returns the existing one; a different description is a 409."""
    with writing(database) as session:
        project, added = registry.add_project(session, Project(**new.model_dump()))
    response.status_code = 201 if added else 200
    return ProjectRow.model_validate(project)


# --- models ---------------------------------------------------------------------------------------


@api.get("/models/all", tags=["models"])
def all_models(database: Database, paging: PagingQuery) -> Page[ModelRow]:
    """Lists all models."""
    with reading(database) as session:
        return page(session, ModelRow, Model, paging)


@api.get("/models/id/{model_id}", tags=["models"], responses=UNKNOWN)
def model_by_id(database: Database, model_id: UUID) -> ModelRow:
    """Finds a model by its id."""
    with reading(database) as session:
        return ModelRow.model_validate(registry.get(session, Model, model_id))


@api.get("/models/name/{model_name}", tags=["models"])
def models_by_name(database: Database, paging: PagingQuery, model_name: Name) -> Page[ModelRow]:
    """Lists the models with this name, at most one per project."""
    with reading(database) as session:
        return page(session, ModelRow, Model, paging, Model.model_name == model_name)


@api.get("/models/project-id/{project_id}", tags=["models"], responses=UNKNOWN)
def models_by_project_id(
    database: Database, paging: PagingQuery, project_id: UUID
) -> Page[ModelRow]:
    """Lists the models of a project."""
    with reading(database) as session:
        registry.get(session, Project, project_id)
        return page(session, ModelRow, Model, paging, Model.project_id == project_id)


@api.get("/models/project-name/{project_name}", tags=["models"], responses=UNKNOWN)
def models_by_project_name(
    database: Database, paging: PagingQuery, project_name: Name
) -> Page[ModelRow]:
    """Lists the models of a project, found by name."""
    with reading(database) as session:
        project = registry.project_of_name(session, project_name)
        return page(session, ModelRow, Model, paging, Model.project_id == project.project_id)


@api.get("/models/champion/{model_name}", tags=["models"], responses={**UNKNOWN, **CONFLICT})
def champion_by_model_name(
    database: Database, model_name: Name, project_name: Annotated[Name | None, Query()] = None
) -> ExperimentRow:
    """Finds the champion of a model; if several projects have that model, name the project."""
    with reading(database) as session:
        champion = registry.champion_of_name(session, model_name, project_name)
        return ExperimentRow.model_validate(champion)


@api.post("/models", tags=["models"], status_code=201, responses={**existing(ModelRow), **UNKNOWN})
def add_model(database: Database, new: NewModel, response: Response) -> ModelRow:
    """Adds a model to a project, or returns the existing one; a different description is a 409."""
    with writing(database) as session:
        model, added = registry.add_model(session, Model(**new.model_dump()))
    response.status_code = 201 if added else 200
    return ModelRow.model_validate(model)


# --- experiments ----------------------------------------------------------------------------------


@api.get("/experiments/all", tags=["experiments"])
def all_experiments(database: Database, paging: PagingQuery) -> Page[ExperimentRow]:
    """Lists all experiments."""
    with reading(database) as session:
        return page(session, ExperimentRow, Experiment, paging)


@api.get("/experiments/id/{experiment_id}", tags=["experiments"], responses=UNKNOWN)
def experiment_by_id(database: Database, experiment_id: UUID) -> ExperimentRow:
    """Finds an experiment by its id."""
    with reading(database) as session:
        return ExperimentRow.model_validate(registry.get(session, Experiment, experiment_id))


@api.get("/experiments/model-version-id/{model_version_id}", tags=["experiments"])
def experiments_by_version(
    database: Database, paging: PagingQuery, model_version_id: Name
) -> Page[ExperimentRow]:
    """Lists the experiments of this version, at most one per model."""
    with reading(database) as session:
        same = Experiment.model_version_id == model_version_id
        return page(session, ExperimentRow, Experiment, paging, same)


@api.get("/experiments/model-id/{model_id}", tags=["experiments"], responses=UNKNOWN)
def experiments_by_model_id(
    database: Database, paging: PagingQuery, model_id: UUID
) -> Page[ExperimentRow]:
    """Lists the experiments of a model."""
    with reading(database) as session:
        registry.get(session, Model, model_id)
        return page(session, ExperimentRow, Experiment, paging, Experiment.model_id == model_id)


@api.get("/experiments/project-id/{project_id}", tags=["experiments"], responses=UNKNOWN)
def experiments_by_project_id(
    database: Database, paging: PagingQuery, project_id: UUID
) -> Page[ExperimentRow]:
    """Lists the experiments of all models of a project."""
    with reading(database) as session:
        registry.get(session, Project, project_id)
        models = select(Model.model_id).where(Model.project_id == project_id)
        return page(session, ExperimentRow, Experiment, paging, Experiment.model_id.in_(models))


@api.post(
    "/experiments",
    tags=["experiments"],
    status_code=201,
    responses={**UNKNOWN, **CONFLICT, **REFUSALS},
)
def add_experiment(database: Database, new: NewExperiment) -> ExperimentRow:
    """Adds an experiment; if the version exists, a 409 names the existing experiment."""
    with writing(database) as session:
        experiment = registry.add_experiment(
            session, Experiment(stage="candidate", **new.model_dump())
        )
    return ExperimentRow.model_validate(experiment)


@api.post(
    "/experiments/evaluations/{experiment_id}",
    tags=["experiments"],
    responses={**UNKNOWN, **CONFLICT, **REFUSALS},
)
def add_evaluations(database: Database, experiment_id: UUID, new: NewEvaluations) -> ExperimentRow:
    """Adds evaluations to the existing ones."""
    with writing(database) as session:
        experiment = registry.merge(session, experiment_id, "evaluations", new.evaluations)
    return ExperimentRow.model_validate(experiment)


@api.post(
    "/experiments/artifact-file-paths/{experiment_id}",
    tags=["experiments"],
    responses={**UNKNOWN, **CONFLICT, **REFUSALS},
)
def add_artifact_file_paths(
    database: Database, experiment_id: UUID, new: NewArtifactFilePaths
) -> ExperimentRow:
    """Adds file paths to the existing ones."""
    with writing(database) as session:
        experiment = registry.merge(
            session, experiment_id, "artifact_file_paths", new.artifact_file_paths
        )
    return ExperimentRow.model_validate(experiment)


@api.post(
    "/experiments/promote/{experiment_id}",
    tags=["experiments"],
    responses={**UNKNOWN, **CONFLICT, **REFUSALS},
)
def promote(database: Database, experiment_id: UUID, promotion: Promotion) -> ExperimentRow:
    """Makes an experiment the champion of its model if the current champion is the expected one."""
    with writing(database) as session:
        experiment = registry.promote(session, experiment_id, promotion.expected_champion)
    return ExperimentRow.model_validate(experiment)
