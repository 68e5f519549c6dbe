"""Translates the Istio manifests of a pattern to a static Envoy configuration.

Unsupported fields are errors, so a misspelt field cannot silently do nothing. Omitted fields get
Istio's default, not Envoy's.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tools.mesh.istio import (
    DEFAULT_RETRY_ON,
    MANAGER,
    MANAGER_TYPE,
    ROUTER,
    SPECS,
    TYPES,
    UNLIMITED,
    Json,
    MeshError,
    choice,
    mapping,
    number,
    suggest,
    text,
)
from tools.read.compose import ComposeError, Service, load
from tools.read.strict_yaml import documents_of

FIRST_LINE = "# Generated from manifests/ by make fix: change those, not this.\n"
ADMIN_PORT = 9901
# Any web page could POST /quitquitquit. Envoy compares the path together with its query.
ADMIN_PATHS = r"/(clusters|listeners|ready|server_info|stats)(\?.*)?"
# Changes weights and nothing else. Without a number, the weight of the manifest holds again.
NEW_WEIGHT = r"weights\.[^&=]+=[0-9]*"
NEW_WEIGHTS = rf"/runtime_modify\?{NEW_WEIGHT}(&{NEW_WEIGHT})*"
ADMIN_LAYER = {"layers": [{"name": "admin", "admin_layer": {}}]}
FAULT = "envoy.filters.http.fault"


# Reading a pattern ---------------------------------------------------------------------------


@dataclass
class Mesh:
    """The manifests and processes of a pattern, and the clusters that its routes need."""

    processes: Mapping[str, Service]
    # Specs by host, and the place of each in error messages by kind and host.
    services: dict[str, Json] = field(default_factory=dict)
    rules: dict[str, Json] = field(default_factory=dict)
    virtual_services: dict[str, Json] = field(default_factory=dict)
    places: dict[tuple[str, str], str] = field(default_factory=dict)
    patches: list[tuple[str, Json]] = field(default_factory=list)
    clusters: dict[str, Json] = field(default_factory=dict)


def load_yaml(path: Path, shown: str) -> list[Any]:
    try:
        return documents_of(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MeshError(f"{shown}: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise MeshError(f"{shown}: line {line}: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise MeshError(f"{shown}: is not YAML in UTF-8") from None


def manifests(pattern_dir: Path) -> Iterator[tuple[str, str, str, Json]]:
    """Yields kind, name, place and spec of each object in manifests/ that affects routing."""
    for path in sorted((pattern_dir / "manifests").glob("*.yml")):
        for document in load_yaml(path, f"manifests/{path.name}"):
            if not isinstance(document, dict):
                continue
            kind, version = str(document.get("kind")), str(document.get("apiVersion"))
            # Only Kubernetes uses Deployments and other kinds.
            if kind not in SPECS and kind != "Service" and "istio.io/" not in version:
                continue
            at = f"manifests/{path.name}: {kind}"
            name = mapping(document.get("metadata"), f"{at}: metadata").get("name")
            at = f"{at} {text(name, f'{at}: metadata.name')}:"
            spec = mapping(document.get("spec"), f"{at} spec")
            if kind == "Service":
                mapping(spec.get("selector", {}), f"{at} spec.selector")
                for index, port in enumerate(spec.get("ports", [])):
                    at_port = f"{at} spec.ports[{index}]"
                    number(1, 65535)(mapping(port, at_port).get("port"), f"{at_port}.port")
            else:
                choice(*SPECS)(kind, f"{at} kind")
                choice(SPECS[kind][0])(version, f"{at} apiVersion")
                for key in sorted(document.keys() - {"apiVersion", "kind", "metadata", "spec"}):
                    raise MeshError(f"{at} {key} is not a supported field")
                spec = SPECS[kind][1](spec, f"{at} spec")
            yield kind, str(name), f"{at} spec", spec


def is_mesh(pattern_dir: Path) -> bool:
    kinds = {kind for kind, _, _, _ in manifests(pattern_dir)}
    return bool(kinds & {"VirtualService", "DestinationRule"})


def read(pattern_dir: Path) -> Mesh:
    try:
        mesh = Mesh(load(pattern_dir, variables={}).services)
    except ComposeError as error:
        raise MeshError(str(error)) from None
    by_kind = {
        "Service": mesh.services,
        "DestinationRule": mesh.rules,
        "VirtualService": mesh.virtual_services,
    }
    for kind, name, at, spec in manifests(pattern_dir):
        if kind == "EnvoyFilter":
            mesh.patches += spec["configPatches"]
            continue
        for host in spec.get("hosts", [spec.get("host", name)]):
            if (kind, host) in mesh.places:
                first = mesh.places[kind, host].removesuffix(" spec")
                raise MeshError(f"{at} is a second {kind} of {host}, after {first}")
            by_kind[kind][host] = spec
            mesh.places[kind, host] = at
    for host, rule in mesh.rules.items():
        check_rule(mesh, host, rule, mesh.places["DestinationRule", host])
    names = [http["name"] for http in every_http_route(mesh) if "name" in http]
    for patch in route_patches(mesh):
        if patch["name"] not in names:
            at = f"{patch['at']}.match.routeConfiguration.vhost.route.name {patch['name']!r}"
            raise MeshError(f"{at} is no route of a VirtualService{suggest(patch['name'], names)}")
    return mesh


def every_http_route(mesh: Mesh) -> Iterator[Json]:
    for spec in mesh.virtual_services.values():
        yield from spec["http"]


def route_patches(mesh: Mesh) -> list[Json]:
    return [patch for apply_to, patch in mesh.patches if apply_to == "HTTP_ROUTE"]


def check_rule(mesh: Mesh, host: str, rule: Json, at: str) -> None:
    """Checks the references of a DestinationRule, and rejects fields without effect."""
    endpoints(mesh, host, {}, f"{at}.host")
    names = [subset["name"] for subset in rule.get("subsets", [])]
    policies = {f"{at}.trafficPolicy": rule.get("trafficPolicy", {})}
    for index, subset in enumerate(rule.get("subsets", [])):
        at_subset = f"{at}.subsets[{index}]"
        if names.index(subset["name"]) != index:
            raise MeshError(f"{at_subset}.name {subset['name']!r} is a duplicate")
        endpoints(mesh, host, subset["labels"], f"{at_subset}.labels")
        policies[f"{at_subset}.trafficPolicy"] = subset.get("trafficPolicy", {})
    for at_policy, policy in policies.items():
        health = policy.get("outlierDetection", {})
        name = "consecutiveLocalOriginFailures"
        if name in health and not health.get("splitExternalLocalOriginErrors"):
            at = f"{at_policy}.outlierDetection.{name}"
            raise MeshError(f"{at} has no effect without splitExternalLocalOriginErrors: true")


def service_ports(mesh: Mesh, host: str, at: str) -> list[int]:
    if host not in mesh.services:
        hint = suggest(host, mesh.services)
        raise MeshError(f"{at} {host!r} is not a Service in manifests/{hint}")
    return [port["port"] for port in mesh.services[host].get("ports", [])]


def endpoints(mesh: Mesh, host: str, labels: Json, at: str) -> list[tuple[str, int]]:
    """Returns the processes whose labels include all of these, as Kubernetes selects pods."""
    if not service_ports(mesh, host, at):
        raise MeshError(f"{at} {host!r} is a Service without a port")
    if not mesh.services[host].get("selector"):
        raise MeshError(f"{at} {host!r} is a Service without a selector")
    wanted = mesh.services[host]["selector"] | labels
    found = []
    for name, process in mesh.processes.items():
        if wanted.items() <= process.labels.items():
            if len(process.exposed_ports) != 1:
                reason = "expose: must name the one port that receives requests from the mesh"
                raise MeshError(f'docker-compose.yml: service "{name}": {reason}')
            found.append((name, process.exposed_ports[0]))
    if not found:
        shown = ", ".join(f"{key}: {value}" for key, value in wanted.items())
        raise MeshError(f"{at} has no endpoint: docker-compose.yml has no service with {shown}")
    return found


# The Envoy configuration ---------------------------------------------------------------------


def given(config: Json) -> Json:
    """Removes fields without a value, because Envoy distinguishes empty from absent."""
    return {name: value for name, value in config.items() if value not in (None, [], {})}


def typed(name: str, type_name: str, **config: Any) -> Json:
    return {"name": name, "typed_config": {"@type": f"{TYPES}.{type_name}", **config}}


def address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def policy_of(mesh: Mesh, to: Json) -> Json:
    """Returns the policy of a destination; a subset's parts replace the host's, as in Istio."""
    rule = mesh.rules.get(to["host"], {})
    subsets = {subset["name"]: subset for subset in rule.get("subsets", [])}
    own = subsets.get(to.get("subset"), {})
    return {**rule.get("trafficPolicy", {}), **own.get("trafficPolicy", {})}


def cluster_name(mesh: Mesh, to: Json, at: str) -> str:
    """Returns the name of a destination's cluster, which is created on first use.

    The name is Istio's, so counters have the same names as in a sidecar in Kubernetes.
    """
    host, subset = to["host"], to.get("subset", "")
    ports = service_ports(mesh, host, f"{at}.host")
    if "port" not in to and len(ports) > 1:
        raise MeshError(f"{at}.port is missing: Service {host} has several")
    port = to["port"]["number"] if "port" in to else ports[0]
    if port not in ports:
        raise MeshError(f"{at}.port.number {port} is not a port of Service {host}")
    labels = {s["name"]: s["labels"] for s in mesh.rules.get(host, {}).get("subsets", [])}
    if subset and subset not in labels:
        hint = suggest(subset, labels)
        raise MeshError(f"{at}.subset {subset!r} is in no DestinationRule of {host}{hint}")
    name = f"outbound|{port}|{subset}|{host}"
    if name not in mesh.clusters:
        found = endpoints(mesh, host, labels.get(subset, {}), f"{at}.host")
        mesh.clusters[name] = cluster(name, policy_of(mesh, to), found)
    return name


def cluster(name: str, policy: Json, found: list[tuple[str, int]]) -> Json:
    balancer, pool = policy.get("loadBalancer", {}), policy.get("connectionPool", {})
    tcp, http = pool.get("tcp", {}), pool.get("http", {})
    sticky = "consistentHash" in balancer
    limits = {
        "max_connections": tcp.get("maxConnections", UNLIMITED),
        "max_pending_requests": http.get("http1MaxPendingRequests", UNLIMITED),
        "max_requests": http.get("http2MaxRequests", UNLIMITED),
        "max_retries": http.get("maxRetries", UNLIMITED),
        "track_remaining": True,
    }
    connection = given(
        {
            "idle_timeout": http.get("idleTimeout", tcp.get("idleTimeout")),
            "max_requests_per_connection": http.get("maxRequestsPerConnection"),
        }
    )
    protocol = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    options = {
        "@type": f"type.googleapis.com/{protocol}",
        "common_http_protocol_options": connection,
        "explicit_http_config": {"http_protocol_options": {}},
    }
    health = policy.get("outlierDetection")
    lb_config = {}
    if health is not None:
        lb_config["healthy_panic_threshold"] = {"value": health.get("minHealthPercent", 0)}
    lb_endpoints = [{"endpoint": {"address": address(host, port)}} for host, port in found]
    return given(
        {
            "name": name,
            "type": "STRICT_DNS",
            # Without Docker every process listens on 127.0.0.1 and none on ::1.
            "dns_lookup_family": "V4_ONLY",
            "connect_timeout": tcp.get("connectTimeout", "10s"),
            "lb_policy": "RING_HASH" if sticky else balancer.get("simple", "LEAST_REQUEST"),
            "ring_hash_lb_config": {"minimum_ring_size": 1024} if sticky else None,
            "circuit_breakers": {"thresholds": [limits]},
            "outlier_detection": outlier_detection(health) if health is not None else None,
            "common_lb_config": lb_config,
            "typed_extension_protocol_options": {protocol: options} if connection else None,
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [{"lb_endpoints": lb_endpoints}],
            },
        }
    )


def outlier_detection(health: Json) -> Json:
    split = health.get("splitExternalLocalOriginErrors")
    config: Json = {}
    for name, errors in (
        ("consecutive_5xx", health.get("consecutive5xxErrors")),
        ("consecutive_gateway_failure", health.get("consecutiveGatewayErrors")),
        ("consecutive_local_origin_failure", health.get("consecutiveLocalOriginFailures")),
    ):
        if errors is not None:
            config |= {name: errors, f"enforcing_{name}": 100 if errors else 0}
    config |= {
        "interval": health.get("interval", "10s"),
        "base_ejection_time": health.get("baseEjectionTime", "30s"),
        "max_ejection_percent": health.get("maxEjectionPercent", 10),
        # As in Istio: 10 percent of two endpoints rounds to none, so none is ever ejected.
        "always_eject_one_host": False,
        "enforcing_success_rate": 0,
        "enforcing_failure_percentage": 0,
        "split_external_local_origin_errors": split,
        "enforcing_local_origin_success_rate": 0 if split else None,
    }
    return given(config)


def route_match(condition: Json) -> Json:
    envoy_names = {"exact": "path", "prefix": "prefix", "regex": "safe_regex"}
    ((kind, path),) = condition.get("uri", {"prefix": "/"}).items()
    matchers = [header_matcher(name, to) for name, to in condition.get("headers", {}).items()]
    for name, to in condition.get("withoutHeaders", {}).items():
        absent = {"treat_missing_header_as_empty": True} if to else {}
        matchers.append({**header_matcher(name, to), "invert_match": True, **absent})
    if "method" in condition:
        matchers.append(header_matcher(":method", condition["method"]))
    parameters = [
        {"name": name, "string_match": to} for name, to in condition.get("queryParams", {}).items()
    ]
    config = {envoy_names[kind]: {"regex": path} if kind == "regex" else path}
    return config | given({"headers": matchers, "query_parameters": parameters})


def header_matcher(name: str, to: Json) -> Json:
    if not to:
        return {"name": name, "present_match": True}
    return {"name": name, "string_match": {"safe_regex": to} if "regex" in to else to}


def changes(*levels: Json) -> Json:
    """Returns Envoy's header changes: those of the route, then those of its destination."""
    actions = {"set": "OVERWRITE_IF_EXISTS_OR_ADD", "add": "APPEND_IF_EXISTS_OR_ADD"}
    config: Json = defaultdict(list)
    for direction in ("request", "response"):
        for said in (level.get(direction, {}) for level in levels):
            config[f"{direction}_headers_to_add"] += [
                {"header": {"key": key, "value": value}, "append_action": action}
                for verb, action in actions.items()
                for key, value in said.get(verb, {}).items()
            ]
            config[f"{direction}_headers_to_remove"] += said.get("remove", [])
    return given(config)


def retry_policy(retries: Json, sticky: bool, at: str) -> Json | None:
    if retries["attempts"] == 0:
        for name in sorted(retries.keys() - {"attempts"}):
            raise MeshError(f"{at}.{name} has no effect: attempts: 0 turns retries off")
        return None
    conditions = retries.get("retryOn", DEFAULT_RETRY_ON).split(",")
    codes = [int(condition) for condition in conditions if condition.isdecimal()]
    words = [condition for condition in conditions if not condition.isdecimal()]
    if codes and "retriable-status-codes" not in words:
        words.append("retriable-status-codes")
    other_host = typed(
        "envoy.retry_host_predicates.previous_hosts",
        "retry.host.previous_hosts.v3.PreviousHostsPredicate",
    )
    return given(
        {
            "retry_on": ",".join(words),
            "num_retries": retries["attempts"],
            "retriable_status_codes": codes,
            "per_try_timeout": retries.get("perTryTimeout"),
            # Istio also sends the retry of a sticky request to the same endpoint.
            "retry_host_predicate": [] if sticky else [other_host],
            "host_selection_retry_max_attempts": 5,
        }
    )


def route_action(mesh: Mesh, http: Json, at: str) -> Json:
    targets = http["route"]
    names = [
        cluster_name(mesh, target["destination"], f"{at}.route[{index}].destination")
        for index, target in enumerate(targets)
    ]
    weights = [target["weight"] for target in targets if "weight" in target]
    if (weights or len(targets) > 1) and len(weights) != len(targets):
        raise MeshError(f"{at}.route should give every destination a weight")
    if weights and sum(weights) != 100:
        raise MeshError(f"{at}.route has weights that sum to {sum(weights)}, not to 100")
    if "mirror" in http and "mirrors" in http:
        raise MeshError(f"{at} should not have both mirror and mirrors")
    if "mirrorPercentage" in http and "mirror" not in http:
        raise MeshError(f"{at}.mirrorPercentage has no effect without mirror")

    hashes: list[Json] = []
    for target in targets:
        balancer = policy_of(mesh, target["destination"]).get("loadBalancer", {})
        policy = hash_policy(balancer.get("consistentHash", {}))
        hashes += [policy] if policy and policy not in hashes else []
    mirrors = [
        (mirror["destination"], mirror.get("percentage"), f"{at}.mirrors[{index}].destination")
        for index, mirror in enumerate(http.get("mirrors", []))
    ]
    if "mirror" in http:
        mirrors = [(http["mirror"], http.get("mirrorPercentage"), f"{at}.mirror")]
    config: Json = {"cluster": names[0]}
    if len(targets) > 1:
        clusters = [
            {"name": name, "weight": target["weight"], **changes(target.get("headers", {}))}
            for name, target in zip(names, targets, strict=True)
        ]
        config = {"weighted_clusters": {"clusters": clusters}}
        if "name" in http:
            config["weighted_clusters"]["runtime_key_prefix"] = f"weights.{http['name']}"
    sticky = bool(hashes) and len(targets) == 1
    all_of_them = {"numerator": 100, "denominator": "HUNDRED"}
    retries = retry_policy(http.get("retries", {"attempts": 2}), sticky, f"{at}.retries")
    return config | given(
        {
            "timeout": http.get("timeout", "0s"),
            "prefix_rewrite": http.get("rewrite", {}).get("uri"),
            "retry_policy": retries,
            "hash_policy": hashes,
            "request_mirror_policies": [
                {
                    "cluster": cluster_name(mesh, to, at_mirror),
                    "runtime_fraction": {"default_value": share or all_of_them},
                    "disable_shadow_host_suffix_append": True,
                }
                for to, share, at_mirror in mirrors
            ],
        }
    )


def patched(mesh: Mesh, http: Json, action: Json) -> Json:
    """Merges what EnvoyFilters say about this route; each field must have an effect."""
    for patch in route_patches(mesh):
        if patch["name"] != http.get("name"):
            continue
        at = f"{patch['at']}.patch.value.route"
        if "weighted_clusters" not in action.get("route", {}):
            where = f"{at}.weighted_clusters"
            raise MeshError(f"{where} has no effect: {patch['name']} has no weights")
        for condition in http.get("match", []):
            if "name" in condition:
                name = f"{patch['name']}.{condition['name']}"
                raise MeshError(f"{at} has no effect on {name}: a match with a name has its own")
        action = merge(action, patch["value"])
        if "hash_policy" not in action["route"]:
            raise MeshError(f"{at}.hash_policy is missing, and no consistentHash is in its place")
    return action


def hash_policy(consistent_hash: Json) -> Json:
    if "httpHeaderName" in consistent_hash:
        return {"header": {"header_name": consistent_hash["httpHeaderName"]}}
    if "httpCookie" in consistent_hash:
        return {"cookie": consistent_hash["httpCookie"]}
    return {"connection_properties": {"source_ip": True}} if consistent_hash else {}


def routes(mesh: Mesh, http: Json, at: str) -> Iterator[Json]:
    """Yields one Envoy route per match, because Istio's matches are alternatives."""
    if ("route" in http) == ("directResponse" in http):
        raise MeshError(f"{at} should have exactly one of route, directResponse")
    levels = [http.get("headers", {})]
    action: Json = {}
    if "directResponse" in http:
        for name in sorted(http.keys() - {"name", "match", "headers", "directResponse"}):
            raise MeshError(f"{at}.{name} has no effect on a directResponse")
        answer = http["directResponse"]
        action["direct_response"] = {"status": answer["status"]}
        if "body" in answer:
            action["direct_response"]["body"] = {"inline_string": answer["body"]["string"]}
    else:
        action["route"] = route_action(mesh, http, at)
        if len(http["route"]) == 1:
            levels.append(http["route"][0].get("headers", {}))
    action = patched(mesh, http, action)
    if "fault" in http:
        action["typed_per_filter_config"] = {FAULT: fault(http["fault"])}
    for condition in http.get("match", [{}]):
        name = ".".join(part["name"] for part in (http, condition) if "name" in part)
        yield given({"name": name or None}) | {
            "match": route_match(condition),
            **action,
            **changes(*levels),
        }


def fault(injected: Json) -> Json:
    envoy_names = {"httpStatus": "http_status", "fixedDelay": "fixed_delay"}
    return {"@type": f"{TYPES}.filters.http.fault.v3.HTTPFault"} | {
        kind: {envoy_names.get(name, name): value for name, value in what.items()}
        for kind, what in injected.items()
    }


def host_routes(mesh: Mesh, host: str) -> list[Json]:
    if host not in mesh.virtual_services:
        at = mesh.places["DestinationRule", host]
        return list(routes(mesh, {"route": [{"destination": {"host": host}}]}, at))
    at = f"{mesh.places['VirtualService', host]}.http"
    found: list[Json] = []
    for index, http in enumerate(mesh.virtual_services[host]["http"]):
        if {"prefix": "/"} in [route["match"] for route in found]:
            raise MeshError(f"{at}[{index}] is never reached: a route above it matches everything")
        found += routes(mesh, http, f"{at}[{index}]")
    return found


def listener_port(mesh: Mesh, host: str) -> int:
    """Returns the only port of the host's Service, or the one that all its routes name."""
    kind = "VirtualService" if host in mesh.virtual_services else "DestinationRule"
    at = mesh.places[kind, host]
    ports = service_ports(mesh, host, f"{at}.host{'s' * (kind == 'VirtualService')}")
    named = {
        target["destination"].get("port", {}).get("number")
        for http in mesh.virtual_services.get(host, {}).get("http", [])
        for target in http.get("route", [])
        if target["destination"]["host"] == host
    }
    if len(ports) > 1 and len(named) != 1:
        raise MeshError(f"{at} should use one port.number everywhere: Service {host} has several")
    return named.pop() if len(ports) > 1 else ports[0]


def access_log() -> Json:
    """Logs one line on stdout for each request that Envoy could not deliver, with the reason.

    Istio logs nothing by default. Requests over a limit (UO) are not logged: there may be thousands
    when CPU is scarce, and a counter shows them.
    """
    line = "%START_TIME% %REQ(:METHOD)% %PATH(NQ)% %RESPONSE_CODE% %RESPONSE_FLAGS% %DURATION% ms"
    log = typed(
        "envoy.access_loggers.stdout",
        "access_loggers.stream.v3.StdoutAccessLog",
        log_format={"text_format_source": {"inline_string": f"{line} %UPSTREAM_CLUSTER%\n"}},
    )
    flags = ["UT", "UF", "UH", "UC", "URX", "NR"]
    return {"filter": {"response_flag_filter": {"flags": flags}}, **log}


def merge(config: Any, patch: Any) -> Any:
    """Merges as Protobuf and Istio do: messages field by field, lists by concatenation."""
    if isinstance(config, dict) and isinstance(patch, dict):
        return config | {name: merge(config.get(name), value) for name, value in patch.items()}
    if isinstance(config, list) and isinstance(patch, list):
        return config + patch
    return patch


def listener(mesh: Mesh, port: int, virtual_hosts: list[Json]) -> Json:
    every_route = [route for virtual_host in virtual_hosts for route in virtual_host["routes"]]
    filters = [patch for apply_to, patch in mesh.patches if apply_to == "HTTP_FILTER"]
    if any("typed_per_filter_config" in route for route in every_route):
        filters = [typed(FAULT, "filters.http.fault.v3.HTTPFault"), *filters]
    manager: Json = {
        "@type": MANAGER_TYPE,
        "stat_prefix": f"outbound_{port}",
        # As in Istio: only a route's timeout ends a request, and paths are normalized.
        "stream_idle_timeout": "0s",
        "normalize_path": True,
        "access_log": [access_log()],
        "route_config": {"name": str(port), "virtual_hosts": virtual_hosts},
        "http_filters": [*filters, typed(ROUTER, "filters.http.router.v3.Router")],
    }
    for apply_to, patch in mesh.patches:
        if apply_to == "NETWORK_FILTER":
            manager = merge(manager, patch["typed_config"])
    return {
        "name": f"outbound_{port}",
        # This is inside the container; docker-compose.yml limits who can connect.
        "address": address("0.0.0.0", port),  # noqa: S104
        "filter_chains": [{"filters": [{"name": MANAGER, "typed_config": manager}]}],
    }


class PlainDumper(yaml.SafeDumper):
    """Writes YAML as people do: indented lists, block strings, no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", value, style="|" if "\n" in value else ""
    )


PlainDumper.add_representer(str, represent_text)


def translate(pattern_dir: Path) -> str:
    """Returns the text of envoy.yaml for a pattern with a VirtualService or DestinationRule."""
    mesh = read(pattern_dir)
    hosts_by_port: dict[int, list[str]] = defaultdict(list)
    for host in dict.fromkeys([*mesh.virtual_services, *mesh.rules]):
        hosts_by_port[listener_port(mesh, host)].append(host)
    listeners = []
    for port, names in sorted(hosts_by_port.items()):
        # A caller on a laptop sends Host: localhost, so a single host with routes matches any name.
        routed = [name for name in names if name in mesh.virtual_services] or names
        virtual_hosts = [
            {
                "name": f"{name}:{port}",
                "domains": [name, f"{name}:{port}", *["*"] * (routed == [name])],
                "routes": host_routes(mesh, name),
            }
            for name in names
        ]
        listeners.append(listener(mesh, port, virtual_hosts))
    # Envoy warns at startup if downstream connections are unlimited.
    connection_limit = typed(
        "envoy.resource_monitors.global_downstream_max_connections",
        "resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
        max_active_downstream_connections=50_000,
    )
    has_weights = any(len(http.get("route", [])) > 1 for http in every_http_route(mesh))
    allowed = [ADMIN_PATHS, *[NEW_WEIGHTS] * has_weights]
    config = {
        "admin": {
            "address": address("0.0.0.0", ADMIN_PORT),  # noqa: S104
            "allow_paths": [{"safe_regex": {"regex": regex}} for regex in allowed],
        },
        **({"layered_runtime": ADMIN_LAYER} if has_weights else {}),
        "static_resources": {"listeners": listeners, "clusters": list(mesh.clusters.values())},
        "overload_manager": {"resource_monitors": [connection_limit]},
    }
    return FIRST_LINE + yaml.dump(config, Dumper=PlainDumper, sort_keys=False, width=1000)
