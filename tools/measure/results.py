"""Writes and checks results.json."""

import argparse
import json
import math
import operator
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Relative to a pattern's directory.
RESULTS_FILE = Path("measure/results.json")
PLOT_FILE = Path("measure/plot.png")
# A line through fewer points would show a shape that nobody has measured.
FEWEST_POINTS = 3
MEETS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
}
SHOWN_SIGNS = {"<=": "≤", ">=": "≥", "==": "="}


class ResultsError(ValueError):
    """The results are missing, incomplete or invalid."""


@dataclass
class Results:
    """The results of measuring one pattern."""

    pattern: str
    # One sentence.
    claim: str
    counts: dict[str, int]
    # Medians, with the unit in the name.
    figures: dict[str, float]
    # The same counts with the mechanism switched off.
    control: dict[str, int]
    holds: bool
    # Bounds for figures or counts, as in {"ack_p99_ratio": ("<=", 1.5)}.
    targets: dict[str, tuple[str, float]] = field(default_factory=dict)
    # Medians for a plot, with the unit in the name, as in {"load_percent": [50, 100, 200]}.
    series: dict[str, list[float]] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=lambda: this_machine())
    measured_on: str = field(default_factory=lambda: datetime.now(UTC).date().isoformat())

    def __post_init__(self) -> None:
        self.check()
        self.counts = dict(self.counts)
        self.figures = {name: _rounded(value) for name, value in self.figures.items()}
        self.targets = {name: (sign, bound) for name, (sign, bound) in self.targets.items()}
        self.series = {name: [_rounded(y) for y in values] for name, values in self.series.items()}

    def check(self) -> None:
        """Raises a ResultsError for the first invalid field."""
        for name in ("pattern", "claim", "measured_on"):
            _require(_is_text(getattr(self, name)), f"{name} must be text that is not empty")
        _require(isinstance(self.holds, bool), "holds must be true or false")
        for name in ("counts", "figures", "control", "targets", "series", "machine"):
            _require(isinstance(getattr(self, name), dict), f"{name} must be an object")
        for name in ("counts", "control"):
            _require(bool(getattr(self, name)), f"{name} is empty: count with and without")
            for key, value in getattr(self, name).items():
                _require(type(value) is int, f"{name}.{key} is {value!r}, not an int")
        for key in self.control:
            _require(key in self.counts, f"control.{key} has no count of the same name")
        for key, value in self.figures.items():
            _require(_is_finite(value), f"figures.{key} is {value!r}, not a finite number")
            _require(key not in self.counts, f"{key} is both a count and a figure")
        for key, target in self.targets.items():
            _require(key in self.measured, f"targets.{key} is neither a count nor a figure")
            match target:
                case [str(sign), int() | float() as bound] if sign in MEETS and _is_finite(bound):
                    pass
                case _:
                    raise ResultsError(f"targets.{key} is {target!r}, not a sign and a number")
        for key, values in self.series.items():
            _require(isinstance(values, list), f"series.{key} must be a list")
            _require(
                len(values) >= FEWEST_POINTS,
                f"series.{key} has {len(values)} points; a line needs {FEWEST_POINTS}",
            )
            for value in values:
                _require(_is_finite(value), f"series.{key} has {value!r}, not a finite number")
        for key, value in self.machine.items():
            _require(_is_text(value), f"machine.{key} must be text that is not empty")
        try:
            date.fromisoformat(self.measured_on)
        except ValueError:
            raise ResultsError(f"measured_on is {self.measured_on!r}, not a date") from None

    @property
    def measured(self) -> dict[str, float]:
        return {**self.counts, **self.figures}

    def verdict(self, name: str) -> str:
        """Returns "met", "missed", or "" if the count or figure has no target."""
        if name not in self.targets:
            return ""
        sign, bound = self.targets[name]
        return "met" if MEETS[sign](self.measured[name], bound) else "missed"

    def cells(self, name: str, without: str | None = None) -> tuple[str, str, str]:
        """Returns the measured value, the value without the mechanism, and target with verdict."""
        other = self.measured[without] if without else self.control.get(name)
        target = ""
        if name in self.targets:
            sign, bound = self.targets[name]
            target = f"{SHOWN_SIGNS[sign]} {_shown(bound)}: {self.verdict(name)}"
        return _shown(self.measured[name]), "" if other is None else _shown(other), target

    def rows(self) -> list[tuple[str, str, str, str]]:
        return [(name, *self.cells(name)) for name in self.measured]

    def show(self) -> None:
        """Prints the claim and a table of the results."""
        table = Table("", title=Text(f"{self.pattern}: {self.claim}"), title_justify="left")
        for column in ("measured", "without", "target"):
            table.add_column(column, justify="right")
        for name, *cells in self.rows():
            style = {"met": "green", "missed": "bold red"}.get(self.verdict(name), "")
            table.add_row(name, *cells, style=style)
        console = Console()
        console.print(table)
        console.print("The claim holds." if self.holds else "[bold red]The claim does not hold.")

    def write(self, directory: Path) -> None:
        """Writes results.json atomically."""
        directory.mkdir(parents=True, exist_ok=True)
        partial = directory / "results.json.partial"
        partial.write_text(json.dumps(asdict(self), indent=2, allow_nan=False) + "\n", "utf-8")
        partial.replace(directory / RESULTS_FILE.name)

    def finish(self, arguments: "Arguments", pattern_dir: Path) -> int:
        """Shows and writes the results, and returns the exit code."""
        self.show()
        if directory := arguments.directory(pattern_dir):
            self.write(directory)
        return 0 if self.holds else 1


class Arguments(NamedTuple):
    """The command line options of every measurement."""

    quick: bool
    output: Path | None

    def directory(self, pattern_dir: Path) -> Path | None:
        """Where to write results and plots; None for a quick run, which only shows them."""
        return self.output or (None if self.quick else pattern_dir / RESULTS_FILE.parent)


def quick_argument(description: str, argv: Sequence[str] | None = None) -> Arguments:
    """Reads the command line of a measurement."""
    parser = argparse.ArgumentParser(description=description)
    quick_help = "take seconds instead of minutes, and do not write results.json"
    parser.add_argument("--quick", action="store_true", help=quick_help)
    parser.add_argument("--output", type=Path, metavar="DIR", help="write results.json there")
    arguments = parser.parse_args(argv)
    return Arguments(arguments.quick, arguments.output)


def load(pattern_dir: Path) -> Results:
    """Reads and checks a pattern's measure/results.json."""
    path = pattern_dir / RESULTS_FILE
    name = f"{pattern_dir.name}/{path.name}"
    try:
        content: Any = json.loads(path.read_text("utf-8"))
        _require(isinstance(content, dict), "must be an object")
        for known in (f.name for f in fields(Results)):
            _require(known in content, f"{known} is missing")
        for key in content:
            _require(key in Results.__dataclass_fields__, f"unknown field {key}")
        return Results(**content)
    except FileNotFoundError:
        raise ResultsError(f"{name} is missing: run make measure in the pattern") from None
    except ValueError as error:
        raise ResultsError(f"{name}: {error}") from None


def this_machine() -> dict[str, str]:
    """Describes the machine, without its name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    try:
        system = platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        system = f"{platform.system()} {platform.release()}"
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 1024**3:.0f} GiB",
        "os": system,
        "python": platform.python_version(),
    }


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ResultsError(message)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_finite(value: object) -> bool:
    return type(value) is int or (isinstance(value, float) and math.isfinite(value))


def _rounded(value: float) -> float:
    """Rounds to four significant digits, which is more precise than any measurement here."""
    return float(f"{value:.4g}")


def _shown(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,}"
