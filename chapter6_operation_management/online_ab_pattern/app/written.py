# Copied from chapter6_operation_management/shadow_ab_pattern/app/written.py
"""Reads what somebody has to write down before a trial begins."""

from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from .unique_keys import UniqueKeys

MAX_BYTES = 20_000
Form = TypeVar("Form", bound=BaseModel)


class WrittenError(Exception):
    """The file is missing or wrong; the message names the first key that is."""


def read(path: Path, form: type[Form]) -> tuple[Form, str]:
    """Returns what the file says, and its SHA-256.

    Raises:
        WrittenError: the file is missing or wrong.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise WrittenError(f"{path}: the file is larger than {MAX_BYTES} bytes")
        content = path.read_bytes()
        written = form.model_validate(UniqueKeys(content).get_single_data())
    except WrittenError:
        raise
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise WrittenError(f"{path}: {where}: {first['msg']}") from None
    except Exception as error:
        # PyYAML also raises errors of Python, such as an IndexError for `!!int ""`.
        raise WrittenError(f"{path}: {' '.join(str(error).split())[:300]}") from None
    return written, sha256(content).hexdigest()
