"""Refuses what the web page of another site makes the browser on this machine send."""

import re
from ipaddress import ip_address

from fastapi import Depends, HTTPException, Request

from .guard import count_refusal
from .settings import Settings

settings = Settings()
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[\w.-]+)(:\d+)?", re.ASCII)


def is_trusted(host: str) -> bool:
    """Tells whether a Host header has a trusted name, or an IP address.

    A page reads responses if it was loaded from a name that now resolves to this machine. The
    browser then sends that name, never an IP address.
    """
    if not (found := HOST.fullmatch(host)):
        return False
    name = found[1].strip("[]")
    try:
        return bool(ip_address(name))
    except ValueError:
        return name in settings.trusted_hosts


async def refuse_foreign(request: Request) -> None:
    """Checks Host and, if the request writes, also Origin and Content-Type.

    Raises:
        HTTPException: a page of another site may have sent it.
    """
    host = request.headers.get("host", "").lower()
    if not is_trusted(host):
        raise refusal(400, "the host name is not one of TRUSTED_HOSTS")
    if request.method == "GET":
        return
    # A browser sends Origin with every request that writes; other clients do not.
    origin = request.headers.get("origin")
    if origin is not None and origin.lower().partition("://")[2] != host:
        raise refusal(403, "the page of another site may not write")
    # For JSON, the browser first asks whether the page may send it. JsonRoute has added a content
    # type of its own before the client's.
    sent = request.headers.getlist("content-type")[1:]
    if [value.partition(";")[0].strip().lower() for value in sent] != ["application/json"]:
        raise refusal(415, "the content type is not application/json")


def refusal(status: int, detail: str) -> HTTPException:
    """Counts a refusal for the log, and returns its error."""
    count_refusal(status, detail)
    return HTTPException(status, detail)


OwnSite = Depends(refuse_foreign)
