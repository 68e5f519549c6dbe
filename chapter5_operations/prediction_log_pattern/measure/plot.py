"""Draws what each way to write a record adds to a prediction."""

from matplotlib.figure import Figure

from tools.measure.plot import bars, canvas
from tools.measure.results import Results

OURS = "a line in a file (this pattern)"
WAYS = {
    "a queue in memory, then a commit": "queue_added_us",
    OURS: "file_added_us",
    "a line, and wait for the disk": "fdatasync_added_us",
    "a commit in PostgreSQL": "commit_added_us",
}


def draw(results: Results) -> Figure | None:
    figures = results.figures
    if not figures.keys() >= set(WAYS.values()):
        return None
    figure, axes = canvas(
        f"A record adds {figures['file_added_us']:.0f} µs to a prediction, "
        f"a commit {figures['commit_added_us']:,.0f} µs",
        x="time added to a prediction (µs)",
    )
    bars(axes, {way: max(figures[name], 0) for way, name in WAYS.items()}, [OURS])
    return figure
