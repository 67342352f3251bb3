"""The demo's progress bars and its picture of the curves."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from janus_jax.cli.demo.stages import Stage
from janus_jax.training.metrics import Values


class Bar:
    """A progress bar that writes the loop's metrics; held-out ones are printed above it."""

    def __init__(self, console: Console, name: str, total: int, margin: str | None = None):
        """`margin` names a metric to show after the loss, together with the accuracy."""
        self._console, self._margin = console, margin
        self._progress = Progress(
            TextColumn(f"[bold]{name}"),
            BarColumn(bar_width=6),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
        )
        self._task = self._progress.add_task(name, total=total, numbers="compiling")

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()

    def write(self, kind: str, step: int, values: Values) -> None:
        text = _numbers(values, self._margin)
        if kind == "eval":
            self._console.print(f"held out after step {step}: {text}", highlight=False)
        else:
            self._progress.update(self._task, completed=step, numbers=text)

    def close(self) -> None:
        pass


def _numbers(values: Values, margin: str | None) -> str:
    """Metrics, short enough for a bar in 80 columns."""
    parts = [f"loss {values['loss']:.3f}"]
    if margin is not None:
        parts += [f"margin {values[margin]:+.2f}", f"acc. {values['rewards/accuracies']:.2f}"]
    elif "fill" in values:
        parts.append(f"fill {values['fill']:.2f}")
    if "tokens_per_s" in values:
        parts.append(f"{values['tokens_per_s']:,.0f} tokens/s")
    return "  ".join(parts)


def curves(sft: Path, preference: Path, stage: Stage, out: Path) -> Path:
    """Draws a PNG: the loss of SFT, and the metrics of `stage` that it lists as panels."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [(sft, "loss", "SFT: nats per response token")]
    panels += [(preference, metric, f"{stage.label}: {title}") for metric, title in stage.panels]
    figure, axes = plt.subplots(1, len(panels), figsize=(16, 3.6), layout="constrained")
    for axis, (run, name, title) in zip(axes, panels, strict=True):
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for kind, style, label in (("train", "-", "training batch"), ("eval", "o-", "held out")):
            points = [(r["step"], r[name]) for r in records if r["kind"] == kind and r.get(name) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), style, label=label, markersize=4)
        axis.set(title=title, xlabel="optimizer step")
        axis.grid(alpha=0.3)
    if all(line.get_label() for line in axes[0].lines):
        axes[0].legend()
    axes[-1].axhline(0.5, color="grey", linestyle=":")
    figure.savefig(out, dpi=110)
    plt.close(figure)
    return out
