"""Processes, played by stars in one process, meet, lose each other, and end alike."""

import contextlib
import errno
import socket
import time

import pytest

from janus_jax.parallel import star as module
from janus_jax.parallel.star import Place, Star, Verdict
from tests.support.processes import free_port

HOST = socket.gethostname()


@contextlib.contextmanager
def stars(*members, timeout_s=20.0):
    """A star for each (processes, process), with more values of `Place` if given."""
    coordinator, made = f"127.0.0.1:{free_port()}", []
    try:
        for processes, process, *more in members:
            made.append(Star(Place(coordinator, processes, process, *more), timeout_s, lambda: ["step", 1, 0.0]))
        yield made
    finally:
        for star in made:
            star.close()


def until(condition, stars, limit_s=10.0):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, [(star.met, star.verdict) for star in stars]
        for star in stars:
            star.tick()
        time.sleep(0.005)


def verdicts(stars):
    until(lambda: all(star.verdict for star in stars), stars)
    return [(star.verdict.code, star.verdict.line) for star in stars]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "_FAREWELL_S", 0.05)
    monkeypatch.setattr(module, "_RETRY_S", 0.02)
    monkeypatch.setattr(module, "BEAT_S", 0.05)


@pytest.fixture
def three():
    with stars((3, 0), (3, 1), (3, 2)) as made:
        until(lambda: all(star.met for star in made), made)
        yield made


def test_all_meet_and_leave_the_port_to_jax(three):
    assert three[1].hosts == three[0].hosts == dict.fromkeys(range(3), HOST)
    until(lambda: set(three[0].states) == {0, 1, 2}, three)
    with socket.socket(socket.AF_INET6) as service:  # as gRPC opens it, beside the connections that live on
        service.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        service.bind(("::", int(three[0].place.coordinator.rpartition(":")[2])))
        service.listen()
        until(lambda: len(three[1].states) >= 1, three)


def test_a_process_that_dies_ends_all_others(three):
    dead = three.pop(1)
    for line in dead._lines.values():
        line.connection.close()
    lost = f"process 1 (host {HOST}) is lost: it ended without a word; start the run again"
    assert verdicts(three) == [(13, lost)] * 2


def test_the_death_of_process_0_ends_all_others(three):
    dead = three.pop(0)
    for line in dead._lines.values():
        line.connection.close()
    lost = f"process 0 (host {HOST}) is lost: it ended without a word; start the run again"
    assert verdicts(three) == [(13, lost)] * 2


@pytest.mark.parametrize("process", [0, 2])
def test_a_process_that_is_silent_is_lost(three, process, monkeypatch):
    monkeypatch.setattr(module, "DEAD_S", 0.3)
    del three[process]
    assert all(
        code == 13 and line.startswith(f"process {process} (host {HOST}) is lost: no sign of life for ")
        for code, line in verdicts(three)
    )


def test_the_reason_of_one_is_that_of_all_and_the_first_counts(three):
    three[2].end(12, "step 7: loss is nan")
    verdict = (12, f"process 2 (host {HOST}): step 7: loss is nan")
    assert verdicts(three) == [verdict] * 3
    three[0].decide(Verdict(13, "later"))
    assert verdicts(three) == [verdict] * 3


def test_a_process_that_has_ended_well_is_not_missed(three):
    done = three.pop(2)
    done.end(0, "", fine=True)
    done.close()
    until(lambda: 2 in three[0]._ended and not three[0]._lines[2].open, three)
    three[0].tick()
    assert three[0].verdict is None


def test_who_does_not_come_is_named():
    with stars((4, 0), (4, 2), timeout_s=0.5) as made:
        text = f"of 4 processes, 1, 3 did not come to {made[0].place.coordinator} within 0.5 s"
        assert verdicts(made) == [(13, text)] * 2


def test_without_process_0_the_others_say_so():
    with stars((2, 1), timeout_s=0.3) as made:
        [(code, line)] = verdicts(made)
        assert code == 13
        assert line.startswith(
            f"process 0 did not answer at {made[0].place.coordinator} within 0 s: Connection refused"
        )


def test_one_that_died_while_they_met_may_come_again():
    with stars((3, 0), (3, 1)) as made:
        until(lambda: 1 in made[0]._lines, made)
        made.pop(1).close()
        until(lambda: 1 not in made[0]._lines, made)
        made += [Star(Place(made[0].place.coordinator, 3, process), 20.0) for process in (1, 2)]
        until(lambda: all(star.met for star in made), made)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            [(2, 0), (3, 1)],
            f"process 1 (host {HOST}) is one of 3 processes, and process 0 (host {HOST}) one of 2; allowed: the same "
            "--num-processes everywhere",
        ),
        ([(3, 0), (3, 1, "a"), (3, 1, "b")], "two processes have the number 1: on host "),
    ],
    ids=["other number of processes", "same number twice"],
)
def test_processes_that_do_not_fit_together_all_end_with_2(members, message):
    with stars(*members) as made:
        assert all(code == 2 and line.startswith(message) for code, line in verdicts(made))


def test_a_process_of_another_launch_is_refused_and_the_run_goes_on():
    with stars((2, 0, "mine", "x"), (2, 1, "other", "y")) as made:
        until(lambda: made[1].verdict, made)
        assert made[1].verdict.code == 2
        assert (
            f"process 1 of host {HOST} belongs to another launch (run 'other') than process 0" in made[1].verdict.line
        )
        made[1] = Star(Place(made[0].place.coordinator, 2, 1, "mine", "x"), 20.0)
        until(lambda: all(star.met for star in made), made)


def test_another_program_at_the_port_is_no_coordinator(monkeypatch):
    monkeypatch.setattr(module, "TAKEN_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        made = [Star(Place(f"127.0.0.1:{server.getsockname()[1]}", 2, 1), 20.0)]
        made[0].tick()
        server.settimeout(5)
        for _ in range(2):
            connection, _ = server.accept()
            connection.sendall(b"\x00\x00\x12\x04 as gRPC greets\n")
            connection.close()
            until(lambda: not made[0]._lines, made)
            until(lambda: made[0]._lines or made[0].verdict, made)
        server.close()
        [(code, line)] = verdicts(made)
    assert code == module.LOST and "something else answers there: a run that has begun already" in line


def test_a_port_that_is_taken_is_named(monkeypatch):
    monkeypatch.setattr(module, "_PORT_WAIT_S", 0.1)
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        coordinator = f"127.0.0.1:{other.getsockname()[1]}"
        [(code, line)] = verdicts([Star(Place(coordinator, 2, 0), 20.0)])
    assert code == module.LOST and line.startswith(f"--coordinator {coordinator}: port ") and "is taken" in line


def test_a_port_that_cannot_be_opened_is_bad_input(monkeypatch):
    monkeypatch.setattr(module, "bound", lambda coordinator: PermissionError(errno.EACCES, "Permission denied"))
    [(code, line)] = verdicts([Star(Place("127.0.0.1:80", 2, 0), 20.0)])
    assert code == 2 and line.endswith("port 80 of this machine cannot be opened: Permission denied")
