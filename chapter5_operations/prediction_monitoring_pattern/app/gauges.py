"""Shows the last judged windows to Prometheus."""

import math
import time
from collections.abc import Iterator
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .windows import checks_of, speaking_in, state_of


class LastWindows(Collector):
    """Gauges that all change at once, and disappear with the model that they describe."""

    def __init__(self) -> None:
        self.found: dict[str, list[Any]] = {}

    def collect(self) -> Iterator[Metric]:
        by_check = ["check", "model"]
        p_value = GaugeMetricFamily(
            "check_p_value", "How likely chance explains the difference", labels=by_check
        )
        state = GaugeMetricFamily(
            "check_state", "1: differs in two windows, 0: no, -1: too few", labels=by_check
        )
        rows = GaugeMetricFamily("window_rows", "Predictions in the last window", labels=["model"])
        age = GaugeMetricFamily("window_age_seconds", "Since the last judged window has ended")
        for model, judged in self.found.items():
            rows.add_metric([model], judged[0].rows)
            speak = speaking_in(judged)
            for check in checks_of(judged[0]):
                number = math.nan if check.p_value is None else check.p_value
                p_value.add_metric([check.name, model], number)
                state.add_metric([check.name, model], state_of(check, speak))
        if self.found:
            ended = max(judged[0].ended.timestamp() for judged in self.found.values())
            age.add_metric([], time.time() - ended)
        yield from (p_value, state, rows, age)
