"""Rules about the schema of manifests and the files that contain them."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import jsonschema
import kubernetes_validate
import yaml
from pydantic import BaseModel, Field, ValidationError

from tools.check.manifests.subjects import (
    Body,
    File,
    Object,
    Pattern,
    files,
    folder,
    generators,
    kustomizations,
    mapping,
    objects,
    of_kind,
)
from tools.check.rules import rule
from tools.read.patterns import ROOT

SCHEMAS = ROOT.parent / "shared/schemas"


class CustomResources(NamedTuple):
    """Kinds that Kubernetes does not have itself, and the file with their definitions."""

    owner: str
    file: Path
    groups: tuple[str, ...]


ISTIO = CustomResources(
    "Istio",
    SCHEMAS / "istio-crds.yaml",
    ("extensions.istio.io", "networking.istio.io", "security.istio.io", "telemetry.istio.io"),
)
PROMETHEUS_OPERATOR = CustomResources(
    "the Prometheus operator",
    SCHEMAS / "prometheus-operator-crds.yaml",
    ("monitoring.coreos.com",),
)
CUSTOM_RESOURCES = (ISTIO, PROMETHEUS_OPERATOR)
KUBERNETES_VERSION = "1.34"
# Kinds that Kubernetes or Istio also serve in an older version, so their schemas accept it.
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


class Generator(BaseModel, extra="forbid", strict=True):
    name: str
    literals: list[str] = []
    files: list[str] = []
    envs: list[str] = []


class Kustomization(BaseModel, extra="forbid", strict=True):
    version: Literal["kustomize.config.k8s.io/v1beta1"] = Field(alias="apiVersion")
    kind: Literal["Kustomization"]
    namespace: str = ""
    resources: list[str]
    config_maps: list[Generator] = Field([], alias="configMapGenerator")
    secrets: list[Generator] = Field([], alias="secretGenerator")


@rule(files, is_of_shape=True)
def every_file_is_yaml_with_unique_keys(file: File) -> Iterator[str]:
    if file.error:
        yield f"{file.error}; fix the YAML"


@rule(objects, is_of_shape=True)
def every_object_has_a_version_a_kind_and_a_name(found: Object) -> Iterator[str]:
    if not found.is_named:
        yield "apiVersion, kind or metadata.name is missing or not text; set all three"


@rule(objects, is_of_shape=True)
def kubernetes_schema_accepts_the_object(found: Object) -> Iterator[str]:
    is_custom = any(found.group in each.groups for each in CUSTOM_RESOURCES)
    if found.is_named and not is_custom:
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


@rule(objects, is_of_shape=True)
def istio_schema_accepts_the_object(found: Object) -> Iterator[str]:
    yield from custom_resource_errors(found, ISTIO)


@rule(objects, is_of_shape=True)
def prometheus_operator_schema_accepts_the_object(found: Object) -> Iterator[str]:
    yield from custom_resource_errors(found, PROMETHEUS_OPERATOR)


def custom_resource_errors(found: Object, known: CustomResources) -> Iterator[str]:
    if found.group in known.groups and known.file.is_file():
        reference = f"see the API reference of {known.owner}"
        schema = custom_resource_schemas(known.file).get((found.version, found.kind))
        if schema is None:
            yield f"there is no {found.kind} in {found.version}; {reference}"
            return
        for error in jsonschema.Draft202012Validator(schema).iter_errors(found.body):
            yield f"{error.json_path}: {error.message}; {reference}"


@cache
def custom_resource_schemas(file: Path) -> dict[tuple[str, str], Body]:
    schemas = {}
    for crd in yaml.load_all(file.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader):
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
    """Returns a schema that rejects unknown fields, which an API server silently drops."""
    schema = dict(schema)
    for field in ("items", "additionalProperties"):
        if isinstance(schema.get(field), dict):
            schema[field] = closed(schema[field])
    if "properties" in schema:
        schema["properties"] = {key: closed(value) for key, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
    return schema


@rule(folder, is_of_shape=True)
def there_is_one_kustomization(pattern: Pattern) -> Iterator[str]:
    if len(pattern.kustomizations) != 1:
        yield "kustomization.yml must contain exactly one document; list the other files in it"


@rule(kustomizations, is_of_shape=True)
def kustomization_has_only_known_fields(kustomization: Object) -> Iterator[str]:
    try:
        Kustomization.model_validate(kustomization.body)
    except ValidationError as error:
        for each in error.errors():
            place = ".".join(map(str, each["loc"]))
            yield f"{place}: {each['msg']}; correct the field"


@rule(objects)
def object_is_defined_once(found: Object) -> Iterator[str]:
    for other in found.pattern.objects:
        if other is found:
            return
        if (other.group, other.object) == (found.group, found.object):
            yield f"{Path(other.file).name} defines the same object; keep one"


@rule(objects)
def api_version_is_the_current_one(found: Object) -> Iterator[str]:
    current = CURRENT_VERSIONS.get((found.group, found.kind), found.version)
    if found.version != current:
        yield f"{found.version} is outdated; use {current}"


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
    # The manifests of a service in a directory below are in that directory.
    present |= {
        f"../{directory.relative_to(pattern.directory).as_posix()}/manifests"
        for directory in pattern.compose.directories()[1:]
        if (directory / "manifests/kustomization.yml").is_file()
    }
    for name in sorted(present - set(listed)):
        yield f"{name} is not in resources; list it or delete it"
    for name in sorted(set(listed) - present):
        yield f"resources names {name}, which is not in the folder; remove it"
    for name in sorted({name for name in listed if listed.count(name) > 1}):
        yield f"resources names {name} twice; remove one"


@rule(kustomizations)
def namespace_of_the_kustomization_is_shipped(kustomization: Object) -> Iterator[str]:
    namespace = kustomization.body.get("namespace")
    if namespace and namespace not in kustomization.pattern.names("Namespace"):
        yield f"there is no Namespace {namespace} in the folder; add namespace.yml"


@rule(objects)
def object_leaves_its_namespace_to_the_kustomization(found: Object) -> Iterator[str]:
    if "namespace" in found.metadata:
        yield "metadata.namespace is set; set namespace in kustomization.yml instead"


@rule(of_kind("Namespace"))
def namespace_enforces_the_restricted_profile(namespace: Object) -> Iterator[str]:
    labels = mapping(namespace.metadata.get("labels"))
    if labels.get("pod-security.kubernetes.io/enforce") != "restricted":
        yield "not restricted; add the label pod-security.kubernetes.io/enforce: restricted"
