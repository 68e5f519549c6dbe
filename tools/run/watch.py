"""Runs inside supervisord and takes the pattern down when a service dies.

supervisord loads it through its `[rpcinterface:pattern]` section and starts, restarts and stops the
processes. This module subscribes to its events and decides what to do when a process ends.
"""

import json
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from supervisor import events
from supervisor.states import ProcessStates, SupervisorStates

from tools.read.patterns import canonical
from tools.run.processes import family_of, group_of, kill_all, marked

# supervisord's working directory is the state directory of the pattern.
PLAN_FILE = Path("plan.json")
DEATH_FILE = Path("death.json")
LOG_FILE = Path("log/all")
LOG_FILE_MAX_BYTES = 50_000_000
# A service that dies sooner than this is restarted only after a second.
SHORT_LIFE_SECONDS = 1
POLL_SECONDS = 0.1


class Watch:
    """Its public methods are XML-RPC calls in supervisord's namespace `pattern`."""

    def __init__(self, supervisord: Any) -> None:
        self.supervisord = supervisord
        plan = json.loads(PLAN_FILE.read_text(encoding="utf-8"))
        self.endings: dict[str, dict[str, Any]] = plan["endings"]
        self.half_lines: dict[str, bytes] = {}
        look_more_often(supervisord.options.poller)
        events.subscribe(events.ProcessLogEvent, self.on_log)
        events.subscribe(events.ProcessStateExitedEvent, self.on_exit)
        events.subscribe(events.ProcessStateStoppedEvent, self.on_stop)

    def kill(self, service: str) -> bool:
        """Sends SIGKILL to every process of a service."""
        for process in self.supervisord.process_groups[service].processes.values():
            children = family_of(process.pid) if process.pid else []
            process.kill(signal.SIGKILL)
            kill_all(children)
        return True

    def on_stop(self, event: Any) -> None:
        kill_rest(event.process)

    def on_exit(self, event: Any) -> None:
        process = event.process
        kill_rest(process)
        service = self.endings[process.group.config.name]
        succeeded = process.exitstatus == 0
        restarts = service["restart"] in ("always", "unless-stopped")
        if restarts or (service["restart"] == "on-failure" and not succeeded):
            # supervisord restarts a process in this state after a second.
            process.change_state(ProcessStates.BACKOFF)
            if process.laststop - process.laststart > SHORT_LIFE_SECONDS:
                process.delay = 0
        elif not (service["one_shot"] and succeeded):
            self.on_death(process)

    def on_death(self, process: Any) -> None:
        if self.supervisord.options.mood < SupervisorStates.RUNNING:
            return
        death = {
            "service": process.group.config.name,
            "process": process.config.name,
            "status": process.exitstatus,
        }
        # On a full disk the cause of death is lost, and so are log lines.
        with suppress(OSError):
            DEATH_FILE.write_text(json.dumps(death), encoding="utf-8")
        self.supervisord.options.mood = SupervisorStates.SHUTDOWN

    def on_log(self, event: Any) -> None:
        """Appends complete lines to the common log, prefixed with the process name."""
        name = event.process.config.name
        *lines, rest = (self.half_lines.get(name, b"") + event.data).split(b"\n")
        self.half_lines[name] = rest
        if lines:
            with suppress(OSError), LOG_FILE.open("ab") as file:
                if file.tell() > LOG_FILE_MAX_BYTES:
                    file.truncate(0)
                file.writelines(b"%s\t%s\n" % (name.encode(), line) for line in lines)


def kill_rest(process: Any) -> None:
    """Kills what the main process left behind, as happens when a container ends."""
    own = f"{canonical(Path.cwd())}#{process.config.name}"
    kill_all([*group_of(process.pid), *marked(lambda mark: mark == own)])


def look_more_often(poller: Any) -> None:
    """Shortens supervisord's poll of up to a second, which would slow down every stop."""
    poll = poller.poll
    poller.poll = lambda timeout_seconds: poll(min(timeout_seconds, POLL_SECONDS))


def make_interface(supervisord: Any) -> Watch:
    return Watch(supervisord)
