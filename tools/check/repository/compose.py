"""Rules about Compose files, beyond the schema that tools/read/compose.py checks."""

import re
from collections.abc import Iterator

from tools.check.manifests.subjects import OUR_IMAGES
from tools.check.repository.docker import has_version
from tools.check.repository.tree import Repository
from tools.check.rules import rule
from tools.read.compose import ComposeError, load
from tools.read.ports import published_ports


@rule()
def compose_runs_the_same_without_docker(repository: Repository) -> Iterator[str]:
    for directory in repository.directories:
        name = directory.name.replace("_", "-")
        try:
            if (found := load(directory, variables={}).name) != name:
                yield f"{directory}/docker-compose.yml: the name is {found}; write name: {name}"
        except ComposeError as error:
            yield f"{directory}/docker-compose.yml: {error}; see tools/read/compose.py"


@rule()
def published_port_is_written_with_its_variable(repository: Repository) -> Iterator[str]:
    for compose in repository.composes:
        ports = published_ports(compose.path.read_text("utf-8"), {})
        for port in ports:
            variables = [other.variable for other in ports]
            if not re.fullmatch(r"(?:[A-Z]+_)?PORT", port.variable):
                what = "is published without a variable, so it cannot move"
            elif port.default != port.container:
                what = f"is published on {port.default}"
            elif variables.count(port.variable) > 1:
                what = f"shares {port.variable} with another port"
            else:
                continue
            wanted = f"127.0.0.1:${{NAME_PORT:-{port.container}}}:{port.container}"
            yield f"{compose.path}: port {port.container} {what}; write {wanted}"


@rule()
def long_running_service_has_a_healthcheck(repository: Repository) -> Iterator[str]:
    for compose in repository.composes:
        for service in compose.services.values():
            ends = service.is_job or service.name in compose.one_shots()
            if service.health is None and not ends:
                yield f"{compose.path}: {service.name} has no healthcheck; add one"


@rule()
def health_checks_use_no_proxy(repository: Repository) -> Iterator[str]:
    for compose in repository.composes:
        for service in compose.services.values():
            check = " ".join(service.health.test if service.health else ())
            if re.search(r"\burlopen\b|\bcurl\b(?!.* --noproxy)|\bwget\b(?!.* --no-proxy)", check):
                yield (
                    f"{compose.path}: the health check of {service.name} may go through a proxy; "
                    "use build_opener(ProxyHandler({}))"
                )


@rule()
def built_service_may_do_little(repository: Repository) -> Iterator[str]:
    for compose in repository.composes:
        for service in compose.built():
            limits = {
                "read_only: true": service.read_only,
                "cap_drop: [ALL]": service.cap_drop == ("ALL",),
                "no-new-privileges:true": "no-new-privileges:true" in service.security_opt,
                "mem_limit": service.memory_limit_bytes is not None,
            }
            for what in (what for what, is_set in limits.items() if not is_set):
                yield f"{compose.path}: {service.name} has unneeded privileges; add {what}"


@rule()
def images_of_compose_have_a_name_and_a_version(repository: Repository) -> Iterator[str]:
    of_directories = {
        compose.pattern_dir: {service.image for service in compose.built()}
        for compose in repository.composes
    }
    for compose in repository.composes:
        ours = f"{OUR_IMAGES}{compose.pattern_dir.name.replace('_', '-')}-"
        services = compose.services.values()
        names = "|".join(
            {*compose.services, *(service.labels.get("app", "") for service in services)}
        )
        for service in services:
            image = service.image or "none"
            directory = compose.directory_of(service)
            if directory != compose.pattern_dir and directory in of_directories:
                if image not in of_directories[directory]:
                    named = f"{directory}/docker-compose.yml"
                    yield f"{compose.path}: {service.name} is built as {image}; name it as {named}"
            elif service.build and not re.fullmatch(rf"{ours}({names}):\d+\.\d+\.\d+", image):
                wanted = f"{ours}SERVICE:1.2.3"
                yield f"{compose.path}: {service.name} is built as {image}; name it {wanted}"
            elif not has_version(image):
                yield f"{compose.path}: {image} is not pinned; write IMAGE:VERSION"
