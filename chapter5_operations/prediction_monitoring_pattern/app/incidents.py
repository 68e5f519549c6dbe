"""Keeps the alerts that Prometheus sends: each once, with its beginning and its end."""

import json
import logging
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, RootModel, Strict
from pydantic.config import JsonDict
from sqlalchemy import Connection, select
from sqlalchemy.dialects.postgresql import insert

from .observed import incidents

log = logging.getLogger("uvicorn.error")

SHOWN = 20

# PostgreSQL stores no text with a zero character.
Stored = Annotated[str, Field(max_length=1_000, pattern=r"^[^\x00]*$")]
# What both PostgreSQL and Python can write in any time zone.
FIRST, LAST = datetime(1000, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)


def in_utc(moment: datetime) -> datetime:
    return min(max(moment, FIRST), LAST).astimezone(UTC)


# Strict: otherwise Pydantic takes a number as seconds since 1970.
Time = Annotated[AwareDatetime, Strict(), AfterValidator(in_utc)]
EXAMPLE: JsonDict = {
    "labels": {"alertname": "Example", "severity": "ticket"},
    "annotations": {"summary": "An example.", "runbook_url": "http://localhost:8001/playbook/x"},
    "startsAt": "2026-11-01T00:00:00Z",
    "endsAt": "2026-11-01T00:01:00Z",
}


class Alert(BaseModel):
    """What Prometheus tells an Alertmanager; other fields do not matter here."""

    labels: dict[str, Stored] = Field(max_length=50)
    annotations: dict[str, Stored] = Field(default={}, max_length=50)
    starts_at: Time = Field(alias="startsAt")
    ends_at: Time = Field(alias="endsAt")


class Alerts(RootModel[Annotated[list[Alert], Field(max_length=256)]]):
    """The alerts that fire, and those that have just ended."""

    model_config = ConfigDict(json_schema_extra={"example": [EXAMPLE]})


class Received(BaseModel):
    """How many alerts there were."""

    alerts: int


class Incidents(BaseModel):
    """The newest incidents; one that goes on ends in the future."""

    data: list[dict[str, Any]]


def keep(connection: Connection, alerts: list[Alert]) -> None:
    """Stores alerts, and logs one line when one begins and one when it ends."""
    now = datetime.now(UTC)
    for alert in alerts:
        labels = json.dumps(alert.labels, sort_keys=True)
        name = alert.labels.get("alertname", "")
        own = (incidents.c.labels == labels) & (incidents.c.began == alert.starts_at)
        known = connection.scalar(select(incidents.c.ended).where(own).with_for_update())
        said = {key: alert.annotations.get(key, "") for key in ("summary", "runbook_url")}
        new = insert(incidents).values(
            labels=labels, began=alert.starts_at, ended=alert.ends_at, name=name, **said
        )
        keys = ["labels", "began"]
        is_new = {"ended": alert.ends_at}
        connection.execute(new.on_conflict_do_update(index_elements=keys, set_=is_new))
        is_over = alert.ends_at <= now
        if known is None:
            log.warning("%s: %s %s", name, said["summary"], said["runbook_url"])
        if is_over and (known is None or known > now):
            log.warning("%s: resolved after %s", name, alert.ends_at - alert.starts_at)


def newest(connection: Connection) -> list[Any]:
    """Returns the newest incidents."""
    query = incidents.select().order_by(incidents.c.began.desc()).limit(SHOWN)
    return [*connection.execute(query)]
