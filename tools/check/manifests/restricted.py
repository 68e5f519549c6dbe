"""Rules of the Pod Security Standard "restricted", and stricter ones of this repository."""

from collections.abc import Iterator
from pathlib import PurePosixPath

from tools.check.manifests.subjects import (
    Container,
    Pair,
    Pod,
    every_container,
    mapping,
    pairs,
    pods,
    pods_and_containers,
    quantity,
    started_containers,
)
from tools.check.rules import rule

# The volume types that the standard allows in Kubernetes 1.34.
RESTRICTED_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
# The fields that restrict a pod or container. All others, such as `privileged`, `procMount`,
# `seLinuxOptions` or `sysctls`, can only weaken its isolation.
SECURITY_FIELDS = {
    "allowPrivilegeEscalation",
    "capabilities",
    "fsGroup",
    "fsGroupChangePolicy",
    "readOnlyRootFilesystem",
    "runAsGroup",
    "runAsNonRoot",
    "runAsUser",
    "seccompProfile",
    "supplementalGroups",
}


@rule(pods)
def pod_does_not_share_the_hosts_namespaces(pod: Pod) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.spec.get(field):
            yield f"{field} is true; remove it"


@rule(pods_and_containers)
def security_context_only_restricts(subject: Pod | Container) -> Iterator[str]:
    for field in sorted(subject.security.keys() - SECURITY_FIELDS):
        yield f"securityContext.{field} may weaken the isolation; remove it"


@rule(every_container)
def container_takes_no_port_of_the_host(container: Container) -> Iterator[str]:
    for port in container.body.get("ports") or []:
        if port.get("hostPort"):
            yield f"hostPort {port['hostPort']}; use a Service"


@rule(every_container)
def probe_or_hook_names_no_host(container: Container) -> Iterator[str]:
    for name, handler in (container.probes | container.lifecycle).items():
        for action in ("httpGet", "tcpSocket"):
            if mapping(mapping(handler).get(action)).get("host"):
                yield f"{name} sets a host; remove it, so that the pod itself is probed"


@rule(pods_and_containers)
def seccomp_profile_is_set(subject: Pod | Container) -> Iterator[str]:
    profile = mapping(subject.security.get("seccompProfile")).get("type")
    if isinstance(subject, Container) and profile is None:
        profile = mapping(subject.pod.security.get("seccompProfile")).get("type", "not set")
    if profile not in {None, "RuntimeDefault", "Localhost"}:
        yield f"the seccompProfile is {profile}; set the pod's type to RuntimeDefault"


@rule(pods)
def volumes_are_of_allowed_types(pod: Pod) -> Iterator[str]:
    for volume in pod.spec.get("volumes") or []:
        for kind in sorted(set(volume) - {"name"} - RESTRICTED_VOLUMES):
            yield f"volume {volume['name']} is a {kind}; use an emptyDir, a claim or a ConfigMap"


@rule(every_container)
def privilege_escalation_is_off(container: Container) -> Iterator[str]:
    if container.security.get("allowPrivilegeEscalation") is not False:
        yield "privileges may escalate; set allowPrivilegeEscalation: false"


@rule(every_container)
def container_does_not_run_as_root(container: Container) -> Iterator[str]:
    if (container.pod.security | container.security).get("runAsNonRoot") is not True:
        yield "it may run as root; set runAsNonRoot: true"


@rule(pods_and_containers)
def user_is_not_0(subject: Pod | Container) -> Iterator[str]:
    if subject.security.get("runAsUser") == 0:
        yield "runAsUser is 0; use another user"


@rule(every_container)
def capabilities_are_dropped(container: Container) -> Iterator[str]:
    capabilities = mapping(container.security.get("capabilities"))
    if "ALL" not in (capabilities.get("drop") or []):
        yield "capabilities are kept; set capabilities.drop: [ALL]"
    for name in sorted(set(capabilities.get("add") or []) - {"NET_BIND_SERVICE"}):
        yield f"it adds the capability {name}; remove it"


@rule(started_containers)
def root_file_system_is_read_only(container: Container) -> Iterator[str]:
    if container.security.get("readOnlyRootFilesystem") is not True:
        yield "the root file system is writable; set readOnlyRootFilesystem: true"


@rule(pairs)
def what_compose_writes_to_is_a_volume(pair: Pair) -> Iterator[str]:
    mounts = pair.container.body.get("volumeMounts") or []
    writable = {mount["mountPath"].rstrip("/") for mount in mounts if not mount.get("readOnly")}
    for path in pair.written_paths:
        # The volume may be mounted at a parent folder.
        if not writable & {path.rstrip("/"), *map(str, PurePosixPath(path).parents)}:
            yield f"Compose service {pair.name} writes to {path}; mount an emptyDir or claim there"


@rule(pods)
def service_account_token_is_not_mounted(pod: Pod) -> Iterator[str]:
    if pod.spec.get("automountServiceAccountToken") is not False:
        yield "pods get a token they do not need; set automountServiceAccountToken: false"


@rule(pods)
def service_links_are_off(pod: Pod) -> Iterator[str]:
    if pod.spec.get("enableServiceLinks") is not False:
        yield "Services become variables like REDIS_PORT=tcp://...; set enableServiceLinks: false"


@rule(started_containers)
def resources_are_requested_and_limited(container: Container) -> Iterator[str]:
    for field, name in (("requests", "cpu"), ("requests", "memory"), ("limits", "memory")):
        if name not in mapping(container.resources.get(field)):
            yield f"resources.{field}.{name} is missing; set what the process needs"


@rule(started_containers)
def requests_fit_their_limits(container: Container) -> Iterator[str]:
    limits = mapping(container.resources.get("limits"))
    for name, request in mapping(container.resources.get("requests")).items():
        limit = limits.get(name) or request
        # An invalid quantity is NaN, which fails every comparison.
        if not quantity(request) <= quantity(limit):
            yield f"{name}: request {request} exceeds limit {limit}; lower the request"
