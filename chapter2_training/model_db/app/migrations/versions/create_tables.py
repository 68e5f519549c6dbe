"""Creates the tables for projects, models and experiments."""

import sqlalchemy as sa
from alembic import op

revision = "create_tables"
down_revision = None

IS_CHAMPION = sa.text("stage = 'champion'")


def upgrade() -> None:
    """Creates each table after the tables that it references."""
    op.create_table(
        "projects",
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("project_name", sa.String(255), nullable=False),
        sa.Column("description", sa.Text()),
        sa.Column("created_datetime", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("project_id", name="pk_projects"),
        sa.UniqueConstraint("project_name", name="uq_projects_project_name"),
    )
    op.create_table(
        "models",
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("model_name", sa.String(255), nullable=False),
        sa.Column("description", sa.Text()),
        sa.Column("created_datetime", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("model_id", name="pk_models"),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.project_id"], name="fk_models_project_id"
        ),
        sa.UniqueConstraint("project_id", "model_name", name="uq_models_project_id_model_name"),
    )
    op.create_index("ix_models_model_name", "models", ["model_name"])
    op.create_table(
        "experiments",
        sa.Column("experiment_id", sa.Uuid(), nullable=False),
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("model_version_id", sa.String(255), nullable=False),
        sa.Column("stage", sa.String(16), nullable=False),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("training_dataset", sa.Text()),
        sa.Column("validation_dataset", sa.Text()),
        sa.Column("test_dataset", sa.Text()),
        sa.Column("evaluations", sa.JSON(), nullable=False),
        sa.Column("artifact_file_paths", sa.JSON(), nullable=False),
        sa.Column("artifact_sha256", sa.String(64)),
        sa.Column("created_datetime", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("experiment_id", name="pk_experiments"),
        sa.ForeignKeyConstraint(["model_id"], ["models.model_id"], name="fk_experiments_model_id"),
        sa.UniqueConstraint(
            "model_id", "model_version_id", name="uq_experiments_model_id_model_version_id"
        ),
        sa.CheckConstraint(
            "stage IN ('candidate', 'champion', 'retired')", name="ck_experiments_stage"
        ),
    )
    op.create_index("ix_experiments_model_version_id", "experiments", ["model_version_id"])
    op.create_index(
        "ix_experiments_model_id_created_datetime", "experiments", ["model_id", "created_datetime"]
    )
    op.create_index(
        "one_champion_a_model",
        "experiments",
        ["model_id"],
        unique=True,
        postgresql_where=IS_CHAMPION,
        sqlite_where=IS_CHAMPION,
    )
