"""The table of `watch`: every row, and what must hold whatever is seen."""

import dataclasses

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from janus_jax.errors import AGAIN, EXIT_CODES, GIVE_UP, TWICE
from launch.errors import Kind, cause, policy
from launch.records import STALE_S
from launch.runs.snapshot import Host, exit_of
from launch.watching.decide import ROWS, Do, decide, failed, remember
from launch.watching.seen import Bounds, Memory, Seen, Trouble

OLD = STALE_S + 1
LONG = 100_000.0


def seen(*hosts: Host, **values) -> Seen:
    base = Seen(now_s=LONG, workers=2, run_id="demo-1", hosts=hosts, machines="ACTIVE", ready=True)
    return dataclasses.replace(base, **values)


def runs(worker: int, **values) -> Host:
    return Host(worker, **{"age_s": 5.0, "state": "running", **values})


def ends(worker: int, code: int, **values) -> Host:
    return Host(worker, age_s=5.0, state="ended", code=code, **values)


def stale(worker: int, answer: str | None) -> Host:
    return Host(worker, age_s=OLD, state="running", answer=answer)


def since(row: str, seconds: float, **values) -> Memory:
    return Memory(run_id="demo-1", row=row, lasted_s=seconds, looked_s=LONG, **values)


def trouble(step="look", kind="", exit_code=17, **values) -> Memory:
    return Memory(run_id="demo-1", trouble=Trouble(step, "it broke", kind, exit_code).to_json(), **values)


BOTH = (runs(0), runs(1))
CASES = {
    "stopped": (seen(*BOTH, stopped="ann"), Do.STOPPED),
    "stopped on gone machines": (seen(machines=None, ready=False, stopped="ann"), Do.STOPPED),
    "no run": (seen(run_id=None), Do.GIVE_UP),
    "done": (seen(ends(0, 0), ends(1, 0)), Do.DONE),
    "done before the machines went": (seen(ends(0, 0), ends(1, 0), machines="SUSPENDED", ready=False), Do.DONE),
    "done after a refusal": (seen(ends(0, 0), ends(1, 0), memory=trouble("create", "QUOTA", 16)), Do.DONE),
    "refused: quota": (seen(machines=None, ready=False, memory=trouble("create", "QUOTA", 16)), Do.GIVE_UP),
    "refused: permission": (seen(machines="", ready=False, memory=trouble("look", "PERMISSION", 16)), Do.GIVE_UP),
    "refused: bad input at setup": (seen(memory=trouble("setup", "", 2)), Do.GIVE_UP),
    "refused: bad zone": (seen(machines=None, ready=False, memory=trouble("create", "NOT_FOUND", 16)), Do.GIVE_UP),
    "hopeless": (seen(ends(0, 13), ends(1, 12)), Do.GIVE_UP),
    "hopeless while another runs": (seen(runs(0), ends(1, 11)), Do.GIVE_UP),
    "hopeless and preempted": (seen(ends(1, 2), machines="SUSPENDED", gone=True, ready=False), Do.GIVE_UP),
    "no answer": (seen(machines="", ready=False, memory=trouble("look", "UNAVAILABLE", 16)), Do.WAIT),
    "no answer while hosts beat": (seen(*BOTH, machines="", memory=trouble("look", refusals=99)), Do.WAIT),
    "no answer for ever": (
        seen(machines="", ready=False, memory=trouble("look", "UNAVAILABLE", 16, refusals=24)),
        Do.GIVE_UP,
    ),
    "gone: not there": (seen(machines=None, ready=False), Do.CREATE),
    "gone": (seen(ends(0, 10), machines="SUSPENDED", gone=True, ready=False), Do.CREATE),
    "gone a moment after a save": (seen(*BOTH, machines="SUSPENDED", gone=True, ready=False), Do.CREATE),
    "gone: no capacity, pause": (
        seen(machines=None, ready=False, memory=trouble("create", "STOCK_OUT", 16, refusals=3, acted_s=LONG - 1)),
        Do.WAIT,
    ),
    "gone: no capacity, again": (
        seen(machines=None, ready=False, memory=trouble("create", "STOCK_OUT", 16, refusals=3, acted_s=LONG - 901)),
        Do.CREATE,
    ),
    "gone: no capacity for ever": (
        seen(machines=None, ready=False, memory=trouble("create", "STOCK_OUT", 16, refusals=24)),
        Do.GIVE_UP,
    ),
    "gone too often": (seen(machines=None, ready=False, memory=Memory(tries=8, step=5)), Do.GIVE_UP),
    "leaving": (seen(*BOTH, machines="SUSPENDING", gone=True, ready=False), Do.WAIT),
    "gone: leaving, silent": (seen(stale(0, None), machines="SUSPENDING", gone=True, ready=False), Do.CREATE),
    "not ours": (seen(machines="PREEMPTED", gone=True, ready=False, ours=False), Do.GIVE_UP),
    "not ours: not there": (seen(machines=None, ready=False, ours=False), Do.GIVE_UP),
    "switched off": (seen(machines="STOPPED", ready=False), Do.GIVE_UP),
    "not ready: a node is missing": (seen(machines="MISSING", gone=True, ready=False), Do.WAIT),
    "not ready: a node stays missing": (
        seen(machines="MISSING", gone=True, ready=False, memory=since("not ready", 301)),
        Do.CREATE,
    ),
    "no answer: too many requests": (seen(machines="", ready=False, memory=trouble("look", "QUOTA", 16)), Do.WAIT),
    "requested": (seen(machines="WAITING_FOR_RESOURCES", ready=False), Do.CREATE),
    "requested by others": (seen(machines="PROVISIONING", ready=False, ours=False), Do.WAIT),
    "not ready": (seen(machines="REPAIRING", ready=False), Do.WAIT),
    "not ready for long": (seen(machines="REPAIRING", ready=False, memory=since("not ready", 901)), Do.CREATE),
    "not ready, but hosts beat": (
        seen(*BOTH, machines="REPAIRING", ready=False, memory=since("not ready", LONG)),
        Do.WAIT,
    ),
    "running": (seen(*BOTH), Do.WAIT),
    "running in maintenance": (seen(*BOTH, health="UNHEALTHY_MAINTENANCE"), Do.WAIT),
    "ending: some with 0": (seen(runs(0), ends(1, 0)), Do.WAIT),
    "ending": (seen(runs(0), ends(1, 13)), Do.WAIT),
    "ending for long": (seen(runs(0), ends(1, 13), memory=since("ending", 151)), Do.START),
    "maintenance": (seen(ends(0, 10), ends(1, 10), health="UNHEALTHY_MAINTENANCE"), Do.WAIT),
    "maintenance, silent": (seen(stale(0, "unreachable"), runs(1), health="UNHEALTHY_MAINTENANCE"), Do.WAIT),
    "maintenance for long": (
        seen(ends(0, 10), ends(1, 10), health="UNHEALTHY_MAINTENANCE", memory=since("maintenance", 3601)),
        Do.CREATE,
    ),
    "failed twice": (seen(ends(0, 1), ends(1, 1), memory=since("ended", 60, once=1, tries=1)), Do.GIVE_UP),
    "failed twice: unknown code": (seen(ends(0, 77), ends(1, 13), memory=since("ended", 60, once=1)), Do.GIVE_UP),
    "ended with 1 for the first time": (seen(ends(0, 1), ends(1, 1), memory=since("ended", 60)), Do.START),
    "ended with 1 after a newer step": (
        seen(ends(0, 1, step=9), ends(1, 1), memory=since("ended", 60, once=1, step=8)),
        Do.START,
    ),
    "ended": (seen(ends(0, 10), ends(1, 10)), Do.WAIT),
    "ended a while ago": (seen(ends(0, 13), ends(1, 137), memory=since("ended", 46)), Do.START),
    "ended in vain here": (seen(ends(0, 13), ends(1, 13), memory=since("ended", 999, in_place=3, tries=3)), Do.CREATE),
    "ended, answered by the hosts": (
        seen(*(dataclasses.replace(stale(n, "ended"), code=14) for n in range(2)), memory=since("ended", 46)),
        Do.START,
    ),
    "dead": (seen(stale(0, "dead"), runs(1)), Do.WAIT),
    "dead a moment later": (seen(stale(0, "dead"), runs(1), memory=since("dead", 46)), Do.START),
    "dead: not on the hosts": (
        seen(Host(0, answer="none"), Host(1, answer="none"), memory=since("dead", 46)),
        Do.START,
    ),
    "dead in vain here": (
        seen(stale(0, "dead"), stale(1, "dead"), memory=since("dead", 999, in_place=3, tries=3)),
        Do.CREATE,
    ),
    "dead in vain, others' machines": (
        seen(stale(0, "dead"), stale(1, "dead"), ours=False, memory=since("dead", 999, in_place=3, tries=3)),
        Do.START,
    ),
    "dead in vain, the other beats": (
        seen(stale(0, "dead"), runs(1), memory=since("dead", 999, in_place=3, tries=3)),
        Do.START,
    ),
    "silent": (seen(stale(0, "running"), stale(1, "starting")), Do.WAIT),
    "unreachable": (seen(stale(0, "unreachable"), stale(1, "unreachable")), Do.WAIT),
    "unreachable for long": (
        seen(stale(0, "unreachable"), stale(1, "unreachable"), memory=since("unreachable", 1801)),
        Do.CREATE,
    ),
    "unreachable, but the other beats": (
        seen(stale(0, "unreachable"), runs(1), memory=since("unreachable", LONG)),
        Do.WAIT,
    ),
    "starting": (seen(runs(0)), Do.WAIT),
}


@pytest.mark.parametrize("case", CASES)
def test_every_row_of_the_table_leads_to_its_action(case):
    what, do = CASES[case]
    action = decide(what)
    assert (action.do, bool(action.reason)) == (do, True), action
    assert action.row in ROWS


def test_the_cases_reach_every_row():
    assert {decide(what).row for what, _ in CASES.values()} == set(ROWS)


def test_old_machines_are_deleted_before_new_ones_are_made_and_only_then():
    assert decide(CASES["gone"][0]).delete
    assert not decide(CASES["gone: not there"][0]).delete
    assert not decide(CASES["requested"][0]).delete


@pytest.mark.parametrize(
    "codes, tells",
    [((13, 12), 12), ((12, 2), 2), ((13, 137), 137), ((10, 13), 10), ((1, 13), 1), ((0, 13), 13), ((10, 77), 77)],
)
def test_the_most_specific_exit_code_speaks_for_the_run(codes, tells):
    ended = exit_of(tuple(ends(worker, code) for worker, code in enumerate(codes)))
    assert ended is not None and ended.code == tells == min(codes, key=cause)


def test_no_code_that_ends_watching_hides_behind_another():
    assert sorted(EXIT_CODES, key=cause)[-1] == 0
    order = [policy(code) for code in sorted(EXIT_CODES, key=cause)[:-1]]
    assert order == sorted(order, key=[GIVE_UP, TWICE, AGAIN].index)


def test_the_reason_quotes_the_host_that_failed_on_one_line():
    reason = decide(seen(ends(0, 13), ends(1, 12, message="step 4: loss is\n\x1b[31mnan"))).reason
    assert "worker 1" in reason and "12" in reason and "nan" in reason
    assert "\n" not in reason and "\x1b" not in reason


def test_a_death_by_a_signal_is_not_an_internal_error():
    action = decide(seen(ends(0, -9), ends(1, 13), memory=since("ended", 60, once=1)))
    assert action.do is Do.START and "137" in action.reason


def test_pauses_double_up_to_their_bound():
    bounds = Bounds(pause_s=20, longest_pause_s=100)
    assert [bounds.pause(count) for count in range(5)] == [0, 20, 40, 80, 100]


def test_a_newer_step_takes_the_tries_back():
    ended = (ends(0, 13, step=50), ends(1, 13, step=50))
    memory = since("ended", 60, tries=8, in_place=3, step=49)
    assert decide(seen(*ended, memory=memory)).do is Do.START
    assert decide(seen(*ended, memory=dataclasses.replace(memory, step=50))).do is Do.GIVE_UP


def test_no_capacity_is_counted_apart_from_starts():
    memory = failed(Memory(tries=1), Trouble("create", "", Kind.STOCK_OUT.name, 16))
    assert (memory.tries, memory.refusals) == (0, 1)
    memory = failed(Memory(tries=1), Trouble("setup", "worker 1: disk full", "", 17))
    assert (memory.tries, memory.refusals) == (1, 0)


CODES = st.sampled_from([*EXIT_CODES, -9, 77])
ANSWERS = st.sampled_from([None, "none", "starting", "running", "ended", "dead", "unreachable"])
HOSTS = st.builds(
    Host,
    worker=st.integers(0, 1),
    age_s=st.sampled_from([1.0, OLD, float("inf")]),
    state=st.sampled_from(["none", "starting", "running", "ended"]),
    code=st.none() | CODES,
    step=st.none() | st.integers(0, 3),
    answer=ANSWERS,
)
TROUBLES = st.none() | st.builds(
    lambda step, kind: Trouble(step, "m", kind, 16 if kind else 17).to_json(),
    st.sampled_from(["look", "delete", "create", "setup", "start"]),
    st.sampled_from(["", *(kind.name for kind in Kind)]),
)
MEMORIES = st.builds(
    Memory,
    row=st.sampled_from(list(ROWS)),
    lasted_s=st.floats(0, LONG),
    looked_s=st.floats(0, LONG),
    tries=st.integers(0, 9),
    in_place=st.integers(0, 4),
    once=st.integers(0, 2),
    refusals=st.integers(0, 25),
    step=st.integers(-1, 3),
    acted_s=st.floats(0, LONG),
    trouble=TROUBLES,
)
STATES = {
    **dict.fromkeys(["ACTIVE", "READY"], (True, False)),
    **dict.fromkeys(["SUSPENDED", "SUSPENDING", "FAILED", "PREEMPTED", "DELETING", "MISSING"], (False, True)),
    **dict.fromkeys(["ACCEPTED", "CREATING", "REPAIRING", "STOPPED", "", None], (False, False)),
}


@st.composite
def sights(draw) -> Seen:
    state = draw(st.sampled_from(list(STATES)))
    ready, gone = STATES[state]
    return Seen(
        now_s=LONG,
        workers=2,
        run_id=draw(st.sampled_from(["demo-1", None])),
        hosts=tuple({host.worker: host for host in draw(st.lists(HOSTS, max_size=2))}.values()),
        machines=state,
        ready=ready,
        gone=gone,
        ours=draw(st.booleans()),
        health=draw(st.sampled_from(["HEALTHY", "UNHEALTHY_MAINTENANCE"])),
        stopped=draw(st.sampled_from([None, "ann"])),
        memory=draw(MEMORIES),
    )


@settings(max_examples=200, deadline=None)
@given(sights())
def test_whatever_is_seen(what):
    action = decide(what)
    acts = action.do in (Do.START, Do.CREATE)
    assert action.row in ROWS and action.reason and "\n" not in action.reason
    if what.stopped:
        assert action.do is Do.STOPPED
    if action.delete:
        final = what.gone and what.machines not in ("SUSPENDING", "DELETING", "MISSING")
        assert what.ours and (final or not what.beating), "deletes a live slice whose hosts still beat"
    if action.do is Do.START:
        assert what.ready
    if acts:
        assert what.memory.refusals < what.bounds.refusals
        assert what.progressed or what.memory.tries < what.bounds.tries
        assert not any(EXIT_CODES.get(h.code, ("", ""))[1] == GIVE_UP for h in what.hosts if h.now == "ended")
        memory = remember(what, action)
        assert memory.tries >= 1 and memory.step >= what.newest
    if action.do is Do.DONE:
        assert [host.code for host in what.hosts] == [0, 0]


@settings(max_examples=15, deadline=None)
@given(sights(), st.lists(TROUBLES, min_size=60, max_size=60))
def test_nothing_is_tried_for_ever_without_a_newer_step(what, troubles):
    acts, memory, now_s = 0, dataclasses.replace(what.memory, step=99), what.now_s
    for error in troubles:
        now_s += 5000
        action = decide(dataclasses.replace(what, memory=memory, now_s=now_s))
        memory = remember(dataclasses.replace(what, memory=memory, now_s=now_s), action)
        if action.do in (Do.START, Do.CREATE):
            acts += 1
            if error is not None:
                memory = failed(memory, Trouble.from_json(error))
    assert acts <= what.bounds.tries + what.bounds.refusals


def test_one_look_after_a_long_sleep_deletes_nothing():
    bounds = Bounds()
    assert bounds.look_s < min(bounds.missing_s, bounds.not_ready_s, bounds.maintenance_s, bounds.unreachable_s)
