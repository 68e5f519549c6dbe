"""Rules about references: names exist, and selectors match the right pods."""

import math
from collections.abc import Iterator
from pathlib import Path

from tools.check.manifests.subjects import (
    Body,
    Object,
    Pattern,
    Pod,
    generators,
    mapping,
    mappings,
    matches,
    of_kind,
    pods,
)
from tools.check.rules import rule

# Kubernetes generates the selector of a Job, and a Pod has none.
KINDS_WITHOUT_SELECTOR = {"Pod", "Job", "CronJob"}


@rule(pods)
def selector_takes_its_own_pods(pod: Pod) -> Iterator[str]:
    if pod.kind not in KINDS_WITHOUT_SELECTOR and pod not in pod.owner.selected_pods:
        yield "the selector does not match its own pods; use the template's labels"


@rule(pods)
def selectors_of_two_workloads_never_overlap(pod: Pod) -> Iterator[str]:
    if pod.kind not in KINDS_WITHOUT_SELECTOR:
        for other in pod.owner.selected_pods:
            if other is not pod:
                yield f"the selector also matches {other.owner.object}; add a label that differs"


@rule(of_kind("Service"))
def service_selects_pods(service: Object) -> Iterator[str]:
    if service.spec.get("type") != "ExternalName" and not service.selected_pods:
        yield "the selector matches no pods; use a pod template's labels"


@rule(of_kind("Service"))
def service_port_is_a_port_of_its_pods(service: Object) -> Iterator[str]:
    for pod in service.selected_pods:
        for port in service.spec.get("ports") or []:
            target = port.get("targetPort", port["port"])
            if not any(container.has_port(target) for container in pod.running):
                yield f"no container of {pod.owner.object} has port {target}; use one that exists"


@rule(pods)
def every_name_referred_to_exists(pod: Pod) -> Iterator[str]:
    for kind, name, keys in references(pod):
        known = keys_by_name(pod.pattern, kind)
        if name not in known:
            yield f"there is no {kind} {name} in the folder; add it"
            continue
        for key in keys:
            if key not in (known[name] or keys):
                yield f"{kind} {name} has no key {key}; add it"


Reference = tuple[str, str, list[str]]


def references(pod: Pod) -> Iterator[Reference]:
    """Yields the kind and name of each object that the pod needs, and the keys it needs in it."""
    for container in pod.containers:
        for source in container.body.get("envFrom") or []:
            yield from reference("ConfigMap", source.get("configMapRef"))
            yield from reference("Secret", source.get("secretRef"))
        for variable in container.body.get("env") or []:
            source = mapping(variable.get("valueFrom"))
            yield from reference("ConfigMap", source.get("configMapKeyRef"))
            yield from reference("Secret", source.get("secretKeyRef"))
    for volume in pod.spec.get("volumes") or []:
        for source in [volume, *(mapping(volume.get("projected")).get("sources") or [])]:
            yield from reference("ConfigMap", source.get("configMap"))
            yield from reference("Secret", source.get("secret"))
        yield from reference("PersistentVolumeClaim", volume.get("persistentVolumeClaim"))
    for secret in pod.spec.get("imagePullSecrets") or []:
        yield from reference("Secret", secret)
    if pod.spec.get("serviceAccountName", "default") != "default":
        yield "ServiceAccount", pod.spec["serviceAccountName"], []


def reference(kind: str, source: Body | None) -> Iterator[Reference]:
    if source and not source.get("optional"):
        name = source.get("name") or source.get("secretName") or source.get("claimName") or ""
        items = [item["key"] for item in source.get("items") or []]
        yield kind, name, items + ([source["key"]] if "key" in source else [])


def keys_by_name(pattern: Pattern, kind: str) -> dict[str, set[str] | None]:
    """Returns the objects of a kind, including generated ones, with their keys if known."""
    fields = ("data", "stringData", "binaryData")
    known: dict[str, set[str] | None] = {
        found.name: {key for field in fields for key in found.body.get(field) or {}}
        for found in of_kind(kind)(pattern)
    }
    if kind in {"ConfigMap", "Secret"}:
        for generator in generators(pattern, kind):
            known[generator["name"]] = generated_keys(pattern, generator)
    return known


def generated_keys(pattern: Pattern, generator: Body) -> set[str] | None:
    keys = {literal.partition("=")[0] for literal in generator.get("literals") or []}
    for source in generator.get("files") or []:
        keys.add(source.partition("=")[0] if "=" in source else Path(source).name)
    for name in generator.get("envs") or []:
        path = pattern.directory / "manifests" / name
        # A file with secrets exists only where the pattern is deployed.
        if not path.is_file():
            return None
        lines = path.read_text(encoding="utf-8").splitlines()
        keys |= {line.partition("=")[0] for line in lines if line and not line.startswith("#")}
    return keys


@rule(pods)
def volumes_and_mounts_agree(pod: Pod) -> Iterator[str]:
    claims = pod.owner.spec.get("volumeClaimTemplates") or []
    known = {volume["name"] for volume in pod.spec.get("volumes") or []}
    known |= {claim["metadata"]["name"] for claim in claims}
    mounts = [mount for each in pod.containers for mount in each.body.get("volumeMounts") or []]
    mounted = {mount["name"] for mount in mounts}
    for name in sorted(mounted - known):
        yield f"there is no volume {name} to mount; add it to volumes"
    for name in sorted(known - mounted):
        yield f"no container mounts volume {name}; remove it"


@rule(of_kind("StatefulSet"))
def stateful_set_has_its_service(stateful_set: Object) -> Iterator[str]:
    name = stateful_set.spec.get("serviceName")
    if name not in stateful_set.pattern.names("Service"):
        yield f"serviceName {name} is not a Service in the folder; use one that is"


@rule(of_kind("HorizontalPodAutoscaler"))
def autoscaler_target_exists(scaler: Object) -> Iterator[str]:
    target = scaler.spec["scaleTargetRef"]
    wanted = (target.get("apiVersion"), target["kind"], target["name"])
    workloads = [pod.owner for pod in scaler.pattern.pods]
    if wanted not in [(found.version, found.kind, found.name) for found in workloads]:
        yield f"there is no {target['kind']} {target['name']} in the folder; use one that is"


@rule(of_kind("HorizontalPodAutoscaler"))
def autoscaler_is_the_only_one_of_its_target(scaler: Object) -> Iterator[str]:
    for other in of_kind("HorizontalPodAutoscaler")(scaler.pattern):
        if other is scaler:
            return
        if other.spec["scaleTargetRef"] == scaler.spec["scaleTargetRef"]:
            yield f"{other.name} scales the same target; keep one"


@rule(of_kind("HorizontalPodAutoscaler"))
def autoscaler_bounds_are_in_order(scaler: Object) -> Iterator[str]:
    low, high = scaler.spec.get("minReplicas", 1), scaler.spec["maxReplicas"]
    if low > high:
        yield f"minReplicas {low} is above maxReplicas {high}; lower it"


@rule(pods)
def replicas_are_within_the_autoscalers_bounds(pod: Pod) -> Iterator[str]:
    replicas = pod.owner.spec.get("replicas")
    if pod.autoscaler and replicas is not None:
        low = pod.autoscaler.spec.get("minReplicas", 1)
        high = pod.autoscaler.spec["maxReplicas"]
        if not low <= replicas <= high:
            yield f"replicas {replicas} is outside {low} to {high}; leave replicas out"


@rule(of_kind("PodDisruptionBudget"))
def disruption_budget_selects_pods(budget: Object) -> Iterator[str]:
    if not budget.selected_pods:
        yield "the selector matches no pods; use a pod template's labels"


@rule(of_kind("PodDisruptionBudget"))
def disruption_budget_leaves_room_and_keeps_a_pod(budget: Object) -> Iterator[str]:
    replicas = sum(pod.fewest_replicas for pod in budget.selected_pods)
    if "minAvailable" in budget.spec:
        may_go = replicas - share(budget.spec["minAvailable"], replicas)
    else:
        may_go = share(budget.spec.get("maxUnavailable", 0), replicas)
    if replicas and may_go <= 0:
        yield "no replica may be evicted, so no node can be drained; allow one eviction"
    if replicas and may_go >= replicas:
        yield f"all {replicas} replicas may be evicted at once; allow fewer, or run more"


def share(value: str | int, whole: int) -> int:
    """Returns a number of pods; Kubernetes rounds percentages up."""
    if isinstance(value, str):
        return math.ceil(int(value.removesuffix("%")) * whole / 100)
    return value


@rule(pods)
def pods_behind_a_service_have_one_disruption_budget(pod: Pod) -> Iterator[str]:
    budgets = of_kind("PodDisruptionBudget")(pod.pattern)
    own = [budget.name for budget in budgets if pod in budget.selected_pods]
    # A budget of one pod allows nothing or everything. A single Redis that may be lost needs none.
    is_ours = any(container.is_ours for container in pod.running)
    may_have_one = not pod.has_claim and (is_ours or pod.fewest_replicas > 1)
    if pod.kind == "Deployment" and pod.services and may_have_one and not own:
        yield "no PodDisruptionBudget matches its pods; add pdb.yml"
    if len(own) > 1:
        yield f"Kubernetes evicts no pod that has several budgets ({', '.join(own)}); keep one"


@rule(of_kind("VirtualService"))
def mesh_destination_is_a_service_and_subset(virtual_service: Object) -> Iterator[str]:
    pattern = virtual_service.pattern
    for destination in destinations(virtual_service):
        host, subset = str(destination.get("host", "")), destination.get("subset")
        if host in external_hosts(pattern):
            continue
        service = service_at(pattern, host)
        if service is None:
            yield f"host {host} is not a Service in the folder; use one that is"
            continue
        port = mapping(destination.get("port")).get("number")
        if port and port not in [entry["port"] for entry in service.spec.get("ports") or []]:
            yield f"Service {service.name} has no port {port}; use one that it has"
        if subset and subset not in subsets(pattern, service):
            yield f"no DestinationRule of {host} has subset {subset}; add one"


@rule(of_kind("VirtualService"))
def mesh_route_is_for_a_service(virtual_service: Object) -> Iterator[str]:
    # Behind a gateway the host is an external name.
    if not virtual_service.spec.get("gateways"):
        pattern = virtual_service.pattern
        for host in virtual_service.spec.get("hosts") or []:
            if host not in external_hosts(pattern) and not service_at(pattern, host):
                yield f"host {host} is not a Service in the folder; use one that is"


@rule(of_kind("DestinationRule"))
def mesh_subset_selects_pods(destination_rule: Object) -> Iterator[str]:
    pattern, host = destination_rule.pattern, str(destination_rule.spec.get("host", ""))
    if host in external_hosts(pattern):
        return
    service = service_at(pattern, host)
    if service is None:
        yield f"host {host} is not a Service in the folder; use one that is"
        return
    for subset in mappings(destination_rule.spec.get("subsets")):
        selector = {"matchLabels": subset.get("labels")}
        if not any(matches(selector, pod.labels) for pod in service.selected_pods):
            yield f"subset {subset.get('name')} matches no pod of {service.name}; fix its labels"


def destinations(virtual_service: Object) -> Iterator[Body]:
    for protocol in ("http", "tcp", "tls"):
        for route in mappings(virtual_service.spec.get(protocol)):
            for target in mappings(route.get("route")) + mappings(route.get("mirrors")):
                yield mapping(target.get("destination"))
            if "mirror" in route:
                yield mapping(route["mirror"])


def service_at(pattern: Pattern, host: str) -> Object | None:
    """Finds a Service by its short or full host name (`api.namespace.svc.cluster.local`)."""
    for service in of_kind("Service")(pattern):
        if service.name == host.partition(".")[0]:
            return service
    return None


def external_hosts(pattern: Pattern) -> set[str]:
    entries = of_kind("ServiceEntry")(pattern)
    return {str(host) for entry in entries for host in entry.spec.get("hosts") or []}


def subsets(pattern: Pattern, service: Object) -> set[str]:
    return {
        str(subset.get("name"))
        for found in of_kind("DestinationRule")(pattern)
        if service_at(pattern, str(found.spec.get("host", ""))) is service
        for subset in mappings(found.spec.get("subsets"))
    }
