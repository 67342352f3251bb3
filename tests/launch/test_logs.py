"""What the hosts print, merged from the bucket, or asked from them."""

import argparse

import pytest

from janus_jax.errors import ConfigError
from launch.commands import logs
from launch.errors import CloudError, Kind
from launch.records import Stop, Watcher
from tests.support.launches import FakeSteps, Store, beat, context, run_record

FOLDER = "gs://bkt/launch/demo"


@pytest.fixture
def store() -> Store:
    store = Store()
    put_run(store, run_record())
    return store


def put_run(store, run):
    store.put(f"{FOLDER}/run.json", run.dumps().encode())
    return run


def part(store, place, worker, number, text, run_id="demo-1"):
    store.now += 1
    store.put(f"{FOLDER}/{run_id}/logs/{place}/{worker:02d}-{number:06d}.log", text.encode())


class Shown:
    """Runs `logs` and keeps what it printed. Between two polls one event happens after the other."""

    def __init__(self, store, *words, events=(), steps=None, **settings):
        made = context(store, **settings)
        self.warned: list[str] = []
        made.__dict__["warn"] = self.warned.append
        parser, self.events, self.polls = argparse.ArgumentParser(), list(events), 0
        logs.add(parser)
        arguments = parser.parse_args(words)
        self.code = logs.run(made, arguments, looks=steps or FakeSteps(store), sleep=self._sleep)
        self.lines = "\n".join(made.__dict__["lines"]).splitlines()

    def _sleep(self, seconds):
        self.polls += 1
        assert self.polls < 100, "it never ends"
        if self.events:
            self.events.pop(0)()


def ended(store, code=0, run=None):
    for worker in range(2):
        beat(store, run or run_record(), worker, "ended", code=code, message="the end")


def test_lines_of_all_hosts_carry_their_number(store):
    part(store, "1-1", 0, 1, "a\nb\n")
    part(store, "1-1", 1, 1, "c\n")
    assert Shown(store).lines == ["[worker 00] a", "[worker 00] b", "[worker 01] c"]
    assert Shown(store, "--worker", "1").lines == ["[worker 01] c"]


def test_the_newest_start_and_the_newest_lines_come_first(store):
    part(store, "1-9", 0, 1, "old\n")
    part(store, "2-10", 0, 1, "one\ntwo\n")
    part(store, "2-10", 0, 2, "three\n")
    assert Shown(store, "--lines", "2").lines == ["[worker 00] two", "[worker 00] three"]
    assert Shown(store, "--lines", "all").lines[0] == "[worker 00] one"
    assert Shown(store, "--lines", "all", "--every-start").lines[0] == "[worker 00] old"


def test_following_merges_by_arrival_over_starts_and_ends_with_the_run(store):
    part(store, "1-1", 0, 1, "old\n")
    part(store, "1-2", 0, 1, "a\nhalf a ")
    again = run_record(attempt=2, start=3)
    shown = Shown(
        store,
        "-f",
        events=[
            lambda: [part(store, "1-2", 1, 1, "b\n"), part(store, "1-2", 0, 2, "line\n")],
            lambda: [put_run(store, again), part(store, "2-3", 1, 1, "c\n")],
            lambda: [part(store, "2-3", 0, 1, "last, without an end"), ended(store, run=again)],
        ],
    )
    assert shown.lines == [
        "[worker 00] a",
        "[worker 01] b",
        "[worker 00] half a line",
        "--- attempt 2, start 3 ---",
        "[worker 01] c",
        "[worker 00] last, without an end",
    ]
    assert shown.code == 0 and "ended" in shown.warned[-1]


def test_a_part_that_grows_is_shown_once(store):
    part(store, "1-1", 0, 1, "a\n")
    grown = Shown(store, "-f", events=[lambda: part(store, "1-1", 0, 1, "a\nb\n"), lambda: ended(store)])
    assert grown.lines == ["[worker 00] a", "[worker 00] b"]


def test_the_exit_code_is_the_run_s_unless_a_watcher_goes_on(store):
    ended(store, code=12)
    assert Shown(store, "-f").code == 12
    store.put(f"{FOLDER}/watch.json", Watcher("ann@here", "t").dumps().encode())
    again = run_record(start=2)
    shown = Shown(store, "-f", events=[lambda: None, lambda: [put_run(store, again), ended(store, run=again)]])
    assert shown.code == 0 and shown.polls == 2
    store.put(f"{FOLDER}/watch.json", Watcher("ann@here", "", {"gave_up": "quota"}).dumps().encode())
    put_run(store, run_record(start=3))
    shown = Shown(store, "-f")
    assert shown.code == 16 and "quota" in shown.warned[-1]


def test_a_poll_without_news_is_two_lists_and_no_copy(store):
    for worker in range(64):
        part(store, "1-1", worker, 1, "a\n")
    calls = []

    def count():
        calls.append(list(store.calls))
        store.calls.clear()

    Shown(store, "-f", events=[count, count, count, lambda: ended(store)])
    assert [call.split()[0] for call in calls[2]] == ["entries", "entries"]
    assert sum(call.startswith("fetch") for call in calls[0]) == 1  # all hosts at once


def test_a_bucket_that_does_not_answer_for_a_while_is_asked_again(store):
    def refuse():
        store.refusal = lambda call, url: CloudError(Kind.UNAVAILABLE, url, "503")

    def mend():
        store.refusal = lambda call, url: None
        part(store, "1-1", 0, 1, "a\n")
        ended(store)

    assert Shown(store, "-f", events=[refuse, mend]).lines == ["[worker 00] a"]


def test_following_ends_when_a_quiet_run_is_stopped(store):
    """Its machines are gone, so no host says that it has ended."""
    stop = Stop("demo-1", "ann@here", 0.0).dumps().encode()
    shown = Shown(store, "-f", events=[lambda: None] * 30 + [lambda: store.put(f"{FOLDER}/stop.json", stop)])
    assert shown.code == 0 and "ann@here has stopped the run" in shown.warned[-1] and shown.polls == 31


def test_what_moves_the_cursor_is_not_printed(store):
    part(store, "1-1", 0, 1, "\x1b[31mred\x1b[0m\n10%\r20%\r100%\r\n\x07bell\ttab\n")
    assert Shown(store).lines == ["[worker 00] red", "[worker 00] 100%", "[worker 00] bell\ttab"]


def test_ctrl_c_ends_following_without_a_word(store):
    def interrupt():
        raise KeyboardInterrupt(2)

    shown = Shown(store, "-f", events=[interrupt])
    assert (shown.code, shown.warned, shown.lines) == (130, [], [])


def test_without_logs_it_says_so(store):
    assert "no logs yet" in Shown(store).warned[0]


@pytest.mark.parametrize(
    "words, allowed",
    [
        (["--worker", "99"], "--worker 99: allowed: 0 to 1"),
        (["--worker", "-1"], "--worker -1: allowed: 0 to 1"),
        (["--worker", "99", "--run", "demo-1"], "--worker 99: allowed: 0 to 1"),
        (["--run", "demo-nope"], "--run demo-nope: has no logs; allowed: demo-0, demo-1"),
    ],
)
def test_hosts_and_runs_that_are_not_there_are_refused(store, words, allowed):
    for run_id in ("demo-0", "demo-1"):
        part(store, "1-1", 0, 1, "a\n", run_id=run_id)
    with pytest.raises(ConfigError, match=allowed):
        Shown(store, *words)


def test_without_a_bucket_a_host_that_is_not_there_is_refused(store):
    steps = FakeSteps(store, texts={0: "a\n", 1: "b\n"})
    steps.machines()
    with pytest.raises(ConfigError, match="--worker 9: allowed: 0 to 1"):
        Shown(store, "--worker", "9", steps=steps, bucket=None)


def test_without_a_bucket_the_hosts_are_asked(store):
    steps = FakeSteps(store, texts={0: "a\n", 1: "b\n"})
    steps.machines()

    def more():
        steps.texts[0] += "c\n"
        steps.state = "ended"

    shown = Shown(store, "-f", events=[more], steps=steps, bucket=None)
    assert shown.lines == ["[worker 00] a", "[worker 01] b", "[worker 00] c"]


def test_an_earlier_run_is_shown_by_its_name(store):
    part(store, "1-1", 0, 1, "earlier\n", run_id="demo-0")
    assert Shown(store, "--run", "demo-0").lines == ["[worker 00] earlier"]
