"""Rules about probes, rollouts and stopping, so that every accepted request gets a response."""

import math
from collections.abc import Iterator

from tools.check.manifests.subjects import (
    PROBES,
    Container,
    Pair,
    Pod,
    mapping,
    pairs,
    pods,
    serving_containers,
    started_containers,
)
from tools.check.rules import rule

# The time to stop in addition to the sleep and the graceful shutdown: signals, lifespan, exit.
STOP_MARGIN_SECONDS = 5
DEFAULT_GRACE_SECONDS = 30


@rule(serving_containers)
def serving_container_has_all_three_probes(container: Container) -> Iterator[str]:
    for name in PROBES:
        if name not in container.probes:
            yield f"there is no {name}; add it"


@rule(started_containers)
def probe_port_is_a_container_port(container: Container) -> Iterator[str]:
    for name, probe in container.probes.items():
        for action in ("httpGet", "tcpSocket", "grpc"):
            port = mapping(probe.get(action)).get("port")
            if port is not None and not container.has_port(port):
                yield f"{name} uses port {port}, which is not in ports; use one that is"


@rule(serving_containers)
def probes_of_our_servers_ask_ready_and_health(container: Container) -> Iterator[str]:
    paths = {"startupProbe": "/ready", "readinessProbe": "/ready", "livenessProbe": "/health"}
    if any(pair.service.without_ready for pair in container.pairs):
        return
    for name, probe in container.probes.items():
        # A worker without HTTP is probed by a command.
        serves_http = "uvicorn" in container.command or "httpGet" in probe
        path = mapping(probe.get("httpGet")).get("path")
        if container.is_ours and serves_http and path != paths[name]:
            yield f"{name} requests {path}; use httpGet {paths[name]}"


@rule(pods)
def rolling_update_keeps_every_replica(pod: Pod) -> Iterator[str]:
    if pod.kind == "Deployment" and pod.has_claim:
        if mapping(pod.owner.spec.get("strategy")).get("type") != "Recreate":
            yield "two pods would write to one volume; set strategy: {type: Recreate}"
    elif pod.kind == "Deployment" and pod.services:
        update = mapping(mapping(pod.owner.spec.get("strategy")).get("rollingUpdate"))
        keeps = str(update.get("maxUnavailable")) in {"0", "0%"}
        if not keeps or str(update.get("maxSurge", 1)) in {"0", "0%"}:
            yield "updates stop a pod before another is ready; set maxUnavailable: 0, maxSurge: 1"


@rule(serving_containers)
def grace_period_covers_the_stop(container: Container) -> Iterator[str]:
    grace = container.pod.spec.get("terminationGracePeriodSeconds", DEFAULT_GRACE_SECONDS)
    needed = seconds_until_exit(container)
    if grace < needed:
        last = " and is the last to stop" if container.is_sidecar else ""
        yield (
            f"it is killed {grace} s after the pod began to stop{last}; "
            f"set terminationGracePeriodSeconds: {needed}"
        )


def seconds_until_exit(container: Container) -> int:
    """Returns how long after the pod began to stop a container may exit."""
    # All containers sleep at the same time.
    waits = [container.sleep_seconds, *map(seconds_until_exit, container.stops_after)]
    shutdown = (container.graceful_shutdown_seconds or 0) + STOP_MARGIN_SECONDS
    # Compose kills it after this time.
    allowed = [pair.service.stop_grace_seconds for pair in container.pairs]
    return math.ceil(max(waits) + max([shutdown, *allowed]))


@rule(pairs)
def init_container_ends_unless_it_is_a_sidecar(pair: Pair) -> Iterator[str]:
    container, compose = pair.container, pair.container.pod.pattern.compose
    if container.role == "initContainers":
        ends = pair.name in compose.one_shots() or bool(pair.service.profiles)
        if not (ends or container.is_sidecar):
            yield "the others wait for it to end, but it runs on; set restartPolicy: Always"
        if ends and container.is_sidecar:
            yield "it ends, and is started again and again; remove its restartPolicy"


@rule(serving_containers)
def uvicorn_stops_within_a_bound(container: Container) -> Iterator[str]:
    if "uvicorn" in container.command and container.graceful_shutdown_seconds is None:
        yield "it may wait forever for a request to end; add --timeout-graceful-shutdown SECONDS"


@rule(serving_containers)
def container_behind_a_service_sleeps_before_it_stops(container: Container) -> Iterator[str]:
    # A StatefulSet with a single server such as Redis has no other pod to take its requests.
    several = container.pod.kind == "Deployment" or container.is_ours
    if several and container.is_behind_a_service and not container.sleep_seconds:
        yield "requests still arrive while it stops; add lifecycle.preStop.sleep"
