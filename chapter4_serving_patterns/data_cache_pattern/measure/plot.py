"""Draws how long a request waits before the model is called."""

from matplotlib.figure import Figure

from tools.measure.plot import bars, canvas
from tools.measure.results import Results


def draw(results: Results) -> Figure | None:
    figures = results.figures
    if not figures:
        return None
    hit, uncached, json = (figures[name] for name in ("hit_ms", "uncached_ms", "json_hit_ms"))
    figure, axes = canvas(
        f"A prepared picture is there after {hit:.2g} ms instead of {uncached:.2g} ms; "
        f"as JSON it would be there after {json:.2g} ms",
        x="time before the model is called (ms)",
    )
    names = {
        "hit, FRESHNESS=ttl": "hit_ttl_ms",
        "hit, FRESHNESS=version": "hit_ms",
        "miss": "miss_ms",
        "no cache": "uncached_ms",
        "hit, kept as JSON": "json_hit_ms",
    }
    ours = [name for name in names if "JSON" not in name and name != "no cache"]
    bars(axes, {name: figures[each] for name, each in names.items()}, ours)
    return figure
