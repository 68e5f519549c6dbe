"""Lists the processes of a pattern."""

from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from psutil import NoSuchProcess, Process

from tools.read.compose import load
from tools.run.processes import is_suspended, recorded
from tools.run.rewrite import state_dir
from tools.run.state import RUN, is_up, read_plan
from tools.run.supervisor import show_death, supervisor

HEADER = ("PROCESS", "STATE", "SINCE", "PID", "LISTENS ON")
STATES = {"BACKOFF": "restarting", "FATAL": "failed"}


def ps(pattern_dir: Path) -> None:
    """Prints a line for each process: its state, since when, its pid and its ports."""
    compose = load(pattern_dir)
    if not is_up(compose):
        show_death(compose)
        print(f"{compose.name} is not up")
        return
    ports = read_plan(compose)["ports"]
    one_shots = compose.one_shots()
    with supervisor(compose) as server:
        found = server.supervisor.getAllProcessInfo()
    rows = [HEADER]
    for info in found:
        runs = info["statename"] == "RUNNING"
        service = compose.services.get(info["group"])
        stated = service.ports if service and runs else ()
        addresses = [f"127.0.0.1:{ports.get(str(port), port)}" for port in stated]
        began = info["start"] if runs else info["stop"]
        since = datetime.fromtimestamp(began).isoformat(" ") if began else "-"
        pid = str(info["pid"] or "-")
        state = state_in(info, info["group"] in one_shots)
        rows.append((info["name"], state, since, pid, ", ".join(addresses)))
    for pid_file in sorted((state_dir(compose.pattern_dir) / "pids").glob(f"*{RUN}*")):
        if job := recorded(pid_file):
            since = datetime.fromtimestamp(int(job.create_time())).isoformat(" ")
            rows.append((pid_file.name, "running", since, str(job.pid), ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(line.rstrip())


def state_in(info: dict[str, Any], is_one_shot: bool) -> str:
    if info["statename"] == "EXITED":
        is_done = is_one_shot and info["exitstatus"] == 0
        return "done" if is_done else f"ended with status {info['exitstatus']}"
    with suppress(NoSuchProcess):
        if info["pid"] and is_suspended(Process(info["pid"])):
            return "paused"
    name: str = info["statename"]
    return STATES.get(name, name.lower())
