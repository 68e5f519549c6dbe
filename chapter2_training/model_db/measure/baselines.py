"""The controls: registries that check first and write, or take the lock, later."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import Body, FastAPI, HTTPException
from sqlalchemy import Connection, select
from sqlalchemy.orm import Session

from ..app import database
from ..app.database import connect
from ..app.main import app
from ..app.settings import Settings
from ..app.tables import Experiment, Project

Field = Body(embed=True)

careless = FastAPI()
engine = connect(Settings())


@careless.post("/v0.1/api/projects", status_code=201)
def add_project(project_name: Annotated[str, Field]) -> dict[str, str]:
    """Checks whether the project exists, then adds it."""
    with Session(engine, expire_on_commit=False) as session:
        project = session.scalars(
            select(Project).where(Project.project_name == project_name)
        ).first()
        if project is None:
            project = Project(project_name=project_name)
            session.add(project)
            session.commit()
    return {"project_id": str(project.project_id)}


@careless.post("/v0.1/api/experiments/evaluations/{experiment_id}")
def add_evaluations(
    experiment_id: UUID, evaluations: Annotated[dict[str, Any], Field]
) -> dict[str, Any]:
    """Reads the evaluations, then writes all of them back with the added ones."""
    with Session(engine, expire_on_commit=False) as session:
        experiment = session.get_one(Experiment, experiment_id)
        experiment.evaluations = {**experiment.evaluations, **evaluations}
        session.commit()
    return experiment.evaluations


@careless.post("/v0.1/api/experiments/promote/{experiment_id}")
def promote(experiment_id: UUID, expected_champion: Annotated[UUID | None, Field]) -> str:
    """Checks who the champion is, then replaces it."""
    with Session(engine) as session:
        experiment = session.get_one(Experiment, experiment_id)
        champion = session.scalars(
            select(Experiment).where(
                Experiment.model_id == experiment.model_id, Experiment.stage == "champion"
            )
        ).first()
        if (champion and champion.experiment_id) != expected_champion:
            raise HTTPException(409, "the champion is not the expected one")
        if champion:
            champion.stage = "retired"
        experiment.stage = "champion"
        session.commit()
    return str(experiment_id)


def begin(connection: Connection) -> None:
    """Begins an SQLite transaction the default way, which locks at its first write."""
    connection.exec_driver_sql("BEGIN")


# All other endpoints are those of the API.
careless.include_router(app.router)

# The API itself, except that it takes the lock late.
late = app
database.begin_sqlite = begin
