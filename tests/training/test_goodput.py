"""Where the seconds of a run go: every moment once, over all starts."""

import contextlib
import itertools
import json
import shutil
import time

import pytest

from janus_jax.checkpoint.run_dir import RunDir
from janus_jax.errors import LostLockError, StorageError
from janus_jax.storage.bucket import RETRY_S
from janus_jax.storage.local import place
from janus_jax.training import goodput as goodput_module
from janus_jax.training.console import closing
from janus_jax.training.goodput import PHASES, Goodput
from janus_jax.training.hooks import LogMetrics
from janus_jax.training.run import train
from tests.support.faulty_bucket import refusing
from tests.support.run_configs import ONE_LAYER, SIX_STEPS, run_config
from tests.support.runs import ended
from tests.support.training_examples import random_examples, write_dataset


class Clock:
    """Seconds that pass when the test says so; of the process and of the world."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds

    def start(self, run, step, *, idle=False):
        goodput = Goodput(clock=self, now=self)
        goodput.open(RunDir(run), step, main=True, idle=idle)
        return goodput

    def work(self, goodput, seconds, name="step"):
        with goodput.phase(name):
            self.seconds += seconds


@pytest.fixture
def clock():
    return Clock()


def seconds(goodput):
    return {name: spent for name, spent in goodput.totals().items() if spent and name not in ("total", "starts")}


def test_a_moment_belongs_to_the_innermost_phase(clock, tmp_path):
    goodput = clock.start(tmp_path, 0)
    clock.seconds += 1
    with goodput.phase("step"):
        clock.seconds += 2
        with goodput.phase("checkpoint"):
            clock.seconds += 4
            with pytest.raises(KeyError), goodput.phase("export"):
                clock.seconds += 8
                raise KeyError
        clock.seconds += 16
    goodput.rest = "other"
    clock.seconds += 32
    assert seconds(goodput) == {"setup": 1, "step": 18, "checkpoint": 4, "export": 8, "other": 32}
    assert goodput.totals()["total"] == clock.seconds


def test_what_later_starts_make_again_is_lost(clock, tmp_path):
    """Kills after steps 2.5, 4 (nothing saved since 2) and 6; the file is what a killed process has left."""
    first = clock.start(tmp_path, 0)
    clock.work(first, 20)
    first.saving(2)
    first.write()
    clock.work(first, 5)
    first.write()
    clock.seconds += 100
    second = clock.start(tmp_path, 2)
    assert seconds(second) == {"step": 20, "lost_work": 5, "restart": 100}
    clock.work(second, 40)
    second.write()
    clock.seconds += 1000
    third = clock.start(tmp_path, 2)
    assert seconds(third) == {"step": 20, "lost_work": 45, "restart": 1100}
    clock.work(third, 40)
    third.saving(6)
    third.write()
    fourth = clock.start(tmp_path, 6)
    assert seconds(fourth) == {"step": 60, "lost_work": 45, "restart": 1100}
    fourth.write()
    again = clock.start(tmp_path, 2)  # step 6 was damaged
    assert seconds(again) == {"step": 20, "lost_work": 85, "restart": 1100}
    assert (again.totals()["total"], again.totals()["starts"]) == (clock.seconds, 5)
    assert seconds(clock.start(tmp_path, 0)) == {"lost_work": 105, "restart": 1100}


def test_the_time_after_a_finished_run_belongs_to_nobody(clock, tmp_path):
    goodput = clock.start(tmp_path, 0)
    clock.work(goodput, 3)
    goodput.saving(9)
    goodput.write(finished=True)
    clock.seconds += 10**6
    before = (tmp_path / "goodput.json").read_text()
    idle = clock.start(tmp_path, 9, idle=True)
    idle.write()
    clock.seconds += 7
    assert (seconds(idle), idle.totals()["starts"]) == ({"step": 3}, 1)
    assert (tmp_path / "goodput.json").read_text() == before
    assert seconds(clock.start(tmp_path, 9)) == {"step": 3}  # extended


def test_the_file_stays_small_and_is_written_at_times(clock, tmp_path):
    for _ in range(30):
        goodput = clock.start(tmp_path, 0)
        for step in range(1, 100):
            clock.work(goodput, 1)
            goodput.saving(step)
        goodput.write()
    totals = goodput.totals()
    assert totals["starts"] == 30 and totals["total"] == clock.seconds == 30 * 99
    size = (tmp_path / "goodput.json").stat().st_size
    assert size < 40_000
    clock.seconds += 1
    goodput.write(at_once=False)
    assert json.loads((tmp_path / "goodput.json").read_text())["starts"][-1]["ended"] == clock.seconds - 1
    clock.seconds += 1
    goodput.write(at_once=False)
    assert json.loads((tmp_path / "goodput.json").read_text())["starts"][-1]["ended"] == clock.seconds


def test_a_bucket_that_does_not_answer_is_asked_less_and_less(clock, tmp_path, monkeypatch):
    """Each attempt takes 60 s, in which nothing is trained."""
    attempts = []

    def refused(path, value):
        attempts.append(clock.seconds)
        clock.seconds += 60
        if len(attempts) < 6:
            raise StorageError(path, "cannot be written")

    goodput = clock.start(tmp_path, 0)
    monkeypatch.setattr(goodput_module, "write_json", refused)
    while len(attempts) < 8:
        clock.seconds += 20
        goodput.write(at_once=False)
    pauses = [later - before - 60 for before, later in itertools.pairwise(attempts)]
    assert pauses == [60, 120, 240, 480, 960, 20, 20]


def test_other_hosts_clocks_and_broken_files_do_no_harm(clock, tmp_path):
    clock.seconds = 1000
    clock.start(tmp_path, 0)
    clock.seconds = 10  # another host, whose clock is behind
    assert seconds(clock.start(tmp_path, 0)) == {}
    for text in ("", "{", "[]", '{"starts": [{}]}', '{"starts": 3}'):
        (tmp_path / "goodput.json").write_text(text)
        assert clock.start(tmp_path, 0).totals()["starts"] == 1


def test_a_start_whose_directory_was_taken_over_writes_nothing_more(clock, tmp_path):
    goodput = clock.start(tmp_path, 0)
    before = (tmp_path / "goodput.json").read_text()
    clock.seconds += 5
    goodput.last(LostLockError, LostLockError("taken"), None)
    assert (tmp_path / "goodput.json").read_text() == before
    goodput.last(None, None, None)
    assert (tmp_path / "goodput.json").read_text() != before


def test_a_bucket_that_refuses_the_account_does_not_hold_the_run_up(clock, bucket, proxy, monkeypatch):
    monkeypatch.setattr("janus_jax.training.goodput._BRIEF_S", 0.3)
    goodput = clock.start(place(f"{bucket}/run"), 0)
    proxy.refusal, began = refusing(503, writes=False), time.monotonic()
    goodput.write()
    assert time.monotonic() - began < RETRY_S / 2
    proxy.refusal = refusing(503, "nothing")
    goodput.write(finished=True)
    assert json.loads((place(f"{bucket}/run") / "goodput.json").read_text())["starts"][-1]["finished"]


def test_the_end_shows_a_short_table():
    spent = dict.fromkeys(PHASES, 0.0) | {"step": 700.0, "compile": 200.0, "data_wait": 95.0, "other": 5.0}
    lines = closing(ended(goodput={**spent, "total": 1000.0, "starts": 2}), "lm")
    at = lines.index("time: 16 min 40 s in 2 starts")
    assert [" ".join(line.split()) for line in lines[at + 1 : at + 5]] == [
        "step 11 min 40 s 70%",
        "compile 3 min 20 s 20%",
        "data wait 1 min 35 s 10%",
        "less than 1 % each 5 s 0%",
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    splits = {name: random_examples(n, pairs=True, seed=n) for name, n in (("train", 40), ("validation", 9))}
    write_dataset(root / "dpo", splits, kind="dpo")
    return root


@pytest.mark.usefixtures("programs")
def test_a_run_accounts_for_all_its_time(data, tmp_path, monkeypatch):
    """A start is killed after step 3, of which step 2 was saved; the next one finishes. test_samples.py has samples."""

    def config(run):
        rest = {"checkpoint": {"every_steps": 2}, "eval": {"every_steps": 2}, "export": {"hf": True}}
        return run_config(data, run, "dpo", model=ONE_LAYER, schedule=SIX_STEPS, **rest)

    class Killed(BaseException):
        pass

    log, logged = LogMetrics.after_step, []

    def noting(self, run, step):
        log(self, run, step)
        logged.append(time.perf_counter())

    def killed(self, run, step):
        noting(self, run, step)
        if run.step == 3:
            run.goodput.write()
            shutil.copy(run.dir.goodput, tmp_path / "left.json")
            raise Killed

    whole = inside = 0.0
    for number, after_step in enumerate((killed, noting)):
        monkeypatch.setattr(LogMetrics, "after_step", after_step)
        began = time.perf_counter()
        with pytest.raises(Killed) if number == 0 else contextlib.nullcontext():
            summary = train(config(tmp_path / "run"), writers=())
        whole += time.perf_counter() - began
        inside += logged[-1] - logged.pop(0)
        logged.clear()
        if number == 0:
            shutil.copy(tmp_path / "left.json", tmp_path / "run/goodput.json")
    spent = summary.goodput
    assert json.loads((tmp_path / "run/summary.json").read_text())["goodput"] == spent
    assert {name for name in PHASES if spent[name] > 0} == {*PHASES} - {"samples"}
    assert abs(sum(spent[name] for name in PHASES) - spent["total"]) < 1e-6 and spent["starts"] == 2
    assert 0 < inside < spent["total"] < whole  # of both starts, and no moment twice
    left = json.loads((tmp_path / "left.json").read_text())["starts"][0]
    assert 0 < spent["lost_work"] < left["seconds"]["step"]
    kept = (tmp_path / "run/goodput.json").read_text()
    train(config(tmp_path / "run"), writers=())  # nothing is left to do
    assert (tmp_path / "run/goodput.json").read_text() == kept
