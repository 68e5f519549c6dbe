"""What is done without the pattern: Copier alone, a health check, and rendering anew."""

import difflib
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import copier
import yaml

from ..builder import TEMPLATE


def render_with_copier(path: Path, output: Path, template: str = str(TEMPLATE)) -> None:
    """Gives Copier what the parameter file says; it overwrites what is there."""
    content = yaml.safe_load(path.read_text("utf-8"))
    copier.run_copy(template, output, content, defaults=True, overwrite=True, quiet=True)


def is_healthy(url: str) -> bool:
    """Asks what a load balancer asks."""
    connection = HTTPConnection(urlsplit(url).netloc, timeout=10)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def lines_that_differ(one: dict[str, bytes], other: dict[str, bytes]) -> int:
    """Returns how many lines of `other` somebody would have to write into a copy of `one`."""
    found = 0
    for name, content in other.items():
        old, new = (text.decode().splitlines() for text in (one.get(name, b""), content))
        diff = list(difflib.unified_diff(old, new, lineterm="", n=0))[2:]
        found += sum(line.startswith("+") for line in diff)
    return found
