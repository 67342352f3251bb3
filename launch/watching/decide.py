"""What `watch` does next: a pure function over everything that it has seen.

`ROWS` is the table: each row names a condition and what follows from it. `decide` walks it from top to bottom, and the
first row that holds wins. `python -m launch.watching.decide` prints the table for the documentation.
"""

import dataclasses
import enum
from typing import Any

from janus_jax.errors import EXIT_CODES, GIVE_UP, TWICE, counted
from launch.cloud.nodes import LEAVING
from launch.errors import CloudError, HostError, policy
from launch.records import duration, printable
from launch.runs.snapshot import ENDED, Host, exit_code, exit_of
from launch.watching.seen import Memory, Seen, Trouble

ROWS = {
    "stopped": ("a stop record names this run", "ends it on hosts where it goes on, then itself"),
    "no run": ("no run was started here", "gives up"),
    "done": ("all hosts ended with 0", "done; deletes the machines if asked"),
    "refused": ("a step of watch was refused: quota, permission, bad input", "gives up with the reason"),
    "hopeless": ("a host ended with a code that no start mends (2, 3, 11, 12, 16, 141)", "gives up with its message"),
    "no answer": ("Google Cloud does not answer", "waits, longer each time; gives up after a bound unless hosts beat"),
    "gone": ("no machines of this name, or preempted, failed, suspended", "deletes, creates, sets up, resumes"),
    "leaving": ("the machines are being suspended or deleted, and hosts still beat", "waits for the last save"),
    "not ours": ("machines that others made are gone", "gives up: it deletes and creates only its own"),
    "switched off": ("a person has stopped the machines", "gives up: that was meant"),
    "requested": ("the request for machines waits, or they are being made", "waits for them, sets up, resumes"),
    "not ready": ("the machines are neither ready nor gone", "waits; creates them anew after a bound if nothing beats"),
    "running": ("all hosts beat", "nothing"),
    "ending": ("some hosts have ended, others not yet", "waits for them, up to a bound"),
    "maintenance": ("the run ended or is silent on machines that are not healthy", "waits; creates them anew later"),
    "failed twice": ("ended with 1, or an unknown code, once more without a new step", "gives up with its message"),
    "ended": ("ended with a code after which a run goes on", "waits a moment for news of a preemption, then restarts"),
    "dead": (
        "a supervisor is gone, or the run is not on a host, and the machines live",
        "waits a moment, then restarts in place",
    ),
    "silent": ("no heartbeat comes, but the process lives: the bucket is not reached", "waits"),
    "unreachable": ("no heartbeat comes, and a host cannot be reached", "waits; creates anew after a bound"),
    "starting": ("no heartbeat has come yet", "waits"),
}
"""Row -> (condition, what `watch` does)."""

PENDING = ("ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "CREATING", "STARTING")
OFF = ("STOPPED", "STOPPING")
STEPLESS_S = 3600.0
"""A command that prints no steps, like `generate`, counts as getting on after so long."""

Do = enum.Enum("Do", ["WAIT", "START", "CREATE", "GIVE_UP", "DONE", "STOPPED"])
"""START: on the machines that are there. CREATE: make machines (delete the old ones first if `Action.delete`), then
set up and start."""


@dataclasses.dataclass(frozen=True)
class Action:
    """What to do, the row of the table, and why in a sentence."""

    do: Do
    row: str
    reason: str
    delete: bool = False


def decide(seen: Seen) -> Action:
    """The next action. It depends on nothing but its argument, and changes nothing."""
    if seen.stopped is not None:
        return Action(Do.STOPPED, "stopped", f"{seen.stopped} has stopped the run")
    if seen.run_id is None:
        return Action(Do.GIVE_UP, "no run", "no run was started here")
    ended = exit_of(seen.hosts)
    code = 0 if ended is None else exit_code(ended)
    if seen.count(ENDED) >= seen.workers > 0 and code == 0:
        return Action(Do.DONE, "done", "all hosts ended with exit code 0")
    trouble = seen.trouble
    if trouble is not None and trouble.refused:
        return Action(Do.GIVE_UP, "refused", f"{trouble.step} failed: {trouble.message}")
    if ended is not None and policy(code) == GIVE_UP:
        return Action(Do.GIVE_UP, "hopeless", _says(ended))
    if seen.machines == "":
        return _no_answer(seen)
    if not seen.ready:
        return _without_machines(seen)
    return _on_machines(seen, ended, code)


def _no_answer(seen: Seen) -> Action:
    what = seen.trouble.message if seen.trouble is not None else "no answer"
    if seen.beating:
        return Action(Do.WAIT, "no answer", f"Google Cloud does not answer ({what}), but hosts beat")
    if seen.memory.refusals >= seen.bounds.refusals:
        return Action(Do.GIVE_UP, "no answer", f"{seen.memory.refusals} requests in a row failed; the last one: {what}")
    return Action(Do.WAIT, "no answer", f"Google Cloud does not answer: {what}")


def _without_machines(seen: Seen) -> Action:
    state = seen.machines
    because = "the machines are not there" if state is None else f"the machines are {state}"
    because += f" ({seen.error})" if seen.error else ""
    if state is not None and seen.beating and (state in LEAVING or not seen.gone):
        row = "leaving" if state in LEAVING else "not ready"
        return Action(Do.WAIT, row, f"{because}, but {counted(seen.beating, 'host')} still beat")
    if state == "MISSING":
        return _wait_then_create(seen, "not ready", seen.bounds.missing_s, "a node of the machines is not there")
    if state in OFF:
        return Action(Do.GIVE_UP, "switched off", f"{because}; start them, or delete them, then `watch`")
    if seen.gone or state is None:
        if not seen.ours:
            return Action(Do.GIVE_UP, "not ours", f"{because}, and launch did not make them; create them, then `watch`")
        return _act(seen, Do.CREATE, "gone", because, delete=seen.gone)
    if state in PENDING:
        if not seen.ours:
            return Action(Do.WAIT, "requested", because)
        return _act(seen, Do.CREATE, "requested", because)
    return _wait_then_create(seen, "not ready", seen.bounds.not_ready_s, because)


def _on_machines(seen: Seen, ended: Host | None, code: int) -> Action:
    if code:
        assert ended is not None
        return _after_end(seen, ended, code)
    dead = seen.count("dead") + seen.count("none")
    silent, unreachable = seen.count("starting") + seen.count("running"), seen.count("unreachable")
    if dead or unreachable:
        if not seen.healthy:
            return _wait_then_create(seen, "maintenance", seen.bounds.maintenance_s, f"the machines are {seen.health}")
        if unreachable:
            why = f"{counted(unreachable, 'host')} cannot be reached and send no heartbeat"
            return _wait_then_create(seen, "unreachable", seen.bounds.unreachable_s, why, alive=seen.beating + silent)
        where = ", ".join(f"worker {host.worker}" for host in seen.hosts if host.now in ("dead", "none"))
        why = f"the run is not on {printable(where, 60)}"
        if seen.lasted_s("dead") < seen.bounds.settle_s:  # somebody may be about to start it
            return Action(Do.WAIT, "dead", why)
        return _restart(seen, "dead", why)
    if silent:
        why = f"no heartbeat comes from {counted(silent, 'host')}, but they run: is the bucket reached?"
        return Action(Do.WAIT, "silent", why)
    if len(seen.hosts) < seen.workers or seen.count("unknown"):
        return Action(Do.WAIT, "starting", "not all hosts have sent a heartbeat yet")
    if seen.count(ENDED):
        return Action(Do.WAIT, "ending", f"{counted(seen.count(ENDED), 'host')} ended with 0; the others go on")
    note = "" if seen.healthy else f"; the machines are {seen.health}"
    return Action(Do.WAIT, "running", f"all {counted(seen.workers, 'host')} run{note}")


def _after_end(seen: Seen, ended: Host, code: int) -> Action:
    alive = seen.beating + seen.count("running") + seen.count("starting")
    if alive and seen.lasted_s("ending") < seen.bounds.ending_s:
        return Action(Do.WAIT, "ending", f"{_says(ended)}; {counted(alive, 'host')} still to end")
    if not seen.healthy:
        why = f"{_says(ended)}; the machines are {seen.health}"
        return _wait_then_create(seen, "maintenance", seen.bounds.maintenance_s, why, alive=alive)
    if policy(code) == TWICE and seen.memory.once and not seen.progressed:
        return Action(Do.GIVE_UP, "failed twice", f"{_says(ended)}, once more")
    row = "ending" if alive else "ended"
    if not alive and seen.lasted_s(row) < seen.bounds.settle_s:
        return Action(Do.WAIT, row, f"{_says(ended)}; is a preemption to come?")
    return _restart(seen, row, _says(ended))


def _restart(seen: Seen, row: str, why: str) -> Action:
    """On the same machines; on new ones when that did not help."""
    in_place = 0 if seen.progressed else seen.memory.in_place
    if in_place >= seen.bounds.in_place and seen.ours and not seen.beating:
        return _act(seen, Do.CREATE, row, f"{why}; {in_place} starts on these machines did not help", delete=True)
    return _act(seen, Do.START, row, why)


def _wait_then_create(seen: Seen, row: str, bound_s: float, why: str, *, alive: int | None = None) -> Action:
    alive = seen.beating if alive is None else alive
    if alive or not seen.ours or seen.lasted_s(row) < bound_s:
        return Action(Do.WAIT, row, why)
    return _act(seen, Do.CREATE, row, f"{why}, for {duration(bound_s)}", delete=True)


def _act(seen: Seen, do: Do, row: str, why: str, *, delete: bool = False) -> Action:
    """The action, if it is not one too many, and not too early."""
    memory, bounds, trouble = seen.memory, seen.bounds, seen.trouble
    tries = 0 if seen.progressed else memory.tries
    last = f"; the last {trouble.step} failed: {trouble.message}" if trouble is not None else ""
    if tries >= bounds.tries:
        return Action(Do.GIVE_UP, row, f"{why}; {tries} starts brought no newer step{last}")
    if memory.refusals >= bounds.refusals:
        return Action(Do.GIVE_UP, row, f"{why}; {memory.refusals} requests in a row failed{last}")
    pause_s = max(bounds.pause(tries), bounds.pause(memory.refusals)) - (seen.now_s - memory.acted_s)
    if pause_s > 0:
        return Action(Do.WAIT, row, f"{why}; tries again after a pause{last}")
    return Action(do, row, why, delete)


def ending(action: Action, seen: Seen) -> int:
    """The exit code of a watch that this action ends."""
    if action.row == "refused" and seen.trouble is not None:
        return seen.trouble.exit_code
    ended = exit_of(seen.hosts)
    if ended is not None and exit_code(ended):
        return exit_code(ended)
    return {"no run": 2, "dead": HostError.exit_code}.get(action.row, CloudError.exit_code)


def remember(seen: Seen, action: Action) -> Memory:
    """The memory after a decision, before the action itself is begun: an action that is cut off counts."""
    memory = seen.memory
    values: dict[str, Any] = {"run_id": seen.run_id or "", "row": action.row, "gave_up": ""}
    values |= {"lasted_s": seen.lasted_s(action.row), "looked_s": seen.now_s}
    if action.row == "running":
        values |= {"refusals": 0, "trouble": None}
    if action.row == "no answer" and seen.beating:
        values["refusals"] = 0
    stepless = seen.newest < 0 and memory.step < 0 and seen.lasted_s("running") > STEPLESS_S
    if seen.progressed or (stepless and action.row == "running"):
        values |= {"tries": 0, "in_place": 0, "once": 0}
    memory = dataclasses.replace(memory, **values)
    if action.do not in (Do.START, Do.CREATE):
        return memory
    ended = exit_of(seen.hosts)
    return dataclasses.replace(
        memory,
        tries=memory.tries + 1,
        in_place=0 if action.do is Do.CREATE else memory.in_place + 1,
        once=memory.once + (ended is not None and policy(exit_code(ended)) == TWICE),
        step=max(seen.newest, memory.step),
        acted_s=seen.now_s,
    )


def failed(memory: Memory, trouble: Trouble) -> Memory:
    """The memory after a step of `watch` failed."""
    passed = trouble.passes and trouble.step in ("look", "delete", "create")
    tries = max(0, memory.tries - 1) if passed and trouble.step != "look" else memory.tries
    refusals = memory.refusals + 1 if passed else memory.refusals
    return dataclasses.replace(memory, trouble=trouble.to_json(), tries=tries, refusals=refusals)


def _says(host: Host) -> str:
    code = exit_code(host)
    text = printable(host.message) or EXIT_CODES.get(code, ("unknown exit code", ""))[0]
    return f"worker {host.worker} ended with exit code {code}: {text}"


def table() -> str:
    """`ROWS` as Markdown."""
    lines = [f"| {row} | {condition} | {action} |" for row, (condition, action) in ROWS.items()]
    return "\n".join(["| row | what is seen | what `watch` does |", "|---|---|---|", *lines])


if __name__ == "__main__":
    print(table())
