"""Holds every pattern's Kubernetes and Istio manifests to the rules that the repository promises.

`python -m tools.check.manifests [PATTERN_DIR...]` prints one line per finding and exits 1 on any.
A rule is a function that yields what is wrong with one subject: the folder, a file, an object, a
pod, a container, or a container beside its Compose service. Its name says what holds when it is
silent.
"""

import ast
import json
import math
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

import jsonschema
import kubernetes_validate
import yaml

from tools.read.strict_yaml import documents_of

ROOT = Path(__file__).resolve().parents[2]
ISTIO_CRDS = ROOT.parent / "shared/schemas/istio-crds.yaml"
ISTIO_GROUPS = {
    "extensions.istio.io",
    "networking.istio.io",
    "security.istio.io",
    "telemetry.istio.io",
}
KUBERNETES_VERSION = "1.34"
OUR_IMAGES = "ml-system-in-actions/"
MAX_LINES_PER_FILE = 80
MAX_OBJECTS_PER_FILE = 2
# What a stop may take beyond the sleep and the graceful shutdown: signals, lifespan, exit.
STOP_MARGIN_SECONDS = 5
DEFAULT_GRACE_SECONDS = 30

# The place of the pod template in each kind that makes pods.
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
# Kubernetes makes up the selector of a Job, and a Pod has none.
KINDS_WITHOUT_SELECTOR = {"Pod", "Job", "CronJob"}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
# Servers of others in images of ours, which say only whether they live.
WITHOUT_READY = {"mlflow"}

# Kinds of which Kubernetes or Istio also serves an older version: their schemas do not tell.
CURRENT_VERSIONS = {
    ("autoscaling", "HorizontalPodAutoscaler"): "autoscaling/v2",
    ("networking.istio.io", "DestinationRule"): "networking.istio.io/v1",
    ("networking.istio.io", "Gateway"): "networking.istio.io/v1",
    ("networking.istio.io", "ServiceEntry"): "networking.istio.io/v1",
    ("networking.istio.io", "Sidecar"): "networking.istio.io/v1",
    ("networking.istio.io", "VirtualService"): "networking.istio.io/v1",
    ("security.istio.io", "AuthorizationPolicy"): "security.istio.io/v1",
    ("security.istio.io", "PeerAuthentication"): "security.istio.io/v1",
    ("security.istio.io", "RequestAuthentication"): "security.istio.io/v1",
}

# What the Pod Security Standard "restricted" of Kubernetes 1.34 allows.
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
SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
}
SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
CONFINED_PROFILES = {"RuntimeDefault", "Localhost"}
APP_ARMOR_ANNOTATION = "container.apparmor.security.beta.kubernetes.io/"

SECRET_WORD = re.compile("PASSWORD|TOKEN|SECRET|KEY")
# A name that ends so says something about a secret, its file or its lifetime, not the secret.
SECRET_ATTRIBUTE = re.compile("_(FILE|PATH|SECONDS|LENGTH|BYTES)$")
PASSWORD_IN_ADDRESS = re.compile(r"://[^/@\s]*:(?!\$\()[^/@\s]+@")

GENERATOR_SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["name"],
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string"},
            "literals": {"type": "array", "items": {"type": "string"}},
            "files": {"type": "array", "items": {"type": "string"}},
            "envs": {"type": "array", "items": {"type": "string"}},
        },
    },
}
KUSTOMIZATION_SCHEMA = {
    "type": "object",
    "required": ["apiVersion", "kind", "resources"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "kustomize.config.k8s.io/v1beta1"},
        "kind": {"const": "Kustomization"},
        "namespace": {"type": "string"},
        "resources": {"type": "array", "items": {"type": "string"}},
        "configMapGenerator": GENERATOR_SCHEMA,
        "secretGenerator": GENERATOR_SCHEMA,
    },
}

Body = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    file: str
    object: str
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}: {self.object}: {self.rule}: {self.message}"


# ---- Subjects of the rules -----------------------------------------------------------------------


class Subject(Protocol):
    """What a rule looks at: it knows its file and object, and what its messages begin with."""

    @property
    def file(self) -> str: ...
    @property
    def object(self) -> str: ...
    @property
    def prefix(self) -> str: ...


@dataclass(frozen=True, eq=False)
class Pattern:
    """A pattern's `manifests/` folder, and the Compose file and settings that it agrees with."""

    directory: Path
    object = "folder"
    prefix = ""

    @property
    def file(self) -> str:
        return f"{self.directory.parent.name}/{self.directory.name}/manifests"

    @cached_property
    def files(self) -> list["File"]:
        return [File(self, path) for path in sorted((self.directory / "manifests").iterdir())]

    @cached_property
    def objects(self) -> list["Object"]:
        """Every object of Kubernetes and Istio; the kustomization is not one that is applied."""
        files = [file for file in self.files if file.path.name != "kustomization.yml"]
        return [Object(self, file.file, body) for file in files for body in file.documents]

    @cached_property
    def kustomizations(self) -> list["Object"]:
        files = [file for file in self.files if file.path.name == "kustomization.yml"]
        return [Object(self, file.file, body) for file in files for body in file.documents]

    @cached_property
    def pods(self) -> list["Pod"]:
        return [Pod(found) for found in self.objects if found.kind in POD_TEMPLATES]

    @cached_property
    def services(self) -> dict[str, Body]:
        """The services of `docker-compose.yml`."""
        path = self.directory / "docker-compose.yml"
        body = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
        services = mapping(mapping(body).get("services"))
        return {name: mapping(with_defaults(service)) for name, service in services.items()}

    @cached_property
    def settings(self) -> set[str]:
        """The environment variables that the server reads: its settings' names in upper case."""
        path = self.directory / "app/settings.py"
        tree = ast.parse(path.read_text(encoding="utf-8") if path.is_file() else "")
        return {
            field.target.id.upper()
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
            for field in node.body
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        }

    def names(self, kind: str) -> set[str]:
        return {found.name for found in self.objects if found.kind == kind}


@dataclass(frozen=True, eq=False)
class File:
    pattern: Pattern
    path: Path
    object = "file"
    prefix = ""

    @property
    def file(self) -> str:
        return f"{self.pattern.file}/{self.path.name}"

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
    prefix = ""

    @property
    def object(self) -> str:
        return f"{self.kind} {self.name}".strip() or "document"

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
        """The pods that the object's selector takes; an empty selector takes none."""
        selector = mapping(self.spec.get("selector"))
        if self.kind in {"Service", "ReplicationController"}:
            selector = {"matchLabels": selector}
        if not (selector.get("matchLabels") or selector.get("matchExpressions")):
            return []
        return [pod for pod in self.pattern.pods if matches(selector, pod.labels)]


@dataclass(frozen=True, eq=False)
class Pod:
    """The pods that one object makes."""

    owner: Object
    prefix = ""

    @property
    def pattern(self) -> Pattern:
        return self.owner.pattern

    @property
    def file(self) -> str:
        return self.owner.file

    @property
    def object(self) -> str:
        return self.owner.object

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
    def annotations(self) -> dict[str, str]:
        return mapping(mapping(self.template.get("metadata")).get("annotations"))

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
        """The containers that run for as long as the pod does."""
        return [container for container in self.containers if container.role == "containers"]

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
        """Whether there is one pod at the most, because its volume is mounted by one."""
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
    def file(self) -> str:
        return self.pod.file

    @property
    def object(self) -> str:
        return self.pod.object

    @property
    def name(self) -> str:
        return str(self.body["name"])

    @property
    def prefix(self) -> str:
        return f"container {self.name}: "

    @property
    def image(self) -> str:
        return str(self.body.get("image", ""))

    @property
    def is_ours(self) -> bool:
        return self.image.startswith(OUR_IMAGES)

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
        """How the container is started: as its manifest says, else as its Compose service says."""
        of_compose = [pair.command for pair in self.pairs]
        return self.own_command or (of_compose[0] if of_compose else [])

    @property
    def sleep_seconds(self) -> int:
        hook = mapping(self.lifecycle.get("preStop"))
        return int(mapping(hook.get("sleep")).get("seconds", 0))

    @property
    def graceful_shutdown_seconds(self) -> int | None:
        value = option(self.command, "--timeout-graceful-shutdown")
        return int(value) if value.isdecimal() else None

    @property
    def pairs(self) -> list["Pair"]:
        """The Compose service of the container's name, or those labelled as its pod's replicas."""
        services = self.pod.pattern.services
        if self.name in services:
            return [Pair(self, self.name, services[self.name])]
        if self not in self.pod.running[:1]:
            return []
        pairs = [Pair(self, name, service) for name, service in services.items()]
        return [pair for pair in pairs if pair.is_replica and pair.labels_are_the_pods]


@dataclass(frozen=True, eq=False)
class Pair:
    """A container and a Compose service that is the same process on a laptop."""

    container: Container
    name: str
    service: Body

    @property
    def file(self) -> str:
        return self.container.file

    @property
    def object(self) -> str:
        return self.container.object

    @property
    def prefix(self) -> str:
        return self.container.prefix

    @property
    def labels(self) -> dict[str, str]:
        return entries_of(self.service.get("labels"))

    @property
    def is_replica(self) -> bool:
        return "app" in self.labels

    @property
    def labels_are_the_pods(self) -> bool:
        labels = {key: value for key, value in self.labels.items() if key in {"app", "version"}}
        return labels.items() <= self.container.pod.labels.items()

    @property
    def command(self) -> list[str]:
        return words_of(self.service.get("entrypoint")) + words_of(self.service.get("command"))

    @property
    def ports(self) -> set[int]:
        """The ports inside the container: published or exposed, else the one in its command."""
        ports = set()
        for entry in (self.service.get("ports") or []) + (self.service.get("expose") or []):
            inside = entry["target"] if isinstance(entry, dict) else str(entry).rpartition(":")[2]
            ports.add(int(str(inside).partition("/")[0]))
        listening = option(self.command, "--port")
        return ports or ({int(listening)} if listening.isdecimal() else set())

    @property
    def written_paths(self) -> Iterator[str]:
        tmpfs = self.service.get("tmpfs") or []
        for path in [tmpfs] if isinstance(tmpfs, str) else tmpfs:
            yield path.partition(":")[0]
        for volume in self.service.get("volumes") or []:
            if isinstance(volume, str):
                _, target, mode = f"{volume}::".split(":")[:3]
                if "ro" not in mode.split(","):
                    yield target
            elif not volume.get("read_only"):
                yield volume["target"]

    @property
    def memory_bytes(self) -> float | None:
        deploy = mapping(mapping(self.service.get("deploy")).get("resources"))
        limit = self.service.get("mem_limit") or mapping(deploy.get("limits")).get("memory")
        # To Compose every unit is a power of 1024, whether it is written m, M or mb.
        found = re.fullmatch(r"([\d.]+)([bkmg]?)b?", str(limit).lower())
        return float(found[1]) * 1024.0 ** "bkmg".index(found[2] or "b") if found else None


def with_defaults(value: Any) -> Any:
    """Replaces `${NAME:-default}` of Compose by the default, as where nothing is set."""
    if isinstance(value, dict):
        return {key: with_defaults(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_defaults(item) for item in value]
    return re.sub(r"\$\{\w+:-([^${}]*)\}", r"\1", value) if isinstance(value, str) else value


def mapping(value: Any) -> Body:
    """The value if it is a mapping, else an empty one, for fields that may be left out or null."""
    return value if isinstance(value, dict) else {}


def mappings(value: Any) -> list[Body]:
    """The mappings of a list, for fields of Istio, whose schemas are not everywhere at hand."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def entries_of(value: Any) -> dict[str, str]:
    """Compose's two ways to write labels and environment, a mapping or a list of KEY=VALUE."""
    if isinstance(value, dict):
        return {str(key): str(item) for key, item in value.items()}
    return {key: item for key, _, item in (str(entry).partition("=") for entry in value or [])}


def words_of(command: str | list[Any] | None) -> list[str]:
    words = shlex.split(command) if isinstance(command, str) else [str(w) for w in command or []]
    # Compose writes a dollar sign that it must not interpolate as two.
    return [word.replace("$$", "$") for word in words]


def option(command: list[str], name: str) -> str:
    """The value of an option given as `--name value` or `--name=value`; empty if it is not."""
    for word, following in pairwise([*command, ""]):
        if word == name:
            return following
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return ""


def without_address(command: list[str]) -> list[str]:
    """The command without where it listens, in which replicas on one machine have to differ."""
    kept = []
    words = iter(command)
    for word in words:
        if word in {"--host", "--port"}:
            next(words, None)
        elif word.partition("=")[0] not in {"--host", "--port"}:
            kept.append(word)
    return kept


def matches(selector: Body, labels: dict[str, str]) -> bool:
    """Whether a selector of matchLabels and matchExpressions takes a pod with these labels."""
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


# ---- Registering rules ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    name: str
    subjects: Callable[[Pattern], Iterable[Any]]
    check: Callable[[Any], Iterator[str]]


# The shape rules come first: the others read only objects in which every field has its type.
SHAPE_RULES: list[Rule] = []
CONTENT_RULES: list[Rule] = []

S = TypeVar("S", bound=Subject)
Check = Callable[[S], Iterator[str]]


def rule(
    subjects: Callable[[Pattern], Iterable[S]], rules: list[Rule] = CONTENT_RULES
) -> Callable[[Check[S]], Check[S]]:
    """Registers a function that yields what is wrong with one of the subjects and what to do."""

    def register(check: Check[S]) -> Check[S]:
        rules.append(Rule(check.__name__, subjects, check))
        return check

    return register


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
    """All but the ephemeral ones, which have neither resources nor probes nor ports."""
    return [found for found in every_container(pattern) if found.role != "ephemeralContainers"]


def serving_containers(pattern: Pattern) -> list[Container]:
    serving = [pod for pod in pattern.pods if pod.kind in SERVING_KINDS]
    return [container for pod in serving for container in pod.running]


def pairs(pattern: Pattern) -> list[Pair]:
    return [pair for container in started_containers(pattern) for pair in container.pairs]


# ---- Shape ---------------------------------------------------------------------------------------


@rule(files, SHAPE_RULES)
def every_file_is_yaml_with_unique_keys(file: File) -> Iterator[str]:
    if file.error:
        yield f"{file.error}; correct the YAML"


@rule(objects, SHAPE_RULES)
def every_object_has_a_version_a_kind_and_a_name(found: Object) -> Iterator[str]:
    if not found.is_named:
        yield "apiVersion, kind or metadata.name is missing or not a text; give all three"


@rule(objects, SHAPE_RULES)
def kubernetes_schema_accepts_the_object(found: Object) -> Iterator[str]:
    if found.is_named and found.group not in ISTIO_GROUPS:
        error = kubernetes_error(json.dumps(found.body, default=str))
        if error:
            yield f"{error}; see the API reference of Kubernetes {KUBERNETES_VERSION}"


@cache
def kubernetes_error(body: str) -> str:
    try:
        kubernetes_validate.validate(json.loads(body), KUBERNETES_VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{error.json_path}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        return f"there is no {error.kind} in {error.api_version}"
    return ""


@rule(objects, SHAPE_RULES)
def istio_schema_accepts_the_object(found: Object) -> Iterator[str]:
    if found.group in ISTIO_GROUPS and ISTIO_CRDS.is_file():
        schema = istio_schemas().get((found.version, found.kind))
        if schema is None:
            yield f"there is no {found.kind} in {found.version}; see Istio's reference"
            return
        for error in jsonschema.Draft202012Validator(schema).iter_errors(found.body):
            yield f"{error.json_path}: {error.message}; see Istio's reference"


@cache
def istio_schemas() -> dict[tuple[str, str], Body]:
    schemas = {}
    for crd in yaml.load_all(ISTIO_CRDS.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader):
        group, kind = crd["spec"]["group"], crd["spec"]["names"]["kind"]
        for version in crd["spec"]["versions"]:
            schema = closed(version["schema"]["openAPIV3Schema"])
            for field, expected in (
                ("apiVersion", "string"),
                ("kind", "string"),
                ("metadata", "object"),
            ):
                schema["properties"][field] = {"type": expected}
            schemas[f"{group}/{version['name']}", kind] = schema
    return schemas


def closed(schema: Body) -> Body:
    """The schema with unknown fields refused, which an API server would silently drop."""
    schema = dict(schema)
    for field in ("items", "additionalProperties"):
        if isinstance(schema.get(field), dict):
            schema[field] = closed(schema[field])
    if "properties" in schema:
        schema["properties"] = {key: closed(value) for key, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
    return schema


@rule(folder, SHAPE_RULES)
def there_is_one_kustomization(pattern: Pattern) -> Iterator[str]:
    if len(pattern.kustomizations) != 1:
        yield "there is not exactly one document in kustomization.yml; list the other files there"


@rule(kustomizations, SHAPE_RULES)
def kustomization_has_only_known_fields(kustomization: Object) -> Iterator[str]:
    validator = jsonschema.Draft202012Validator(KUSTOMIZATION_SCHEMA)
    for error in validator.iter_errors(kustomization.body):
        yield f"{error.json_path}: {error.message}; correct the field"


# ---- Files ---------------------------------------------------------------------------------------


@rule(files)
def file_holds_one_object_or_one_idea(file: File) -> Iterator[str]:
    if len(file.documents) > MAX_OBJECTS_PER_FILE:
        yield f"{len(file.documents)} objects; keep at most {MAX_OBJECTS_PER_FILE} in one file"
    lines = len(file.path.read_bytes().splitlines()) if file.path.is_file() else 0
    if lines > MAX_LINES_PER_FILE:
        yield f"{lines} lines; keep a file within {MAX_LINES_PER_FILE}"


@rule(objects)
def object_is_defined_once(found: Object) -> Iterator[str]:
    for other in found.pattern.objects:
        if other is found:
            return
        if (other.group, other.object) == (found.group, found.object):
            yield f"{Path(other.file).name} defines it too; keep one"


@rule(objects)
def api_version_is_the_current_one(found: Object) -> Iterator[str]:
    current = CURRENT_VERSIONS.get((found.group, found.kind), found.version)
    if found.version != current:
        yield f"{found.version} is an old version; use {current}"


@rule(kustomizations)
def kustomization_lists_every_file(kustomization: Object) -> Iterator[str]:
    pattern, listed = kustomization.pattern, kustomization.body["resources"]
    generated = {
        source.rpartition("=")[2]
        for kind in ("ConfigMap", "Secret")
        for generator in generators(pattern, kind)
        for source in (generator.get("files") or []) + (generator.get("envs") or [])
    }
    present = {file.path.name for file in pattern.files} - {"kustomization.yml"} - generated
    for name in sorted(present - set(listed)):
        yield f"{name} is not in resources; list it or delete it"
    for name in sorted(set(listed) - present):
        yield f"resources names {name}, which is not in the folder; take it out"
    for name in sorted({name for name in listed if listed.count(name) > 1}):
        yield f"resources names {name} twice; take one out"


def generators(pattern: Pattern, kind: str) -> list[Body]:
    """The kustomization's generators of objects of a kind, ConfigMap or Secret."""
    field = f"{kind[0].lower()}{kind[1:]}Generator"
    return [found for each in pattern.kustomizations for found in each.body.get(field) or []]


@rule(kustomizations)
def namespace_of_the_kustomization_is_shipped(kustomization: Object) -> Iterator[str]:
    namespace = kustomization.body.get("namespace")
    if namespace and namespace not in kustomization.pattern.names("Namespace"):
        yield f"no Namespace {namespace} is in the folder; add namespace.yml"


@rule(objects)
def object_leaves_its_namespace_to_the_kustomization(found: Object) -> Iterator[str]:
    if "namespace" in found.metadata:
        yield "metadata.namespace is set; set namespace in kustomization.yml instead"


@rule(of_kind("Namespace"))
def namespace_enforces_the_restricted_profile(namespace: Object) -> Iterator[str]:
    labels = mapping(namespace.metadata.get("labels"))
    if labels.get("pod-security.kubernetes.io/enforce") != "restricted":
        yield "pods are not checked; add the label pod-security.kubernetes.io/enforce: restricted"


# ---- The Pod Security Standard "restricted" ------------------------------------------------------


@rule(pods)
def pod_does_not_share_the_hosts_namespaces(pod: Pod) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.spec.get(field):
            yield f"{field} is true; take it out"


@rule(pods_and_containers)
def nothing_is_privileged(subject: Pod | Container) -> Iterator[str]:
    if subject.security.get("privileged"):
        yield "privileged is true; take it out"
    if mapping(subject.security.get("windowsOptions")).get("hostProcess"):
        yield "hostProcess is true; take it out"


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
                yield f"{name} names a host; leave host out, the pod itself is meant"


@rule(pods_and_containers)
def app_armor_is_not_switched_off(subject: Pod | Container) -> Iterator[str]:
    profile = mapping(subject.security.get("appArmorProfile")).get("type", "RuntimeDefault")
    if profile not in CONFINED_PROFILES:
        yield f"the AppArmor profile is {profile}; take it out"


@rule(pods)
def app_armor_annotation_is_not_unconfined(pod: Pod) -> Iterator[str]:
    for key, profile in pod.annotations.items():
        allowed = profile == "runtime/default" or profile.startswith("localhost/")
        if key.startswith(APP_ARMOR_ANNOTATION) and not allowed:
            yield f"the annotation {key} is {profile}; take it out"


@rule(pods_and_containers)
def selinux_options_are_not_custom(subject: Pod | Container) -> Iterator[str]:
    options = mapping(subject.security.get("seLinuxOptions"))
    if options.get("type", "") not in SELINUX_TYPES or options.get("user") or options.get("role"):
        yield "seLinuxOptions choose a type, user or role; take them out"


@rule(every_container)
def proc_is_masked(container: Container) -> Iterator[str]:
    if container.security.get("procMount", "Default") != "Default":
        yield "procMount shows more of /proc; take it out"


@rule(pods_and_containers)
def seccomp_profile_is_set(subject: Pod | Container) -> Iterator[str]:
    profile = mapping(subject.security.get("seccompProfile")).get("type")
    if isinstance(subject, Container) and profile is None:
        profile = mapping(subject.pod.security.get("seccompProfile")).get("type", "not set")
    if profile is not None and profile not in CONFINED_PROFILES:
        yield f"the seccompProfile is {profile}; give the pod type: RuntimeDefault"


@rule(pods)
def sysctls_are_safe(pod: Pod) -> Iterator[str]:
    for sysctl in pod.security.get("sysctls") or []:
        if sysctl["name"] not in SAFE_SYSCTLS:
            yield f"sysctl {sysctl['name']} is not a safe one; take it out"


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
        yield "runAsUser is 0; use another"


@rule(every_container)
def capabilities_are_dropped(container: Container) -> Iterator[str]:
    capabilities = mapping(container.security.get("capabilities"))
    if "ALL" not in (capabilities.get("drop") or []):
        yield "it keeps capabilities; set capabilities.drop: [ALL]"
    for name in sorted(set(capabilities.get("add") or []) - {"NET_BIND_SERVICE"}):
        yield f"it adds the capability {name}; take it out"


# ---- What the repository asks of a pod beyond that -----------------------------------------------


@rule(started_containers)
def root_file_system_is_read_only(container: Container) -> Iterator[str]:
    if container.security.get("readOnlyRootFilesystem") is not True:
        yield "it may write anywhere; set readOnlyRootFilesystem: true, with an emptyDir if need be"


@rule(pairs)
def what_compose_writes_to_is_a_volume(pair: Pair) -> Iterator[str]:
    mounts = pair.container.body.get("volumeMounts") or []
    writable = {mount["mountPath"].rstrip("/") for mount in mounts if not mount.get("readOnly")}
    for path in pair.written_paths:
        # A volume at a parent folder holds what is written as well.
        if not writable & {path.rstrip("/"), *map(str, PurePosixPath(path).parents)}:
            yield f"Compose service {pair.name} writes to {path}; mount an emptyDir or claim there"


@rule(pods)
def service_account_token_is_not_mounted(pod: Pod) -> Iterator[str]:
    if pod.spec.get("automountServiceAccountToken") is not False:
        yield "pods get a token that they do not need; set automountServiceAccountToken: false"


@rule(pods)
def service_links_are_off(pod: Pod) -> Iterator[str]:
    if pod.spec.get("enableServiceLinks") is not False:
        yield "Services become variables, as REDIS_PORT=tcp://...; set enableServiceLinks: false"


@rule(started_containers)
def resources_are_requested_and_limited(container: Container) -> Iterator[str]:
    for field, name in (("requests", "cpu"), ("requests", "memory"), ("limits", "memory")):
        if name not in mapping(container.resources.get(field)):
            yield f"resources.{field}.{name} is missing; give what the process was measured to need"


@rule(started_containers)
def requests_fit_their_limits(container: Container) -> Iterator[str]:
    limits = mapping(container.resources.get("limits"))
    for name, request in mapping(container.resources.get("requests")).items():
        limit = limits.get(name) or request
        # What is not a quantity is NaN, which is not within anything.
        if not quantity(request) <= quantity(limit):
            yield f"{name}: request {request} is not within limit {limit}; lower the request"


def quantity(text: str | int | float) -> float:
    """A quantity of Kubernetes as a number: 0.25 for 250m, 1024 for 1Ki."""
    factors = {"": 1.0, "m": 0.001}
    for power, prefix in enumerate("kMGTPE", start=1):
        factors |= {prefix: 1000.0**power, f"{prefix.upper()}i": 1024.0**power}
    found = re.fullmatch(r"([\d.]+)(\w*)", str(text))
    return float(found[1]) * factors.get(found[2], math.nan) if found else math.nan


# ---- Cross references ----------------------------------------------------------------------------


@rule(pods)
def selector_takes_its_own_pods(pod: Pod) -> Iterator[str]:
    if pod.kind not in KINDS_WITHOUT_SELECTOR and pod not in pod.owner.selected_pods:
        yield "the selector misses its own pods; make it agree with the template's labels"


@rule(pods)
def selectors_of_two_workloads_never_overlap(pod: Pod) -> Iterator[str]:
    if pod.kind not in KINDS_WITHOUT_SELECTOR:
        for other in pod.owner.selected_pods:
            if other is not pod:
                yield f"the selector takes pods of {other.object} too; add a label that differs"


@rule(of_kind("Service"))
def service_selects_pods(service: Object) -> Iterator[str]:
    if service.spec.get("type") != "ExternalName" and not service.selected_pods:
        yield "the selector takes no pods; make it agree with a pod template's labels"


@rule(of_kind("Service"))
def service_port_is_a_port_of_its_pods(service: Object) -> Iterator[str]:
    for pod in service.selected_pods:
        for port in service.spec.get("ports") or []:
            target = port.get("targetPort", port["port"])
            if not any(container.has_port(target) for container in pod.running):
                yield f"no container of {pod.object} has port {target}; name one that it has"


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
    """The kind and name of each object that the pod needs, with the keys that it needs in it."""
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
    """The objects of a kind, written out or generated, each with its keys where they are known."""
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
        # A file of secrets is made where the pattern is deployed, and is not in the repository.
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
        yield f"no container mounts volume {name}; take it out"


@rule(of_kind("StatefulSet"))
def stateful_set_has_its_service(stateful_set: Object) -> Iterator[str]:
    name = stateful_set.spec.get("serviceName")
    if name not in stateful_set.pattern.names("Service"):
        yield f"serviceName {name} is not a Service of the folder; name one"


@rule(of_kind("HorizontalPodAutoscaler"))
def autoscaler_target_exists(scaler: Object) -> Iterator[str]:
    target = scaler.spec["scaleTargetRef"]
    wanted = (target.get("apiVersion"), target["kind"], target["name"])
    workloads = [pod.owner for pod in scaler.pattern.pods]
    if wanted not in [(found.version, found.kind, found.name) for found in workloads]:
        yield f"there is no {target['kind']} {target['name']} in the folder; name one of it"


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
        yield f"minReplicas {low} is over maxReplicas {high}; lower it"


@rule(pods)
def replicas_are_within_the_autoscalers_bounds(pod: Pod) -> Iterator[str]:
    replicas = pod.owner.spec.get("replicas")
    if pod.autoscaler and replicas is not None:
        low = pod.autoscaler.spec.get("minReplicas", 1)
        high = pod.autoscaler.spec["maxReplicas"]
        if not low <= replicas <= high:
            yield f"replicas {replicas} is not within {low} to {high}; leave replicas out"


@rule(of_kind("PodDisruptionBudget"))
def disruption_budget_selects_pods(budget: Object) -> Iterator[str]:
    if not budget.selected_pods:
        yield "the selector takes no pods; make it agree with a pod template's labels"


@rule(of_kind("PodDisruptionBudget"))
def disruption_budget_leaves_room_and_keeps_a_pod(budget: Object) -> Iterator[str]:
    replicas = sum(pod.fewest_replicas for pod in budget.selected_pods)
    if "minAvailable" in budget.spec:
        may_go = replicas - share(budget.spec["minAvailable"], replicas)
    else:
        may_go = share(budget.spec.get("maxUnavailable", 0), replicas)
    if replicas and may_go <= 0:
        yield f"none of {replicas} replicas may go, so no node can be drained; let one go"
    if replicas and may_go >= replicas:
        yield f"all {replicas} replicas may go at once; let fewer go, or run more"


def share(value: str | int, whole: int) -> int:
    """A number of pods, or a percentage of them, which Kubernetes rounds up."""
    if isinstance(value, str):
        return math.ceil(int(value.removesuffix("%")) * whole / 100)
    return value


@rule(pods)
def pods_behind_a_service_have_one_disruption_budget(pod: Pod) -> Iterator[str]:
    budgets = of_kind("PodDisruptionBudget")(pod.pattern)
    own = [budget.name for budget in budgets if pod in budget.selected_pods]
    if pod.kind == "Deployment" and pod.services and not pod.has_claim and not own:
        yield "no PodDisruptionBudget selects its pods; add pdb.yml"
    if len(own) > 1:
        yield f"Kubernetes evicts no pod of several budgets ({', '.join(own)}); keep one"


@rule(of_kind("VirtualService"))
def mesh_destination_is_a_service_and_subset(virtual_service: Object) -> Iterator[str]:
    pattern = virtual_service.pattern
    for destination in destinations(virtual_service):
        host, subset = str(destination.get("host", "")), destination.get("subset")
        if host in external_hosts(pattern):
            continue
        service = service_at(pattern, host)
        if service is None:
            yield f"host {host} is not a Service of the folder; name one"
            continue
        port = mapping(destination.get("port")).get("number")
        if port and port not in [entry["port"] for entry in service.spec.get("ports") or []]:
            yield f"Service {service.name} has no port {port}; name one that it has"
        if subset and subset not in subsets(pattern, service):
            yield f"no DestinationRule of {host} has subset {subset}; add it"


@rule(of_kind("VirtualService"))
def mesh_route_is_for_a_service(virtual_service: Object) -> Iterator[str]:
    # Behind a gateway the host is a name of the outside world.
    if not virtual_service.spec.get("gateways"):
        pattern = virtual_service.pattern
        for host in virtual_service.spec.get("hosts") or []:
            if host not in external_hosts(pattern) and not service_at(pattern, host):
                yield f"host {host} is not a Service of the folder; name one"


@rule(of_kind("DestinationRule"))
def mesh_subset_selects_pods(destination_rule: Object) -> Iterator[str]:
    pattern, host = destination_rule.pattern, str(destination_rule.spec.get("host", ""))
    if host in external_hosts(pattern):
        return
    service = service_at(pattern, host)
    if service is None:
        yield f"host {host} is not a Service of the folder; name one"
        return
    for subset in mappings(destination_rule.spec.get("subsets")):
        selector = {"matchLabels": subset.get("labels")}
        if not any(matches(selector, pod.labels) for pod in service.selected_pods):
            yield f"subset {subset.get('name')} takes no pods of {service.name}; correct its labels"


def destinations(virtual_service: Object) -> Iterator[Body]:
    for protocol in ("http", "tcp", "tls"):
        for route in mappings(virtual_service.spec.get(protocol)):
            for target in mappings(route.get("route")) + mappings(route.get("mirrors")):
                yield mapping(target.get("destination"))
            if "mirror" in route:
                yield mapping(route["mirror"])


def service_at(pattern: Pattern, host: str) -> Object | None:
    """The Service of a host name, short or full as in `api.namespace.svc.cluster.local`."""
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


# ---- Probes --------------------------------------------------------------------------------------


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
                yield f"{name} asks port {port}, which is not in ports; name one that is"


@rule(serving_containers)
def probes_of_our_servers_ask_ready_and_health(container: Container) -> Iterator[str]:
    paths = {"startupProbe": "/ready", "readinessProbe": "/ready", "livenessProbe": "/health"}
    foreign = not WITHOUT_READY.isdisjoint(container.command[:1])
    for name, probe in container.probes.items():
        # A worker without HTTP is probed by a command.
        serves_http = "uvicorn" in container.command or "httpGet" in probe
        path = mapping(probe.get("httpGet")).get("path")
        if container.is_ours and not foreign and serves_http and path != paths[name]:
            yield f"{name} asks {path}; let it httpGet {paths[name]}"


@rule(serving_containers)
def liveness_does_not_ask_for_readiness(container: Container) -> Iterator[str]:
    probe = mapping(container.probes.get("livenessProbe"))
    if str(mapping(probe.get("httpGet")).get("path")).startswith("/ready"):
        yield "a dependency that is down would restart it; let livenessProbe ask /health"


# ---- Rollout and stopping ------------------------------------------------------------------------


@rule(pods)
def rolling_update_keeps_every_replica(pod: Pod) -> Iterator[str]:
    if pod.kind == "Deployment" and pod.has_claim:
        if mapping(pod.owner.spec.get("strategy")).get("type") != "Recreate":
            yield "two pods would write to the volume of one; strategy: {type: Recreate}"
    elif pod.kind == "Deployment" and pod.services:
        update = mapping(mapping(pod.owner.spec.get("strategy")).get("rollingUpdate"))
        keeps = str(update.get("maxUnavailable")) in {"0", "0%"}
        if not keeps or str(update.get("maxSurge", 1)) in {"0", "0%"}:
            yield "an update stops a pod before another is ready; maxUnavailable: 0, maxSurge: 1"


@rule(serving_containers)
def grace_period_covers_the_stop(container: Container) -> Iterator[str]:
    grace = container.pod.spec.get("terminationGracePeriodSeconds", DEFAULT_GRACE_SECONDS)
    shutdown = container.graceful_shutdown_seconds or 0
    needed = container.sleep_seconds + shutdown + STOP_MARGIN_SECONDS
    if grace < needed:
        yield f"it is killed after {grace} s; set terminationGracePeriodSeconds: {needed}"


@rule(serving_containers)
def uvicorn_stops_within_a_bound(container: Container) -> Iterator[str]:
    if "uvicorn" in container.command and container.graceful_shutdown_seconds is None:
        yield "it waits for its last request for ever; add --timeout-graceful-shutdown SECONDS"


@rule(serving_containers)
def container_behind_a_service_sleeps_before_it_stops(container: Container) -> Iterator[str]:
    # A server such as Redis in a StatefulSet of one has no second pod to take its requests.
    several = container.pod.kind == "Deployment" or container.is_ours
    if several and container.is_behind_a_service and not container.sleep_seconds:
        yield "requests are still sent to it when it stops; add lifecycle.preStop.sleep"


# ---- Images --------------------------------------------------------------------------------------


@rule(every_container)
def image_has_a_fixed_version(container: Container) -> Iterator[str]:
    tag = container.image.partition("@")[0].rpartition("/")[2].partition(":")[2]
    if tag in {"", "latest"}:
        yield f"image {container.image} may change any day; give a version as its tag"


@rule(every_container)
def our_image_is_named_for_its_pattern_and_service(container: Container) -> Iterator[str]:
    pattern = container.pod.pattern
    prefix = f"{OUR_IMAGES}{pattern.directory.name.replace('_', '-')}-"
    services = set(pattern.services)
    services |= {
        entries_of(body.get("labels")).get("app", "") for body in pattern.services.values()
    }
    built = any("build" in pair.service for pair in container.pairs)
    service, _, version = container.image.removeprefix(prefix).partition(":")
    named = container.image.startswith(prefix) and service in services
    if (container.is_ours or built) and not (named and re.fullmatch(r"\d+\.\d+\.\d+", version)):
        yield f"image {container.image} is not named {prefix}<service>:<x.y.z>; rename it"


@rule(every_container)
def our_image_is_not_pulled_when_present(container: Container) -> Iterator[str]:
    if container.is_ours and container.body.get("imagePullPolicy") != "IfNotPresent":
        yield "its image is in no registry; set imagePullPolicy: IfNotPresent"


@rule(pairs)
def image_is_the_one_of_compose(pair: Pair) -> Iterator[str]:
    image = pair.service.get("image")
    if image != pair.container.image:
        yield f"{pair.container.image} here, {image} in Compose service {pair.name}; use one"


# ---- Agreement with docker-compose.yml -----------------------------------------------------------


@rule(started_containers)
def container_is_a_compose_service(container: Container) -> Iterator[str]:
    if not container.pairs:
        yield "no Compose service has its name, or `app` as its pods' label; name them alike"


@rule(pairs)
def container_ports_are_those_of_compose(pair: Pair) -> Iterator[str]:
    ports = {entry["containerPort"] for entry in pair.container.body.get("ports") or []}
    # Replicas listen on different ports of one machine, but on the same port of their pods.
    if pair.ports and ports != pair.ports and not pair.is_replica:
        yield f"{ports or '{}'} here, {pair.ports} in Compose service {pair.name}; use the same"


@rule(started_containers)
def port_of_the_command_is_a_container_port(container: Container) -> Iterator[str]:
    port = option(container.own_command, "--port")
    if port.isdecimal() and not container.has_port(int(port)):
        yield f"it listens on {port}, which is not in ports; give it as containerPort"


@rule(pairs)
def command_is_the_one_of_compose(pair: Pair) -> Iterator[str]:
    here, compose = without_address(pair.container.own_command), without_address(pair.command)
    if here and here != compose:
        yield (
            f"`{shlex.join(here)}` here, `{shlex.join(compose)}` in Compose service {pair.name}; "
            "use the same"
        )


@rule(pairs)
def memory_limit_is_the_one_of_compose(pair: Pair) -> Iterator[str]:
    limit = mapping(pair.container.resources.get("limits")).get("memory", 0)
    if pair.memory_bytes and limit and quantity(limit) != pair.memory_bytes:
        megabytes = f"{pair.memory_bytes / 2**20:g}Mi"
        yield f"memory {limit} here, {megabytes} in Compose service {pair.name}; use the same"


@rule(started_containers)
def environment_is_known_to_compose_or_the_settings(container: Container) -> Iterator[str]:
    known = container.pod.pattern.settings.union(
        *(entries_of(pair.service.get("environment")) for pair in container.pairs)
    )
    for name in sorted(set(environment(container)) - known):
        yield f"nothing reads {name}; take it out, or add it to docker-compose.yml"


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


# ---- Secrets -------------------------------------------------------------------------------------


@rule(of_kind("Secret"))
def no_secret_is_written_out(secret: Object) -> Iterator[str]:
    if secret.body.get("data") or secret.body.get("stringData"):
        yield "a Secret in clear; use a secretGenerator with an env file that is not committed"


@rule(kustomizations)
def no_secret_is_generated_from_literals(kustomization: Object) -> Iterator[str]:
    for generator in kustomization.body.get("secretGenerator") or []:
        if generator.get("literals"):
            yield f"{generator['name']} holds literals; use an env file that is not committed"


@rule(of_kind("ConfigMap"))
def no_secret_is_in_a_config_map(config_map: Object) -> Iterator[str]:
    for name, value in mapping(config_map.body.get("data")).items():
        if is_secret(name, value):
            yield f"{name} is in clear; take it from a Secret"


@rule(every_container)
def no_secret_is_in_a_containers_environment(container: Container) -> Iterator[str]:
    for variable in container.body.get("env") or []:
        if is_secret(variable["name"], str(variable.get("value") or "")):
            yield f"{variable['name']} is in clear; take it from a Secret"


@rule(every_container)
def no_secret_is_in_a_command(container: Container) -> Iterator[str]:
    if any(PASSWORD_IN_ADDRESS.search(word) for word in container.own_command):
        yield "its command holds a password in clear; take it from a Secret"


def is_secret(name: str, value: str) -> bool:
    named = SECRET_WORD.search(name.upper()) and not SECRET_ATTRIBUTE.search(name.upper())
    # An expansion such as $(PASSWORD) takes the value from another variable.
    literal = value and not re.fullmatch(r"\$\(\w+\)", value)
    return bool((named and literal) or PASSWORD_IN_ADDRESS.search(value))


# ---- Command line --------------------------------------------------------------------------------


def findings(pattern_dir: Path) -> list[Finding]:
    """What is wrong with a pattern's manifests; nothing where it has no `manifests/` folder."""
    if not (pattern_dir / "manifests").is_dir():
        return []
    pattern = Pattern(pattern_dir.resolve())
    return apply(SHAPE_RULES, pattern) or apply(CONTENT_RULES, pattern)


def apply(rules: list[Rule], pattern: Pattern) -> list[Finding]:
    found = [
        Finding(subject.file, subject.object, each.name, f"{subject.prefix}{message}")
        for each in rules
        for subject in each.subjects(pattern)
        for message in each.check(subject)
    ]
    return sorted(found, key=lambda finding: finding.file)


def discover(root: Path) -> list[Path]:
    """Every pattern: a directory of a chapter that has processes, trains a model or is deployed."""
    marks = ("docker-compose.yml", "train", "manifests")
    return sorted(
        path for path in root.glob("chapter*/*") if any((path / mark).exists() for mark in marks)
    )


def fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def main(arguments: list[str]) -> int:
    named = [Path(argument) for argument in arguments]
    for path in named:
        if not (path / "manifests").is_dir():
            return fail(f"{path} has no manifests/ folder; name a pattern that has one")
    patterns = [path for path in named or discover(ROOT) if (path / "manifests").is_dir()]
    if not patterns:
        return fail("no pattern has a manifests/ folder, so nothing is checked; add one")
    if not ISTIO_CRDS.is_file():
        print("note: Istio's own schemas are not here, so they are not applied", file=sys.stderr)
    try:
        found = [finding for path in patterns for finding in findings(path)]
    except (yaml.YAMLError, SyntaxError) as error:
        problem = " ".join(str(error).split())
        return fail(f"docker-compose.yml or settings.py cannot be read: {problem}; correct it")
    for finding in found:
        print(finding)
    if not found:
        print(f"manifests of {len(patterns)} pattern(s): every rule holds")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
