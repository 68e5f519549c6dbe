"""Talks to the admin port of Envoy: the weights of the versions, and how they have answered."""

import json
import re
from http.client import HTTPConnection, HTTPException
from urllib.parse import quote, urlencode, urlsplit

from .experiment import Experiment

DEADLINE_SECONDS = 2.0
CLUSTER = "outbound|8000|{}|iris"
Pair = tuple[int, int]


class MeshError(Exception):
    """Envoy does not answer, or refuses what it is asked for."""


def ask(url: str, method: str, path: str) -> bytes:
    address = urlsplit(url)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=DEADLINE_SECONDS)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        content = response.read()
    except (OSError, HTTPException) as error:
        raise MeshError(f"the mesh does not answer: {error}") from None
    finally:
        connection.close()
    if response.status != 200:
        raise MeshError(f"the mesh answers {response.status}")
    return content


def weigh(url: str, arm: str, weight: int | None) -> None:
    """Changes the weight of a version from the next request on; None is that of the manifest."""
    key = f"weights.split.{CLUSTER.format(arm)}"
    ask(url, "POST", f"/runtime_modify?{urlencode({key: '' if weight is None else weight})}")


def answered(url: str, experiment: Experiment) -> tuple[Pair, Pair]:
    """Returns the failures and the answers of both versions since Envoy started.

    A request that never reached a version is one of its failures, and only the mesh knows of it.
    """
    names = [CLUSTER.format(arm) for arm in (experiment.arms.a, experiment.arms.b)]
    wanted = rf"({'|'.join(map(re.escape, names))})\.upstream_rq_(5xx|completed)$"
    content = json.loads(ask(url, "GET", f"/stats?format=json&filter={quote(wanted)}"))
    # A counter is there from its first request.
    found = {stat["name"]: stat["value"] for stat in content["stats"] if "name" in stat}
    failures, answers = (
        [found.get(f"cluster.{name}.upstream_rq_{kind}", 0) for name in names]
        for kind in ("5xx", "completed")
    )
    return (failures[0], failures[1]), (answers[0], answers[1])
