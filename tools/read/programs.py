"""Tells which package of a pattern each of its services runs.

A pattern of one program has the package `app`. Where services hold different libraries, each has a
package of its name. A service that is built from a directory below has its package there.
"""

import re
from pathlib import Path

from tools.read.compose import Compose, Service


def package_of(pattern: Path, service: Service) -> str:
    """Returns the package that the command names; empty if it starts an installed program.

    A command may also name a file of the package, as in `locust -f load/locustfile.py`.
    """
    for word in service.command:
        name = re.split("[.:/]", word)[0]
        if name.isidentifier() and any((pattern / service.context / name).glob("*.py")):
            return name
    return ""


def packages_of(compose: Compose) -> list[str]:
    """Returns the packages that services run, that of the API first.

    No other service depends on it and, if there are several such, it has port 8000.
    """
    called = {name for service in compose.services.values() for name in service.depends_on}
    services = sorted(
        compose.built(), key=lambda each: (each.name in called, not publishes(each, 8000))
    )
    found = [package_of(compose.pattern_dir, service) for service in services]
    return [package for package in dict.fromkeys(found) if package]


def publishes(service: Service, port: int) -> bool:
    return any(published.container == port for published in service.published_ports)
