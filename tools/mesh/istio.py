"""Checks the fields of Istio's manifests that `translate` supports, and rejects all others.

Every field has a check that returns its value in Envoy's form. A misspelt field or a value of the
wrong type is an error that names its place, instead of a rule that silently does nothing.
"""

import re
from collections.abc import Callable, Iterable
from decimal import Decimal
from difflib import get_close_matches
from types import UnionType
from typing import Any

Json = dict[str, Any]
# A check returns the value in Envoy's form or raises a MeshError that begins with its place.
Check = Callable[[Any, str], Any]

UNLIMITED = 2**32 - 1
MANAGER = "envoy.filters.network.http_connection_manager"
ROUTER = "envoy.filters.http.router"
TYPES = "type.googleapis.com/envoy.extensions"
MANAGER_TYPE = f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"
DEFAULT_RETRY_ON = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
RETRY_ON = [
    *DEFAULT_RETRY_ON.split(","),
    *["5xx", "gateway-error", "reset", "reset-before-request", "retriable-4xx"],
    *["envoy-ratelimited", "deadline-exceeded", "internal", "resource-exhausted"],
]


class MeshError(Exception):
    """The manifests contain something that cannot be translated to Envoy configuration."""


# Checks of values ----------------------------------------------------------------------------


def suggest(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ""


def fields(marked: dict[str, Check], one_of: bool = False) -> Check:
    """Checks a mapping with known fields, of which those marked `!` are required.

    `one_of` is Istio's oneof: exactly one of the fields is set.
    """
    known = {name.rstrip("!"): part for name, part in marked.items()}
    needed = [name.rstrip("!") for name in marked if name.endswith("!")]

    def check(value: Any, at: str) -> Json:
        for name in mapping(value, at):
            if name not in known:
                hint = suggest(str(name), known)
                raise MeshError(f"{at}.{name} is not a supported field{hint}")
        for name in needed:
            if name not in value:
                raise MeshError(f"{at}.{name} is missing")
        if one_of and len(value) != 1:
            raise MeshError(f"{at} should have exactly one of {', '.join(known)}")
        return {name: known[name](part, f"{at}.{name}") for name, part in value.items()}

    return check


def named(part: Check, name_check: Check) -> Check:
    """Checks a mapping with arbitrary names, such as headers."""
    return lambda value, at: {
        name_check(name, f"{at}.{name}"): part(item, f"{at}.{name}")
        for name, item in mapping(value, at).items()
    }


def each(part: Check) -> Check:
    def check(value: Any, at: str) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise MeshError(f"{at} should be a list that is not empty")
        return [part(item, f"{at}[{index}]") for index, item in enumerate(value)]

    return check


def mapping(value: Any, at: str) -> Json:
    if not isinstance(value, dict):
        raise MeshError(f"{at} should be a mapping")
    return value


def text(value: Any, at: str) -> str:
    if not isinstance(value, str) or not value:
        raise MeshError(f"{at} should be a string, not {value!r}")
    return value


def choice(*known: Any) -> Check:
    def check(value: Any, at: str) -> Any:
        if value not in known:
            raise MeshError(f"{at} should be {' or '.join(map(str, known))}, not {value!r}")
        return value

    return check


def number(low: int, high: int, kind: type[int] | UnionType = int) -> Check:
    def check(value: Any, at: str) -> Any:
        # In Python True is an int.
        if isinstance(value, bool) or not isinstance(value, kind):
            raise MeshError(f"{at} should be a number, not {value!r}")
        if not low <= value <= high:
            raise MeshError(f"{at} should be from {low} to {high}, not {value}")
        return value

    return check


def duration_from(low: str) -> Check:
    """Converts Istio's durations, such as 250ms or 1m30s, to seconds, the only unit in Envoy."""
    unit_seconds = {"h": Decimal(3600), "m": Decimal(60), "s": Decimal(1), "ms": Decimal("0.001")}

    def check(value: Any, at: str) -> str:
        if not re.fullmatch(r"(\d+(\.\d+)?(h|ms|m|s))+", str(value)):
            raise MeshError(f"{at} should be a duration such as 250ms or 1m30s, not {value!r}")
        parts = re.findall(r"([\d.]+)(h|ms|m|s)", value)
        seconds = sum((Decimal(count) * unit_seconds[unit] for count, unit in parts), Decimal(0))
        if seconds < Decimal(low):
            raise MeshError(f"{at} should be at least 1ms, not {value!r}")
        return f"{seconds.normalize():f}s"

    return check


def percent(value: Any, at: str) -> Json:
    parts = fields({"value!": number(0, 100, int | float)})(value, at)
    if parts["value"] == int(parts["value"]):
        return {"numerator": int(parts["value"]), "denominator": "HUNDRED"}
    return {"numerator": round(parts["value"] * 10_000), "denominator": "MILLION"}


def regex(value: Any, at: str) -> str:
    try:
        re.compile(text(value, at))
    except re.error as reason:
        raise MeshError(f"{at} is not a regular expression: {reason}") from None
    return str(value)


def matched_header(value: Any, at: str) -> str:
    if not re.fullmatch("[a-z0-9_-]+", str(value)):
        raise MeshError(f"{at} is not a header name in lower case, as Istio requires")
    return str(value)


def changed_header(value: Any, at: str) -> str:
    if not re.fullmatch("[A-Za-z0-9_-]+", str(value)) or str(value).lower() == "host":
        raise MeshError(f"{at} is not a header that may be changed")
    return str(value)


def retry_on(value: Any, at: str) -> str:
    for word in text(value, at).split(","):
        if word not in RETRY_ON and not re.fullmatch("[1-5][0-9][0-9]", word):
            raise MeshError(f"{at} has {word!r}, unknown in Envoy{suggest(word, RETRY_ON)}")
    return str(value)


# The fields of the manifests -----------------------------------------------------------------

DURATION, DURATION_OR_ZERO = duration_from("0.001"), duration_from("0")
# Istio treats a limit of 0 as not set, the opposite of what it says.
LIMIT = number(1, 2**31 - 1)
STATUS = number(200, 599)

STRING_MATCH = fields({"exact": text, "prefix": text, "regex": regex}, one_of=True)
EXACT_MATCH = fields({"exact!": text})


def header_match(value: Any, at: str) -> Json:
    """`{}` matches a header with any value."""
    return {} if value == {} else dict(STRING_MATCH(value, at))


MATCH = fields(
    {
        "name": text,
        "uri": STRING_MATCH,
        "headers": named(header_match, matched_header),
        "withoutHeaders": named(header_match, matched_header),
        "method": EXACT_MATCH,
        "queryParams": named(EXACT_MATCH, text),
    }
)
PORT = fields({"number!": number(1, 65535)})
DESTINATION = fields({"host!": text, "subset": text, "port": PORT})
HEADER_VALUES = named(text, changed_header)
HEADER_CHANGES = fields(
    {"set": HEADER_VALUES, "add": HEADER_VALUES, "remove": each(changed_header)}
)
HEADERS = fields({"request": HEADER_CHANGES, "response": HEADER_CHANGES})
TARGET = fields({"destination!": DESTINATION, "weight": number(0, 100), "headers": HEADERS})
# Istio's default of 0 turns retries off without `attempts`, and injects no faults without
# `percentage`, so both are required here.
RETRIES = fields({"attempts!": number(0, 100), "perTryTimeout": DURATION, "retryOn": retry_on})
ABORT = fields({"httpStatus!": STATUS, "percentage!": percent})
DELAY = fields({"fixedDelay!": DURATION, "percentage!": percent})
HTTP_ROUTE = fields(
    {
        "name": text,
        "match": each(MATCH),
        "route": each(TARGET),
        "directResponse": fields({"status!": STATUS, "body": fields({"string!": text})}),
        "headers": HEADERS,
        "timeout": DURATION_OR_ZERO,
        "retries": RETRIES,
        "mirror": DESTINATION,
        "mirrorPercentage": percent,
        "mirrors": each(fields({"destination!": DESTINATION, "percentage": percent})),
        "fault": fields({"abort": ABORT, "delay": DELAY}),
        "rewrite": fields({"uri!": text}),
    }
)
VIRTUAL_SERVICE = fields(
    {"hosts!": each(text), "gateways": each(choice("mesh")), "http!": each(HTTP_ROUTE)}
)

COOKIE = fields({"name!": text, "ttl": DURATION_OR_ZERO, "path": text})
HASH_KEY = fields(
    {"httpHeaderName": text, "httpCookie": COOKIE, "useSourceIp": choice(True)}, one_of=True
)
BALANCER = fields(
    {"simple": choice("LEAST_REQUEST", "ROUND_ROBIN", "RANDOM"), "consistentHash": HASH_KEY},
    one_of=True,
)
TCP_POOL = fields({"maxConnections": LIMIT, "connectTimeout": DURATION, "idleTimeout": DURATION})
HTTP_POOL = fields(
    {
        "http1MaxPendingRequests": LIMIT,
        "http2MaxRequests": LIMIT,
        "maxRequestsPerConnection": LIMIT,
        "maxRetries": LIMIT,
        "idleTimeout": DURATION,
    }
)
HEALTH = fields(
    {
        "consecutive5xxErrors": number(0, UNLIMITED),
        "consecutiveGatewayErrors": number(0, UNLIMITED),
        "splitExternalLocalOriginErrors": choice(True, False),
        "consecutiveLocalOriginFailures": LIMIT,
        "interval": DURATION,
        "baseEjectionTime": DURATION,
        "maxEjectionPercent": number(1, 100),
        "minHealthPercent": number(0, 100),
    }
)
TRAFFIC_POLICY = fields(
    {
        "loadBalancer": BALANCER,
        "connectionPool": fields({"tcp": TCP_POOL, "http": HTTP_POOL}),
        "outlierDetection": HEALTH,
    }
)
SUBSET = fields({"name!": text, "labels!": named(text, text), "trafficPolicy": TRAFFIC_POLICY})
DESTINATION_RULE = fields({"host!": text, "trafficPolicy": TRAFFIC_POLICY, "subsets": each(SUBSET)})


def header_hash(value: Any, at: str) -> list[Json]:
    """Checks the hash policy of a route: one header, or what is made of it."""
    if isinstance(value, list) and len(value) > 1:
        raise MeshError(f"{at} should be one header")
    return list(each(fields({"header!": HASHED_HEADER}))(value, at))


def regex_rewrite(value: Any, at: str) -> Json:
    rewrite: Json = REWRITE(value, at)
    groups = re.compile(rewrite["pattern"]["regex"]).groups
    known = {"\\", *"0123456789"[: groups + 1]}
    for character in re.findall(r"\\(.?)", rewrite["substitution"]):
        if character not in known:
            raise MeshError(f"{at}.substitution has \\{character}, and the regex {groups} groups")
    return rewrite


REWRITE = fields({"pattern!": fields({"regex!": regex}), "substitution!": text})
HASHED_HEADER = fields({"header_name!": matched_header, "regex_rewrite": regex_rewrite})
# Istio's API cannot say that the hash chooses among the weights, only among the endpoints.
STICKY_ROUTE = fields(
    {
        "hash_policy": header_hash,
        "weighted_clusters!": fields({"use_hash_policy!": choice(True)}),
    }
)


def patch_fields(apply_to: str, operation: str, match: dict[str, Check], value: Check) -> Check:
    """Checks one form of EnvoyFilter patch."""
    return fields(
        {
            "applyTo!": choice(apply_to),
            "match!": fields({"context!": choice("SIDECAR_OUTBOUND"), **match}),
            "patch!": fields({"operation!": choice(operation), "value!": value}),
        }
    )


def in_listener(filter_check: Check) -> dict[str, Check]:
    return {"listener!": fields({"filterChain!": fields({"filter!": filter_check})})}


MANAGER_NAME = choice(MANAGER)
ROUTER_FILTER = fields({"name!": MANAGER_NAME, "subFilter!": fields({"name!": choice(ROUTER)})})
# The Envoy configuration inside a filter is not checked.
FILTER = fields({"name!": text, "typed_config!": mapping})
NAMED_ROUTE = fields({"vhost!": fields({"route!": fields({"name!": text})})})
PATCHES = {
    "NETWORK_FILTER": patch_fields(
        "NETWORK_FILTER", "MERGE", in_listener(fields({"name!": MANAGER_NAME})), FILTER
    ),
    "HTTP_FILTER": patch_fields("HTTP_FILTER", "INSERT_BEFORE", in_listener(ROUTER_FILTER), FILTER),
    "HTTP_ROUTE": patch_fields(
        "HTTP_ROUTE",
        "MERGE",
        {"routeConfiguration!": NAMED_ROUTE},
        fields({"route!": STICKY_ROUTE}),
    ),
}


def config_patch(value: Any, at: str) -> Any:
    """Returns what a patch applies to, and its value; for a route with its name and place."""
    apply_to = choice(*PATCHES)(mapping(value, at).get("applyTo"), f"{at}.applyTo")
    checked = PATCHES[apply_to](value, at)
    patch = checked["patch"]["value"]
    if apply_to == "HTTP_ROUTE":
        name = checked["match"]["routeConfiguration"]["vhost"]["route"]["name"]
        return apply_to, {"name": name, "at": at, "value": patch}
    if apply_to == "NETWORK_FILTER":
        at = f"{at}.patch.value"
        MANAGER_NAME(patch["name"], f"{at}.name")
        choice(MANAGER_TYPE)(patch["typed_config"].get("@type"), f"{at}.typed_config.@type")
        for name in ("route_config", "routeConfig", "http_filters", "httpFilters"):
            if name in patch["typed_config"]:
                raise MeshError(f"{at}.typed_config.{name} is not merged: use another manifest")
    return apply_to, patch


ENVOY_FILTER = fields({"configPatches!": each(config_patch)})
SPECS = {
    "DestinationRule": ("networking.istio.io/v1", DESTINATION_RULE),
    "VirtualService": ("networking.istio.io/v1", VIRTUAL_SERVICE),
    "EnvoyFilter": ("networking.istio.io/v1alpha3", ENVOY_FILTER),
}
