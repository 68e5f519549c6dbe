"""Rules that manifests and `docker-compose.yml` agree."""

import shlex
from collections.abc import Iterator

from tools.check.manifests.references import keys_by_name, reference
from tools.check.manifests.subjects import (
    Container,
    Pair,
    every_container,
    mapping,
    pairs,
    quantity,
    started_containers,
)
from tools.check.rules import rule
from tools.read.command import option, without_address


@rule(every_container)
def our_image_is_not_pulled_when_present(container: Container) -> Iterator[str]:
    if container.is_ours and container.body.get("imagePullPolicy") != "IfNotPresent":
        yield "the image is in no registry; set imagePullPolicy: IfNotPresent"


@rule(pairs)
def image_is_the_one_of_compose(pair: Pair) -> Iterator[str]:
    image = pair.service.image
    if image != pair.container.image:
        yield f"{pair.container.image} here, {image} in Compose service {pair.name}; use one"


@rule(started_containers)
def container_is_a_compose_service(container: Container) -> Iterator[str]:
    if not container.pairs:
        yield "no Compose service has this name or `app` label; use the same name"


@rule(pairs)
def container_ports_are_those_of_compose(pair: Pair) -> Iterator[str]:
    ports = {entry["containerPort"] for entry in pair.container.body.get("ports") or []}
    # Replicas listen on different ports in Compose, but on the same port in their pods.
    of_compose = set(pair.service.ports)
    if of_compose and ports != of_compose and not pair.is_replica:
        yield f"{ports or '{}'} here, {of_compose} in Compose service {pair.name}; use the same"


@rule(started_containers)
def port_of_the_command_is_a_container_port(container: Container) -> Iterator[str]:
    port = option(container.own_command, "--port")
    if port.isdecimal() and not container.has_port(int(port)):
        yield f"it listens on {port}, which is not in ports; add it as containerPort"


@rule(pairs)
def command_is_the_one_of_compose(pair: Pair) -> Iterator[str]:
    here = without_address(pair.container.own_command)
    compose = without_address(pair.service.command)
    if here and here != compose:
        yield (
            f"`{shlex.join(here)}` here, `{shlex.join(compose)}` in Compose service {pair.name}; "
            "use the same"
        )


@rule(pairs)
def memory_limit_is_the_one_of_compose(pair: Pair) -> Iterator[str]:
    limit = mapping(pair.container.resources.get("limits")).get("memory", 0)
    of_compose = pair.service.memory_limit_bytes
    if of_compose and limit and quantity(limit) != of_compose:
        megabytes = f"{of_compose / 2**20:g}Mi"
        yield f"memory {limit} here, {megabytes} in Compose service {pair.name}; use the same"


@rule(started_containers)
def environment_is_known_to_compose_or_the_settings(container: Container) -> Iterator[str]:
    known = {name for pair in container.pairs for name in pair.variables}
    for name in sorted(set(environment(container)) - known):
        yield f"nothing reads {name}; remove it, or add it to docker-compose.yml"


def environment(container: Container) -> Iterator[str]:
    for variable in container.body.get("env") or []:
        yield variable["name"]
    for source in container.body.get("envFrom") or []:
        for kind, name, _ in [
            *reference("ConfigMap", source.get("configMapRef")),
            *reference("Secret", source.get("secretRef")),
        ]:
            for key in keys_by_name(container.pod.pattern, kind).get(name) or set():
                yield f"{source.get('prefix', '')}{key}"
