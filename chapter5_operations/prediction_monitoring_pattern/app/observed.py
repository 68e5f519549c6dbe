"""Defines the tables of the monitor: baselines, judged windows and incidents."""

from sqlalchemy import Column, DateTime, Integer, MetaData, Table, Text
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData()

baselines = Table(
    "baselines",
    metadata,
    Column("model", Text, primary_key=True),
    Column("ended", DateTime(timezone=True), nullable=False),
    Column("sample", JSONB, nullable=False),
)
# Without checks, a window was judged before its model had a baseline.
windows = Table(
    "windows",
    metadata,
    Column("ended", DateTime(timezone=True), primary_key=True),
    Column("model", Text, primary_key=True),
    Column("rows", Integer, nullable=False),
    Column("checks", JSONB, nullable=False),
    # The deciles of each feature.
    Column("deciles", JSONB, nullable=False),
)
# `ended` is in the future while the alert fires.
incidents = Table(
    "incidents",
    metadata,
    Column("labels", Text, primary_key=True),
    Column("began", DateTime(timezone=True), primary_key=True),
    Column("ended", DateTime(timezone=True), nullable=False),
    Column("name", Text, nullable=False),
    Column("summary", Text, nullable=False),
    Column("runbook_url", Text, nullable=False),
)
