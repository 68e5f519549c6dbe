"""The files, objects, pods and containers of a pattern's manifests, for the rules about them."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import yaml

from tools.read.command import option
from tools.read.compose import Compose, Service
from tools.read.dockerfile import stage_of
from tools.read.settings import variables_of
from tools.read.strict_yaml import documents_of

OUR_IMAGES = "ml-system-in-actions/"
# The path of the pod template in each kind that creates pods.
POD_TEMPLATES: dict[str, tuple[str, ...]] = {
    "Pod": (),
    "Deployment": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "ReplicaSet": ("spec", "template"),
    "ReplicationController": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
}
SERVING_KINDS = {"Deployment", "StatefulSet", "DaemonSet"}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")

Body = dict[str, Any]


class Subject(Protocol):
    """Something that a rule checks; findings begin with its place."""

    @property
    def place(self) -> str: ...


@dataclass(frozen=True, eq=False)
class Pattern:
    """A pattern's `manifests/` folder, with its Compose file."""

    compose: Compose

    @property
    def directory(self) -> Path:
        return self.compose.pattern_dir

    @property
    def file(self) -> str:
        return f"{self.directory.parent.name}/{self.directory.name}/manifests"

    @property
    def place(self) -> str:
        return f"{self.file}: folder"

    @cached_property
    def files(self) -> list["File"]:
        return [File(self, path) for path in sorted((self.directory / "manifests").iterdir())]

    @cached_property
    def objects(self) -> list["Object"]:
        """Every object except the kustomization, which is not applied."""
        files = [file for file in self.files if file.path.name != "kustomization.yml"]
        return [Object(self, file.file, body) for file in files for body in file.documents]

    @cached_property
    def kustomizations(self) -> list["Object"]:
        files = [file for file in self.files if file.path.name == "kustomization.yml"]
        return [Object(self, file.file, body) for file in files for body in file.documents]

    @cached_property
    def pods(self) -> list["Pod"]:
        return [Pod(found) for found in self.objects if found.kind in POD_TEMPLATES]

    @property
    def services(self) -> Mapping[str, Service]:
        return self.compose.services

    def names(self, kind: str) -> set[str]:
        return {found.name for found in self.objects if found.kind == kind}


@dataclass(frozen=True, eq=False)
class File:
    pattern: Pattern
    path: Path

    @property
    def file(self) -> str:
        return f"{self.pattern.file}/{self.path.name}"

    @property
    def place(self) -> str:
        return f"{self.file}: file"

    @property
    def documents(self) -> list[Body]:
        return self._parsed[0]

    @property
    def error(self) -> str:
        return self._parsed[1]

    @cached_property
    def _parsed(self) -> tuple[list[Body], str]:
        if self.path.suffix not in {".yml", ".yaml"}:
            return [], ""
        try:
            bodies = documents_of(self.path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            return [], " ".join(str(error).split())
        if not all(isinstance(body, dict) for body in bodies):
            return [], "an empty document, or one that is not a mapping"
        return bodies, ""


@dataclass(frozen=True, eq=False)
class Object:
    pattern: Pattern
    file: str
    body: Body

    @property
    def object(self) -> str:
        return f"{self.kind} {self.name}".strip() or "document"

    @property
    def place(self) -> str:
        return f"{self.file}: {self.object}"

    @property
    def version(self) -> str:
        return str(self.body.get("apiVersion", ""))

    @property
    def group(self) -> str:
        return self.version.rpartition("/")[0]

    @property
    def kind(self) -> str:
        return str(self.body.get("kind", ""))

    @property
    def metadata(self) -> Body:
        return mapping(self.body.get("metadata"))

    @property
    def name(self) -> str:
        return str(self.metadata.get("name", ""))

    @property
    def is_named(self) -> bool:
        parts = (self.body.get("apiVersion"), self.body.get("kind"), self.metadata.get("name"))
        return all(isinstance(part, str) and part for part in parts)

    @property
    def spec(self) -> Body:
        return mapping(self.body.get("spec"))

    @property
    def selected_pods(self) -> list["Pod"]:
        """The pods that the object's selector matches; an empty selector matches none."""
        selector = mapping(self.spec.get("selector"))
        if self.kind in {"Service", "ReplicationController"}:
            selector = {"matchLabels": selector}
        if not (selector.get("matchLabels") or selector.get("matchExpressions")):
            return []
        return [pod for pod in self.pattern.pods if matches(selector, pod.labels)]


@dataclass(frozen=True, eq=False)
class Pod:
    """The pods that one object creates."""

    owner: Object

    @property
    def pattern(self) -> Pattern:
        return self.owner.pattern

    @property
    def place(self) -> str:
        return self.owner.place

    @property
    def kind(self) -> str:
        return self.owner.kind

    @cached_property
    def template(self) -> Body:
        template = self.owner.body
        for key in POD_TEMPLATES[self.kind]:
            template = mapping(template.get(key))
        return template

    @property
    def labels(self) -> dict[str, str]:
        return mapping(mapping(self.template.get("metadata")).get("labels"))

    @property
    def spec(self) -> Body:
        return mapping(self.template.get("spec"))

    @property
    def security(self) -> Body:
        return mapping(self.spec.get("securityContext"))

    @cached_property
    def containers(self) -> list["Container"]:
        fields = ("containers", "initContainers", "ephemeralContainers")
        return [Container(self, key, body) for key in fields for body in self.spec.get(key) or []]

    @property
    def running(self) -> list["Container"]:
        """The containers that run as long as the pod, native sidecars last."""
        return [each for each in self.containers if each.role == "containers" or each.is_sidecar]

    @property
    def services(self) -> list[Object]:
        found = of_kind("Service")(self.pattern)
        return [service for service in found if self in service.selected_pods]

    @property
    def autoscaler(self) -> Object | None:
        for scaler in of_kind("HorizontalPodAutoscaler")(self.pattern):
            target = scaler.spec["scaleTargetRef"]
            if (target["kind"], target["name"]) == (self.kind, self.owner.name):
                return scaler
        return None

    @property
    def has_claim(self) -> bool:
        """Whether the pod mounts a volume claim, so that there can be only one pod."""
        volumes = self.spec.get("volumes") or []
        return any("persistentVolumeClaim" in volume for volume in volumes)

    @property
    def fewest_replicas(self) -> int:
        if self.autoscaler:
            return int(self.autoscaler.spec.get("minReplicas", 1))
        return int(self.owner.spec.get("replicas", 1))


@dataclass(frozen=True, eq=False)
class Container:
    pod: Pod
    role: str
    body: Body

    @property
    def name(self) -> str:
        return str(self.body["name"])

    @property
    def place(self) -> str:
        return f"{self.pod.place}: container {self.name}"

    @property
    def image(self) -> str:
        return str(self.body.get("image", ""))

    @property
    def is_ours(self) -> bool:
        return self.image.startswith(OUR_IMAGES)

    @property
    def is_sidecar(self) -> bool:
        """Whether it is a native sidecar, which starts before the others and stops after them."""
        return self.role == "initContainers" and self.body.get("restartPolicy") == "Always"

    @property
    def stops_after(self) -> list["Container"]:
        """The containers that must have exited before this one gets SIGTERM."""
        running = self.pod.running
        if not self.is_sidecar:
            return []
        # Sidecars stop in the reverse order of their start.
        later = running[running.index(self) + 1 :]
        return [each for each in running if not each.is_sidecar] + later

    @property
    def security(self) -> Body:
        return mapping(self.body.get("securityContext"))

    @property
    def resources(self) -> Body:
        return mapping(self.body.get("resources"))

    @property
    def lifecycle(self) -> Body:
        return mapping(self.body.get("lifecycle"))

    @property
    def probes(self) -> dict[str, Body]:
        return {name: self.body[name] for name in PROBES if self.body.get(name)}

    def has_port(self, port: str | int) -> bool:
        ports = self.body.get("ports") or []
        return any(port in (entry["containerPort"], entry.get("name")) for entry in ports)

    @property
    def is_behind_a_service(self) -> bool:
        ports = [port for service in self.pod.services for port in service.spec.get("ports") or []]
        return any(self.has_port(port.get("targetPort", port["port"])) for port in ports)

    @property
    def own_command(self) -> list[str]:
        words = (self.body.get("command") or []) + (self.body.get("args") or [])
        return [str(word) for word in words]

    @property
    def command(self) -> list[str]:
        """The command of the manifest or, if it has none, of the Compose service."""
        of_compose = [pair.service.command for pair in self.pairs]
        return self.own_command or list(of_compose[0] if of_compose else [])

    @property
    def sleep_seconds(self) -> int:
        hook = mapping(self.lifecycle.get("preStop"))
        return int(mapping(hook.get("sleep")).get("seconds", 0))

    @property
    def graceful_shutdown_seconds(self) -> int | None:
        """uvicorn's limit, from an option of the command or a variable of image or service."""
        if "uvicorn" not in self.command:
            return None
        values = [option(self.command, "--timeout-graceful-shutdown")]
        for pair in self.pairs:
            build = pair.service.build
            stage = stage_of(self.pod.pattern.directory, build) if build else None
            variables = {**(stage.variables() if stage else {}), **pair.service.environment}
            values.append(variables.get("UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN", ""))
        return next((int(value) for value in values if value.isdecimal()), None)

    @property
    def pairs(self) -> list["Pair"]:
        """The Compose service of the container's name, or those labelled as the pod's replicas."""
        services = self.pod.pattern.services
        if self.name in services:
            return [Pair(self, self.name, services[self.name])]
        if self not in self.pod.running[:1]:
            return []
        pairs = [Pair(self, name, service) for name, service in services.items()]
        return [pair for pair in pairs if pair.is_replica and pair.labels_are_the_pods]


@dataclass(frozen=True, eq=False)
class Pair:
    """A container and the Compose service that corresponds to it."""

    container: Container
    name: str
    service: Service

    @property
    def place(self) -> str:
        return self.container.place

    @property
    def is_replica(self) -> bool:
        return "app" in self.service.labels

    @property
    def labels_are_the_pods(self) -> bool:
        labels = self.service.labels
        labels = {key: value for key, value in labels.items() if key in {"app", "version"}}
        return labels.items() <= self.container.pod.labels.items()

    @property
    def variables(self) -> set[str]:
        """The environment variables that Compose sets or the settings of the program read."""
        known = variables_of(self.container.pod.pattern.directory, self.service)
        return known.union(self.service.environment)

    @property
    def written_paths(self) -> Iterator[str]:
        yield from (path.partition(":")[0] for path in self.service.tmpfs)
        yield from (mount.target for mount in self.service.mounts if not mount.read_only)


def mapping(value: Any) -> Body:
    """Returns the value, or an empty mapping if the field is absent or null."""
    return value if isinstance(value, dict) else {}


def mappings(value: Any) -> list[Body]:
    """Returns the mappings of a list in an Istio object, whose schema may be unavailable."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def matches(selector: Body, labels: dict[str, str]) -> bool:
    """Tells whether a selector matches a pod with these labels."""
    if not mapping(selector.get("matchLabels")).items() <= labels.items():
        return False
    for expression in selector.get("matchExpressions") or []:
        key, values = expression["key"], expression.get("values") or []
        holds = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }
        if not holds[expression["operator"]]:
            return False
    return True


def generators(pattern: Pattern, kind: str) -> list[Body]:
    """Returns the kustomization's generators of a kind, ConfigMap or Secret."""
    field = f"{kind[0].lower()}{kind[1:]}Generator"
    return [found for each in pattern.kustomizations for found in each.body.get(field) or []]


def quantity(text: str | int | float) -> float:
    """Returns a Kubernetes quantity as a number: 0.25 for 250m, 1024 for 1Ki."""
    factors = {"": 1.0, "m": 0.001}
    for power, prefix in enumerate("kMGTPE", start=1):
        factors |= {prefix: 1000.0**power, f"{prefix.upper()}i": 1024.0**power}
    found = re.fullmatch(r"([\d.]+)(\w*)", str(text))
    return float(found[1]) * factors.get(found[2], math.nan) if found else math.nan


# ---- Arguments of @rule, which select what it checks ---------------------------------------------


def folder(pattern: Pattern) -> list[Pattern]:
    return [pattern]


def files(pattern: Pattern) -> list[File]:
    return pattern.files


def objects(pattern: Pattern) -> list[Object]:
    return pattern.objects


def kustomizations(pattern: Pattern) -> list[Object]:
    return pattern.kustomizations


def of_kind(kind: str) -> Callable[[Pattern], list[Object]]:
    return lambda pattern: [found for found in pattern.objects if found.kind == kind]


def pods(pattern: Pattern) -> list[Pod]:
    return pattern.pods


def every_container(pattern: Pattern) -> list[Container]:
    return [container for pod in pattern.pods for container in pod.containers]


def pods_and_containers(pattern: Pattern) -> list[Pod | Container]:
    return [*pattern.pods, *every_container(pattern)]


def started_containers(pattern: Pattern) -> list[Container]:
    """Returns all but ephemeral containers, which have no resources, probes or ports."""
    return [found for found in every_container(pattern) if found.role != "ephemeralContainers"]


def serving_containers(pattern: Pattern) -> list[Container]:
    serving = [pod for pod in pattern.pods if pod.kind in SERVING_KINDS]
    return [container for pod in serving for container in pod.running]


def pairs(pattern: Pattern) -> list[Pair]:
    return [pair for container in started_containers(pattern) for pair in container.pairs]
