"""Limits of a minute, and pauses, on a clock that the test turns."""

import email.utils
import time

import pytest

from janus_jax.storage import pace
from janus_jax.storage.pace import GaveUpError, Pace, Tries, pause_after


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds
        return False


def times(pace, clock, tokens, count):
    gone = []
    for _ in range(count):
        assert pace.pass_(tokens)
        gone.append(clock.now - 100)
    return gone


@pytest.mark.parametrize(("requests", "tokens"), [(3, None), (None, 35), (5, 35)])
def test_no_minute_has_more_than_allowed(requests, tokens):
    clock = Clock()
    gone = times(Pace(requests, tokens, clock=clock, wait=clock.wait), clock, 10, 9)
    assert gone[:4] == pytest.approx([0, 0, 0, 60]) and gone[-1] == pytest.approx(120)


def test_many_a_minute_are_spread_over_its_seconds():
    clock = Clock()
    gone = times(Pace(1200, None, clock=clock, wait=clock.wait), clock, 10, 61)
    assert gone[19:21] == [0, 1] and gone[59:] == [2, 3]


def test_those_that_line_up_go_out_one_after_another():
    """Callers that came together wait once each, and not all for the same moment."""
    clock, delays = Clock(), []
    pace = Pace(1200, None, clock=clock, wait=lambda seconds: delays.append(seconds))
    assert all(pace.pass_(1) for _ in range(61))
    assert delays == [1] * 20 + [2] * 20 + [3]


def test_a_window_may_be_shorter_than_a_minute():
    clock = Clock()
    pace = Pace(1, None, window_s=0.5, clock=clock, wait=clock.wait)
    assert times(pace, clock, 1, 4) == pytest.approx([0, 0.5, 1, 1.5], abs=0.01)


def test_a_request_that_is_larger_than_the_limit_goes_out_alone():
    clock = Clock()
    assert times(Pace(None, 5, clock=clock, wait=clock.wait), clock, 10, 3) == pytest.approx([0, 60, 120])


def test_a_pause_holds_everybody_and_waits_can_be_given_up():
    clock = Clock()
    pace = Pace(None, None, clock=clock, wait=clock.wait)
    pace.pause(7)
    pace.pause(3)
    assert times(pace, clock, 1, 2) == [7, 7]
    pace = Pace(1, None, clock=clock, wait=lambda seconds: True)
    assert pace.pass_(1) and not pace.pass_(1)


def test_what_is_too_much_counts_as_a_failure_only_if_nobody_is_answered(monkeypatch):
    monkeypatch.setattr(pace, "pause_after", lambda failures, after: failures)
    pauses = []
    tries = Tries(Pace(None, None, wait=lambda seconds: False), 3, wait=lambda seconds: pauses.append(seconds))
    failures = []
    for number, one in enumerate(tries.of(1)):
        failures.append(one.failures)
        if number < 4:
            tries.note_answer()
            one.status = 429
        else:
            one.status = 500
    assert failures == [0] * 5 + [1, 2] and pauses == [1] * 5 + [2]  # no pause after the last
    stopped = Tries(Pace(None, None, wait=lambda seconds: False), 3, wait=lambda seconds: True)
    with pytest.raises(GaveUpError):
        list(stopped.of(1))


def test_pauses_are_as_long_as_asked_for_or_grow():
    assert pause_after(1, "3.5") == 3.5 and pause_after(1, "-1") == 0 and pause_after(9, "1e9") == 900
    later = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert 90 < pause_after(1, later) <= 100
    for failures, middle in ((1, 1), (3, 4), (20, 60)):
        for header in (None, "soon", "nan", "Mon, 01 Jan 99999999999999 00:00:00 GMT"):
            assert 0.75 * middle <= pause_after(failures, header) <= 1.25 * middle
