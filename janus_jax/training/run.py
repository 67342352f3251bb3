"""THE loop: every objective trains here."""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from janus_jax.checkpoint.retention import Retention
from janus_jax.checkpoint.run_dir import AnyRunDir
from janus_jax.checkpoint.state import Checkpoints
from janus_jax.checkpoint.state import note as say
from janus_jax.config.rules import no_rate
from janus_jax.config.run import RunConfig, to_yaml
from janus_jax.config.same_run import require_same_config
from janus_jax.data.from_config import fit_counts, fit_lines
from janus_jax.data.loader import LoadedBatch
from janus_jax.errors import ConfigError, Preempted, StorageError, closing
from janus_jax.parallel import processes
from janus_jax.storage.local import near, no_empty_leftovers, write_json, write_whole
from janus_jax.storage.lock import Lock
from janus_jax.storage.staging import naming_urls, occupied, output
from janus_jax.text.served import CONVERSATIONS, write_conversations
from janus_jax.text.tokenizer import save_hf_tokenizer
from janus_jax.training import history, metrics
from janus_jax.training.console import Console, opening
from janus_jax.training.course import without_decay
from janus_jax.training.curves import draw_last
from janus_jax.training.data_notes import data_notes
from janus_jax.training.goodput import Goodput
from janus_jax.training.hooks import (
    Evaluate,
    Export,
    Hook,
    KeepLock,
    LogMetrics,
    Profile,
    Run,
    Save,
    Step,
    StopEarly,
    every,
)
from janus_jax.training.notices import Notices, Stop
from janus_jax.training.outputs import Outputs
from janus_jax.training.phases import Phases
from janus_jax.training.reference import Precomputed, check_stale, open_reference
from janus_jax.training.require_finite import RequireFinite
from janus_jax.training.resume import (
    begin,
    from_a_good_step,
    new_extension,
    newest_checkpoint,
    other_held_out,
    stopping_state,
)
from janus_jax.training.run_directory import held_run_dir
from janus_jax.training.same_inputs import require_same_inputs
from janus_jax.training.same_tokenizer import notes, unused_rows
from janus_jax.training.samples import Sample
from janus_jax.training.setup import Setup, prepare
from janus_jax.training.speed import mfu_per_rate
from janus_jax.training.transfers import WithoutTransfers

_LESS_MEMORY = "set remat=full, more batch.microbatches or a mesh that splits more (janus plan tells what fits)"


@dataclasses.dataclass(frozen=True)
class Summary:
    """How a run ended; also written to RUN/summary.json."""

    run_dir: str
    step: int
    total_steps: int
    ended: str  # finished, interrupted, or why it stopped early
    resumed_from: int | None
    train: dict[str, float]  # the last train record
    evaluation: dict[str, float]  # the last held-out record, empty without evaluation
    examples: int  # of the training split that are read
    overlong: dict[str, int]  # dropped, truncated, zeroed
    left_out: dict[str, int]  # dropped for another reason: equal_pairs, keep_together
    held_out: dict[str, Any]  # examples, overlong and left_out of the held-out split, empty without evaluation
    best: dict[str, float]  # the held-out record with the smallest loss, and its step
    seconds: float
    tokens: int  # slots that held a token in all steps since the run began
    tokens_per_s: float  # median over steps without compilation
    fill: float  # mean share of row slots that hold tokens
    skipped: int  # steps without their update, because loss or gradient was not finite
    failed_saves: int  # checkpoints that could not be written, by this process
    goodput: dict[str, float]  # seconds by phase over all starts, their total, and the number of starts
    export_dir: str | None
    failed_uploads: int  # of metrics and profiles to a bucket; what failed is tried again


@naming_urls()
def train(
    config: RunConfig,
    options: processes.RuntimeOptions | None = None,
    *,
    until_step: int | None = None,
    writers: Sequence[metrics.Writer] | None = None,
    preemptible: bool = True,
) -> Summary:
    """Trains as the config says, from the newest checkpoint of the run directory if it has one.

    Args:
        config: the whole run.
        options: processes and simulated devices.
        until_step: save and stop after this step as if the run had been interrupted there.
        writers: extra receivers of metrics; None shows the run on the console.
        preemptible: SIGTERM, Ctrl-C and notices of the machine end the run where it can be saved, on all processes
            alike. False leaves signals to the caller.
    Raises:
        JanusError: bad input (2), out of memory (11), non-finite loss (12), lost peer (13), storage (14), run
            directory held by another start (15).
        Preempted: a notice ended the run, which can go on (10; after Ctrl-C 130).
    """
    goodput = Goodput()
    processes.start(options or processes.RuntimeOptions())
    minutes = config.checkpoint.every_minutes
    every_s = None if minutes is None else 60 * minutes
    with (
        held_run_dir(config, quiet=writers is not None) as (run_dir, lock),  # outside: it can be interrupted at once
        processes.watching(config.timeouts.bounds(several=bool(processes.peers()))) as progress,
        Notices(listen=preemptible, save_every_s=every_s, guard=KeepLock(lock).require, progress=progress) as notices,
    ):
        try:
            return _train(config, run_dir, lock, notices, Phases(goodput, progress), until_step, writers)
        except Stop as stop:
            raise _preempted(stop, run_dir) from None


@from_a_good_step
def _train(
    config: RunConfig,
    run_dir: AnyRunDir,
    lock: Lock | None,
    notices: Notices,
    phases: Phases,
    until_step: int | None,
    writers: Sequence[metrics.Writer] | None,
) -> Summary:
    started = time.perf_counter()
    past = newest_checkpoint(run_dir)
    with processes.agreement("setup"):
        if past is not None:
            require_same_config(config, past.meta)
        setup = prepare(config, past)
        if setup.total_steps == 1 and not setup.schedule(0):
            raise ConfigError(no_rate(config.schedule.warmup(1)))
        if past is None:  # a run that goes on has other mistakes, to be reported first
            check_stale(setup)
    require_same_inputs(setup)
    notices.boundary()
    drawn: list[Run] = []
    with contextlib.ExitStack() as stack:
        stack.push(phases.goodput.last)
        if config.logging.curves and processes.is_main():
            stack.push(lambda kind, error, trace: draw_last(drawn, error))
        if isinstance(run_dir.checkpoints, Path):
            stack.enter_context(no_empty_leftovers(run_dir.checkpoints))  # weights are read below, and may be bad
        stack.enter_context(processes.memory_for(f"training on {len(jax.devices())} devices", _LESS_MEMORY))
        keep, guard = Retention.of_config(config), KeepLock(lock).confirm
        checkpoints = Checkpoints(run_dir.checkpoints, keep=keep, on_error=config.checkpoint.on_error, guard=guard)
        stack.enter_context(closing(checkpoints, say))
        run, resumed_from = _start(setup, run_dir, checkpoints, notices, phases, writers)
        drawn.append(run)
        stack.enter_context(run.outputs)
        stack.enter_context(closing(run.metrics, say))

        stop = setup.total_steps if until_step is None else min(setup.total_steps, until_step)
        hooks = [KeepLock(lock), *_hooks(config, stop, setup.total_steps)]
        logps, rest = run.reference.train_logps, max(0, stop - run.step)
        batches = setup.loader.batches(run.position, rest, reference_logps=logps, wait=notices.wait)
        stack.enter_context(contextlib.closing(batches))
        phases.goodput.rest = "other"
        with phases("step"):
            _loop(run, hooks, batches, stop)
        return _summarize(run, resumed_from, time.perf_counter() - started)


def _loop(run: Run, hooks: Sequence[Hook], batches: Iterator[LoadedBatch], stop: int) -> None:
    """Trains until step `stop`, an early stop, or a notice (raises Stop)."""
    step, without_transfers = None, WithoutTransfers(say)
    try:
        if stop:
            for hook in hooks:
                hook.at_start(run)
        while run.step < stop and not run.stopped:
            for hook in hooks:
                hook.before_step(run)
            asked = time.perf_counter()
            with run.phase("data_wait"):
                loaded = next(batches)
            run.notices.boundary()
            run.metrics.count(loaded.tokens, waited_s=time.perf_counter() - asked)
            with run.phase("step" if run.fills else "compile"):
                batch = run.reference.fill(loaded.batch)
                run.state, scalars, totals = without_transfers(run.setup.program.train, run.state, batch)
            run.step, run.position = run.step + 1, loaded.next_position
            step = Step(loaded, scalars, totals, first=not run.fills)
            run.fills.append(loaded.fill)
            for hook in hooks:
                hook.after_step(run, step)
        for hook in hooks:
            hook.at_end(run)
    except Stop:
        for hook in hooks:
            hook.at_stop(run, step)
        raise


def _preempted(stop: Stop, run_dir: AnyRunDir) -> Preempted:
    """Says what came, and which step is safe; `run_dir` goes on from there."""
    try:
        steps = run_dir.committed_steps()
        safe = f"step {steps[-1]} is saved" if steps else "no step was made yet"
    except StorageError as error:  # the notice ended the run, not this
        safe = f"its newest step is saved ({error})"
    came = " and ".join(stop.notices)
    code = 128 + signal.SIGINT if stop.by_user else Preempted.exit_code
    return Preempted(near(str(run_dir.path)), f"{safe}; {came} ended the run", exit_code=code)


def _hooks(config: RunConfig, stop: int, total_steps: int) -> list[Hook]:
    """What happens beside the steps, in this order.

    Args:
        stop: the last step of this process.
        total_steps: the last step of the run.
    """
    log = every(config.logging.every_steps, stop)
    evaluate = every(config.eval.every_steps, total_steps)
    save = every(config.checkpoint.every_steps, stop)
    sample = every(config.samples and config.samples.every_steps, total_steps)
    hooks: list[Hook] = [] if config.profile.steps is None else [Profile(*config.profile.steps)]
    hooks += [
        RequireFinite(lambda step: any(due(step) for due in (log, evaluate, save, sample)), config.optimizer),
        LogMetrics(log),
        Evaluate(evaluate),
        StopEarly(config.eval),
        Save(save, stop),
        Sample(sample),
    ]
    return [*hooks, Export()] if config.export.hf else hooks


def _start(
    setup: Setup,
    run_dir: AnyRunDir,
    checkpoints: Checkpoints,
    notices: Notices,
    phases: Phases,
    writers: Sequence[metrics.Writer] | None,
) -> tuple[Run, int | None]:
    """The run at its first step, or at its newest checkpoint, with the number of that step."""
    console = Console() if writers is None and processes.is_main() else None
    show = console.line if console else lambda line: None  # where the numbers go too
    with phases("setup" if setup.past is None else "restore"):
        beginning = begin(setup, checkpoints)  # weights that cannot be read are an error and nothing else
    notices.boundary()
    newest = None if setup.past is None else setup.past.step
    for line in opening(setup, newest) if console else ():
        show(line)
    for role, loader in (("training", setup.loader), ("held-out", setup.eval_loader)):
        for line in fit_lines(role, **fit_counts(loader.fitted)) if loader else ():
            show(line)
    for note in [
        *notes(setup.source, setup.loader.dataset),
        *unused_rows(setup.model, setup.loader.dataset, setup.config.init.from_),
        *data_notes(setup.objective, setup.loader, setup.eval_loader),
    ]:
        show(f"note: {note}")
    if setup.config.schedule.steps is None:  # otherwise whoever read the configuration knew
        for note in setup.config.step_advice(setup.total_steps):
            show(f"note: {note}")
    state = setup.program.abstract_state()
    if console and (space := checkpoints.space_note(state.params, state.optimizer)):
        show(f"note: {space}")
    if extension := new_extension(setup):
        show(f"schedule.extend: {extension}")
        if note := without_decay(setup.config, setup.course, setup.schedule, setup.total_steps):
            show(f"note: {note}")
    stopping = stopping_state(setup)
    finished = beginning.step == setup.total_steps or (stopping is not None and stopping.stopped)
    finished = finished and not beginning.unevaluated
    with processes.agreement("goodput"):
        phases.goodput.open(run_dir, beginning.step, main=processes.is_main(), idle=finished)
    if finished:  # nothing is compared any more
        reference = Precomputed(beginning.reference_step, beginning.reference_weights)
    else:
        with phases("reference"):
            reference = open_reference(
                setup,
                initial=beginning.state.params if beginning.resumed_from is None else None,
                step=beginning.reference_step,
                known=beginning.reference_weights,
                notify=show,
                notices=notices,
            )
    if others := other_held_out(setup):
        show(f"note: {others}")
    outputs = Outputs(run_dir, beginning.step, main=processes.is_main(), notify=show)
    with processes.agreement("writers"):
        best = history.best_record(run_dir, beginning.step) if beginning.step and not others else {}
        # Of a run that was killed after its last checkpoint, its records are all there is to report.
        records = history.last_records(run_dir) if finished else {}
        extra = [console] if console else list(writers or ())
        log = metrics.MetricsLog(
            _writers(setup, run_dir, outputs, extra) if processes.is_main() else [], _mfu_per_rate(setup)
        )
    if console:
        console.begin(setup.total_steps, beginning.step)
    run = Run(
        setup=setup,
        dir=run_dir,
        checkpoints=checkpoints,
        notices=notices,
        reference=reference,
        goodput=phases.goodput,
        phase=phases,
        outputs=outputs,
        metrics=log,
        print=show,
        state=beginning.state,
        position=beginning.position,
        step=beginning.step,
        saved_step=beginning.resumed_from,
        unevaluated=beginning.unevaluated,
        train_record=records.get("train", {}),
        eval_record=records.get("eval", {}),
        stopping=stopping,
        best=best,
        skipped=beginning.skipped,
    )
    return run, beginning.resumed_from


def _writers(
    setup: Setup, run_dir: AnyRunDir, outputs: Outputs, extra: Sequence[metrics.Writer]
) -> list[metrics.Writer]:
    """Writes what a run directory holds from the beginning, and opens the writers of metrics."""
    config = setup.config
    if isinstance(run_dir.path, Path):
        run_dir.path.mkdir(parents=True, exist_ok=True)
    write_whole(run_dir.config, to_yaml(config))
    if occupied(run_dir.tokenizer) is None:
        with output(run_dir.tokenizer, CONVERSATIONS) as directory:
            save_hf_tokenizer(setup.loader.dataset.tokenizer(), directory)
            write_conversations(directory / CONVERSATIONS, setup.loader.dataset.conversations())
    return [*outputs.writers(config), *extra]


def _mfu_per_rate(setup: Setup) -> float | None:
    devices = setup.program.mesh.devices
    return mfu_per_rate(setup.model, setup.loader, devices.flat[0].device_kind, devices.size)


def _summarize(run: Run, resumed_from: int | None, seconds: float) -> Summary:
    held_out = run.setup.eval_loader
    run.metrics.close()
    run.outputs.close()  # so that the summary counts what fails at the end
    run.goodput.write(finished=run.step == run.setup.total_steps or run.stopped)
    summary = Summary(
        run_dir=str(run.dir.path),
        step=run.step,
        total_steps=run.setup.total_steps,
        ended="finished" if run.step == run.setup.total_steps else str(run.stopping) if run.stopped else "interrupted",
        resumed_from=resumed_from,
        train=run.train_record,
        evaluation=run.eval_record,
        **fit_counts(run.setup.loader.fitted),
        held_out={} if held_out is None else fit_counts(held_out.fitted),
        best=run.best,
        seconds=seconds,
        tokens=run.setup.loader.tokens_before(run.position),
        tokens_per_s=float(np.median(run.tokens_per_s)) if run.tokens_per_s else math.nan,
        fill=float(np.mean(run.fills)) if run.fills else math.nan,
        skipped=run.skipped.total,
        failed_saves=run.checkpoints.failed,
        goodput=run.goodput.totals(),
        export_dir=None if run.export is None else str(run.export),
        failed_uploads=run.outputs.failed,
    )
    worked = run.fills or run.evaluated_step is not None
    if processes.is_main() and (worked or not run.dir.summary.exists()):  # a finished run that did nothing: kept
        write_json(run.dir.summary, dataclasses.asdict(summary))
    return summary
