"""The index, RESULTS.md and CHOOSING.md repeat what the patterns' READMEs and results say."""

import json
from pathlib import Path
from typing import Any

import pytest

from tools.generate import choosing, collected, files, index, readme
from tools.measure.results import Results, ResultsError
from tools.read.patterns import ROOT, patterns

README = """# Queue

Jobs wait in a queue.

## When to use it

- The caller goes on without
  the prediction. <!-- need: caller -->
- Load comes in bursts: `a|b`. <!-- need: load -->

## Not when

- The caller waits: use [web_pattern](../../chapter3/web_pattern), see <https://example.org/a>.

All patterns by need, with what they cost: [CHOOSING.md](../../CHOOSING.md).

## What it buys and costs

<!-- results -->

| time to start (s) <!-- start_seconds --> | | | |
| accepted jobs lost <!-- lost --> | | | |
| 99th percentile of the time to accept (ms) <!-- ack_p99_ms sync_p99_ms --> | | | |

<!-- /results -->

## Trade-offs

- You have to run [a broker](app/jobs.py).
- A job may run twice.
"""
WORDS = """# What the others are.
done: jobs done
ratio other_ratio: time relative to another
"""
MEASURED: dict[str, Any] = {
    "claim": "No job is lost.",
    "counts": {"done": 19_998, "lost": 0},
    "figures": {
        "ack_p99_ms": 6.4,
        "sync_p99_ms": 352.0,
        "start_seconds": 1,
        "ratio": 2,
        "other_ratio": 9,
    },
    "control": {"lost": 56},
    "holds": True,
    "targets": {"start_seconds": (">=", 3), "lost": ("==", 0)},
    "measured_on": "2025-01-31",
    "machine": {"cpu": "8088", "cores": "1"},
}
QUEUE = "[queue_pattern](chapter4/queue_pattern)"
COMPOSE = """name: queue-pattern
services:
  worker: {image: worker:1, build: ., command: [work], deploy: {replicas: 2}}
  api: {image: api:1, build: ., command: [serve]}
"""


def add(root: Path, name: str, **changes: Any) -> Path:
    """Adds a pattern with results, unless `holds` is None."""
    pattern = root / "chapter4" / name
    (pattern / "measure").mkdir(parents=True)
    (pattern / "Makefile").touch()
    (pattern / "measure/__main__.py").touch()
    (pattern / "docker-compose.yml").write_text(COMPOSE.replace("queue", name.split("_")[0]))
    (pattern / "README.md").write_text(README, "utf-8")
    (pattern / "measure/words.yml").write_text(WORDS, "utf-8")
    measured = {"pattern": name, **MEASURED, **changes}
    if measured["holds"] is not None:
        Results(**measured).write(pattern / "measure")
    return pattern


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    return add(tmp_path, "queue_pattern")


def test_the_index_says_what_when_and_what_the_claim_counts(tmp_path: Path, queue: Path) -> None:
    add(tmp_path, "cache_pattern", holds=None)
    what = "Jobs wait in a queue. | The caller goes on without the prediction. |"
    text = index.index(tmp_path)
    assert "[CHOOSING.md](CHOOSING.md)" in text
    assert "| pattern | what it is | use it when | measured |\n" in text
    assert f"| {QUEUE} | {what} accepted jobs lost: 0 (56 without) |\n" in text
    assert f"| [cache_pattern](chapter4/cache_pattern) | {what} not measured yet |\n" in text
    path = queue / "README.md"
    path.write_text(README.replace("<!-- lost -->", "<!-- done -->"), "utf-8")
    with pytest.raises(readme.MarkerError, match="no row of the results is a count with a control"):
        index.index(tmp_path)


def test_results_are_collected_in_words_and_what_is_missed_comes_first(
    tmp_path: Path, queue: Path
) -> None:
    add(tmp_path, "cache_pattern", holds=False, targets={})
    add(tmp_path, "log_pattern", holds=None)
    (queue / "measure/plot.png").touch()
    head, cache, section = collected.page(tmp_path).split("\n## [")
    assert "*Without* is" in head
    assert (
        "## Missed\n\n"
        "- [log_pattern](chapter4/log_pattern): not measured yet\n"
        "- [cache_pattern](chapter4/cache_pattern): **the claim does not hold**\n"
        f"- {QUEUE}: time to start (s): 1, target ≥ 3\n"
    ) in head
    assert "**The claim does not hold**" in cache
    assert "plot.png" not in cache
    assert section.startswith("queue_pattern](chapter4/queue_pattern)\n\nNo job is lost.\n")
    assert "The claim holds; measured on 2025-01-31: cpu 8088, cores 1." in section
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    # A pair is one row: the figure with and without the mechanism.
    assert rows[2:] == [
        "| time to start (s) | 1 |  | ≥ 3: missed | `start_seconds` |",
        "| accepted jobs lost | 0 | 56 | = 0: met | `lost` |",
        "| 99th percentile of the time to accept (ms) | 6.4 | 352 |  | `ack_p99_ms` |",
        "| jobs done | 19,998 |  |  | `done` |",
        "| time relative to another | 2 | 9 |  | `ratio` |",
    ]
    assert "(chapter4/queue_pattern/measure/plot.png)" in section


def test_a_page_without_missed_targets_says_so(tmp_path: Path) -> None:
    add(tmp_path, "queue_pattern", targets={})
    assert "None: every claim holds" in collected.page(tmp_path)


def test_missing_results_and_those_of_another_pattern_are_errors(tmp_path: Path) -> None:
    pattern = add(tmp_path, "cache_pattern", holds=None)
    with pytest.raises(ResultsError, match=r"no chapter\*/\*/measure/results\.json found"):
        collected.page(tmp_path)
    Results(**{"pattern": "queue_pattern", **MEASURED}).write(pattern / "measure")
    with pytest.raises(ResultsError, match="cache_pattern: pattern is 'queue_pattern'"):
        collected.page(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("done: jobs done\n", "queue_pattern/measure/words.yml does not say what ratio is"),
        (WORDS.replace("other_ratio", "gone"), "does not say what ratio is"),
        (f"{WORDS}done: again\n", 'words.yml: duplicate key "done"'),
        (f"{WORDS}- a list\n", "words.yml: "),
        ("just words", "words.yml: 'just words' is not what a result is"),
        (f"{WORDS}failed: 3\n", "words.yml: 3 is not what a result is"),
    ],
)
def test_a_result_without_words_is_an_error(
    tmp_path: Path, queue: Path, words: str, message: str
) -> None:
    (queue / "measure/words.yml").write_text(words, "utf-8")
    with pytest.raises(readme.MarkerError, match=message):
        collected.page(tmp_path)


def test_words_without_their_unit_are_an_error(tmp_path: Path, queue: Path) -> None:
    (queue / "README.md").write_text(README.replace(" (ms)", ""), "utf-8")
    with pytest.raises(readme.MarkerError, match=r'time to accept" is ack_p99_ms; add \(ms\)'):
        collected.page(tmp_path)


def test_needs_lead_to_patterns_and_what_they_cost(tmp_path: Path, queue: Path) -> None:
    add(tmp_path, "cache_pattern", holds=None)
    text = choosing.page(tmp_path)
    caller, load = (
        text.partition(f"## {choosing.QUESTIONS[each]}")[2] for each in ("caller", "load")
    )
    # The price that matters for a question, else the first one.
    accepting = "99th percentile of the time to accept (ms): 6.4 (352 without)"
    need = "The caller goes on without the prediction."
    assert f"| {need} | {QUEUE} | api, 2 worker | {accepting} |\n" in caller
    assert (
        f"| Load comes in bursts: `a\\|b`. | {QUEUE} | api, 2 worker | time to start (s): 1 |\n"
        in load
    )
    assert caller.index(need) < caller.index("Load comes in bursts")
    # A question that no pattern answers is left out.
    assert choosing.QUESTIONS["data"] not in text
    assert "[cache_pattern](chapter4/cache_pattern) | api, 2 worker | not measured yet |" in load
    # Links lead on from the root.
    elsewhere = "[web_pattern](chapter3/web_pattern), see <https://example.org/a>"
    assert f"| {QUEUE} | The caller waits: use {elsewhere}. |\n" in text
    costs = f"time to start (s): 1<br>accepted jobs lost: 0 (56 without)<br>{accepting}"
    broker = "You have to run [a broker](chapter4/queue_pattern/app/jobs.py)."
    assert f"| {QUEUE} | api, 2 worker | {costs} | {broker} |\n" in text
    assert "Measured on 2025-01-31 with 1 cores of 8088." in text


@pytest.mark.parametrize("mark", ["", " <!-- need: wealth -->"])
def test_a_need_without_a_known_question_is_an_error(
    tmp_path: Path, queue: Path, mark: str
) -> None:
    (queue / "README.md").write_text(README.replace(" <!-- need: load -->", mark), "utf-8")
    with pytest.raises(readme.MarkerError, match=r'end "Load comes in bursts.*caller, load'):
        choosing.page(tmp_path)


def test_every_pattern_is_in_each_page() -> None:
    assert files.content_of(ROOT / "CHOOSING.md").decode() == choosing.page(ROOT)
    for pattern in patterns():
        assert all(readme.points(pattern, each) for each in ("When to use it", "Not when"))
        for page in ("README.md", "RESULTS.md", "CHOOSING.md"):
            assert readme.link(pattern) in (ROOT / page).read_text("utf-8")
        assert json.loads((pattern / "measure/results.json").read_bytes())["claim"]
