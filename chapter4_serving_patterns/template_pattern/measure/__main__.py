"""Measures the claim: services equal the exemplar, keep its contract, and can be updated."""

import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.measure.results import Results, quick_argument

from ..builder import read, render
from ..contract import CLAUSES
from .callers import count_callers, first_answer_seconds
from .files import FILES, HERE, count_equal_files, files_in
from .parameters import WRONG, refusals
from .releases import BREAKING
from .updates import EDITS, update

CLAIM = (
    "Each service is the tested exemplar with other names, keeps every clause of its contract, and "
    "gets a new template without losing its team's edits."
)
ROUNDS = 5
FIGURE_TARGETS: dict[str, tuple[str, float]] = {
    "parameter_lines": ("==", 5),
    "render_seconds": ("<=", 1),
    "update_cpu_seconds": ("<=", 4),
    "first_answer_seconds": ("<=", 20),
}


def measure(folder: Path, cpu_seconds: float) -> dict[str, float]:
    """Returns the figures; `cpu_seconds` is the CPU time of the first update."""
    updates = [cpu_seconds]
    renders = []
    for number in range(ROUNDS):
        began = time.perf_counter()
        render(read(FILES[0]), folder / f"render-{number}")
        renders.append(time.perf_counter() - began)
        updates.append(update(FILES[0], folder / f"update-{number}")[2])
    texts = files_in(HERE / "services" / FILES[0].stem)
    generated = {name: text for name, text in texts.items() if "requirements" not in name}
    return {
        "parameter_lines": len(FILES[0].read_text("utf-8").splitlines()),
        "generated_lines": sum(len(text.splitlines()) for text in generated.values()),
        "render_seconds": statistics.median(renders),
        "update_cpu_seconds": statistics.median(updates),
        "first_answer_seconds": first_answer_seconds(folder / "first"),
    }


def main() -> int:
    arguments = quick_argument(__doc__)
    with TemporaryDirectory() as name:
        folder = Path(name)
        files, counts, control = count_equal_files(folder)
        refused, refused_by_copier = refusals(folder)
        counts["wrong_parameters_refused"] = sum(refused.values())
        control["wrong_parameters_refused"] = sum(refused_by_copier.values())
        of_update, of_anew, cpu_seconds = update(FILES[0], folder / "update")
        of_callers, of_callers_of_others, clauses = count_callers(folder)
        counts |= of_callers | of_update
        control |= of_callers_of_others | of_anew
        figures = {} if arguments.quick else measure(folder, cpu_seconds)
    expected = {
        "files_equal_to_web_single": files,
        "contract_clauses_kept": len(CLAUSES) * len(FILES),
        "renderings_equal": len(FILES),
        "hand_written_lines": 0,
        "wrong_parameters_refused": len(WRONG),
        "v1_clients_pass_v2": len(FILES),
        "breaking_changes_caught": len(BREAKING),
        "edits_kept": len(EDITS),
        "conflicts_reported": 1,
    }
    targets: dict[str, tuple[str, float]] = {
        name: ("==", bound) for name, bound in expected.items()
    }
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts=counts,
        control=control,
        figures=figures,
        targets=targets | (FIGURE_TARGETS if figures else {}),
        series={"clauses_kept": clauses},
        holds=counts == expected,
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
