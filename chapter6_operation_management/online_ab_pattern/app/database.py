# Copied from chapter5_operations/prediction_log_pattern/app/database.py
"""Connects to PostgreSQL, with a deadline for every statement."""

import math

from sqlalchemy import Engine, NullPool, create_engine, make_url

from .settings import Settings


def connect(settings: Settings) -> Engine:
    """Returns an engine whose connections are opened and closed with each use."""
    url = make_url(settings.database_url)
    if password := settings.database_password.get_secret_value():
        url = url.set(password=password)
    seconds = settings.database_deadline_seconds
    bounds = {
        # The shortest that libpq takes is 2 s.
        "connect_timeout": max(2, math.ceil(seconds)),
        "options": f"-c statement_timeout={math.ceil(seconds * 1000)}",
    }
    return create_engine(url, poolclass=NullPool, connect_args=bounds)
