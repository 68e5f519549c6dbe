"""Counts through Envoy: users that change, events that are lost, and who is harmed."""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tools.mesh.proxy import Proxy, shipped, translated

from .baselines import without_stickiness
from .bench import Bench, Switch, ask, modes, raise_to, tell, users
from .processes import HERE, Database, Shipper

AFTER = 500
Counts = dict[str, int]


class Harm(NamedTuple):
    """What a failing new version does until it is taken out."""

    requests: int
    after_the_switch: int
    seconds: float
    reason: str


def count(size: int, database: Database, models: Path, parent: Path) -> tuple[Counts, Counts, Harm]:
    """Returns the counts, the same of the controls, and what a failure has cost."""
    with ExitStack() as stack:
        bench = Bench(database, parent / "log", models, stack)
        with bench.mesh(translated(HERE, without_stickiness)) as drawing:
            control = count_users(bench, drawing, size)
        with bench.mesh(shipped(HERE)) as mesh:
            counts = count_users(bench, mesh, size)
            harm = count_harm(bench, mesh)
        with bench.mesh(shipped(HERE)) as mesh:
            bench.plant()
            control["harmed_after_the_switch"] = count_harmed(mesh, AFTER)
    counts["harmed_after_the_switch"] = harm.after_the_switch
    del control["users"]
    return counts, control, harm


def count_users(bench: Bench, mesh: Proxy, size: int) -> Counts:
    """Lets users ask twice and tell an event between, and then raises the share step by step."""
    experiment = bench.begin()
    raise_to(mesh, experiment.step)
    who = users(size)
    first = ask(mesh, who)
    told = tell(mesh, who, first)
    second = modes(ask(mesh, who))
    joined = bench.report().counts.events_joined
    changed = sum(a != b for a, b in zip(modes(first), second, strict=True))
    back, before = 0, second
    for step in (each for each in experiment.steps if each > experiment.step):
        raise_to(mesh, step)
        after = modes(ask(mesh, who))
        pairs = zip(before, after, strict=True)
        back += sum(a == "iris_rf" and b != "iris_rf" for a, b in pairs)
        before = after
    raise_to(mesh, experiment.step)
    return {
        "users": len(who),
        "users_that_changed_arm": changed,
        "moved_back_on_a_raise": back,
        "events_unjoined": size - min(told, joined),
    }


def count_harm(bench: Bench, mesh: Proxy) -> Harm:
    """Lets the new version fail while users ask, and counts what they get until it is out."""
    bench.write()
    switch = bench.switch(mesh)
    logs = bench.env | {"LOG_DIRECTORY": str(bench.parent)}
    with switch, Shipper(bench.parent, logs):
        count_harmed(mesh, 200)
        bench.plant()
        harmed, began = 0, 0.0
        while not (acted := acted_at(bench, switch)):
            harmed += count_harmed(mesh, 10)
            began = began or (time.time() if harmed else 0.0)
    found = Harm(harmed, count_harmed(mesh, AFTER), acted - began, reason_of(bench))
    bench.plant()
    return found


def count_harmed(mesh: Proxy, size: int) -> int:
    """Counts the users who ask for the first time and get an error."""
    return modes(ask(mesh, users(size))).count("")


def acted_at(bench: Bench, switch: Switch) -> float:
    """Returns when the switch had changed the weight; 0 if it has not."""
    run = bench.run()
    touched = switch.alive.stat().st_mtime
    return touched if run and run.stopped and touched > run.stopped.timestamp() else 0.0


def reason_of(bench: Bench) -> str:
    run = bench.run()
    return str(run and run.reason)
