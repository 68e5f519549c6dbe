"""Rules about network policies: everything is denied, except what a pattern needs."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from tools.check.manifests.subjects import (
    Body,
    Container,
    Object,
    Pair,
    Pattern,
    Pod,
    folder,
    mapping,
    matches,
    of_kind,
    pairs,
    pods,
    serving_containers,
)
from tools.check.rules import rule

# The field that names the peers of each direction.
PEERS = {"Ingress": "from", "Egress": "to"}
NAMESPACE_NAME = "kubernetes.io/metadata.name"


class Peer(NamedTuple):
    """Pods at the other end of a connection, and the port of its server by number or name."""

    namespace: dict[str, str]
    labels: dict[str, str]
    ports: set[int | str | None]
    protocol: str = "TCP"


DNS = Peer({NAMESPACE_NAME: "kube-system"}, {"k8s-app": "kube-dns"}, {53}, "UDP")
ISTIOD = Peer({NAMESPACE_NAME: "istio-system"}, {"app": "istiod"}, {15012})
policies = of_kind("NetworkPolicy")


@rule(folder)
def network_is_denied_by_default(pattern: Pattern) -> Iterator[str]:
    for direction in PEERS:
        denied = any(
            not mapping(policy.spec.get("podSelector"))
            and direction in policy_types(policy)
            and not entries(policy, direction)
            for policy in policies(pattern)
        )
        if pattern.pods and not denied:
            yield f"no policy denies {direction} to all pods; add one to network_policy.yml"


@rule(policies)
def network_policy_names_peers_and_ports(policy: Object) -> Iterator[str]:
    for direction, field in PEERS.items():
        for entry in entries(policy, direction):
            for each in (field, "ports"):
                if not entry.get(each):
                    yield f"an entry of {direction} has no `{each}`, so it allows all; name them"


@rule(policies)
def network_policy_selects_pods(policy: Object) -> Iterator[str]:
    if not selected(policy, policy.spec):
        yield "podSelector matches no pods; use a pod template's labels"
    for direction, field in PEERS.items():
        for entry in entries(policy, direction):
            for peer in entry.get(field) or []:
                if peer.keys() == {"podSelector"} and not selected(policy, peer):
                    yield f"a peer of {direction} matches no pods; use a pod template's labels"


@rule(policies)
def network_policy_port_is_a_port_of_its_pods(policy: Object) -> Iterator[str]:
    for direction in PEERS:
        for entry in entries(policy, direction):
            inside = [peer for peer in entry.get("to") or [] if peer.keys() == {"podSelector"}]
            servers = [policy.spec] if direction == "Ingress" else inside
            for pod in (pod for server in servers for pod in selected(policy, server)):
                for port in [each.get("port", "*") for each in entry.get("ports") or []]:
                    if not any(container.has_port(port) for container in pod.running):
                        yield f"no container of {pod.owner.object} has port {port}; use one it has"


@rule(pairs)
def what_compose_connects_is_allowed(pair: Pair) -> Iterator[str]:
    caller = pair.container.pod
    for container, port in servers_of(pair):
        server, number, own = container.pod, port["containerPort"], namespace(caller.pattern)
        ports = {number, port.get("name")}
        connects = f"in Compose it connects to {server.owner.name}:{number}"
        if not allows(caller, "Egress", Peer(own, server.labels, ports)):
            yield f"{connects}; allow that egress"
        if not allows(server, "Ingress", Peer(own, caller.labels, ports)):
            yield f"{connects}; allow that ingress to {server.owner.object}"
        if not allows(caller, "Egress", DNS):
            yield f"{connects}; allow egress to the DNS in kube-system, UDP port 53"


@rule(serving_containers)
def our_server_accepts_calls(container: Container) -> Iterator[str]:
    if container.is_ours and "uvicorn" in container.command and container.is_behind_a_service:
        ports = [port.get("port", "*") for _, port in allowed(container.pod, "Ingress")]
        if not any(container.has_port(port) for port in ports):
            yield "no NetworkPolicy lets anything call it; allow ingress to its port"


@rule(pods)
def sidecar_connects_to_istiod(pod: Pod) -> Iterator[str]:
    has_sidecar = namespace(pod.pattern).get("istio-injection") == "enabled"
    if has_sidecar and not allows(pod, "Egress", ISTIOD):
        yield "istiod cannot configure its sidecar; allow egress to istio-system, port 15012"


def servers_of(pair: Pair) -> Iterator[tuple[Container, Body]]:
    """Yields the container and port of each server that Compose says the service connects to."""
    settings = " ".join([*pair.service.environment.values(), *pair.service.command])
    for container in (each for pod in pair.container.pod.pattern.pods for each in pod.running):
        for server in container.pairs:
            dependency = pair.service.depends_on.get(server.name)
            # A service that must have completed no longer listens.
            listens = dependency and dependency.condition != "service_completed_successfully"
            # No policy applies within a pod.
            listens = listens and server.container.pod is not pair.container.pod
            named = re.findall(rf"(?<![\w.-]){re.escape(server.name)}:(\d+)", settings)
            if server.name != pair.name and (listens or named):
                ports = container.body.get("ports") or []
                # Without a number, or with that of a replica in Compose, it is the first port.
                exact = [port for port in ports if str(port["containerPort"]) in named]
                yield from ((container, port) for port in exact or ports[:1])


def policy_types(policy: Object) -> list[str]:
    default = ["Ingress", "Egress"] if policy.spec.get("egress") else ["Ingress"]
    return policy.spec.get("policyTypes") or default


def entries(policy: Object, direction: str) -> list[Body]:
    """Returns what a policy allows; Kubernetes ignores entries that policyTypes leaves out."""
    return policy.spec.get(direction.lower()) or [] if direction in policy_types(policy) else []


def selected(policy: Object, holder: Body) -> list[Pod]:
    """Returns the pods of the folder that the holder's podSelector matches; `{}` matches all."""
    selector = mapping(holder.get("podSelector"))
    return [pod for pod in policy.pattern.pods if matches(selector, pod.labels)]


def allowed(pod: Pod, direction: str) -> Iterator[tuple[Body, Body]]:
    """Yields each peer and port that the policies of a pod allow."""
    for policy in policies(pod.pattern):
        if pod in selected(policy, policy.spec):
            for entry in entries(policy, direction):
                for peer in entry.get(PEERS[direction]) or []:
                    yield from ((peer, port) for port in entry.get("ports") or [])


def allows(pod: Pod, direction: str, wanted: Peer) -> bool:
    return any(
        is_peer(peer, namespace(pod.pattern), wanted)
        and port.get("protocol", "TCP") == wanted.protocol
        and port.get("port", "*") in wanted.ports
        for peer, port in allowed(pod, direction)
    )


def is_peer(peer: Body, own_namespace: dict[str, str], wanted: Peer) -> bool:
    if "ipBlock" in peer:
        return False
    if "namespaceSelector" in peer:
        matches_namespace = matches(mapping(peer["namespaceSelector"]), wanted.namespace)
    else:
        matches_namespace = wanted.namespace == own_namespace
    return matches_namespace and matches(mapping(peer.get("podSelector")), wanted.labels)


def namespace(pattern: Pattern) -> dict[str, str]:
    """Returns the labels of the pattern's namespace, with the one that Kubernetes adds."""
    labels: dict[str, str] = {}
    for found in of_kind("Namespace")(pattern):
        labels |= {**mapping(found.metadata.get("labels")), NAMESPACE_NAME: found.name}
    return labels
