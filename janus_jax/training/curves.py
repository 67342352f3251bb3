"""The curves of runs as one picture, drawn from their metrics; config.yaml tells their objectives apart."""

import dataclasses
import io
import json
import os
import signal
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from janus_jax.checkpoint.run_dir import RunDir
from janus_jax.data.statistics import wilson_interval
from janus_jax.errors import DataError, Interrupted, LostLockError, StorageError
from janus_jax.storage.bucket import briefly
from janus_jax.storage.local import Place, place, write_bytes
from janus_jax.storage.parts import content
from janus_jax.training import history
from janus_jax.training.notices import Stop

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from janus_jax.training.hooks import Run

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can tell apart. Markers tell held-out points apart as well."""
_MARKERS = "osD^vPX"
ACCURACY, TIES = "rewards/accuracies", "rewards/ties"
PANELS = {
    "loss": "loss",
    "rewards/margins": "reward margin",
    ACCURACY: "accuracy, a tie counts as wrong",
    "rewards/chosen": "reward of chosen responses",
    "rewards/rejected": "reward of rejected responses",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm, before clipping",
    "tokens_per_s": "tokens/s",
}
"""Metric -> title of its panel; a metric that no run has gets none."""
BAD_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError)
"""What PyYAML raises at a file that is no YAML, or whose tags have other values than they need."""
_OF_OBJECTIVE = ("loss", "rewards/margins", "rewards/chosen", "rewards/rejected")
"""Metrics that runs of different objectives measure in different units: one panel for each objective."""
TOGETHER = ("rewards/chosen", "rewards/rejected")
"""Panels with the same range."""
_LABEL = 48
"""Characters of a run's name in the legend; of a longer one, both ends."""
_BRIEF_S = 15.0
"""How long a bucket that does not answer may hold up the end of a run."""
_SMOOTHED_SHARE = 20
"""A smoothed point is the mean of this part of all records, so that runs of any length look alike."""


@dataclasses.dataclass(frozen=True)
class Curves:
    """The records of one run: kind -> metric -> (steps, values); a value that was not finite is nan."""

    label: str
    records: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]
    objective: str = ""  # its name, with that of its loss if it has several; empty if config.yaml does not say

    def points(self, kind: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a metric; empty without any."""
        return self.records.get(kind, {}).get(metric, (np.zeros(0), np.zeros(0)))

    @property
    def empty(self) -> bool:
        """Whether it has nothing to draw."""
        return not any(len(self.points(kind, name)[0]) for kind in ("train", "eval") for name in PANELS)

    @property
    def counted(self) -> str:
        """The kind of record whose accuracies get an interval: held-out ones if there are any."""
        return "eval" if len(self.points("eval", ACCURACY)[0]) else "train"

    def interval(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Steps, and the ends of the accuracies' 95 % intervals; of training, of the smoothed accuracy in one batch."""
        steps, shares = self.points(self.counted, ACCURACY)
        counts = self.points(self.counted, "examples")[1]
        if len(counts) != len(shares) or not (np.isfinite(shares) & (np.abs(counts) < 1e15)).all():
            return np.zeros(0), np.zeros(0), np.zeros(0)
        shares = shares if self.counted == "eval" else smooth(shares)
        cases = [(share * n, int(n)) for share, n in zip(np.clip(shares, 0, 1), counts, strict=True)]
        ends = [wilson_interval(right, n) if n > 0 else (0.0, 1.0) for right, n in cases]
        return steps, np.asarray([low for low, _ in ends]), np.asarray([high for _, high in ends])


def read_curves(directory: str | os.PathLike[str], label: str | None = None) -> Curves:
    """The curves of a run directory, local or in a bucket.

    Raises:
        DataError: it has no metrics, or a line of them is cut short or no record.
        StorageError: it cannot be read.
    """
    run = RunDir(place(directory))
    lines = history.lines(run)
    if lines is None:
        what = "holds no metrics.jsonl, so it is no run" if run.path.is_dir() else "no such directory"
        raise DataError(directory, f"{what}; allowed: a run.dir of `janus train`")
    curves = curves_of(lines, label or str(directory), objective_in(run.config))
    if curves.empty:
        raise DataError(directory, "holds no numbers to draw: no step was logged yet")
    return curves


def curves_of(
    lines: Sequence[history.Line], label: str, objective: str = "", bad: list[DataError] | None = None
) -> Curves:
    """The curves in lines of metrics.

    Args:
        bad: gets an error for each line that is cut short or no record, and the others are read.

    Raises:
        DataError: there is such a line, and no `bad`.
    """
    collected: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for line in lines:
        try:
            record = json.loads(line.text)
            kind, step = str(record.pop("kind")), int(record.pop("step"))
            if not 0 <= step < 1 << 53:
                raise ValueError(step)
            numbers = record if kind in ("train", "eval") else {}
            pairs = [(name, np.nan if value is None else float(value)) for name, value in numbers.items()]
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            last = (
                " (it is the last one: the run was killed while it wrote, or is writing)" if line is lines[-1] else ""
            )
            what = f"is cut short or no record of metrics{last}; remove this line"
            refused = DataError(f"{line.file}:{line.number}", what)
            if bad is None:
                raise refused from error
            bad.append(refused)
            continue
        for name, value in pairs:
            collected.setdefault(kind, {}).setdefault(name, []).append((step, value))
    records = {
        kind: {
            name: (np.asarray([s for s, _ in points]), np.asarray([v for _, v in points]))
            for name, points in of_kind.items()
        }
        for kind, of_kind in collected.items()
    }
    short = label if len(label) <= _LABEL else f"{label[: _LABEL // 2]}...{label[-_LABEL // 2 :]}"
    return Curves(short, records, objective)


class _NoAliases(yaml.SafeLoader):
    """A few lines of aliases to aliases would be billions of values, or a value without end."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)


def stored_yaml(content: bytes) -> Any:
    """The value of a run's config.yaml. Raises one of `BAD_YAML` for what no run writes, aliases among them."""
    return yaml.load(content.decode(), Loader=_NoAliases)


def objective_in(config: Path | Place) -> str:
    """The objective in the configuration that a run directory holds; empty if there is none that can be read."""
    try:
        section = stored_yaml(content(config) or b"")["objective"]
        return " ".join(str(section[key]) for key in ("name", "loss") if section.get(key))
    except (StorageError, *BAD_YAML, TypeError):
        return ""


def smooth(values: np.ndarray, at: Iterable[int] | None = None) -> np.ndarray:
    """The mean of each value (or of those at `at`) and those around it, a `_SMOOTHED_SHARE`-th of all; nan counts for
    nothing."""
    reach = len(values) // _SMOOTHED_SHARE // 2 + (len(values) >= 8)
    places = range(len(values)) if at is None else at
    windows = [values[max(0, place - reach) : place + reach + 1] for place in places]
    return np.asarray(
        [np.mean(window[np.isfinite(window)]) if np.isfinite(window).any() else np.nan for window in windows]
    )


def draw(runs: Sequence[Curves], path: Path | Place) -> None:
    """Writes a picture whole, in the format of the path's suffix: .png, .pdf or .svg.

    Raises:
        StorageError: it cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    panels = panels_of(runs)
    columns = 2 if len(panels) <= 4 else 3 if len(panels) <= 6 else 4
    rows = -(-len(panels) // columns)
    style: dict[Any, Any] = {"font.size": 10, "axes.titlesize": 10.5, "axes.titleweight": "bold"}
    style |= {"axes.spines.top": False, "axes.spines.right": False}
    with warnings.catch_warnings(action="ignore"), matplotlib.rc_context(style):
        figure = Figure(figsize=(4.2 * columns, 0.7 + 2.9 * rows), dpi=110, layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis, (name, objective) in zip(axes, panels, strict=False):
            _panel(axis, name, objective, runs)
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        shown = dict(zip(panels, figure.axes, strict=False))
        for objective in {objective for _, objective in panels}:
            _same_range([shown[name, objective] for name in TOGETHER if (name, objective) in shown])
        last = max(int(steps.max()) for run in runs for kind in run.records.values() for steps, _ in kind.values())
        for axis in shown.values():
            axis.set_xlim(-0.02 * last, 1.02 * last + 1e-9)
        _legend(figure, runs, characters=50 * columns)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=path.name.rpartition(".")[2], facecolor="white")
    write_bytes(path, buffer.getvalue())


def draw_run(run: "Run") -> None:
    """Draws curves.png of a run that ends or stops. A picture that cannot be drawn is reported, and ends nothing."""
    if not run.fills:
        return
    try:
        with briefly(_BRIEF_S):
            draw([read_curves(run.dir.path, run.dir.path.name)], run.dir.curves)
    except Exception as error:  # whatever matplotlib raises: the run is worth more than its picture
        run.print(f"note: {run.dir.curves} could not be drawn: {type(error).__name__}: {error}")


def draw_last(runs: "Sequence[Run]", error: BaseException | None) -> None:
    """Draws the curves when all else is done: checkpoints are whole, metrics are closed. SIGTERM leaves no time."""
    if isinstance(error, LostLockError):  # the directory is another start's
        return
    in_a_hurry = isinstance(error, Interrupted) and error.signal == signal.SIGTERM
    if not in_a_hurry and not (isinstance(error, Stop) and not error.by_user):
        for run in runs:
            draw_run(run)


def panels_of(runs: Sequence[Curves]) -> list[tuple[str, str | None]]:
    """The metric of each panel, and the objective whose runs it shows; None: all runs."""
    objectives = list(dict.fromkeys(run.objective for run in runs))
    several = len(objectives) > 1
    wanted = [(name, o) for name in PANELS for o in (objectives if several and name in _OF_OBJECTIVE else [None])]
    return [
        (name, objective)
        for name, objective in wanted
        if any(
            len(run.points(kind, name)[0])
            for run in runs
            if objective in (None, run.objective)
            for kind in ("train", "eval")
        )
    ]


def title_of(name: str, objective: str | None) -> str:
    """The title of a panel."""
    return PANELS[name] if objective is None else f"{PANELS[name]}, {objective or 'unknown objective'}"


def _panel(axis: "Axes", name: str, objective: str | None, runs: Sequence[Curves]) -> None:
    from matplotlib.ticker import MaxNLocator

    title = title_of(name, objective)
    for number, run in enumerate(runs):
        if objective not in (None, run.objective):
            continue
        colour, held_out, marker = _style(number, len(runs))
        steps, values = run.points("train", name)
        if name == "learning_rate":
            axis.plot(steps, values, color=colour, linewidth=1.8)
        elif len(steps):
            axis.plot(steps, values, color=colour, linewidth=0.8, alpha=0.35)
            axis.plot(steps, smooth(values), color=colour, linewidth=1.8, marker="" if len(steps) > 1 else ".")
        steps, values = run.points("eval", name)
        if name == ACCURACY:
            at, low, high = run.interval()
            axis.fill_between(
                at, low, high, color=held_out if run.counted == "eval" else colour, alpha=0.15, linewidth=0
            )
            at, ties = run.points(run.counted, TIES)
            if ties.any():
                axis.plot(at, ties, color=held_out, linestyle=":", linewidth=1.2, marker="x", markersize=5)
        if len(steps):
            edge = {"markeredgecolor": "white", "markeredgewidth": 0.7}
            axis.plot(steps, values, linestyle="--", linewidth=1, color=held_out, marker=marker, markersize=6, **edge)
    if name == ACCURACY:
        axis.axhline(0.5, color="#777777", linestyle=":", linewidth=1)
        axis.set_ylim(-0.02, 1.02)
        title += f"\n{_counts(runs)}, 95 % interval"
    elif name in ("learning_rate", "tokens_per_s"):
        axis.set_ylim(bottom=0)
    elif name == "grad_norm":
        _log_if_wide(axis, runs, name)
    if name == "tokens_per_s":
        axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.set_title(title, loc="left")
    axis.set_xlabel("step")
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.grid(alpha=0.25)


def _counts(runs: Sequence[Curves]) -> str:
    """The numbers of pairs that accuracies are of, such as `held out n 48`."""
    counts: dict[str, set[int]] = {}
    for run in runs:
        if len(run.points(run.counted, ACCURACY)[0]):
            counts.setdefault(run.counted, set()).update(int(n) for n in run.points(run.counted, "examples")[1])
    names = {"eval": "held out n", "train": "a batch n"}
    return ", ".join(
        f"{names[kind]} {min(sizes):,}" + (f" to {max(sizes):,}" if len(sizes) > 1 else "")
        for kind, sizes in counts.items()
        if sizes
    )


def _log_if_wide(axis: "Axes", runs: Sequence[Curves], name: str) -> None:
    values = np.concatenate([run.points("train", name)[1] for run in runs])
    values = values[np.isfinite(values) & (values > 0)]
    if len(values) and values.max() > 50 * values.min():
        axis.set_yscale("log")


def _same_range(axes: "Sequence[Axes]") -> None:
    limits = [axis.get_ylim() for axis in axes]
    for axis in axes:
        axis.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def _style(number: int, runs: int) -> tuple[str, str, str]:
    """Colour of training, colour of held-out points and their marker."""
    colour = _COLOURS[number % len(_COLOURS)]
    return colour, colour if runs > 1 else _COLOURS[1], _MARKERS[(number + number // len(_COLOURS)) % len(_MARKERS)]


def _plain(label: str) -> str:
    """A name that matplotlib takes for neither a formula nor hidden, whatever a directory is called."""
    shown = "".join(c if c.isprintable() else "?" for c in label).replace("\\", "/").replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def _legend(figure: Any, runs: Sequence[Curves], characters: int) -> None:
    from matplotlib.lines import Line2D

    def entry(label: str, **style: Any) -> Line2D:
        return Line2D([], [], label=_plain(label), **style)

    first = _style(0, len(runs))
    neutral = [first[0], first[1]] if len(runs) == 1 else ["#444444", "#444444"]
    entries = [
        entry("training batch", color=neutral[0], linewidth=0.8, alpha=0.5),
        entry("smoothed", color=neutral[0], linewidth=1.8),
    ]
    if any(len(run.points("eval", "loss")[0]) for run in runs):
        entries.append(entry("held out", color=neutral[1], linestyle="--", linewidth=1, marker=first[2]))
    if any(run.points(run.counted, TIES)[1].any() for run in runs):
        entries.append(entry("share of ties", color=neutral[1], linestyle=":", linewidth=1.2, marker="x"))
    if len(runs) > 1:
        styles = [_style(number, len(runs)) for number in range(len(runs))]
        entries += [
            entry(run.label, color=colour, linewidth=1.8, marker=marker)
            for run, (colour, _, marker) in zip(runs, styles, strict=True)
        ]
    longest = max(len(str(item.get_label())) for item in entries)
    columns = min(len(entries), max(1, characters // (longest + 8)))
    title = _plain(runs[0].label) if len(runs) == 1 else None
    figure.legend(
        handles=entries, loc="outside upper left", ncols=columns, frameon=False, title=title, alignment="left"
    )
