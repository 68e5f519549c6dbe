"""Each rule on manifests rejects at least one mutant of a pattern that passes them all."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.check.manifests import (
    CONTENT_RULES,
    ISTIO_CRDS,
    ROOT,
    SHAPE_RULES,
    discover,
    findings,
    istio_schema_accepts_the_object,
    matches,
    quantity,
)

IMAGE = "ml-system-in-actions/good-pattern"
UVICORN = "uvicorn app.main:app --host 0.0.0.0 --timeout-graceful-shutdown 20"
SETTINGS = "class Settings(BaseSettings):\n    max_rows: int = 100\n"


def container(name: str, image: str, **fields: Any) -> dict[str, Any]:
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "resources": {
            "requests": {"cpu": "250m", "memory": "128Mi"},
            "limits": {"memory": "256Mi"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        **fields,
    }


def server(name: str, image: str, **fields: Any) -> dict[str, Any]:
    ready = {"httpGet": {"path": "/ready", "port": "http"}}
    health = {"httpGet": {"path": "/health", "port": "http"}}
    return container(
        name,
        image,
        args=[*UVICORN.split(), "--port", "8000"],
        ports=[{"name": "http", "containerPort": 8000}],
        startupProbe=ready,
        readinessProbe=ready,
        livenessProbe=health,
        lifecycle={"preStop": {"sleep": {"seconds": 5}}},
        **fields,
    )


def template(labels: dict[str, str], running: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "metadata": {"labels": labels},
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [running],
            **fields,
        },
    }


def thing(version: str, kind: str, name: str, **fields: Any) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, **fields}


def deployment(name: str, pod: dict[str, Any], **fields: Any) -> dict[str, Any]:
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    selector = {"matchLabels": {"app": name}}
    spec = {"selector": selector, "strategy": rolling, "template": pod, **fields}
    return thing("apps/v1", "Deployment", name, spec=spec)


def service(name: str, port: int, target: int | str) -> dict[str, Any]:
    ports = [{"name": "main", "port": port, "targetPort": target}]
    return thing("v1", "Service", name, spec={"selector": {"app": name}, "ports": ports})


def budget(name: str) -> dict[str, Any]:
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": {"app": name}}}
    return thing("policy/v1", "PodDisruptionBudget", name, spec=spec)


def redis() -> dict[str, Any]:
    ping = {"exec": {"command": ["redis-cli", "ping"]}}
    running = container(
        "redis",
        "redis:8.0",
        args=["redis-server", "--appendonly", "yes"],
        ports=[{"name": "redis", "containerPort": 6379}],
        startupProbe=ping,
        readinessProbe=ping,
        livenessProbe=ping,
        volumeMounts=[{"name": "data", "mountPath": "/data"}],
    )
    claim = {
        "metadata": {"name": "data"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    spec = {
        "serviceName": "redis",
        "selector": {"matchLabels": {"app": "redis"}},
        "template": template({"app": "redis"}, running),
        "volumeClaimTemplates": [claim],
    }
    return thing("apps/v1", "StatefulSet", "redis", spec=spec)


def report() -> dict[str, Any]:
    running = container("report", f"{IMAGE}-report:1.2.0")
    job = {"template": template({"app": "report"}, running, restartPolicy="Never")}
    spec = {"schedule": "0 * * * *", "jobTemplate": {"spec": job}}
    return thing("batch/v1", "CronJob", "report", spec=spec)


def scaler() -> dict[str, Any]:
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "api"}
    spec = {"scaleTargetRef": target, "minReplicas": 2, "maxReplicas": 5}
    return thing("autoscaling/v2", "HorizontalPodAutoscaler", "api", spec=spec)


def mesh() -> dict[str, dict[str, Any]]:
    stable = {"host": "model", "subset": "stable", "port": {"number": 80}}
    route = {"hosts": ["model"], "http": [{"route": [{"destination": stable}]}]}
    rule = {"host": "model", "subsets": [{"name": "stable", "labels": {"version": "v1"}}]}
    return {
        "virtual_service.yml": thing("networking.istio.io/v1", "VirtualService", "m", spec=route),
        "destination_rule.yml": thing("networking.istio.io/v1", "DestinationRule", "m", spec=rule),
    }


def good_manifests() -> dict[str, Any]:
    api = server(
        "api",
        f"{IMAGE}-api:1.2.0",
        env=[{"name": "REDIS_HOST", "value": "redis"}],
        envFrom=[{"configMapRef": {"name": "settings"}}],
        volumeMounts=[{"name": "tmp", "mountPath": "/scratch"}],
    )
    volumes = [{"name": "tmp", "emptyDir": {}}]
    model = server("model", f"{IMAGE}-model:1.2.0")
    enforce = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = thing("v1", "Namespace", "good")
    namespace["metadata"]["labels"] = enforce
    files = {
        "namespace.yml": namespace,
        "settings.yml": thing("v1", "ConfigMap", "settings", data={"MAX_ROWS": "10"}),
        "api.yml": deployment("api", template({"app": "api"}, api, volumes=volumes)),
        "api_service.yml": service("api", 80, "http"),
        "api_scaler.yml": scaler(),
        "api_budget.yml": budget("api"),
        "model.yml": deployment(
            "model", template({"app": "model", "version": "v1"}, model), replicas=2
        ),
        "model_service.yml": service("model", 80, 8000),
        "model_budget.yml": budget("model"),
        "redis.yml": redis(),
        "redis_service.yml": service("redis", 6379, "redis"),
        "report.yml": report(),
        **mesh(),
    }
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "good",
        "resources": list(files),
    }
    return {**files, "kustomization.yml": kustomization}


COMPOSE: dict[str, Any] = {
    "services": {
        "api": {
            "build": ".",
            "image": f"{IMAGE}-api:1.2.0",
            "command": f"{UVICORN} --port 8000",
            "ports": ["127.0.0.1:8000:8000"],
            "environment": ["REDIS_HOST=redis"],
            "tmpfs": ["/scratch"],
            "mem_limit": "256m",
        },
        "model-a": {
            "image": f"{IMAGE}-model:1.2.0",
            "command": f"{UVICORN} --port 8001",
            "labels": {"app": "model"},
        },
        "model-b": {
            "image": f"{IMAGE}-model:1.2.0",
            "command": f"{UVICORN} --port 8002",
            "labels": ["app=model"],
        },
        "redis": {
            "image": "redis:8.0",
            "command": ["redis-server", "--appendonly", "yes"],
            "expose": ["6379"],
            "volumes": ["redis-data:/data"],
        },
        "report": {"image": f"{IMAGE}-report:1.2.0", "command": ["python", "-m", "app.report"]},
    }
}

REMOVED = object()
POD = "spec.template.spec"
CONTAINER = f"{POD}.containers.0"
JOB_CONTAINER = f"spec.jobTemplate.spec.{CONTAINER.removeprefix('spec.')}"
Change = tuple[str, str, Any]


@dataclass(frozen=True)
class Mutant:
    rule: str
    name: str
    changes: tuple[Change, ...]


def mutant(rule: str, name: str, *changes: Change) -> Mutant:
    return Mutant(rule, name, changes)


def write_pattern(root: Path, *changes: Change) -> Path:
    """Writes the good pattern with each change (file, path of the field, new value) made to it.

    An empty path stands for the whole file: a string is its text, a list its documents.
    """
    good = {**good_manifests(), "docker-compose.yml": COMPOSE}
    # Through JSON, so that no two fields are one object that a change to either would change.
    files: dict[str, Any] = json.loads(json.dumps(good))
    for file, path, value in changes:
        *parents, last = path.split(".")
        if not path:
            files[file] = value
            continue
        node = files[file]
        for key in parents:
            node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
        place: Any = int(last) if isinstance(node, list) else last
        if value is REMOVED:
            del node[place]
        elif isinstance(node, list) and place == len(node):
            node.append(value)
        else:
            node[place] = value
    directory = root / "chapter9_example/good_pattern"
    (directory / "manifests").mkdir(parents=True)
    (directory / "app").mkdir()
    (directory / "app/settings.py").write_text(SETTINGS, encoding="utf-8")
    for file, content in files.items():
        folder = directory if file == "docker-compose.yml" else directory / "manifests"
        if content is not REMOVED:
            documents = content if isinstance(content, list) else [content]
            text = content if isinstance(content, str) else dump(documents)
            (folder / file).write_text(text, encoding="utf-8")
    return directory


def dump(documents: list[Any]) -> str:
    return yaml.dump_all(documents, Dumper=yaml.CSafeDumper, default_flow_style=None)


KUSTOMIZATION = "kustomization.yml"
BETA_SCALER = thing("autoscaling/v2beta2", "HorizontalPodAutoscaler", "api", spec={})
SECRET = thing("v1", "Secret", "s", stringData={"password": "hunter2"})
LISTED: Change = (KUSTOMIZATION, "resources.14", "extra.yml")
ADDRESS = "postgresql://user:hunter2@db/logs"


def extra(document: dict[str, Any]) -> tuple[Change, Change]:
    return ("extra.yml", "", [document]), LISTED


def page() -> list[dict[str, Any]]:
    """A server of others in an image of ours, whose one volume one pod can mount."""
    health = {"httpGet": {"path": "/health", "port": "http"}}
    running = container(
        "ui",
        f"{IMAGE}-report:1.2.0",
        args=["mlflow", "server", "--port", "5000"],
        ports=[{"name": "http", "containerPort": 5000}],
        startupProbe=health,
        readinessProbe=health,
        livenessProbe=health,
        lifecycle={"preStop": {"sleep": {"seconds": 5}}},
        volumeMounts=[{"name": "data", "mountPath": "/data"}],
    )
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
    pod = template({"app": "ui"}, running, volumes=volumes)
    return [
        deployment("ui", pod, replicas=1, strategy={"type": "Recreate"}),
        service("ui", 80, "http"),
    ]


CLAIM = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
PAGE: tuple[Change, ...] = (
    ("extra.yml", "", page()),
    LISTED,
    ("volume.yml", "", thing("v1", "PersistentVolumeClaim", "data", spec=CLAIM)),
    (KUSTOMIZATION, "resources.15", "volume.yml"),
    ("docker-compose.yml", "services.ui.image", f"{IMAGE}-report:1.2.0"),
    ("docker-compose.yml", "services.ui.command", ["mlflow", "server", "--port", "5000"]),
    ("docker-compose.yml", "services.ui.volumes", ["runs:/data/tracking", "models:/data/models"]),
)

MUTANTS = [
    mutant(
        "every_file_is_yaml_with_unique_keys",
        "a key given twice",
        ("settings.yml", "", "kind: ConfigMap\nkind: Secret\n"),
    ),
    mutant("every_file_is_yaml_with_unique_keys", "a tab", ("settings.yml", "", "a:\n\tb: 1\n")),
    mutant("every_file_is_yaml_with_unique_keys", "an empty file", ("settings.yml", "", "---\n")),
    mutant(
        "every_object_has_a_version_a_kind_and_a_name",
        "an object without a name",
        ("settings.yml", "metadata.name", REMOVED),
    ),
    mutant(
        "kubernetes_schema_accepts_the_object",
        "an apiVersion that was removed",
        ("api_scaler.yml", "", [BETA_SCALER]),
    ),
    mutant(
        "kubernetes_schema_accepts_the_object",
        "a CronJob of a removed apiVersion",
        ("report.yml", "apiVersion", "batch/v1beta1"),
    ),
    mutant(
        "kubernetes_schema_accepts_the_object",
        "a misspelt field",
        ("api.yml", f"{CONTAINER}.livenesProbe", {}),
    ),
    mutant(
        "kubernetes_schema_accepts_the_object",
        "a number that is a string",
        ("model.yml", "spec.replicas", "two"),
    ),
    mutant(
        "istio_schema_accepts_the_object",
        "a misspelt weight",
        ("virtual_service.yml", "spec.http.0.route.0.wieght", 90),
    ),
    mutant(
        "istio_schema_accepts_the_object",
        "a percentage that is a string",
        ("virtual_service.yml", "spec.http.0.mirrorPercentage", {"value": "half"}),
    ),
    mutant(
        "istio_schema_accepts_the_object",
        "a field that Istio took out years ago",
        ("destination_rule.yml", "spec.trafficPolicy", {"outlierDetection": {"consecErrors": 3}}),
    ),
    mutant(
        "istio_schema_accepts_the_object",
        "a kind that Istio does not have",
        ("virtual_service.yml", "kind", "VirtualServer"),
    ),
    mutant(
        "every_object_has_a_version_a_kind_and_a_name",
        "a name that is a number",
        ("settings.yml", "metadata.name", 1),
    ),
    mutant("there_is_one_kustomization", "no kustomization", (KUSTOMIZATION, "", REMOVED)),
    mutant(
        "kustomization_has_only_known_fields",
        "a misspelt field of the kustomization",
        (KUSTOMIZATION, "nameSpace", "good"),
    ),
    mutant(
        "file_holds_one_object_or_one_idea",
        "three objects in one file",
        ("settings.yml", "", [thing("v1", "ConfigMap", name) for name in ("settings", "a", "b")]),
    ),
    mutant(
        "file_holds_one_object_or_one_idea",
        "a file of 100 lines",
        (
            "settings.yml",
            "",
            "# One line more.\n" * 100 + dump([thing("v1", "ConfigMap", "settings")]),
        ),
    ),
    mutant(
        "every_object_has_a_version_a_kind_and_a_name",
        "a list, which would hide its objects from the rules",
        *extra({"apiVersion": "v1", "kind": "List", "items": []}),
    ),
    mutant("object_is_defined_once", "an object twice", *extra(service("api", 80, "http"))),
    mutant(
        "api_version_is_the_current_one",
        "an old apiVersion that is still served",
        ("api_scaler.yml", "apiVersion", "autoscaling/v1"),
    ),
    mutant(
        "api_version_is_the_current_one",
        "an old apiVersion of Istio",
        ("virtual_service.yml", "apiVersion", "networking.istio.io/v1beta1"),
    ),
    mutant(
        "kustomization_lists_every_file",
        "a file that is not listed",
        ("extra.yml", "", [thing("v1", "ConfigMap", "extra")]),
    ),
    mutant("kustomization_lists_every_file", "a listed file that is not there", LISTED),
    mutant(
        "kustomization_lists_every_file",
        "a file that is listed twice",
        (KUSTOMIZATION, "resources.14", "api.yml"),
    ),
    mutant(
        "namespace_of_the_kustomization_is_shipped",
        "a namespace that nothing makes",
        (KUSTOMIZATION, "namespace", "elsewhere"),
    ),
    mutant(
        "object_leaves_its_namespace_to_the_kustomization",
        "an object with a namespace of its own",
        ("settings.yml", "metadata.namespace", "default"),
    ),
    mutant(
        "namespace_enforces_the_restricted_profile",
        "a namespace that checks no pods",
        ("namespace.yml", "metadata.labels", {}),
    ),
    *(
        mutant(
            "pod_does_not_share_the_hosts_namespaces", field, ("api.yml", f"{POD}.{field}", True)
        )
        for field in ("hostNetwork", "hostPID", "hostIPC")
    ),
    mutant(
        "nothing_is_privileged",
        "a privileged container",
        ("api.yml", f"{CONTAINER}.securityContext.privileged", True),
    ),
    mutant(
        "nothing_is_privileged",
        "a host process",
        ("api.yml", f"{POD}.securityContext.windowsOptions.hostProcess", True),
    ),
    mutant(
        "container_takes_no_port_of_the_host",
        "a port of the host",
        ("api.yml", f"{CONTAINER}.ports.0.hostPort", 8000),
    ),
    mutant(
        "probe_or_hook_names_no_host",
        "a probe of another host",
        ("api.yml", f"{CONTAINER}.livenessProbe.httpGet.host", "169.254.169.254"),
    ),
    mutant(
        "probe_or_hook_names_no_host",
        "a hook that calls another host",
        ("api.yml", f"{CONTAINER}.lifecycle.postStart.tcpSocket", {"host": "db", "port": 1}),
    ),
    mutant(
        "app_armor_is_not_switched_off",
        "AppArmor off",
        ("api.yml", f"{CONTAINER}.securityContext.appArmorProfile.type", "Unconfined"),
    ),
    mutant(
        "app_armor_annotation_is_not_unconfined",
        "AppArmor off by an annotation",
        (
            "api.yml",
            "spec.template.metadata.annotations",
            {"container.apparmor.security.beta.kubernetes.io/api": "unconfined"},
        ),
    ),
    mutant(
        "selinux_options_are_not_custom",
        "an SELinux type of the host",
        ("api.yml", f"{POD}.securityContext.seLinuxOptions.type", "spc_t"),
    ),
    mutant(
        "selinux_options_are_not_custom",
        "an SELinux user",
        ("api.yml", f"{CONTAINER}.securityContext.seLinuxOptions.user", "system_u"),
    ),
    mutant(
        "proc_is_masked",
        "an unmasked /proc",
        ("api.yml", f"{CONTAINER}.securityContext.procMount", "Unmasked"),
    ),
    mutant(
        "seccomp_profile_is_set",
        "no seccomp profile",
        ("api.yml", f"{POD}.securityContext.seccompProfile", REMOVED),
    ),
    mutant(
        "seccomp_profile_is_set",
        "a container without seccomp",
        ("api.yml", f"{CONTAINER}.securityContext.seccompProfile.type", "Unconfined"),
    ),
    mutant(
        "sysctls_are_safe",
        "an unsafe sysctl",
        ("api.yml", f"{POD}.securityContext.sysctls", [{"name": "kernel.msgmax", "value": "1"}]),
    ),
    mutant(
        "volumes_are_of_allowed_types",
        "a folder of the host",
        ("api.yml", f"{POD}.volumes.0", {"name": "tmp", "hostPath": {"path": "/"}}),
    ),
    mutant(
        "privilege_escalation_is_off",
        "privileges that may escalate",
        ("api.yml", f"{CONTAINER}.securityContext.allowPrivilegeEscalation", REMOVED),
    ),
    mutant(
        "container_does_not_run_as_root",
        "an image that may be root's",
        ("api.yml", f"{POD}.securityContext.runAsNonRoot", REMOVED),
    ),
    mutant(
        "container_does_not_run_as_root",
        "a job that may be root's",
        ("report.yml", f"{JOB_CONTAINER}.securityContext.runAsNonRoot", False),
    ),
    mutant("user_is_not_0", "user 0", ("api.yml", f"{POD}.securityContext.runAsUser", 0)),
    mutant(
        "capabilities_are_dropped",
        "capabilities that are kept",
        ("api.yml", f"{CONTAINER}.securityContext.capabilities", REMOVED),
    ),
    mutant(
        "capabilities_are_dropped",
        "a capability that is added",
        ("api.yml", f"{CONTAINER}.securityContext.capabilities.add", ["SYS_ADMIN"]),
    ),
    mutant(
        "capabilities_are_dropped",
        "an init container with capabilities",
        ("api.yml", f"{POD}.initContainers", [{"name": "init", "image": "redis:8.0"}]),
    ),
    mutant(
        "privilege_escalation_is_off",
        "an ephemeral container that may escalate",
        ("api.yml", f"{POD}.ephemeralContainers", [{"name": "debug", "image": "redis:8.0"}]),
    ),
    mutant(
        "root_file_system_is_read_only",
        "a root file system that can be written",
        ("api.yml", f"{CONTAINER}.securityContext.readOnlyRootFilesystem", REMOVED),
    ),
    mutant(
        "what_compose_writes_to_is_a_volume",
        "no volume where Compose has a tmpfs",
        ("api.yml", f"{CONTAINER}.volumeMounts", []),
        ("api.yml", f"{POD}.volumes", []),
    ),
    mutant(
        "what_compose_writes_to_is_a_volume",
        "a volume beside the one that Compose has",
        *PAGE,
        ("extra.yml", f"0.{CONTAINER}.volumeMounts.0.mountPath", "/data/models"),
    ),
    mutant(
        "what_compose_writes_to_is_a_volume",
        "Redis data on a read-only mount",
        ("redis.yml", f"{CONTAINER}.volumeMounts.0.readOnly", True),
    ),
    mutant(
        "service_account_token_is_not_mounted",
        "a token in the pod",
        ("api.yml", f"{POD}.automountServiceAccountToken", REMOVED),
    ),
    mutant(
        "service_links_are_off",
        "service links",
        ("api.yml", f"{POD}.enableServiceLinks", REMOVED),
    ),
    mutant(
        "resources_are_requested_and_limited",
        "no memory limit",
        ("api.yml", f"{CONTAINER}.resources.limits", REMOVED),
    ),
    mutant(
        "resources_are_requested_and_limited",
        "a job without a CPU request",
        ("report.yml", f"{JOB_CONTAINER}.resources.requests.cpu", REMOVED),
    ),
    mutant(
        "requests_fit_their_limits",
        "a request over its limit",
        ("api.yml", f"{CONTAINER}.resources.requests.memory", "1Gi"),
    ),
    mutant(
        "requests_fit_their_limits",
        "a request that is not a quantity",
        ("api.yml", f"{CONTAINER}.resources.requests.cpu", "some"),
    ),
    mutant(
        "selector_takes_its_own_pods",
        "a selector that misses its pods",
        ("redis.yml", "spec.selector.matchLabels.app", "valkey"),
    ),
    mutant(
        "selectors_of_two_workloads_never_overlap",
        "two Deployments with one selector",
        ("api.yml", "spec.selector.matchLabels", {"tier": "serving"}),
        ("api.yml", "spec.template.metadata.labels.tier", "serving"),
        ("model.yml", "spec.template.metadata.labels.tier", "serving"),
    ),
    mutant(
        "selectors_of_two_workloads_never_overlap",
        "a Deployment that takes the pods of a CronJob",
        ("report.yml", "spec.jobTemplate.spec.template.metadata.labels.app", "api"),
    ),
    mutant(
        "service_selects_pods",
        "a Service of nothing",
        ("redis_service.yml", "spec.selector.app", "valkey"),
    ),
    mutant("service_selects_pods", "no selector", ("redis_service.yml", "spec.selector", REMOVED)),
    mutant(
        "service_port_is_a_port_of_its_pods",
        "a port name that no container has",
        ("api_service.yml", "spec.ports.0.targetPort", "web"),
    ),
    mutant(
        "service_port_is_a_port_of_its_pods",
        "a port number that no container has",
        ("model_service.yml", "spec.ports.0.targetPort", REMOVED),
    ),
    mutant(
        "every_name_referred_to_exists",
        "a ConfigMap that is not there",
        ("settings.yml", "metadata.name", "other"),
    ),
    mutant(
        "every_name_referred_to_exists",
        "a key that the ConfigMap does not have",
        (
            "api.yml",
            f"{CONTAINER}.env.1",
            {
                "name": "MAX_ROWS",
                "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "MAX_LINES"}},
            },
        ),
    ),
    mutant(
        "every_name_referred_to_exists",
        "a Secret that is not there",
        (
            "api.yml",
            f"{CONTAINER}.env.1",
            {"name": "MAX_ROWS", "valueFrom": {"secretKeyRef": {"name": "db", "key": "rows"}}},
        ),
    ),
    mutant(
        "every_name_referred_to_exists",
        "a claim that is not there",
        (
            "api.yml",
            f"{POD}.volumes.0",
            {"name": "tmp", "persistentVolumeClaim": {"claimName": "scratch"}},
        ),
    ),
    mutant(
        "every_name_referred_to_exists",
        "a ServiceAccount that is not there",
        ("api.yml", f"{POD}.serviceAccountName", "robot"),
    ),
    mutant(
        "volumes_and_mounts_agree",
        "a mount of no volume",
        ("redis.yml", f"{CONTAINER}.volumeMounts.0.name", "date"),
    ),
    mutant(
        "volumes_and_mounts_agree",
        "a volume that nothing mounts",
        ("api.yml", f"{POD}.volumes.1", {"name": "cache", "emptyDir": {}}),
    ),
    mutant(
        "stateful_set_has_its_service",
        "a serviceName of no Service",
        ("redis.yml", "spec.serviceName", "valkey"),
    ),
    mutant(
        "autoscaler_target_exists",
        "an autoscaler of nothing",
        ("api_scaler.yml", "spec.scaleTargetRef.name", "app"),
    ),
    mutant(
        "autoscaler_target_exists",
        "an autoscaler of an old apiVersion",
        ("api_scaler.yml", "spec.scaleTargetRef.apiVersion", "extensions/v1beta1"),
    ),
    mutant(
        "autoscaler_is_the_only_one_of_its_target",
        "two autoscalers of one Deployment",
        *extra(scaler() | {"metadata": {"name": "second"}}),
    ),
    mutant(
        "autoscaler_bounds_are_in_order",
        "a minimum over the maximum",
        ("api_scaler.yml", "spec.minReplicas", 6),
    ),
    mutant(
        "replicas_are_within_the_autoscalers_bounds",
        "more replicas than the autoscaler allows",
        ("api.yml", "spec.replicas", 10),
    ),
    mutant(
        "disruption_budget_selects_pods",
        "a budget of nothing",
        ("api_budget.yml", "spec.selector.matchLabels.app", "app"),
    ),
    mutant(
        "disruption_budget_leaves_room_and_keeps_a_pod",
        "a budget of one for a Deployment of one",
        ("model.yml", "spec.replicas", 1),
    ),
    mutant(
        "disruption_budget_leaves_room_and_keeps_a_pod",
        "a budget that keeps all",
        ("api_budget.yml", "spec.maxUnavailable", REMOVED),
        ("api_budget.yml", "spec.minAvailable", "100%"),
    ),
    mutant(
        "disruption_budget_leaves_room_and_keeps_a_pod",
        "a budget that keeps as many as the autoscaler's minimum",
        ("api_budget.yml", "spec.maxUnavailable", REMOVED),
        ("api_budget.yml", "spec.minAvailable", 2),
    ),
    mutant(
        "pods_behind_a_service_have_one_disruption_budget",
        "no budget",
        ("model_budget.yml", "", REMOVED),
        (KUSTOMIZATION, "resources.8", REMOVED),
    ),
    mutant(
        "pods_behind_a_service_have_one_disruption_budget",
        "two budgets",
        *extra(budget("api") | {"metadata": {"name": "second"}}),
    ),
    mutant(
        "mesh_destination_is_a_service_and_subset",
        "a route to no Service",
        ("virtual_service.yml", "spec.http.0.route.0.destination.host", "modle"),
    ),
    mutant(
        "mesh_destination_is_a_service_and_subset",
        "a route to no subset",
        ("virtual_service.yml", "spec.http.0.route.0.destination.subset", "canary"),
    ),
    mutant(
        "mesh_destination_is_a_service_and_subset",
        "a route to a port that the Service does not have",
        ("virtual_service.yml", "spec.http.0.route.0.destination.port.number", 8000),
    ),
    mutant(
        "mesh_destination_is_a_service_and_subset",
        "a mirror to no subset",
        ("virtual_service.yml", "spec.http.0.mirror", {"host": "model", "subset": "shadow"}),
    ),
    mutant(
        "mesh_route_is_for_a_service",
        "a route for no Service",
        ("virtual_service.yml", "spec.hosts.0", "modle"),
    ),
    mutant(
        "mesh_subset_selects_pods",
        "a subset of no pods",
        ("destination_rule.yml", "spec.subsets.0.labels.version", "v2"),
    ),
    mutant(
        "mesh_subset_selects_pods",
        "a rule for no Service",
        ("destination_rule.yml", "spec.host", "modle"),
    ),
    *(
        mutant(
            "serving_container_has_all_three_probes",
            f"no {probe}",
            ("api.yml", f"{CONTAINER}.{probe}", REMOVED),
        )
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    ),
    mutant(
        "probe_port_is_a_container_port",
        "a probe of a port that is not there",
        ("api.yml", f"{CONTAINER}.livenessProbe.httpGet.port", 8080),
    ),
    mutant(
        "probes_of_our_servers_ask_ready_and_health",
        "readiness that asks whether the process lives",
        ("api.yml", f"{CONTAINER}.readinessProbe.httpGet.path", "/health"),
    ),
    mutant(
        "probes_of_our_servers_ask_ready_and_health",
        "a server of ours that is only connected to",
        ("api.yml", f"{CONTAINER}.startupProbe", {"tcpSocket": {"port": "http"}}),
    ),
    mutant(
        "liveness_does_not_ask_for_readiness",
        "liveness that asks for readiness",
        ("redis.yml", f"{CONTAINER}.livenessProbe", {"httpGet": {"path": "/ready", "port": 6379}}),
    ),
    mutant(
        "rolling_update_keeps_every_replica",
        "an update of Kubernetes' defaults",
        ("api.yml", "spec.strategy", REMOVED),
    ),
    mutant(
        "rolling_update_keeps_every_replica",
        "an update that stops all pods first",
        ("api.yml", "spec.strategy", {"type": "Recreate"}),
    ),
    mutant(
        "rolling_update_keeps_every_replica",
        "an update with two pods for one volume",
        *PAGE,
        ("extra.yml", "0.spec.strategy", {"type": "RollingUpdate"}),
    ),
    mutant(
        "grace_period_covers_the_stop",
        "a grace period of Kubernetes' default for a longer sleep",
        ("api.yml", f"{CONTAINER}.lifecycle.preStop.sleep.seconds", 10),
    ),
    mutant(
        "grace_period_covers_the_stop",
        "a grace period shorter than Compose's graceful shutdown",
        ("api.yml", f"{CONTAINER}.args", REMOVED),
        ("api.yml", f"{POD}.terminationGracePeriodSeconds", 20),
    ),
    mutant(
        "uvicorn_stops_within_a_bound",
        "a graceful shutdown without a bound",
        ("api.yml", f"{CONTAINER}.args", ["uvicorn", "app.main:app", "--port", "8000"]),
    ),
    mutant(
        "container_behind_a_service_sleeps_before_it_stops",
        "a stop while requests are sent",
        ("api.yml", f"{CONTAINER}.lifecycle", REMOVED),
    ),
    mutant(
        "image_has_a_fixed_version",
        "the latest image",
        ("api.yml", f"{CONTAINER}.image", f"{IMAGE}-api:latest"),
    ),
    mutant(
        "image_has_a_fixed_version",
        "an image without a tag",
        ("redis.yml", f"{CONTAINER}.image", "registry.example:5000/redis"),
    ),
    mutant(
        "our_image_is_named_for_its_pattern_and_service",
        "an image of another pattern",
        ("api.yml", f"{CONTAINER}.image", "ml-system-in-actions/other-pattern-api:1.2.0"),
    ),
    mutant(
        "our_image_is_named_for_its_pattern_and_service",
        "an image that is built under a foreign name",
        ("api.yml", f"{CONTAINER}.image", "someone/api:1.2.0"),
    ),
    mutant(
        "our_image_is_named_for_its_pattern_and_service",
        "a version in one number",
        ("api.yml", f"{CONTAINER}.image", f"{IMAGE}-api:1"),
    ),
    mutant(
        "our_image_is_not_pulled_when_present",
        "an image that is always pulled",
        ("api.yml", f"{CONTAINER}.imagePullPolicy", "Always"),
    ),
    mutant(
        "image_is_the_one_of_compose",
        "another version than in Compose",
        ("api.yml", f"{CONTAINER}.image", f"{IMAGE}-api:1.3.0"),
    ),
    mutant(
        "image_is_the_one_of_compose",
        "another Redis than in Compose",
        ("redis.yml", f"{CONTAINER}.image", "redis:7.4"),
    ),
    mutant(
        "image_is_the_one_of_compose",
        "a replica of another version",
        ("docker-compose.yml", "services.model-b.image", f"{IMAGE}-model:1.3.0"),
    ),
    mutant(
        "container_is_a_compose_service",
        "a container of another name than in Compose",
        ("api.yml", f"{CONTAINER}.name", "app"),
    ),
    mutant(
        "container_is_a_compose_service",
        "replicas with another label than in Compose",
        ("docker-compose.yml", "services.model-a.labels.app", "iris"),
        ("docker-compose.yml", "services.model-b.labels", ["app=iris"]),
    ),
    mutant(
        "image_is_the_one_of_compose",
        "another version than the default in Compose",
        ("docker-compose.yml", "services.api.image", f"{IMAGE}-api:${{API_VERSION:-1.3.0}}"),
    ),
    mutant(
        "container_ports_are_those_of_compose",
        "another port than in Compose",
        ("docker-compose.yml", "services.api.ports", ["127.0.0.1:8000:9000"]),
    ),
    mutant(
        "container_ports_are_those_of_compose",
        "another port than in the command",
        ("docker-compose.yml", "services.api.ports", []),
        ("docker-compose.yml", "services.api.command", f"{UVICORN} --port=9000"),
    ),
    mutant(
        "port_of_the_command_is_a_container_port",
        "a server that listens elsewhere",
        ("model.yml", f"{CONTAINER}.args", [*UVICORN.split(), "--port", "8001"]),
    ),
    mutant(
        "command_is_the_one_of_compose",
        "another command than in Compose",
        ("redis.yml", f"{CONTAINER}.args", ["redis-server"]),
    ),
    mutant(
        "memory_limit_is_the_one_of_compose",
        "another memory limit than in Compose",
        ("api.yml", f"{CONTAINER}.resources.limits.memory", "512Mi"),
    ),
    mutant(
        "environment_is_known_to_compose_or_the_settings",
        "a variable that nothing reads",
        ("api.yml", f"{CONTAINER}.env.0.name", "CACHE_HOST"),
    ),
    mutant(
        "environment_is_known_to_compose_or_the_settings",
        "a key of a ConfigMap that nothing reads",
        ("settings.yml", "data.MAX_LINES", "10"),
    ),
    mutant("no_secret_is_written_out", "a Secret", *extra(SECRET)),
    mutant(
        "no_secret_is_generated_from_literals",
        "a generated Secret",
        (KUSTOMIZATION, "secretGenerator", [{"name": "db", "literals": ["password=hunter2"]}]),
    ),
    mutant(
        "no_secret_is_in_a_config_map",
        "a token in a ConfigMap",
        ("settings.yml", "data.API_TOKEN", "hunter2"),
    ),
    *(
        mutant(
            "no_secret_is_in_a_containers_environment",
            f"{name}={value}",
            ("api.yml", f"{CONTAINER}.env.0", {"name": name, "value": value}),
        )
        for name, value in (
            ("POSTGRES_PASSWORD", "hunter2"),
            ("AWS_SECRET_ACCESS_KEY", "hunter2"),
            ("DATABASE_URL", ADDRESS),
        )
    ),
    mutant(
        "no_secret_is_in_a_command",
        "a password in the command",
        ("report.yml", f"{JOB_CONTAINER}.args", ["python", "-m", "app.report", ADDRESS]),
    ),
]

# Other ways to write a good pattern, which a rule that is too eager would reject.
VARIANTS: dict[str, tuple[Change, ...]] = {
    "the good pattern": (),
    "no arguments, so the image's own": (("api.yml", f"{CONTAINER}.args", REMOVED),),
    "a command split in two": (
        ("redis.yml", f"{CONTAINER}.command", ["redis-server"]),
        ("redis.yml", f"{CONTAINER}.args", ["--appendonly", "yes"]),
    ),
    "replicas within the autoscaler's bounds": (("api.yml", "spec.replicas", 3),),
    "a budget in per cent": (("api_budget.yml", "spec.maxUnavailable", "50%"),),
    "a budget that keeps one": (
        ("api_budget.yml", "spec.maxUnavailable", REMOVED),
        ("api_budget.yml", "spec.minAvailable", 1),
    ),
    "a selector of expressions": (
        (
            "redis.yml",
            "spec.selector",
            {"matchExpressions": [{"key": "app", "operator": "In", "values": ["redis"]}]},
        ),
    ),
    "one budget for the replicas of two Deployments of one": (
        ("model.yml", "spec.replicas", 1),
        (
            "model_budget.yml",
            "spec.selector",
            {"matchExpressions": [{"key": "app", "operator": "In", "values": ["api", "model"]}]},
        ),
        ("api_budget.yml", "", REMOVED),
        (KUSTOMIZATION, "resources.5", REMOVED),
    ),
    "a password from an env file that is not in the repository": (
        (KUSTOMIZATION, "secretGenerator", [{"name": "db", "envs": ["db.env"]}]),
        (
            "api.yml",
            f"{CONTAINER}.env.0",
            {
                "name": "DB_PASSWORD",
                "valueFrom": {"secretKeyRef": {"name": "db", "key": "password"}},
            },
        ),
        ("docker-compose.yml", "services.api.environment", {"DB_PASSWORD": "x"}),
    ),
    "an address that takes its password from a variable": (
        (
            "api.yml",
            f"{CONTAINER}.env.0",
            {"name": "DB_URL", "value": "postgresql://user:$(DB_PASSWORD)@db/logs"},
        ),
        ("docker-compose.yml", "services.api.environment", {"DB_URL": "x"}),
    ),
    "a generated ConfigMap": (
        ("settings.yml", "", REMOVED),
        (KUSTOMIZATION, "resources.1", REMOVED),
        (KUSTOMIZATION, "configMapGenerator", [{"name": "settings", "literals": ["MAX_ROWS=9"]}]),
    ),
    "no namespace": (
        (KUSTOMIZATION, "namespace", REMOVED),
        (KUSTOMIZATION, "resources.0", REMOVED),
        ("namespace.yml", "", REMOVED),
    ),
    "full host names in the mesh": (
        ("destination_rule.yml", "spec.host", "model.good.svc.cluster.local"),
    ),
    "a page whose one volume one pod can mount": PAGE,
    "a mounted file that is only read": (
        ("docker-compose.yml", "services.api.volumes", ["./models:/models:ro"]),
    ),
    "a version that can be chosen": (
        ("docker-compose.yml", "services.api.image", f"{IMAGE}-api:${{API_VERSION:-1.2.0}}"),
    ),
    "ports and limits in Compose's long form": (
        ("docker-compose.yml", "services.api.ports", [{"target": 8000, "published": 8000}]),
        ("docker-compose.yml", "services.api.mem_limit", REMOVED),
        ("docker-compose.yml", "services.api.deploy.resources.limits.memory", "256M"),
    ),
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_good_pattern_has_no_findings(tmp_path: Path, changes: tuple[Change, ...]) -> None:
    assert [str(found) for found in findings(write_pattern(tmp_path, *changes))] == []


@pytest.mark.parametrize("broken", MUTANTS, ids=lambda broken: f"{broken.rule}: {broken.name}")
def test_a_mutant_is_rejected_by_its_rule(tmp_path: Path, broken: Mutant) -> None:
    if broken.rule == istio_schema_accepts_the_object.__name__ and not ISTIO_CRDS.is_file():
        pytest.skip("Istio's custom resource definitions are not beside this repository")
    found = findings(write_pattern(tmp_path, *broken.changes))
    assert broken.rule in {finding.rule for finding in found}, found
    assert all("; " in finding.message for finding in found), "what to do is missing"


def test_every_rule_has_a_mutant_that_it_rejects() -> None:
    assert {rule.name for rule in SHAPE_RULES + CONTENT_RULES} == {each.rule for each in MUTANTS}


def test_a_finding_says_where_it_is_and_what_to_do(tmp_path: Path) -> None:
    broken = write_pattern(tmp_path, ("api.yml", f"{POD}.hostNetwork", True))
    assert [str(found) for found in findings(broken)] == [
        "chapter9_example/good_pattern/manifests/api.yml: Deployment api: "
        "pod_does_not_share_the_hosts_namespaces: hostNetwork is true; take it out"
    ]


def test_a_pattern_without_manifests_has_no_findings(tmp_path: Path) -> None:
    assert findings(tmp_path) == []


def test_a_pattern_is_a_directory_with_processes_training_or_manifests(tmp_path: Path) -> None:
    for file in (
        "served/docker-compose.yml",
        "trained/train/model.py",
        "deployed/manifests/api.yml",
    ):
        (tmp_path / "chapter1_a" / file).parent.mkdir(parents=True)
        (tmp_path / "chapter1_a" / file).touch()
    (tmp_path / "chapter1_a/neither").mkdir()
    assert [path.name for path in discover(tmp_path)] == ["deployed", "served", "trained"]


@pytest.mark.parametrize(
    ("text", "number"),
    [("250m", 0.25), ("1", 1.0), (2, 2.0), ("1Ki", 1024.0), ("1.5Gi", 1.5 * 2**30), ("1k", 1e3)],
)
def test_a_quantity_is_read_as_a_number(text: str | int, number: float) -> None:
    assert quantity(text) == pytest.approx(number)


@pytest.mark.parametrize(
    ("operator", "values", "labels", "expected"),
    [
        ("In", ["v1", "v2"], {"version": "v1"}, True),
        ("In", ["v1", "v2"], {"version": "v3"}, False),
        ("NotIn", ["v1"], {"version": "v2"}, True),
        ("NotIn", ["v1"], {}, True),
        ("Exists", [], {}, False),
        ("DoesNotExist", [], {}, True),
    ],
)
def test_an_expression_selects_pods(
    operator: str, values: list[str], labels: dict[str, str], expected: bool
) -> None:
    expression = {"key": "version", "operator": operator, "values": values}
    assert matches({"matchExpressions": [expression]}, labels) is expected


def run_manifests(*arguments: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.check.manifests", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_passes_a_good_pattern(tmp_path: Path) -> None:
    result = run_manifests(write_pattern(tmp_path))
    assert result.returncode == 0
    assert result.stdout == "manifests of 1 pattern(s): every rule holds\n"


def test_the_command_fails_with_one_line_per_finding(tmp_path: Path) -> None:
    result = run_manifests(
        write_pattern(
            tmp_path,
            ("api.yml", f"{POD}.hostNetwork", True),
            ("redis_service.yml", "spec.selector.app", "valkey"),
        )
    )
    rules = [line.split(": ")[2] for line in result.stdout.splitlines()]
    assert result.returncode == 1
    assert rules == ["pod_does_not_share_the_hosts_namespaces", "service_selects_pods"]


def test_the_command_names_a_folder_that_is_not_a_pattern(tmp_path: Path) -> None:
    result = run_manifests(tmp_path / "nowhere")
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {tmp_path / 'nowhere'} has no manifests/ folder;")


def test_the_command_names_a_compose_file_that_cannot_be_read(tmp_path: Path) -> None:
    result = run_manifests(write_pattern(tmp_path, ("docker-compose.yml", "", "services: [\n")))
    assert result.returncode == 2
    assert "error: docker-compose.yml or settings.py cannot be read" in result.stderr
