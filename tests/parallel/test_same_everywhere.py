"""Processes compare facts through a store: which differ, and who is named."""

import itertools
import threading
import types

import jax
import pytest

from janus_jax.errors import ConfigError, LostPeerError
from janus_jax.parallel import same_everywhere
from janus_jax.parallel.same_everywhere import differences, require_same, versions


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ([{"a": 1}, {"a": 1}], []),
        ([{"a": 1.5}, {"a": "x"}], ["a is x in process 1 (host h1); process 0 has 1.5"]),
        ([{"a": None}, {"a": 2}, {"a": 2}], ["a is null in process 0 (host h0); processes 1-2 have 2"]),
        ([{"a": 1}, {}, {"a": 1}], ["a is null in process 1 (host h1); processes 0, 2 have 1"]),
        (
            [{"a": 1, "b": 1}] * 3 + [{"a": 2, "b": 1}] * 2 + [{"a": 1, "b": 3}],
            ["a is 2 in processes 3-4; processes 0-2, 5 have 1", "b is 3 in process 5 (host h5); processes 0-4 have 1"],
        ),
    ],
)
def test_those_that_differ_from_most_are_named(facts, expected):
    assert differences([f"h{number}" for number in range(9)], facts) == expected


def test_a_message_stays_short():
    texts = differences(["a", "b"], [{str(number): number for number in range(99)}, {}])
    assert len(texts) == 6 and texts[-1] == "and 94 more differences"


class Store:
    """As the coordinator's, in one process."""

    def __init__(self):
        self._values, self._changed = {}, threading.Condition()

    def key_value_set(self, key, value):
        with self._changed:
            assert key not in self._values
            self._values[key] = value
            self._changed.notify_all()

    def blocking_key_value_get(self, key, timeout_ms):
        with self._changed:
            if not self._changed.wait_for(lambda: key in self._values, timeout_ms / 1000):
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: nobody came")
            return self._values[key]


@pytest.fixture
def compare(monkeypatch):
    """Calls require_same with the facts of each process in a thread; returns what each raised."""
    own, store, calls = threading.local(), Store(), itertools.count()
    monkeypatch.setattr(same_everywhere, "_state", lambda: own.state)

    def run(*facts, count=None):
        raised = [None] * len(facts)

        def process(number):
            own.state = types.SimpleNamespace(client=store, process_id=number, num_processes=count or len(facts))
            try:
                require_same("facts", facts[number])
            except (ConfigError, LostPeerError) as error:
                raised[number] = error

        monkeypatch.setattr(same_everywhere, "_rounds", itertools.repeat(f"call {next(calls)}"))
        threads = [threading.Thread(target=process, args=(number,)) for number in range(len(facts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return raised

    return run


def test_all_processes_end_alike_or_none(compare):
    assert compare({"a": 1}, {"a": 1}, {"a": 1}) == [None] * 3
    message = "processes of one run have different facts: a is 2 in process 1"
    assert all(type(error) is ConfigError and message in str(error) for error in compare({"a": 1}, {"a": 2}, {"a": 1}))


def test_a_process_that_does_not_come_is_lost(compare, monkeypatch):
    monkeypatch.setattr(same_everywhere, "TIMEOUT_S", 0.1)
    assert all(type(error) is LostPeerError for error in compare({"a": 1}, {"a": 1}, count=3))


def test_versions_say_what_computes(monkeypatch):
    before = versions()
    assert before["jax"] == jax.__version__ and before["python"].startswith("3.") and "libtpu" in before
    monkeypatch.setattr(same_everywhere, "_code", lambda: "another")
    assert [key for key, value in versions().items() if value != before[key]] == ["janus_jax"]
