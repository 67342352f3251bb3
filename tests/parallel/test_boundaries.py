"""Main threads of several processes, played by threads here, agree on a boundary that none has passed."""

import math
import threading

import pytest

from janus_jax.errors import LostPeerError
from janus_jax.parallel import boundaries as module
from janus_jax.parallel.boundaries import Boundaries


class Store:
    """The coordinator's key-value store."""

    def __init__(self):
        self.values, self.lock = {}, threading.Lock()

    def key_value_set(self, key, value):
        with self.lock:
            assert key not in self.values
            self.values[key] = value

    def key_value_dir_get(self, prefix):
        with self.lock:
            return [item for item in self.values.items() if item[0].startswith(prefix)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "_POLL_S", 0.005)
    monkeypatch.setattr(module, "_POLL_AGREEING_S", 0.002)


class Play:
    """Processes that pass `last` boundaries, in pairs that wait for each other as steps with collectives do."""

    def __init__(self, count, last, wishes, *, ahead=2):
        store = Store()
        self.processes = [Boundaries(store, process=i, processes=count, name="run") for i in range(count)]
        self.granted = [[] for _ in range(count)]
        self.passed, self.changed = [0] * count, threading.Condition()
        threads = [threading.Thread(target=self._run, args=(i, last, wishes, ahead)) for i in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)

    def _run(self, i, last, wishes, ahead):
        me = self.processes[i]
        for number in range(1, last + 1):
            for wish in wishes.get((i, number), ()):
                me.wish(wish)
            if granted := me.cross():
                self.granted[i].append((number, granted))
                if "stop" in granted:
                    break
            with self.changed:  # no process is more than `ahead` steps before another: devices need all of them
                self.passed[i] = number
                self.changed.notify_all()
                self.changed.wait_for(lambda number=number: min(self.passed) >= number - ahead, 30)
        with self.changed:
            self.passed[i] = math.inf
            self.changed.notify_all()
        me.close()


@pytest.mark.parametrize("count", [2, 5])
def test_all_stop_at_one_boundary_which_none_has_passed(count):
    play = Play(count, 10**6, {(1, 50): ["stop"]})
    assert len({str(granted) for granted in play.granted}) == 1
    [(number, granted)] = play.granted[0]
    assert granted == {"stop"} and number >= 50


def test_wishes_of_several_processes_are_granted_together_or_one_after_the_other():
    wishes = {(0, 3): ["save"], (1, 4): ["save"], (2, 5): ["late"], (0, 300): ["save"], (2, 900): ["stop"]}
    play = Play(3, 10**6, wishes)
    first, *others = play.granted
    assert others == [first, first]
    assert set().union(*(granted for _, granted in first)) == {"save", "late", "stop"}
    assert [number for number, _ in first] == sorted({number for number, _ in first})


@pytest.mark.parametrize("moment", [18, 20])
def test_a_wish_at_the_end_of_a_run_ends_no_process_early(moment):
    """One process may have passed its last boundary when another hears the notice."""
    for _ in range(20):
        play = Play(2, 20, {(1, moment): ["stop"]}, ahead=math.inf)
        granted = {str(each) for each in play.granted}
        assert len(granted) == 1


def test_one_process_needs_no_store():
    alone = Boundaries()
    assert alone.cross() == frozenset()
    alone.wish("stop")
    assert alone.due() == {"stop"} == alone.cross() and alone.cross() == frozenset()
    alone.close()


def test_a_process_that_never_answers_is_a_lost_one(monkeypatch):
    monkeypatch.setattr(module, "_TIMEOUT_S", 0.1)
    one = Boundaries(Store(), process=0, processes=2, name="run")
    one.wish("stop")
    with pytest.raises(LostPeerError, match=r"within 0\.1 s"):
        while True:
            one.cross()
    one.close()
