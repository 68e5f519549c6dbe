"""Writes the supervisord configuration of a pattern and starts supervisord."""

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tools.read.compose import Compose, Service
from tools.read.patterns import ROOT
from tools.run.processes import BOOT_ID, MARK_VARIABLE
from tools.run.rewrite import (
    Launch,
    state_dir,
    temporary_dir,
    temporary_file,
    temporary_root,
    tmpfs_dir,
    tmpfs_paths,
)
from tools.run.state import LocalError, socket_path


def plan_of(compose: Compose, launches: dict[str, Launch], ports: dict[int, int]) -> dict[str, Any]:
    """Describes what `up` starts, for the commands that follow and for the supervisor."""
    one_shots = compose.one_shots()
    return {
        "stated": stated(compose),
        "profiles": sorted(compose.profiles),
        "ports": ports,
        "launches": {
            name: {
                "command": launch.command,
                "environment": launch.environment,
                "directory": str(launch.directory),
                "health_command": launch.health_command,
            }
            for name, launch in launches.items()
        },
        "endings": {
            name: {"restart": service.restart, "one_shot": name in one_shots}
            for name, service in compose.of_up().items()
        },
    }


def stated(compose: Compose) -> dict[str, Any]:
    """Returns what the file says. The shell of the next `up` may have another PATH or language."""
    return {name: service.model_dump(mode="json") for name, service in compose.of_up().items()}


def launches_in(plan: dict[str, Any], compose: Compose) -> dict[str, Launch]:
    """Returns how the services were started, whatever the environment is now."""
    return {
        name: Launch(
            compose.services[name],
            tuple(launch["command"]),
            launch["environment"],
            Path(launch["directory"]),
            tuple(launch["health_command"]),
        )
        for name, launch in plan["launches"].items()
    }


def script_of(compose: Compose, launch: Launch) -> str:
    """Returns the shell script that execs the service with exactly its own environment."""
    state = state_dir(compose.pattern_dir)
    variables = [shlex.quote(f"{name}={value}") for name, value in launch.environment.items()]
    pids, directory = shlex.quote(f"{state}/pids"), shlex.quote(str(launch.directory))
    return "\n".join(
        [
            "#!/bin/sh -e",
            # What the process is known by, even if its pid is used again: see `recorded`.
            f"{{ echo $$; cat {BOOT_ID} /proc/$$/stat 2>/dev/null || true; }} \\",
            f'  > {pids}/"$SUPERVISOR_PROCESS_NAME"',
            f"cd {directory}",
            f"exec env -i {' '.join(variables)} \\",
            f'  {MARK_VARIABLE}={shlex.quote(f"{state}#")}"$SUPERVISOR_PROCESS_NAME" \\',
            f"  {shlex.join(launch.command)}",
            "",
        ]
    )


def program_section(service: Service, priority: int) -> str:
    # All paths are relative, because supervisord's file format cannot quote a path.
    name = "%(program_name)s" + ("-%(process_num)d" if service.replicas > 1 else "")
    return f"""
[program:{service.name}]
command = /bin/sh -e services/{service.name}.sh
process_name = {name}
numprocs = {service.replicas}
numprocs_start = 1
priority = {priority}
autostart = false
autorestart = false
startsecs = 0
startretries = 1
stopsignal = {service.stop_signal}
stopwaitsecs = {max(1, math.ceil(service.stop_grace_seconds))}
killasgroup = true
redirect_stderr = true
stdout_logfile = log/{name}.log
stdout_events_enabled = true
"""


def prepare(compose: Compose, launches: dict[str, Launch], ports: dict[int, int]) -> None:
    state = state_dir(compose.pattern_dir)
    for name in ("log", "pids", "scratch", "services"):
        shutil.rmtree(state / name, ignore_errors=True)
        (state / name).mkdir()
    shutil.rmtree(temporary_dir(compose.pattern_dir, "scratch"), ignore_errors=True)
    own_folder(socket_path(compose).parent, 0o700)
    temporary = temporary_root(compose.pattern_dir)
    temporary_file(compose.pattern_dir).write_text(str(temporary), encoding="utf-8")
    for launch in launches.values():
        make_folders(compose, launch)
        script = state / "services" / f"{launch.service.name}.sh"
        write_privately(script, script_of(compose, launch))
    (state / "log" / "all").touch()
    write_privately(state / "plan.json", json.dumps(plan_of(compose, launches, ports), indent=1))
    programs = "".join(
        program_section(launch.service, priority)
        for priority, launch in enumerate(launches.values())
    )
    write_privately(
        state / "supervisord.conf",
        f"""[supervisord]
logfile = supervisord.log
pidfile = supervisord.pid
nocleanup = true

[unix_http_server]
file = {socket_path(compose)}
chmod = 0700

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[rpcinterface:pattern]
supervisor.rpcinterface_factory = tools.run.watch:make_interface
{programs}""",
    )


def make_folders(compose: Compose, launch: Launch) -> None:
    for purpose in ("volumes", "scratch"):
        folder = temporary_dir(compose.pattern_dir, purpose)
        if launch.directory.is_relative_to(folder):
            print(f"{launch.service.name} keeps its data in {launch.directory}, because it runs")
            print(f'as the user "nobody", who cannot access {compose.pattern_dir}')
            own_folder(folder, 0o711)
    launch.directory.mkdir(parents=True, exist_ok=True)
    for folder in tmpfs_paths(compose, launch.service).values():
        own_folder(tmpfs_dir(compose, launch.service), 0o700)
        folder.mkdir(parents=True, exist_ok=True)
    for mount in launch.service.mounts:
        if mount.named:
            volume = state_dir(compose.pattern_dir) / "volumes" / mount.source
            volume.mkdir(parents=True, exist_ok=True)


def own_folder(folder: Path, mode: int) -> None:
    """Creates a folder in the temporary directory, where another user may have created it."""
    folder.mkdir(exist_ok=True)
    found = folder.lstat()
    if folder.is_symlink() or found.st_uid != os.getuid():
        raise LocalError(f"{folder} belongs to another user: remove it, or set TMPDIR")
    folder.chmod(mode)


def write_privately(path: Path, text: str) -> None:
    """Writes a file that may contain a password."""
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")


def start_supervisor(compose: Compose) -> None:
    state = state_dir(compose.pattern_dir)
    started = subprocess.run(
        [sys.executable, "-m", "supervisor.supervisord", "-c", "supervisord.conf"],
        cwd=state,
        env={
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONPATH": str(ROOT),
            MARK_VARIABLE: f"{state}#",
        },
        # Keeps Ctrl-C from the supervisor: this program receives it and shuts down in order.
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if started.returncode:
        raise LocalError(f"the supervisor did not start: {started.stdout.strip()}")
