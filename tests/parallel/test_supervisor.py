"""The parent process owns exit code and last message, whatever becomes of the process that trains."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from janus_jax.parallel.star import Verdict
from janus_jax.parallel.supervisor import settle
from tests.support.processes import environment, free_port

HOST = socket.gethostname()
LOST = f"error: process 1 (host {HOST}) is lost: {{}}; start the run again\n"
KILLED = "the process that trains was ended by SIGKILL, by hand or by the machine's memory limit"


class Watched:
    """A process of tests/support/watched.py, which has met the other."""

    def __init__(self, port, process, part):
        command = [sys.executable, "-m", "tests.support.watched", str(port), str(process), part]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.parent = subprocess.Popen(command, env=environment(), **pipes)

    def met(self):
        self.child = int(self.parent.stdout.readline())

    def ended(self):
        """(exit code, stderr); its child has ended too."""
        output, errors = self.parent.communicate(timeout=60)
        self.output = output
        deadline = time.monotonic() + 10
        while Path(f"/proc/{self.child}").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not Path(f"/proc/{self.child}").exists()
        return self.parent.returncode, errors


@contextlib.contextmanager
def two(*parts):
    both = []
    try:
        for left in reversed(range(4)):
            port = free_port()
            both = [Watched(port, process, part) for process, part in enumerate(parts)]
            try:
                for one in both:
                    one.met()
                break
            except ValueError:  # another program took the port meanwhile, or a busy machine gave no time for a beat
                if not left:
                    raise
                for one in both:
                    one.parent.kill()
                    one.parent.wait()
        yield both
    finally:
        for one in both:
            one.parent.kill()
            one.parent.wait()


@pytest.mark.parametrize("dead", [0, 1])
def test_a_parent_that_is_killed_takes_its_child_along_and_ends_the_other(dead):
    with two("move", "move") as both:
        both[dead].parent.kill()
        lost = LOST.format("it ended without a word").replace("process 1", f"process {dead}")
        assert both[1 - dead].ended() == (13, lost)
        assert both[dead].ended()[0] == -signal.SIGKILL


def test_a_child_that_is_killed_is_named_by_both():
    with two("move", "move") as both:
        os.kill(both[1].child, signal.SIGKILL)
        assert both[0].ended() == (13, LOST.format(KILLED))
        assert both[1].ended() == (137, f"error: {KILLED}\n")


@pytest.mark.parametrize("who", ["parent", "child"])
def test_a_process_that_is_stopped_ends_the_other(who):
    with two("move", "move") as both:
        stopped = both[1].parent.pid if who == "parent" else both[1].child
        os.kill(stopped, signal.SIGSTOP)
        code, line = both[0].ended()
        assert code == 13 and line.startswith(f"error: process 1 (host {HOST}) is lost: ")
        assert ("no sign of life" if who == "parent" else "it is stopped (SIGSTOP)") in line
        os.kill(both[1].parent.pid, signal.SIGCONT)
        assert both[1].ended()[0] == 13


def test_an_abort_of_c_plus_plus_is_a_lost_process_to_the_other():
    with two("move", "abort") as both:
        assert both[0].ended() == (13, LOST.format("the process that trains was ended by SIGABRT"))
        assert both[1].ended() == (134, "a stack of C++\nerror: the process that trains was ended by SIGABRT\n")


def test_a_process_that_leaves_at_a_second_signal_is_lost_to_the_other():
    with two("move", "leave") as both:
        assert both[1].ended() == (130, "")
        assert both[0].ended() == (13, LOST.format("it ended with exit code 130"))


def test_the_most_specific_code_is_that_of_all():
    with two("move", "fail") as both:
        assert both[1].ended() == (12, "error: step 7: loss is nan\n")
        assert both[0].ended() == (12, f"error: process 1 (host {HOST}): step 7: loss is nan\n")


def test_a_failure_that_the_loss_of_another_explains_is_not_shown():
    with two("traceback", "move") as both:
        os.kill(both[1].child, signal.SIGKILL)
        assert both[0].ended() == (13, LOST.format(KILLED))


def test_a_failure_without_another_explanation_is_shown():
    with two("move", "traceback") as both:
        assert both[1].ended() == (1, "Traceback\n  of JAX\nJaxRuntimeError: gloo\n")
        assert both[0].ended() == (1, f"error: process 1 (host {HOST}): JaxRuntimeError: gloo\n")


def test_a_signal_is_forwarded_once():
    with two("hear", "hear") as both:
        for one in both:
            one.parent.terminate()
        assert [one.ended() for one in both] == [(10, "stopped: all is saved\n")] * 2
        assert [one.output for one in both] == ["1\n", "1\n"]


def test_a_phase_that_stands_still_names_the_process_and_shows_its_threads():
    with two("move", "stand") as both:
        for one in both:
            code, text = one.ended()
            assert code == 13 and "Current thread" in text and 'File "' in text
            line = text.splitlines()[-1]
            assert line.startswith(f"error: process 1 (host {HOST}) has made no progress in phase step for ")
            assert line.endswith("timeouts.step allows 1 s; the others wait for it")


def test_a_run_that_has_saved_says_so_at_once_and_the_loss_of_another_changes_nothing():
    with two("saved", "move") as both:
        assert both[0].parent.stderr.readline() == "stopped: all is saved\n"
        both[1].parent.kill()
        assert both[1].ended()[0] == -signal.SIGKILL
        os.kill(both[0].child, signal.SIGABRT)  # as JAX does, which waits for the other
        assert both[0].ended()[0] == 10


def test_a_single_process_is_watched_by_a_thread():
    command = [sys.executable, "-m", "tests.support.watched"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 13 and "in alone" in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: this process has made no progress in phase setup for ")
    assert line.endswith("timeouts.setup allows 0.2 s")


def test_what_counts_of_several_reasons():
    def exited(code):
        return code << 8

    lost, shared = Verdict(13, "lost"), Verdict(2, "process 1: bad")
    killed, end = signal.SIGKILL, (2, "error: bad", False)
    assert settle(exited(0), None, lost, by_us=False)[:2] == (0, "")
    assert settle(exited(2), end, lost, by_us=False)[:2] == (2, "error: bad")
    assert settle(killed, end, lost, by_us=True)[:2] == (2, "error: bad")
    assert settle(killed, None, lost, by_us=True)[:2] == (13, "error: lost")
    assert settle(killed, None, None, by_us=False)[0] == 137
    assert settle(signal.SIGABRT, None, shared, by_us=False)[:2] == (2, "error: process 1: bad")
    assert settle(exited(13), (13, "error: waited in vain", True), lost, by_us=False)[:2] == (13, "error: lost")
    assert settle(exited(141), (0, "", False), None, by_us=False)[0] == 141
