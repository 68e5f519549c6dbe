"""Rules about what Prometheus scrapes and evaluates in the cluster."""

from collections.abc import Iterator
from pathlib import Path

from tools.check.manifests.subjects import Object, mapping, mappings, matches, of_kind
from tools.check.rules import rule
from tools.generate.alerts import MANIFEST


@rule(of_kind("ServiceMonitor"))
def service_monitor_selects_a_service(monitor: Object) -> Iterator[str]:
    if not monitored(monitor):
        yield "the selector matches the labels of no Service in the folder; use those of one"
    if "namespaceSelector" in monitor.spec:
        yield "namespaceSelector may lead away from the Services of the folder; remove it"


@rule(of_kind("ServiceMonitor"))
def service_monitor_port_is_a_named_port_of_its_service(monitor: Object) -> Iterator[str]:
    for service in monitored(monitor):
        names = [port.get("name") for port in service.spec.get("ports") or []]
        for endpoint in mappings(monitor.spec.get("endpoints")):
            port = endpoint.get("port")
            if port is None:
                yield "an endpoint has no port; set it to the name of a port of the Service"
            elif port not in names:
                yield f"Service {service.name} has no port named {port}; use a name that it has"


@rule(of_kind("PrometheusRule"))
def prometheus_rule_is_where_rules_are_generated_from(found: Object) -> Iterator[str]:
    if Path(found.file).name != Path(MANIFEST).name:
        yield f"make fix writes rules.yml from {MANIFEST} only; move it there"


def monitored(monitor: Object) -> list[Object]:
    selector = mapping(monitor.spec.get("selector"))
    services = of_kind("Service")(monitor.pattern)
    return [
        service
        for service in services
        if matches(selector, mapping(service.metadata.get("labels")))
    ]
