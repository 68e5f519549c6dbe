# Copied from chapter4_serving_patterns/web_single_pattern/measure/plot.py
"""Draws the CPU time of a prediction in each server, and the target."""

from matplotlib.figure import Figure

from tools.measure.plot import bars, canvas, legend, target
from tools.measure.results import Results

OURS = "this pattern"
# Each server changes one thing compared with the one before; the last one is the floor.
SERVERS = {
    "plain": "plain_cpu_us",
    "no access log": "quiet_cpu_us",
    "async def": "async_cpu_us",
    "guard, no JsonRoute": "without_json_route_cpu_us",
    OURS: "cpu_us",
    "a no-op route": "noop_cpu_us",
}


def draw(results: Results) -> Figure | None:
    figures = results.figures
    if not figures.keys() >= set(SERVERS.values()):
        return None
    figure, axes = canvas(
        f"A prediction takes {figures['cpu_us']:.0f} µs of CPU time, "
        f"{100 * figures['cpu_ratio_to_plain']:.0f} % of a plain server's",
        x="CPU time per prediction (µs)",
    )
    bars(axes, {server: figures[name] for server, name in SERVERS.items()}, [OURS])
    if "cpu_ratio_to_plain" in results.targets:
        _, bound = results.targets["cpu_ratio_to_plain"]
        target(
            axes,
            bound * figures["plain_cpu_us"],
            f"target: {100 * bound:.0f} % of plain",
            across=True,
        )
    return legend(figure)
