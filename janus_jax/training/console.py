"""What a person sees of a run: what it is about to do, how it goes, how it ended. No line is longer than `WIDTH`."""

import math
import os
import shlex
import sys
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, TextIO

import jax

from janus_jax.checkpoint.retention import Retention
from janus_jax.checkpoint.run_dir import RunDir
from janus_jax.data.epoch import START
from janus_jax.errors import counted
from janus_jax.model.mistral import param_specs
from janus_jax.storage.bucket import is_url
from janus_jax.storage.local import near, place
from janus_jax.training.goodput import duration
from janus_jax.training.setup import Setup

if TYPE_CHECKING:
    import rich.console
    from rich.progress import Progress, TaskID

    from janus_jax.training.metrics import Values
    from janus_jax.training.run import Summary

WIDTH = 100
"""Columns of a line, notes included. Only a quoted word of a command may be longer."""

_INDENT = 11
"""Columns of a heading: `attention: `."""

_SHOWN = {
    "train": (
        "loss",
        "rewards/accuracies",
        "rewards/ties",
        "grad_norm",
        "skipped",
        "learning_rate",
        "tokens_per_s",
        "epoch",
        "mfu",
    ),
    "eval": ("loss", "rewards/accuracies", "rewards/ties", "rewards/margins", "examples", "left_out"),
    "samples": ("answers", "ended", "tokens", "log_prob"),
    "bar": ("loss", "skipped", "rewards/accuracies", "rewards/ties", "tokens_per_s", "mfu", "data_wait", "epoch"),
}
"""The metrics of a line, as far as they fit; all of them are in metrics.jsonl."""
_UNLESS_ZERO = ("rewards/ties", "left_out", "skipped")
_NAMES = {
    "rewards/accuracies": "acc",
    "rewards/ties": "ties",
    "rewards/margins": "margin",
    "grad_norm": "grad",
    "learning_rate": "rate",
    "tokens_per_s": "tok/s",
    "mfu": "MFU",
    "data_wait": "wait",
    "examples": "n",
    "left_out": "left out",
}
_FORMS = {
    "rewards/accuracies": "{:.2f}",
    "rewards/ties": "{:.2f}",
    "tokens_per_s": "{:,.0f}",
    "mfu": "{:.2f}",
    "data_wait": "{:.0%}",
    "epoch": "{:.2f}",
    "examples": "{:.0f}",
    "answers": "{:.0f}",
    "ended": "{:.0%}",
    "tokens": "{:,.1f}",
    "left_out": "{:.0f}",
    "skipped": "{:.0f}",
}


class Console:
    """Shows a run on stdout: a bar on a terminal, elsewhere a line for each record."""

    def __init__(self, file: TextIO | None = None):
        self._file = file or sys.stdout
        self._total = 0
        self._rich: rich.console.Console | None = None
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if self._file.isatty() and os.environ.get("TERM") != "dumb":
            from rich.console import Console as RichConsole

            self._rich = RichConsole(file=self._file, highlight=False, markup=False, emoji=False)

    def begin(self, total: int, done: int) -> None:
        """Before the first step of this process, after `done` of `total` steps."""
        self._total = total
        if self._rich is None or done >= total:
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("train"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[numbers]}", markup=False),
            console=self._rich,
            refresh_per_second=2,
            speed_estimate_period=3600,  # seconds: a step of a large model may take minutes
        )
        self._task = self._bar.add_task("train", total=total, completed=done, numbers="compiling")
        self._bar.start()

    def line(self, text: str) -> None:
        """Shows a line, above the bar if there is one."""
        for part in wrapped(text):
            if self._rich is not None:
                self._rich.print(part, soft_wrap=True)
            else:
                print(part, file=self._file, flush=True)

    def write(self, kind: str, step: int, values: "Values") -> None:
        """A record; a `Writer`."""
        if self._bar is not None and self._task is not None and kind == "train":
            self._bar.update(self._task, completed=step, numbers=_numbers("bar", values, WIDTH))
        else:
            self.line(record_line(kind, step, self._total, values))

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def record_line(kind: str, step: int, total: int, values: "Values") -> str:
    """A record in one line of at most `WIDTH` columns."""
    start = f"{kind:5s} {step:>{len(str(total))}d}/{total}  "
    return start + _numbers(kind, values, WIDTH - len(start))


def _numbers(kind: str, values: "Values", width: int) -> str:
    text = ""
    for name in _SHOWN[kind]:
        if name in values and (values[name] or name not in _UNLESS_ZERO):
            digits = 2 if name == "learning_rate" else 4
            value = _FORMS[name].format(values[name]) if name in _FORMS else _short(values[name], digits)
            part = f"{'  ' if text else ''}{_NAMES.get(name, name)} {value}"
            text += part if len(text) + len(part) <= width else ""
    return text


def _short(value: float, digits: int) -> str:
    if (1e-3 <= abs(value) < 1e4 and digits > 2) or not value or not math.isfinite(value):
        return f"{value:.{digits}g}"
    return f"{value:.1e}"


def wrapped(text: str, indent: int = 2) -> list[str]:
    """Lines of at most `WIDTH` columns; further ones are indented. A longer word, such as a path, is broken."""
    return textwrap.wrap(text, WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False) or [""]


def command(words: Iterable[str]) -> list[str]:
    """A shell command in lines of at most `WIDTH` columns, to be copied as it is: a backslash joins them again."""
    lines, room = [" "], WIDTH - 2
    for word in map(shlex.quote, words):
        if lines[-1].strip() and len(lines[-1]) + 1 + len(word) > room:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {word}"
        while len(lines[-1]) > room and "'" not in lines[-1]:  # in quotes a backslash is only itself
            lines[-1:] = [lines[-1][:room] + "\\", lines[-1][room:]]
    return lines


def _headed(heading: str, text: str) -> list[str]:
    lines = textwrap.wrap(text, WIDTH - _INDENT, break_on_hyphens=False) or [""]
    starts = [f"{heading + ':':<{_INDENT}}"] + [" " * _INDENT] * (len(lines) - 1)
    return [start + line for start, line in zip(starts, lines, strict=True)]


def opening(setup: Setup, done: int | None) -> list[str]:
    """What a run is about to do.

    Args:
        done: the newest checkpoint's step; None at the beginning of a run.
    """
    config, model, loader, total = setup.config, setup.model, setup.loader, setup.total_steps
    count = sum(math.prod(spec.shape) for spec in jax.tree.leaves(param_specs(model)))
    head = "reward head" if model.head == "value" else f"{model.vocab_size:,} token ids"
    devices = setup.program.mesh.devices
    axes = " x ".join(f"{axis} {size}" for axis, size in setup.program.mesh.shape.items() if size > 1)
    hosts = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    steps, tokens = loader.steps(0), loader.tokens(0)
    slots = steps * loader.rows * loader.settings.row_length
    micro = f" in {loader.settings.microbatches} microbatches" if loader.settings.microbatches > 1 else ""
    examples = ""
    if loader.settings.examples:
        examples = f"{min(loader.settings.examples, loader.example_ids(START).size):,} examples in "
    reads = f"{examples}{counted(loader.rows, 'row')} of {loader.settings.row_length:,} slots{micro}, "
    reads += f"{tokens / steps:,.0f} tokens, fill {tokens / slots:.2f}"
    lines = {
        "objective": setup.objective.name,
        "model": f"{count:,} parameters, {counted(model.num_layers, 'layer')} of width {model.hidden_size:,}, {head}",
        "devices": f"{devices.size} x {devices.flat[0].device_kind}{hosts}, mesh {axes or 'of one device'}",
        "attention": setup.program.attention,
        "data": f"{loader.dataset.name}: {counted(len(loader.fitted.index), 'example')}; a step reads {reads}",
        "held out": _held_out(setup),
        "samples": _samples(setup),
        "steps": f"{total:,} ({_epochs(total, steps)})",
        "starts": _start(setup, done),
        "writes": f"{config.run.dir}",
        "keeps": f"checkpoints: {Retention.of_config(config)}",
    }
    return [part for heading, text in lines.items() if text for part in _headed(heading, text)]


def _epochs(total: int, steps: int) -> str:
    if total < steps:
        return f"part of an epoch, which has {counted(steps, 'step')}"
    whole, rest = divmod(total, steps)
    return f"{f'{total / steps:,.2f} epochs' if rest else counted(whole, 'epoch')} of {counted(steps, 'step')}"


def _held_out(setup: Setup) -> str | None:
    loader, section = setup.eval_loader, setup.config.eval
    if loader is None:
        return None
    assert section.every_steps is not None
    when = "before the first step, " if section.at_start else ""
    when += "every step" if section.every_steps == 1 else f"every {section.every_steps:,} steps and at the end"
    return f"{loader.dataset.name}: {counted(len(loader.fitted.index), 'example')}, {when}"


def _samples(setup: Setup) -> str | None:
    prompts = setup.samples
    if prompts is None:
        return None
    section, under = prompts.section, len(prompts.asked) // prompts.prompts
    asked = f"{counted(prompts.prompts, 'prompt')} under {counted(under, 'system message')}"
    asked = asked if section.systems else counted(prompts.prompts, "prompt")
    when = "before the first step, " if section.at_start else ""
    when += "" if section.every_steps is None else f"every {counted(section.every_steps, 'step')} and "
    return f"{section.prompts}: {asked}, {when}at the end"


def _start(setup: Setup, done: int | None) -> str:
    if done is not None:
        rest = "nothing is left to train" if done == setup.total_steps else "the run resumes"
        return f"after step {done:,}, from its checkpoint in {setup.config.run.dir}: {rest}"
    source = setup.config.init.from_
    return f"from random weights (run.seed={setup.config.run.seed})" if source is None else f"from {source}"


def closing(summary: "Summary", head: str) -> list[str]:
    """How a run ended, and what to do next with a model of this head."""
    run, export = near(summary.run_dir), summary.export_dir and near(summary.export_dir)
    already = " (it was there already)" if summary.resumed_from == summary.step else ""
    here = " in this start" if summary.goodput.get("starts", 1) > 1 else ""
    spent = f"{duration(summary.seconds)}{here}, {summary.tokens:,} tokens in all"
    lines = wrapped(f"{run}: step {summary.step} of {summary.total_steps}{already}, {spent}")
    if summary.step < summary.total_steps and summary.ended != "interrupted":
        lines += wrapped(f"stopped early: {summary.ended}")
    if summary.skipped:
        lines += wrapped(f"skipped: {counted(summary.skipped, 'step')} with a loss or gradient that is not finite")
    if summary.best:
        step = f"smallest held-out loss: step {int(summary.best['step'])}, "
        lines.append(step + _numbers("eval", summary.best, WIDTH - len(step)))
    lines += _spent(summary.goodput)
    entries = RunDir(place(summary.run_dir))
    lines += wrapped(f"curves: {near(str(entries.curves))}") if entries.curves.exists() else []
    lines += wrapped(f"export: {export}: Hugging Face directory") if export else []
    if summary.ended == "interrupted":
        return lines
    if entries.metrics.exists() or entries.metrics_parts.exists():
        lines += ["to compare its curves with those of another run:", *command(["janus", "runs", "plot", run, "OTHER"])]
    if export is None:
        words = ["janus", "convert", "to-hf", run, f"{run}-hf"]
        return [*lines, "next:", *command(words)]
    copy: list[str] = []
    if is_url(export):  # vllm and transformers read local directories
        copy = command(["gcloud", "storage", "cp", "--recursive", export, "."])
        export = f"./{export.rpartition('/')[2]}"
    if head == "lm":
        return [*lines, "next:", *copy, *command(["vllm", "serve", export])]
    load = "load the export with AutoModelForSequenceClassification of transformers"
    return [*lines, *(["next:", *copy, f"  {load}"] if copy else wrapped(f"next: {load}"))]


def _spent(goodput: dict[str, float]) -> list[str]:
    """A table of where the time went, largest share first; shares below 1 % are one line."""
    phases = {name: seconds for name, seconds in goodput.items() if name not in ("total", "starts")}
    if not (total := sum(phases.values())):
        return []
    shown = sorted((name for name in phases if phases[name] >= 0.01 * total), key=lambda name: -phases[name])
    rest = total - sum(phases[name] for name in shown)
    rows = [*((name.replace("_", " "), phases[name]) for name in shown), ("less than 1 % each", rest)]
    starts = f"in {counted(int(goodput['starts']), 'start')}"
    return [
        f"time: {duration(total)} {starts}",
        *(f"  {name:<20}{duration(seconds):>14}{seconds / total:>6.0%}" for name, seconds in rows if seconds >= 0.5),
    ]
