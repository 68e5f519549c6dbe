"""Each rule about manifests rejects its mutants of a pattern that follows all rules."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.check.manifests.shape import ISTIO, PROMETHEUS_OPERATOR
from tools.check.manifests.subjects import matches, quantity
from tools.check.repository.tree import Repository
from tools.check.rules import RULES, all_rules, findings

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
    found = thing("v1", "Service", name, spec={"selector": {"app": name}, "ports": ports})
    found["metadata"]["labels"] = {"app": name}
    return found


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
    pod = template({"app": "report"}, running, restartPolicy="Never")
    spec = {
        "schedule": "0 * * * *",
        "timeZone": "Etc/UTC",
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": 600,
        "successfulJobsHistoryLimit": 1,
        "failedJobsHistoryLimit": 3,
        "jobTemplate": {"spec": {"activeDeadlineSeconds": 3000, "template": pod}},
    }
    return thing("batch/v1", "CronJob", "report", spec=spec)


def sidecar() -> dict[str, Any]:
    alive = {"exec": {"command": ["test", "-e", "/scratch/alive"]}}
    return container(
        "ship",
        f"{IMAGE}-api:1.2.0",
        args=["python", "-m", "app.ship"],
        restartPolicy="Always",
        startupProbe=alive,
        readinessProbe=alive,
        livenessProbe=alive,
        volumeMounts=[{"name": "tmp", "mountPath": "/scratch"}],
    )


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


def monitoring() -> dict[str, dict[str, Any]]:
    version, selector = "monitoring.coreos.com/v1", {"matchLabels": {"app": "api"}}
    scrape = {"selector": selector, "endpoints": [{"port": "main", "interval": "10s"}]}
    alert = {"alert": "Down", "expr": "up == 0", "for": "1m", "labels": {"severity": "page"}}
    groups = [{"name": "api", "rules": [alert]}]
    return {
        "service_monitor.yml": thing(version, "ServiceMonitor", "api", spec=scrape),
        "prometheus_rule.yml": thing(version, "PrometheusRule", "api", spec={"groups": groups}),
    }


def policy(name: str, app: str = "", **entries: Any) -> dict[str, Any]:
    """A NetworkPolicy with these entries; without any, it denies all."""
    selector = {"matchLabels": {"app": app}} if app else {}
    types = [direction.capitalize() for direction in entries] or ["Ingress", "Egress"]
    spec = {"podSelector": selector, "policyTypes": types, **entries}
    return thing("networking.k8s.io/v1", "NetworkPolicy", name, spec=spec)


def policies() -> list[dict[str, Any]]:
    anywhere: dict[str, Any] = {"namespaceSelector": {}}
    dns = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}
    redis = {"podSelector": {"matchLabels": {"app": "redis"}}}
    api = {"podSelector": {"matchLabels": {"app": "api"}}}
    to_redis = {"to": [redis], "ports": [{"port": "redis"}]}
    to_dns = {"to": [dns], "ports": [{"protocol": "UDP", "port": 53}]}
    return [
        policy("default-deny"),
        policy("api", "api", ingress=[{"from": [anywhere], "ports": [{"port": "http"}]}]),
        policy("model", "model", ingress=[{"from": [api], "ports": [{"port": 8000}]}]),
        policy("redis", "redis", ingress=[{"from": [api], "ports": [{"port": 6379}]}]),
        policy("api-egress", "api", egress=[to_redis, to_dns]),
    ]


def good_manifests() -> dict[str, Any]:
    api = server(
        "api",
        f"{IMAGE}-api:1.2.0",
        env=[{"name": "REDIS_HOST", "value": "redis"}],
        envFrom=[{"configMapRef": {"name": "settings"}}],
        volumeMounts=[{"name": "tmp", "mountPath": "/scratch"}],
    )
    # The API takes 30 seconds to stop, and then the sidecar gets SIGTERM.
    api_pod = template(
        {"app": "api"},
        api,
        volumes=[{"name": "tmp", "emptyDir": {}}],
        initContainers=[sidecar()],
        terminationGracePeriodSeconds=45,
    )
    model = server("model", f"{IMAGE}-model:1.2.0")
    enforce = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = thing("v1", "Namespace", "good")
    namespace["metadata"]["labels"] = enforce
    files = {
        "namespace.yml": namespace,
        "settings.yml": thing("v1", "ConfigMap", "settings", data={"MAX_ROWS": "10"}),
        "api.yml": deployment("api", api_pod),
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
        "network_policy.yml": policies(),
        **monitoring(),
    }
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "good",
        "resources": list(files),
    }
    return {**files, "kustomization.yml": kustomization}


def page() -> dict[str, dict[str, Any]]:
    """A third-party server in our image, with a volume that only one pod can mount."""
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
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    command = ["mlflow", "server", "--port", "5000"]
    compose = {
        "build": ".",
        "image": f"{IMAGE}-report:1.2.0",
        "command": command,
        "volumes": ["runs:/data/tracking", "models:/data/models"],
        "x-without-ready": "it only says whether it lives",
    }
    return {
        "ui.yml": deployment("ui", pod, replicas=1, strategy={"type": "Recreate"}),
        "ui_service.yml": service("ui", 80, "http"),
        "volume.yml": thing("v1", "PersistentVolumeClaim", "data", spec=claim),
        "docker-compose.yml": compose,
    }


COMPOSE: dict[str, Any] = {
    "services": {
        "api": {
            "build": ".",
            "image": f"{IMAGE}-api:1.2.0",
            "command": [*UVICORN.split(), "--port", "8000"],
            "ports": ["127.0.0.1:8000:8000"],
            "environment": {"REDIS_HOST": "redis"},
            "depends_on": ["redis"],
            "tmpfs": ["/scratch"],
            "mem_limit": "256m",
        },
        "ship": {
            "build": ".",
            "image": f"{IMAGE}-api:1.2.0",
            "command": ["python", "-m", "app.ship"],
            "depends_on": ["api"],
            "tmpfs": ["/scratch"],
            "mem_limit": "256m",
            "stop_grace_period": "15s",
        },
        "model-a": {
            "build": ".",
            "image": f"{IMAGE}-model:1.2.0",
            "command": [*UVICORN.split(), "--port", "8001"],
            "labels": {"app": "model"},
        },
        "model-b": {
            "build": ".",
            "image": f"{IMAGE}-model:1.2.0",
            "command": [*UVICORN.split(), "--port", "8002"],
            "labels": {"app": "model"},
        },
        "redis": {
            "image": "redis:8.0",
            "command": ["redis-server", "--appendonly", "yes"],
            "expose": ["6379"],
            "volumes": ["redis-data:/data"],
        },
        "report": {
            "build": ".",
            "image": f"{IMAGE}-report:1.2.0",
            "command": ["python", "-m", "app.report"],
        },
    },
    "volumes": {"redis-data": None, "runs": None, "models": None},
}

POD = "spec.template.spec"
CONTAINER = f"{POD}.containers.0"
JOB_CONTAINER = f"spec.jobTemplate.spec.{CONTAINER.removeprefix('spec.')}"
SIDECAR = f"{POD}.initContainers.0"
PLACES = {
    "JOB_CONTAINER": JOB_CONTAINER,
    "CONTAINER": CONTAINER,
    "SIDECAR": SIDECAR,
    "POD": POD,
}
HERE = Path(__file__).parent
MUTANTS = yaml.safe_load((HERE / "manifest_mutants.yml").read_text("utf-8"))
VARIANTS = yaml.safe_load((HERE / "manifest_variants.yml").read_text("utf-8"))
SCHEMAS = {
    "istio_schema_accepts_the_object": ISTIO,
    "prometheus_operator_schema_accepts_the_object": PROMETHEUS_OPERATOR,
}
ABOUT_MANIFESTS = [rule for rule in all_rules() if rule.subjects]

Changes = dict[str, Any]


def repository(root: Path, changes: Changes) -> Repository:
    """Writes a repository with one good pattern after changing it."""
    good = {**good_manifests(), "docker-compose.yml": COMPOSE}
    # Copied through JSON, so that no two fields share an object.
    files: dict[str, Any] = json.loads(json.dumps(good))
    if changes.get("page"):
        page_files = page()
        files["docker-compose.yml"]["services"]["ui"] = page_files.pop("docker-compose.yml")
        files["kustomization.yml"]["resources"] += page_files
        files |= page_files
    for file, change in changes.items():
        if isinstance(change, dict) and file in files:
            for path, value in change.items():
                set_field(files[file], path, value)
        else:
            files[file] = change
    directory = root / "chapter9_example/good_pattern"
    for name in ("manifests", "app"):
        (directory / name).mkdir(parents=True)
    (directory / "app/settings.py").write_text(SETTINGS, encoding="utf-8")
    (directory / "Makefile").touch()
    in_directory = {"docker-compose.yml", "Dockerfile", ".gitignore"}
    for file, content in files.items():
        if content is not None and file != "page":
            folder = directory if file in in_directory else directory / "manifests"
            text = content if isinstance(content, str) else yaml.safe_dump(content)
            if isinstance(content, list):
                text = yaml.safe_dump_all(content)
            (folder / file).write_text(text, encoding="utf-8")
    return Repository(root)


def set_field(document: Any, path: str, value: Any) -> None:
    """Sets a field; None deletes it."""
    for name, place in PLACES.items():
        path = path.replace(name, place)
    *parents, last = path.split(".")
    node = document
    for parent in parents:
        node = node[int(parent)] if isinstance(node, list) else node.setdefault(parent, {})
    key: Any = int(last) if isinstance(node, list) else last
    if value is None:
        del node[key]
    elif isinstance(node, list) and key == len(node):
        node.append(value)
    else:
        node[key] = value


def findings_of(root: Path, changes: Changes) -> dict[str, list[str]]:
    """Returns the findings of each rule that has any."""
    changed = repository(root, changes)
    found = {rule.name: findings(changed, rule) for rule in ABOUT_MANIFESTS}
    return {name: messages for name, messages in found.items() if messages}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_good_pattern_has_no_findings(tmp_path: Path, changes: Changes) -> None:
    assert findings_of(tmp_path, changes or {}) == {}


@pytest.mark.parametrize(
    ("rule", "changes"),
    [(rule, changes) for rule, mutants in MUTANTS.items() for changes in mutants.values()],
    ids=[f"{rule}: {name}" for rule, mutants in MUTANTS.items() for name in mutants],
)
def test_a_rule_rejects_its_mutant(tmp_path: Path, rule: str, changes: Changes) -> None:
    if rule in SCHEMAS and not SCHEMAS[rule].file.is_file():
        pytest.skip("the custom resource definitions are not beside this repository")
    found = findings(repository(tmp_path, changes), RULES[rule])
    assert found, "the rule accepts the mutant"
    assert all("; " in finding for finding in found), "what to do is missing"
    assert not any("cannot be checked" in finding for finding in found), found


RESTRICTED = {
    f"{rule}: {name}": (rule, changes["api.yml"])
    for rule, mutants in MUTANTS.items()
    for name, changes in mutants.items()
    if RULES[rule].check.__module__.endswith(".restricted") and changes.keys() == {"api.yml"}
}


@pytest.mark.parametrize(("rule", "changes"), RESTRICTED.values(), ids=RESTRICTED)
def test_the_pods_of_a_cron_job_are_restricted_too(
    tmp_path: Path, rule: str, changes: Changes
) -> None:
    api = json.loads(json.dumps(good_manifests()["api.yml"]))
    for path, value in changes.items():
        set_field(api, path, value)
    job = {"report.yml": {"spec.jobTemplate.spec.template": api["spec"]["template"]}}
    found = findings(repository(tmp_path, job), RULES[rule])
    assert found
    assert all("CronJob report: " in finding for finding in found)


def test_every_rule_has_a_mutant() -> None:
    assert set(MUTANTS) == {rule.name for rule in ABOUT_MANIFESTS}


def test_a_finding_says_where_it_is_and_what_to_do(tmp_path: Path) -> None:
    assert findings_of(tmp_path, {"api.yml": {"POD.hostNetwork": True}}) == {
        "pod_does_not_share_the_hosts_namespaces": [
            "chapter9_example/good_pattern/manifests/api.yml: Deployment api: "
            "hostNetwork is true; remove it"
        ]
    }


def test_rules_about_content_skip_malformed_manifests(
    tmp_path: Path,
) -> None:
    changes = {"api.yml": {"POD.hostNetwork": "yes"}, "redis_service.yml": {"spec.selector": {}}}
    assert set(findings_of(tmp_path, changes)) == {"kubernetes_schema_accepts_the_object"}


def test_a_pattern_without_manifests_has_no_findings(tmp_path: Path) -> None:
    (tmp_path / "chapter9_example/other_pattern").mkdir(parents=True)
    (tmp_path / "chapter9_example/other_pattern/Makefile").touch()
    changed = repository(tmp_path, {})
    assert [pattern.directory.name for pattern in changed.manifests] == ["good_pattern"]


@pytest.mark.parametrize(
    ("text", "number"),
    [("250m", 0.25), ("1", 1.0), (2, 2.0), ("1Ki", 1024.0), ("1.5Gi", 1.5 * 2**30), ("1k", 1e3)],
)
def test_a_quantity_is_parsed(text: str | int, number: float) -> None:
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
