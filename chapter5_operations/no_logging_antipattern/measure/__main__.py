"""Measures the claim: ten questions of an operator get the true answer, and six incidents show."""

import asyncio
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from pydantic_core import to_json

from tools.measure.results import Results, quick_argument

from ..app.evidence import QUESTIONS, ask
from ..app.incidents import INCIDENTS, Played, plan, play
from ..app.log import Log
from ..app.main import app, settings
from ..app.record import Recorder
from .baselines import access_log, write_records
from .times import HERE, OPERATOR, PACKAGE, ROOT, measure_answers, measure_costs, server
from .truth import is_right, truth_of

CLAIM = "An operator's ten questions get the true answer, and six planted incidents are found."
TARGETS: dict[str, tuple[str, float]] = {
    "questions_right": ("==", 10),
    "incidents_found": ("==", 6),
    "false_alarms": ("==", 0),
}
FIGURE_TARGETS: dict[str, tuple[str, float]] = {
    "cpu_ratio_to_bad": ("<=", 1.15),
    "bytes_per_request": ("<=", 400),
    "answer_p99_ms": ("<=", 500),
}
NO_JOB = "0" * 32
# `make measure` has trained them.
MODELS = settings.model_directory

Answers = dict[str, Any]


def simulate(env: dict[str, str], truth: Path) -> None:
    """Runs the job `incidents`."""
    command = [sys.executable, "-m", f"{PACKAGE}.app.incidents", "--truth", str(truth)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, check=True, capture_output=True)


def right(answers: Answers, played: Played) -> set[str]:
    """Returns the questions whose answer is the truth."""
    truth = truth_of(played)
    return {name for name in QUESTIONS if is_right(answers[name], truth[name])}


def job_of(played: Played) -> str:
    """Returns the job that somebody complains about; without an ID, it is none."""
    (row,) = truth_of(played)["job"]
    return str(row["id"] or NO_JOB)


def of_operator(client: httpx.Client, arm: str, played: Played) -> Answers:
    """Returns what the running operator answers."""
    asked = {"arm": arm, "job": job_of(played)}
    answers: Answers = client.get("/answers", params=asked).raise_for_status().json()["answers"]
    return answers


def of_access_log(played: Played, directory: Path) -> Answers:
    """Returns what uvicorn's access log alone answers."""
    write_records(access_log(played), directory)
    answers = ask(directory, [*QUESTIONS], job_of(played)).answers
    found: Answers = json.loads(to_json(answers))
    return found


def without_incidents(models: Path, directory: Path) -> Answers:
    """Returns the answers about requests without any incident."""
    Recorder.log = Log(directory, 2**30, 2**30)
    asyncio.run(play(app, plan(models / "iris.json", ()), models, 0.0))
    Recorder.log.close()
    return dict(ask(directory, [*INCIDENTS]).answers)


def alarms(answers: Answers) -> int:
    """Returns how many incidents are reported; two models on one replica are one."""
    replicas = [row["replica"] for row in answers["models"]]
    reported = sum(bool(answers[name]) for name in INCIDENTS if name != "models")
    return reported + (len(replicas) > len(set(replicas)))


def main() -> int:
    arguments = quick_argument(__doc__)
    # What the server says about refusals is no part of the table.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    with TemporaryDirectory() as name:
        directory = Path(name)
        models, evidence, truth = MODELS, directory / "evidence", directory / "truth"
        env = {"MODEL_DIRECTORY": str(models), "EVIDENCE_DIRECTORY": str(evidence)}
        simulate(env, truth)
        good, bad = (
            Played.model_validate_json((truth / f"{arm}.json").read_bytes())
            for arm in ("good", "bad")
        )
        with (
            server(OPERATOR, env) as operator,
            httpx.Client(base_url=operator.url, timeout=30) as client,
        ):
            answers = of_operator(client, "good", good)
            found = right(answers, good)
            without = right(of_operator(client, "bad", bad), bad)
        of_access = right(of_access_log(bad, directory / "access"), bad)
        counts = {
            "questions_right": len(found),
            "incidents_found": len(found & INCIDENTS.keys()),
            "questions_right_by_access_log": len(of_access),
            "incidents_found_by_access_log": len(of_access & INCIDENTS.keys()),
            "false_alarms": alarms(without_incidents(models, directory / "quiet")),
        }
        control = {
            "questions_right": len(without),
            "incidents_found": len(without & INCIDENTS.keys()),
            # The same alarms about the simulated incidents, which are no false ones.
            "false_alarms": alarms(answers),
        }
        figures: dict[str, float] = {}
        if not arguments.quick:
            (log,) = (evidence / "good").glob("*.jsonl")
            lines = [line for line in log.read_bytes().splitlines() if b'"request"' in line]
            figures = {
                **measure_costs({**env, "EVIDENCE_DIRECTORY": str(directory / "costs")}),
                "bytes_per_request": sum(len(line) + 1 for line in lines) / len(lines),
                **measure_answers(env, log, directory / "large"),
            }
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts=counts,
        control=control,
        figures=figures,
        targets=TARGETS | (FIGURE_TARGETS if figures else {}),
        holds=counts["questions_right"] == 10
        and counts["incidents_found"] == 6
        and counts["false_alarms"] == 0,
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
