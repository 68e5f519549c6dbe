"""Finds out whose request it is, and stores nothing of that but a salted hash."""

import hmac
import re

from fastapi import HTTPException, Request

from .guard import count_refusal
from .settings import Settings

HEADER = b"x-user-id"
GIVEN = r"[!-~]{1,128}"
DETAIL = "x-user-id has to be there once, as 1 to 128 visible ASCII characters"
SALT = Settings().user_salt.get_secret_value().encode()
# For the OpenAPI document.
PARAMETER = {
    "name": HEADER.decode(),
    "in": "header",
    "description": "Who asks; only its salted hash is stored",
    "example": "ada",
    "schema": {"type": "string", "pattern": f"^{GIVEN}$", "minLength": 1, "maxLength": 128},
}
given = re.compile(GIVEN.encode())


def user_of(request: Request, is_required: bool = False) -> str | None:
    """Returns the hash of the user's ID; None if there is no ID."""
    ids = [value for name, value in request.scope["headers"] if name == HEADER]
    if not ids and not is_required:
        return None
    if len(ids) != 1 or not given.fullmatch(ids[0]):
        count_refusal(422, "x-user-id is missing or invalid")
        raise HTTPException(422, DETAIL)
    return hmac.digest(SALT, ids[0], "sha256").hex()[:32]
