"""The controls of the measurement: registries that look first, and write or take the lock later."""

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
    """Looks whether the project is there, and adds it if it was not."""
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
    """Reads the evaluations, adds to them, and writes back what it has read and added."""
    with Session(engine, expire_on_commit=False) as session:
        experiment = session.get_one(Experiment, experiment_id)
        experiment.evaluations = {**experiment.evaluations, **evaluations}
        session.commit()
    return experiment.evaluations


@careless.post("/v0.1/api/experiments/promote/{experiment_id}")
def promote(experiment_id: UUID, expected_champion: Annotated[UUID | None, Field]) -> str:
    """Looks who the champion is, and replaces it."""
    with Session(engine) as session:
        experiment = session.get_one(Experiment, experiment_id)
        champion = session.scalars(
            select(Experiment).where(
                Experiment.model_id == experiment.model_id, Experiment.stage == "champion"
            )
        ).first()
        if (champion and champion.experiment_id) != expected_champion:
            raise HTTPException(409, "the champion is another one")
        if champion:
            champion.stage = "retired"
        experiment.stage = "champion"
        session.commit()
    return str(experiment_id)


def begin(connection: Connection) -> None:
    """Begins a transaction of SQLite that takes the lock at its first write, as they all do."""
    connection.exec_driver_sql("BEGIN")


# Whatever is not careless is the API's own.
careless.include_router(app.router)

# The API itself, but for the moment at which it takes the lock.
late = app
database.begin_sqlite = begin
