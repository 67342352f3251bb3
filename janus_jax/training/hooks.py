"""What happens beside the steps of a run: profile, watch for NaN, log, evaluate, stop early, save, export.

A hook is a small object with the methods of `Hook`. The loop in `run.py` lists the hooks in one place and calls them in
that order; a hook reads and changes the `Run` and knows no other hook.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from janus_jax.checkpoint.run_dir import AnyRunDir
from janus_jax.checkpoint.state import Checkpoints
from janus_jax.config.sections import EvalSection
from janus_jax.data.epoch import Position
from janus_jax.data.loader import LoadedBatch, Loader
from janus_jax.objectives import metric_values
from janus_jax.parallel.processes import memory_for
from janus_jax.storage.bucket import BucketPath
from janus_jax.storage.lock import Lock
from janus_jax.training.export import export_step
from janus_jax.training.finite import NONE_SKIPPED, Skipped
from janus_jax.training.goodput import Goodput
from janus_jax.training.metrics import MetricsLog, better
from janus_jax.training.notices import NOTICE_S, Notices
from janus_jax.training.outputs import Outputs
from janus_jax.training.phases import Phases
from janus_jax.training.reference import Reference
from janus_jax.training.resume import step_meta
from janus_jax.training.setup import Setup
from janus_jax.training.step import TrainState
from janus_jax.training.stopping import Stopping

Due = Callable[[int], bool]
"""Whether something is to happen after a step, which is counted from 1."""


@dataclasses.dataclass
class Run:
    """A run between two steps."""

    setup: Setup
    dir: AnyRunDir
    checkpoints: Checkpoints
    notices: Notices
    reference: Reference
    goodput: Goodput
    phase: Phases
    outputs: Outputs
    metrics: MetricsLog
    print: Callable[[str], None]  # shows a line on the console of the main process
    state: TrainState
    position: Position  # where the next batch begins
    step: int  # finished optimizer steps
    saved_step: int | None  # the last one that was saved, or the one that this process resumed from
    unevaluated: bool  # an evaluation after `step` was cut, by this process or by the one before
    train_record: dict[str, float]  # the last one written
    eval_record: dict[str, float]
    best: dict[str, float]  # the held-out record with the smallest loss, and its step; empty without one
    evaluated_step: int | None = None  # the step that eval_record is of, if this process evaluated
    fills: list[float] = dataclasses.field(default_factory=list)
    tokens_per_s: list[float] = dataclasses.field(default_factory=list)
    export: Path | BucketPath | None = None
    stopping: Stopping | None = None  # with eval.stop_after
    skipped: Skipped = NONE_SKIPPED  # up to the last step that RequireFinite has read

    @property
    def stopped(self) -> bool:
        """Whether the run is to end here, or has ended here, before its last step."""
        return self.stopping is not None and self.stopping.stopped


@dataclasses.dataclass(frozen=True)
class Step:
    """What one optimizer step gave."""

    loaded: LoadedBatch
    scalars: dict[str, jax.Array]  # loss, grad_norm
    totals: Any  # the objective's metrics, each (total, count)
    first: bool  # it was compiled: its time says nothing


class Hook:
    """Does nothing; a hook overrides what it needs."""

    def at_start(self, run: Run) -> None:
        """Before the first step of this process: the run begins (`run.step` is 0) or resumes."""

    def before_step(self, run: Run) -> None:
        """Before the next batch is taken."""

    def after_step(self, run: Run, step: Step) -> None:
        """After step `run.step`; the devices may still be working on it."""

    def at_end(self, run: Run) -> None:
        """After the last step of this process; not called when an error ends the run."""

    def at_stop(self, run: Run, step: Step | None) -> None:
        """When a notice ends the run: after a step, at a boundary inside a hook, or before the first step (None)."""


def every(steps: int | None, last: int) -> Due:
    """Due at multiples of `steps` (None: never) and at the `last` step."""
    return lambda step: step == last or (steps is not None and step % steps == 0)


@dataclasses.dataclass(frozen=True)
class KeepLock(Hook):
    """Ends the run before it writes anything more, if another start has taken its directory over.

    Raises:
        LostLockError: in the process that holds the lock, which is process 0.
    """

    lock: Lock | None  # None: another process holds it for all

    def after_step(self, run: Run, step: Step) -> None:
        self.require()

    def at_stop(self, run: Run, step: Step | None) -> None:
        self.require()

    def at_end(self, run: Run) -> None:
        self.require()

    def require(self) -> None:
        """Raises LostLockError, also where no step is near: in the reference pass and in evaluations."""
        if self.lock is not None:
            self.lock.require()

    def confirm(self) -> None:
        """As `require`, by the word of the file system or bucket at this moment; also in other threads."""
        if self.lock is not None:
            self.lock.confirm()


@dataclasses.dataclass
class Profile(Hook):
    """Writes an xprof trace of the steps `first` to `last`, counted from 1."""

    first: int
    last: int
    active: bool = False

    def before_step(self, run: Run) -> None:
        if not self.active and self.first <= run.step + 1 <= self.last:
            jax.profiler.start_trace(str(run.outputs.local.profile))
            self.active = True

    def after_step(self, run: Run, step: Step) -> None:
        if self.active and run.step >= self.last:
            self.at_end(run)

    def at_end(self, run: Run) -> None:
        if self.active:
            jax.block_until_ready(run.state)
            jax.profiler.stop_trace()
            self.active = False
            run.metrics.restart_clock()

    def at_stop(self, run: Run, step: Step | None) -> None:
        self.at_end(run)


@dataclasses.dataclass(frozen=True)
class LogMetrics(Hook):
    """Writes train records, with tokens/s since the last one."""

    due: Due

    def after_step(self, run: Run, step: Step) -> None:
        if self.due(run.step):
            loader, (totals, scalars) = run.setup.loader, jax.device_get((step.totals, step.scalars))
            run.train_record = {
                **metric_values(totals, run.setup.objective),
                **{name: float(value) for name, value in scalars.items()},
                "learning_rate": run.setup.learning_rate(run.skipped.updates_before(run.step)),
                "epoch": loader.epochs_before(run.position),
                "fill": step.loaded.fill,
                "tokens": step.loaded.tokens,
                "examples": step.loaded.examples,
                **({"skipped": run.skipped.total} if run.skipped.total else {}),
            }
            run.tokens_per_s += run.metrics.train(run.step, run.train_record, timed=not step.first)
            run.goodput.write(at_once=False)
        if step.first:
            jax.block_until_ready(step.scalars)
            run.metrics.restart_clock()


@dataclasses.dataclass(frozen=True)
class Evaluate(Hook):
    """Reads every held-out example once. Totals and counts add up, so batch size and hosts change nothing."""

    due: Due

    def at_start(self, run: Run) -> None:
        if run.unevaluated or (run.step == 0 and run.setup.config.eval.at_start):
            self._evaluate(run)

    def after_step(self, run: Run, step: Step) -> None:
        if self.due(run.step):
            self._evaluate(run)

    def _evaluate(self, run: Run) -> None:
        if run.setup.eval_loader is not None:
            with run.phase("evaluation"):
                self._read(run, run.setup.eval_loader)

    def _read(self, run: Run, loader: Loader) -> None:
        reference = run.reference
        totals: dict[str, np.ndarray] = {}
        run.unevaluated = run.step > 0
        batches = loader.epoch(reference_logps=reference.held_out_logps, wait=run.notices.wait)
        for number, loaded in enumerate(batches):
            run.notices.boundary()
            batch = reference.fill(loaded.batch, held_out=number)
            with memory_for(f"evaluation of {loader.rows} rows at a time", "lower eval.rows"):
                with run.phase("evaluation" if number or run.evaluated_step is not None else "compile"):
                    metrics = run.setup.program.evaluate(run.state.params, batch)
                metrics = jax.device_get(metrics)
            for name, pair in metrics.items():
                totals[name] = totals.get(name, np.zeros(2)) + np.asarray(pair, np.float64)
        used = len(loader.fitted.index)
        record = metric_values(totals, run.setup.objective)
        record |= {"examples": used, "left_out": len(loader.fitted.outcomes) - used}
        run.eval_record, run.evaluated_step, run.unevaluated = record, run.step, False
        run.best = better(run.best, {"step": run.step, **record})
        run.metrics.write("eval", run.step, run.eval_record)
        run.metrics.restart_clock()


@dataclasses.dataclass(frozen=True)
class StopEarly(Hook):
    """Ends the run when a held-out metric no longer improves. Its numbers are global: all processes decide the same."""

    section: EvalSection

    def at_start(self, run: Run) -> None:
        if run.step:
            self._decide(run)

    def after_step(self, run: Run, step: Step) -> None:
        self._decide(run)

    def _decide(self, run: Run) -> None:
        if run.stopping is None or run.evaluated_step != run.step:
            return
        value = run.eval_record[run.stopping.metric]
        run.stopping = run.stopping.evaluated(self.section, run.step, value)


@dataclasses.dataclass
class Save(Hook):
    """Saves checkpoints, in the background; the run ends when the last one is committed.

    After a step that was skipped it waits for one that was not: weights of which nothing finite comes any more would
    push the good ones out.
    """

    due: Due
    last: int  # the last step of this process
    late: bool = False  # a save was due after a step that was skipped
    began: float | None = None  # when the first save began, until it has ended
    timed: bool = False  # the first save has ended

    def at_start(self, run: Run) -> None:
        if run.step and run.evaluated_step == run.step:  # what was cut when this step was saved
            run.checkpoints.replace_meta(run.step, self._meta(run))

    def before_step(self, run: Run) -> None:
        if self.began is not None and not run.checkpoints.saving():
            self._note_time(run)

    def after_step(self, run: Run, step: Step) -> None:
        with run.phase("checkpoint"):
            run.checkpoints.poll()
            self.late = self.late or self.due(run.step) or run.notices.save_due
            if run.stopped or (self.late and (not run.skipped.in_a_row or run.step == self.last)):
                self._save(run)

    def at_end(self, run: Run) -> None:
        self._finish(run)

    def at_stop(self, run: Run, step: Step | None) -> None:
        with run.phase("checkpoint"):
            if step is not None and run.saved_step != run.step:
                self._save(run)
        self._finish(run)

    def _finish(self, run: Run) -> None:
        """Waits for the last save; makes it once more if it fails and `checkpoint.on_error` is `continue`."""
        with run.phase("checkpoint"):
            if not run.checkpoints.settle():
                self._save(run)
            run.checkpoints.wait()
        self._note_time(run)

    def _save(self, run: Run) -> None:
        run.goodput.saving(run.step)
        if not self.timed and self.began is None:
            self.began = time.monotonic()
        run.checkpoints.save(
            run.step,
            params=run.state.params,
            optimizer=run.state.optimizer,
            data=dataclasses.asdict(run.position),
            meta=self._meta(run),
        )
        run.saved_step, self.late = run.step, False
        run.goodput.write()  # the save goes on meanwhile
        run.outputs.soon()
        run.notices.saved()
        run.metrics.restart_clock()

    def _meta(self, run: Run) -> dict[str, Any]:
        evaluation = run.eval_record if run.evaluated_step == run.step else None
        meta = step_meta(run.setup, run.reference, evaluation, run.stopping)
        skipped = {"skipped": dataclasses.asdict(run.skipped)} if run.skipped.total else {}
        return {**meta, "unevaluated": run.unevaluated, **skipped}

    def _note_time(self, run: Run) -> None:
        if self.began is None:
            return
        took, self.began, self.timed = time.monotonic() - self.began, None, True
        if took > NOTICE_S / 2:
            run.print(
                f"note: the first save took {took:.0f} s; a machine that is preempted has {NOTICE_S} s. If a save is "
                "cut off, the checkpoint before it counts"
            )


@dataclasses.dataclass(frozen=True)
class Export(Hook):
    """Writes the Hugging Face directory of a finished run."""

    def at_end(self, run: Run) -> None:
        if run.step == run.setup.total_steps or run.stopped:
            with run.notices.at_once(), run.phase("export"):
                run.export = export_step(run.dir, run.setup, run.step, run.state.params, run.print)
