"""Plots have one style, are drawn from results.json, and are drawn again when it changes."""

import json
import shutil
from pathlib import Path

import pytest
from matplotlib import rc_context
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from tools.generate import files
from tools.measure import plot
from tools.measure.results import PLOT_FILE, load
from tools.read.patterns import ROOT, patterns

DRAWN = "chapter2_training/cifar10"
WITH_PLOTS = [pattern for pattern in patterns() if (pattern / plot.PLOT_MODULE).exists()]


def contrast(one: str, other: str) -> float:
    """Returns the contrast of two colours as WCAG 2 defines it, from 1 to 21."""

    def luminance(colour: str) -> float:
        red, green, blue = (
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
            for part in to_rgb(colour)
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_text_and_colours_stand_out_from_the_opaque_background() -> None:
    assert contrast("black", "white") == pytest.approx(21)
    assert contrast(plot.TEXT, plot.BACKGROUND) >= 7
    assert all(contrast(each, plot.BACKGROUND) >= 3 for each in (plot.CONTROL, plot.TARGET))
    # Ours stays darker than grey for those who see no colours.
    assert contrast(plot.OURS, plot.BACKGROUND) > 1.5 * contrast(plot.CONTROL, plot.BACKGROUND)


def test_text_is_readable_at_600_pixels() -> None:
    with rc_context(plot.STYLE):
        width = Figure().get_figwidth()
    pixels_of_a_point = 600 / width / 72
    assert plot.STYLE["font.size"] * pixels_of_a_point >= 13


@pytest.mark.parametrize("pattern", WITH_PLOTS, ids=lambda path: str(path.name))
def test_a_plot_says_what_is_seen_in_the_common_colours(pattern: Path) -> None:
    with rc_context(plot.STYLE):
        figure = plot.drawing_of(pattern, load(pattern))
        # The pattern has not been measured since its plot needs a series.
        if figure is None:
            return
        figure.draw_without_rendering()
        lines = [line for axes in figure.axes for line in axes.get_lines()]
        bars = [bar for axes in figure.axes for bar in axes.patches]
        drawn = {to_rgb(line.get_color()) for line in lines}
        drawn |= {to_rgb(bar.get_facecolor()) for bar in bars}
        ours, *others = (to_rgb(each) for each in (plot.OURS, plot.CONTROL, plot.TARGET))
        assert ours in drawn <= {ours, *others}
        title = figure.get_suptitle()
        assert " " in title and all(axes.get_xlabel() for axes in figure.axes)
        assert all(len(line) <= plot.TITLE_LETTERS for line in title.splitlines())
        # Nothing is cut off.
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert min(box.x0, box.y0) >= 0
        assert box.x1 <= width
        assert box.y1 <= height


def test_a_plot_that_is_drawn_is_one_of_a_pattern() -> None:
    assert ROOT / DRAWN in WITH_PLOTS
    # Without its module, a plot would never be drawn again.
    assert {path.parents[1] for path in ROOT.glob("chapter*/*/measure/plot.png")} <= {*WITH_PLOTS}


@pytest.fixture
def pattern(tmp_path: Path) -> Path:
    """A pattern whose plot has just been drawn."""
    copied = tmp_path / DRAWN
    shutil.copytree(ROOT / DRAWN / "measure", copied / "measure")
    (copied / "Makefile").touch()
    drawn = plot.plot_of(copied)
    assert drawn
    (copied / PLOT_FILE).write_bytes(drawn)
    return copied


def test_a_plot_is_drawn_again_when_a_result_or_its_code_changes(pattern: Path) -> None:
    path = pattern / PLOT_FILE
    first = path.read_bytes()
    assert first.startswith(b"\x89PNG")
    # Another processor may draw other pixels from the same results.
    path.write_bytes(first + b"other pixels")
    assert plot.plot_of(pattern) == first + b"other pixels"
    results = pattern / "measure/results.json"
    measured = results.read_text("utf-8")
    changed = json.loads(measured)
    changed["control"]["steps_unchanged"] += 1
    results.write_text(json.dumps(changed), "utf-8")
    again = plot.plot_of(pattern)
    assert again and again != first
    results.write_text(measured, "utf-8")
    assert plot.plot_of(pattern) == first + b"other pixels"
    module = pattern / plot.PLOT_MODULE
    module.write_text(module.read_text("utf-8") + "# changed\n", "utf-8")
    assert plot.plot_of(pattern) != first + b"other pixels"


def test_a_pattern_without_a_module_or_results_has_no_plot(pattern: Path) -> None:
    (pattern / "measure/results.json").unlink()
    assert plot.plot_of(pattern) is None
    assert plot.plot_of(ROOT / "chapter2_training/iris_sklearn_svc") is None


def test_a_drifting_plot_is_reported_without_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    def generated(root: Path) -> list[tuple[Path, bytes]]:
        return [(root / DRAWN / PLOT_FILE, b"\x89PNG")]

    monkeypatch.setattr(files, "generated", generated)
    assert list(files.differences(ROOT)) == [
        f"{DRAWN}/{PLOT_FILE.as_posix()} is out of date: run make fix\n"
    ]
