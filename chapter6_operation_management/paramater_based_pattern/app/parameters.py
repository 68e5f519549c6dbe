"""Reads the file of parameters, and follows its changes while the process runs."""

import asyncio
import logging
from collections.abc import Collection
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .unique_keys import UniqueKeys

MAX_BYTES = 20_000
# Refuses unknown keys, NaN, and values of another type, such as "0.9" or 1 instead of true.
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

logger = logging.getLogger("uvicorn.error")


class ParametersError(Exception):
    """The file cannot be used; the message names the first key that is wrong."""


class ModelParameters(BaseModel):
    """How one model is used."""

    model_config = STRICT

    active: bool
    threshold: float = Field(ge=0, le=1)
    timeout_seconds: float = Field(gt=0, le=60)
    attempts: int = Field(ge=1, le=5)
    # Not a Literal, which would take true for 1.
    fallback: Annotated[int, Field(ge=0, le=1)] | None


class Parameters(BaseModel):
    """The whole file; each model also has what it takes from `default`."""

    model_config = STRICT

    stop: bool
    default: ModelParameters
    models: dict[str, ModelParameters]

    @model_validator(mode="before")
    @classmethod
    def add_default(cls, raw: Any) -> Any:
        match raw:
            case {"default": dict(default), "models": dict(models)}:
                own = {name: model for name, model in models.items() if isinstance(model, dict)}
                whole = {name: default | model for name, model in own.items()}
                return raw | {"models": models | whole}
        return raw


class InForce(BaseModel):
    """What is in force; `error` is what is wrong with the file if the file is not."""

    version: str
    since: datetime
    error: str | None = None
    values: Parameters


def read(path: Path, names: Collection[str]) -> InForce:
    """Reads the parameters of the models with these names.

    Raises:
        ParametersError: the file is missing, incomplete or wrong.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ParametersError(f"the file is larger than {MAX_BYTES} bytes")
        content = path.read_bytes()
        values = Parameters.model_validate(UniqueKeys(content).get_single_data())
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise ParametersError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except Exception as error:
        # PyYAML also raises errors of Python, such as an IndexError for `!!int ""`.
        raise ParametersError(" ".join(str(error).split())[:300]) from None
    for name in sorted({*names} ^ values.models.keys()):
        what = "there is no such model" if name in values.models else "it is missing"
        raise ParametersError(f"models.{name}: {what}")
    version = sha256(content).hexdigest()[:12]
    return InForce(version=version, since=datetime.now(UTC), values=values)


class Followed:
    """The parameters of a file; if the file is wrong, the last ones stay in force."""

    def __init__(self, path: Path, names: Collection[str]) -> None:
        self.path, self.names = path, names
        self.in_force = read(path, names)

    async def follow(self, seconds: float) -> None:
        """Looks at the file again and again, in a thread, because a mount may hang."""
        while True:
            await asyncio.sleep(seconds)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Puts a new version in force at once, or logs once what is wrong with it."""
        old = self.in_force
        try:
            new = read(self.path, self.names)
        except ParametersError as error:
            if str(error) != old.error:
                logger.error("parameters: %s stays in force: %s", old.version, error)
            self.in_force = old.model_copy(update={"error": str(error)})
            return
        if new.version == old.version:
            self.in_force = old.model_copy(update={"error": None})
        else:
            logger.info("parameters: %s replaces %s", new.version, old.version)
            self.in_force = new
