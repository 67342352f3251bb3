"""A run that is stopped at any moment, and goes on as if it had not been.

At all moments in turn: `pytest -n 0 -m slow tests/training/test_notices.py`.
"""

import concurrent.futures
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from janus_jax.checkpoint import conversion_report
from janus_jax.checkpoint.run_dir import RunDir
from janus_jax.checkpoint.state import Checkpoints
from janus_jax.errors import NonFiniteError, Preempted
from janus_jax.training import export, hooks
from janus_jax.training import run as run_module
from janus_jax.training.notices import Notices, Stop
from janus_jax.training.require_finite import RequireFinite
from janus_jax.training.run import train
from tests.support import processes
from tests.support.run_configs import ONE_LAYER, run_config
from tests.support.runs import assert_equal_trees, final_params, metric_lines
from tests.support.training_examples import random_examples, write_dataset

STEPS = 6


@pytest.fixture(autouse=True)
def heard():
    """SIGHUP is heard, also where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def tell(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for kind in ("dpo", "rm"):
        splits = {name: random_examples(n, pairs=True, seed=n) for name, n in (("train", 40), ("validation", 18))}
        write_dataset(root / kind, splits, kind=kind)
    return root


def config(data, run, kind="dpo", **changes):
    settings = {
        "model": ONE_LAYER,
        "schedule": {"epochs": None, "steps": STEPS},
        "eval": {"every_steps": 2, "at_start": True, "stop_after": 9},
        "checkpoint": {"every_steps": 4},
        "export": {"hf": True, "dtype": "float32"},
    }
    return run_config(data, run, kind, **{**settings, **changes})


def at_call(owner, name, number):
    """(owner, name, what to put there): SIGTERM comes when `owner.name` is called for the `number`th time."""
    original, calls = getattr(owner, name), iter(range(1, 10**6))

    def patched(*args, **kwargs):
        if next(calls) == number:
            tell()
        return original(*args, **kwargs)

    return owner, name, patched


def stopped(config, place):
    """Trains until the signal at `place`; returns what the run says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*place)
        with pytest.raises(Preempted) as stop:
            train(config, writers=())
    assert stop.value.exit_code == 10
    return str(stop.value)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory, programs):
    run = tmp_path_factory.mktemp("whole") / "run"
    return run, train(config(data, run), writers=())


MOMENTS = {
    "the data are opened": (None, (run_module, "prepare", 1)),
    "weights are read": (None, (run_module, "begin", 1)),
    "the reference is scored": (None, (Notices, "boundary", 4)),
    "evaluation at the start": (None, (hooks.Evaluate, "_evaluate", 1)),
    "a step": (1, (hooks.LogMetrics, "after_step", 1)),
    "evaluation of step 2": (2, (hooks.Evaluate, "_evaluate", 1)),
    "evaluation of step 2 once more": (2, (hooks.Evaluate, "_evaluate", 1)),
    "save of step 4": (4, (Checkpoints, "save", 1)),
    "restore": (4, (Checkpoints, "restore", 1)),
    "evaluation of the last step": (6, (hooks.Evaluate, "_evaluate", 1)),
    "wait for the last save": (6, (Checkpoints, "wait", 1)),
    "export": (6, (export, "save_hf", 1)),
    "verification": (6, (conversion_report.Report, "finish", 1)),
}
SOME = ("the reference is scored", "a step", "evaluation of step 2", "save of step 4", "verification")


@pytest.fixture(
    scope="module",
    params=[SOME, pytest.param((*MOMENTS,), marks=pytest.mark.slow)],
    ids=["some moments", "all moments"],
)
def chain(request, data, tmp_path_factory, programs):
    """The same run, stopped at each moment in turn; what it said then, and what it left."""
    run = tmp_path_factory.mktemp("chain") / "run"
    text = {}
    for name in request.param:
        text[name] = (
            stopped(config(data, run), at_call(*MOMENTS[name][1])),
            RunDir(run).committed_steps()[-1:],
            (run / "exports").exists(),
        )
    return run, text, train(config(data, run), writers=())


def test_sigterm_at_any_moment_saves_the_newest_step(chain):
    run, every, _ = chain
    for moment, (text, saved, exported) in every.items():
        step = MOMENTS[moment][0]
        assert saved == ([] if step is None else [step]) and not exported, moment
        assert text == f"{run}: " + (
            f"step {step} is saved; SIGTERM ended the run" if step else "no step was made yet; SIGTERM ended the run"
        )


def test_a_run_that_was_stopped_at_every_moment_ends_as_if_it_had_never_been(chain, whole):
    (run, _, summary), (other, expected) = chain, whole
    assert_equal_trees(final_params(run), final_params(other))
    assert [without_times(line) for line in metric_lines(run)] == [without_times(line) for line in metric_lines(other)]
    assert meta(run, STEPS) == meta(other, STEPS)
    for name in ("train", "eval"):
        ours, theirs = (np.load(place / "reference" / f"{name}.npz")["logps"] for place in (run, other))
        np.testing.assert_array_equal(ours, theirs)
    ours, theirs = ((place / "exports" / str(STEPS) / "model.safetensors").read_bytes() for place in (run, other))
    assert ours == theirs
    assert (summary.ended, summary.best, summary.tokens) == (expected.ended, expected.best, expected.tokens)


def without_times(line):
    return {key: value for key, value in line.items() if key not in ("tokens_per_s", "data_wait")}


def meta(run, step):
    """What a step says of its run, without the directory."""
    values = json.loads((run / "checkpoints" / str(step) / "meta" / "metadata").read_text())
    return {key: value for key, value in values.items() if key != "config"}


@pytest.mark.usefixtures("programs")
def test_a_last_evaluation_that_was_cut_gives_the_checkpoint_its_statistics_when_it_is_made_again(data, tmp_path):
    """Of a reward model that stops early, so that the evaluation also decides that this is the end."""
    changes = {"eval": {"every_steps": 2, "stop_after": 1, "stop_min_change": 9.0}, "export": {"hf": False}}
    runs = tmp_path / "cut", tmp_path / "whole"
    stopped(config(data, runs[0], "rm", **changes), at_call(hooks.Evaluate, "_evaluate", 3))  # start, 2, 4
    assert meta(runs[0], 4)["unevaluated"] and "reward" not in json.dumps(meta(runs[0], 4)["stopping"])
    summaries = [train(config(data, run, "rm", **changes), writers=()) for run in runs]
    assert [summary.step for summary in summaries] == [4, 4] and summaries[0].ended == summaries[1].ended != "finished"
    assert meta(runs[0], 4) == meta(runs[1], 4)
    assert meta(runs[0], 4)["facts"]["reward"] and not meta(runs[0], 4)["unevaluated"]
    assert (
        train(config(data, runs[0], "rm", **changes), writers=()).ended == summaries[1].ended
    )  # nothing is left to do


@pytest.mark.usefixtures("programs")
def test_a_step_that_gave_nan_is_not_saved(data, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "RequireFinite", lambda due, section: RequireFinite(lambda _: False, section))
    after_step = hooks.Save.after_step

    def broken(self, run, step):
        after_step(self, run, step)
        step.scalars["loss"] = np.float32("nan")
        tell()

    monkeypatch.setattr(hooks.Save, "after_step", broken)
    with pytest.raises(NonFiniteError, match="step 1: loss is nan"):
        train(config(data, tmp_path, "rm", eval={"at_start": False}), writers=())
    assert RunDir(tmp_path).committed_steps() == []


@pytest.mark.usefixtures("programs")
def test_checkpoints_come_after_minutes_too(data, tmp_path):
    checkpoint = {"every_steps": None, "every_minutes": 1e-9, "keep": 99}
    train(config(data, tmp_path, "rm", checkpoint=checkpoint, export={"hf": False}), writers=())
    assert RunDir(tmp_path).committed_steps() == [*range(1, STEPS + 1)]


def test_a_long_first_save_is_noted(monkeypatch):
    lines = []
    run = SimpleNamespace(print=lines.append)
    for seconds in (2, 20):
        hooks.Save(hooks.every(1, 1), 1, began=time.monotonic() - seconds)._note_time(run)
    assert lines == [
        "note: the first save took 20 s; a machine that is preempted has 30 s. If a save is cut off, the checkpoint "
        "before it counts"
    ]


@pytest.fixture
def heard_signals():
    """The tests may run under nohup or in the background, which ignore signals, or after a command that ran here."""
    defaults = {
        signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL
    }  # fmt: skip
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("numbers", "by_user"), [((signal.SIGINT,), True), ((signal.SIGTERM,), False), ((signal.SIGHUP,), False)]
)
def test_a_run_that_waits_for_data_hears_a_signal(numbers, by_user, heard_signals):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Notices() as notices:
        notices.boundary()
        threading.Timer(0.1, tell, numbers).start()
        with pytest.raises(Stop) as stop:
            notices.wait(concurrent.futures.Future())
    assert stop.value.by_user == by_user
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert signal.set_wakeup_fd(-1) == -1


def test_a_caller_may_keep_the_signals(heard_signals):
    with Notices(listen=False) as notices, pytest.raises(KeyboardInterrupt):
        tell(signal.SIGINT)
        time.sleep(5)
    notices.boundary()


@pytest.mark.parametrize(("second", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129)])
def test_a_second_signal_ends_a_process_that_computes_in_c(second, code):
    """Python calls no handler there. The same signal twice at the same moment is one."""
    script = (
        "import hashlib, os, signal, threading, time\n"
        "from janus_jax.training.notices import Notices\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # the tests may run under nohup, or in the background
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def send():\n"
        "    for number, pause in ((signal.SIGTERM, 0), (signal.SIGTERM, .5), (signal.SECOND, 9)):\n"
        "        os.kill(os.getpid(), number)\n"
        "        time.sleep(pause)\n"
        "        print('alive', flush=True)\n"
        "with Notices():\n"
        "    threading.Timer(.1, send).start()\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)\n"
    ).replace("SECOND", second)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=processes.environment())
    assert (done.returncode, done.stdout) == (code, "alive\nalive\n")
    assert done.stderr == "SIGTERM: the run will save and stop; a second one ends it at once\n"


class Metadata(http.server.BaseHTTPRequestHandler):
    """The metadata server of a machine of Google's."""

    values: dict[str, str]
    asked: list[str]
    changed: threading.Event

    def do_GET(self):
        entry, _, query = self.path.removeprefix("/computeMetadata/v1/instance/").partition("?")
        assert self.headers["Metadata-Flavor"] == "Google"
        self.asked.append(self.path)
        if "wait_for_change=true" in query and "last_etag=e1" in query:
            self.changed.wait(10)
        self.send_response(200)
        self.send_header("ETag", "e2" if self.changed.is_set() else "e1")
        self.end_headers()
        self.wfile.write(self.values[entry].encode())

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(
    ("entry", "value", "notice"),
    [
        ("preempted", "TRUE", "preemption"),
        ("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE", "maintenance-event TERMINATE_ON_HOST_MAINTENANCE"),
        ("maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE", None),
    ],
)
def test_the_metadata_server_announces_the_end(monkeypatch, entry, value, notice):
    values, asked, changed = {"preempted": "FALSE", "maintenance-event": "NONE"}, [], threading.Event()
    handler = type("Handler", (Metadata,), {"values": values, "asked": asked, "changed": changed})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
    with Notices() as notices:
        until(lambda: sum("wait_for_change" in path for path in asked) == 2)
        notices.boundary()
        values[entry] = value
        changed.set()
        if notice is None:
            until(lambda: sum("last_etag=e2" in path for path in asked) >= 2)
            notices.boundary()
        else:
            with pytest.raises(Stop) as stop:
                until(notices.boundary)
            assert stop.value.notices == (notice,) and not stop.value.by_user
    server.shutdown()


def until(true, seconds=10):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_without_a_metadata_server_nothing_is_asked(monkeypatch):
    monkeypatch.delenv("GCE_METADATA_HOST", raising=False)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    before = threading.active_count()
    with Notices():
        assert threading.active_count() == before + 1  # the one that reads signals
