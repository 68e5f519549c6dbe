"""Finds and kills the processes of a pattern by an inherited mark, never by name."""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

import psutil

# Every process of a pattern has this variable: "STATE_DIR#PROCESS_NAME", or "STATE_DIR#" for the
# supervisor. Children inherit it even if they leave their process group.
MARK_VARIABLE = "LOCAL_RUNNER"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# The field of /proc/PID/stat, after the program name in parentheses, with the clock ticks from boot
# to the start of the process.
START_TICKS = 19
# Without /proc. Start times and those of files are rounded.
CLOCK_TOLERANCE_SECONDS = 2
KILL_DEADLINE_SECONDS = 10
PAUSE_DEADLINE_SECONDS = 10


def marked(matches: Callable[[str], bool]) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            mark = process.environ().get(MARK_VARIABLE)
            if mark is not None and matches(mark) and is_alive(process):
                found.append(process)
    return found


def group_of(pid: int) -> list[psutil.Process]:
    """Lists the processes in the process group led by `pid`; 0 means no process."""
    found: list[psutil.Process] = []
    if not pid:
        return found
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == pid and is_alive(process):
                found.append(process)
    return found


def family_of(pid: int) -> list[psutil.Process]:
    """Lists the descendants of `pid`, which may have left its group as PostgreSQL backends do."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def recorded(pid_file: Path) -> psutil.Process | None:
    """Returns the process that recorded itself in a file, unless the pid has been reused.

    The file contains the pid and, where there is /proc, the boot id and /proc/PID/stat. Redis and
    PostgreSQL need this: their process title overwrites the environment and its mark.
    """
    try:
        pid, _, start = pid_file.read_text(encoding="utf-8", errors="replace").partition("\n")
        process = psutil.Process(int(pid))
        if BOOT_ID.exists():
            boot_id, _, stat = start.partition("\n")
            now = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8", errors="replace")
            same = boot_id == BOOT_ID.read_text("utf-8").strip()
            same = same and start_ticks(stat) == start_ticks(now)
        else:
            # This start time stays the same when the clock is set; on Linux it would not.
            later_seconds = process.create_time() - pid_file.stat().st_mtime
            same = later_seconds < CLOCK_TOLERANCE_SECONDS
    except (OSError, ValueError, IndexError, psutil.Error):
        return None
    return process if same and is_alive(process) else None


def record(pid_file: Path, pid: int) -> None:
    """Writes what `recorded` reads."""
    lines = [str(pid)]
    if BOOT_ID.exists():
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        lines += [BOOT_ID.read_text("utf-8").strip(), stat]
    pid_file.write_text("\n".join(lines), encoding="utf-8")


def start_ticks(stat: str) -> str:
    return stat.rpartition(")")[2].split()[START_TICKS]


def supervisor_of(state_dir: Path) -> psutil.Process | None:
    try:
        process = psutil.Process(int((state_dir / "supervisord.pid").read_text(encoding="utf-8")))
        is_ours = process.environ().get(MARK_VARIABLE) == f"{state_dir}#"
    except (OSError, ValueError, psutil.Error):
        return None
    return process if is_ours and is_alive(process) else None


def is_suspended(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def all_of(
    state_dir: Path, is_wanted: Callable[[str], bool] = lambda name: True
) -> list[psutil.Process]:
    """Lists every process of the pattern with this state directory, or those of wanted names."""
    own = f"{state_dir}#"
    found = set(marked(lambda mark: mark.startswith(own) and is_wanted(mark.removeprefix(own))))
    for pid_file in (state_dir / "pids").glob("*"):
        if is_wanted(pid_file.name) and (process := recorded(pid_file)):
            found |= {process, *group_of(process.pid), *family_of(process.pid)}
    return [process for process in found if process.pid != os.getpid()]


def pause_all(find: Callable[[], Iterable[psutil.Process]]) -> bool:
    """Suspends what is found until nothing runs; returns whether this was possible."""
    deadline = monotonic() + PAUSE_DEADLINE_SECONDS
    # A process may start another one during the search.
    while running := [process for process in find() if not is_suspended(process)]:
        if monotonic() > deadline:
            return False
        for process in running:
            with suppress(psutil.Error):
                process.suspend()
    return True


def unpause_all(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.resume()


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """Sends SIGKILL and waits until the processes have ended."""
    processes = list(processes)
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
    wait_until_gone(processes, KILL_DEADLINE_SECONDS)


def wait_until_gone(processes: Iterable[psutil.Process], deadline_seconds: float) -> bool:
    deadline = monotonic() + deadline_seconds
    while any(is_alive(process) for process in processes):
        if monotonic() > deadline:
            return False
        sleep(0.01)
    return True


def is_alive(process: psutil.Process) -> bool:
    """Counts a zombie as ended: it only waits for its parent to collect it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def listener_of(port: int) -> psutil.Process | None:
    """Returns the process that listens on a port, if it is one that this user may inspect."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            for connection in process.net_connections(kind="tcp"):
                if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                    return process
    return None


def state_of(process: psutil.Process, others: Iterable[Path]) -> Path | None:
    """Returns the state directory of the pattern that a process belongs to."""
    with suppress(psutil.Error, OSError):
        state, is_marked, _ = process.environ().get(MARK_VARIABLE, "").rpartition("#")
        if is_marked:
            return Path(state)
    # Redis and PostgreSQL have overwritten the mark.
    return next((state for state in others if process in all_of(state)), None)


def command_of(process: psutil.Process) -> str:
    with suppress(psutil.Error, OSError):
        return " ".join(process.cmdline()) or str(process.name())
    return "?"
