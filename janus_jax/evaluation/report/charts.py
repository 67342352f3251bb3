"""Curves of runs as lines in SVG coordinates. Long histories are thinned: of each stretch its extremes are drawn."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from janus_jax.training.curves import ACCURACY, TIES, TOGETHER, Curves, panels_of, smooth, title_of

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 56, 410, 10, 212
_STRETCHES, _SMOOTHED, _MARKS = 220, 160, 40
"""Stretches of a line, points of a running mean, marks of held-out points, for one run; fewer for many."""
_LARGEST = 1e290
STYLES = 7
"""Colours, dashes and marks that the style sheet has."""
_SHAPES = (
    "m-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    "m-3-3h6v6h-6z",
    "m0-4l4 4l-4 4l-4-4z",
    "m0 4l4-7h-8z",
    "m0-4l4 7h-8z",
    "m-1-4h2v3h3v2h-3v3h-2v-3h-3v-2h3z",
    "m-4-2h8v4h-8z",
)


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a chart, with marks where its points are counted."""

    name: str
    kind: str
    """batches, smoothed, exact, held, ties or band."""
    style: int
    path: str
    marks: tuple[tuple[str, str], ...] = ()
    """Path and text of each."""


@dataclasses.dataclass(frozen=True)
class Chart:
    """A panel: its lines, and the axes that they are drawn in."""

    title: str
    lines: tuple[Line, ...]
    steps: tuple[float, float]
    values: tuple[float, float]
    log: bool
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    middle: float | None
    """Where chance is."""

    def x(self, step: float) -> float:
        return LEFT + (RIGHT - LEFT) * (step - self.steps[0]) / (self.steps[1] - self.steps[0])

    def y(self, value: float) -> float:
        low, high = self.values
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        return BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low)


def charts(runs: Sequence[Curves]) -> tuple[list[Chart], bool]:
    """A chart for each metric that a run has (and objective, where units differ); whether lines are thinned."""
    drawn = [run for run in runs if not run.empty]
    if not drawn:
        return [], False
    last = max(int(steps.max()) for run in drawn for kind in run.records.values() for steps, _ in kind.values())
    panels = panels_of(drawn)
    ranges = {panel: _range(*panel, drawn) for panel in panels}
    for objective in {objective for _, objective in panels}:
        same = [(name, objective) for name in TOGETHER if (name, objective) in ranges]
        low, high = (end(ranges[panel][0][at] for panel in same) if same else 0 for at, end in ((0, min), (1, max)))
        ranges |= {panel: ((low, high), False) for panel in same}
    made = [_chart(*panel, runs, (0, max(last, 1)), *ranges[panel]) for panel in panels]
    sizes = [len(run.points(kind, name)[0]) for run in drawn for name, _ in panels for kind in ("train", "eval")]
    return made, max(sizes) > 2 * _share(_STRETCHES, len(runs))


def _chart(
    name: str,
    objective: str | None,
    runs: Sequence[Curves],
    steps: tuple[float, float],
    values: tuple[float, float],
    log: bool,
) -> Chart:
    y_ticks, x_ticks = _log_ticks(*values) if log else _ticks(*values, 5), _ticks(*steps, 6)
    middle = 0.5 if name == ACCURACY else None
    empty = Chart(title_of(name, objective), (), steps, values, log, (), (), middle)
    lines: list[Line] = []
    for number, run in enumerate(runs):
        if objective in (None, run.objective):
            lines += _lines(empty, name, run, number, len(runs))
    return dataclasses.replace(
        empty,
        lines=tuple(lines),
        x_ticks=tuple((empty.x(tick), _label(tick)) for tick in x_ticks if float(tick).is_integer()),
        y_ticks=tuple((empty.y(tick), _label(tick)) for tick in y_ticks),
    )


def _lines(chart: Chart, name: str, run: Curves, number: int, runs: int) -> list[Line]:
    style, held = number % STYLES, number % STYLES if runs > 1 else 1
    lines = []
    steps, values = _points(run, "train", name)
    if len(steps):
        kept = _extremes(values, _share(_STRETCHES, runs))
        kind = "exact" if name == "learning_rate" else "batches"
        lines.append(Line(run.label, kind, style, _path(chart, steps[kept], values[kept])))
        if kind == "batches" and len(steps) > 1:
            at = _spread(len(values), _share(_SMOOTHED, runs))
            lines.append(Line(f"{run.label}, mean", "smoothed", style, _path(chart, steps[at], smooth(values, at))))
    if name == ACCURACY:
        at, low, high = run.interval()
        if len(at):
            kept = _spread(len(at), _share(_SMOOTHED, runs))
            ends = np.concatenate([low[kept], high[kept][::-1]])
            band = _path(chart, np.concatenate([at[kept], at[kept][::-1]]), ends) + "Z"
            lines.insert(0, Line("", "band", held if run.counted == "eval" else style, band))
        at, ties = _points(run, run.counted, TIES)
        if ties.any():
            kept = _spread(len(at), _share(_SMOOTHED, runs))
            lines.append(Line(f"{run.label}, ties", "ties", held, _path(chart, at[kept], ties[kept])))
    steps, values = _points(run, "eval", name)
    if len(steps):
        kept = _extremes(values, _share(_STRETCHES, runs))
        marked = [at for at in _spread(len(steps), _share(_MARKS, runs)) if np.isfinite(values[at])]
        marks = tuple(
            (
                f"M{chart.x(steps[at]):.1f} {chart.y(values[at]):.1f}{_shape(number if runs > 1 else 1)}",
                f"{run.label}, held out, step {int(steps[at]):,}: {_label(values[at])}",
            )
            for at in marked
        )
        lines.append(Line(f"{run.label}, held out", "held", held, _path(chart, steps[kept], values[kept]), marks))
    return lines


def _points(run: Curves, kind: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values; one that no axis can hold is nan."""
    steps, values = run.points(kind, name)
    return steps, np.where(np.abs(values) < _LARGEST, values, np.nan)


def mark_of(number: int) -> str:
    """The path of a run's mark, for the legend."""
    return f"M14 6{_shape(number)}"


def _shape(number: int) -> str:
    """Runs that share a colour have different marks."""
    return _SHAPES[(number + number // STYLES) % len(_SHAPES)]


def _range(name: str, objective: str | None, runs: Sequence[Curves]) -> tuple[tuple[float, float], bool]:
    """The ends of the axis, and whether it is logarithmic."""
    if name == ACCURACY:
        return (-0.02, 1.02), False
    shown = [run for run in runs if objective in (None, run.objective)]
    values = np.concatenate([_points(run, kind, name)[1] for run in shown for kind in ("train", "eval")])
    values = values[np.isfinite(values)]
    if not len(values):
        return (0.0, 1.0), False
    low, high = float(values.min()), float(values.max())
    if name == "grad_norm" and (positive := values[values > 0]).size and high > 50 * positive.min():
        return (float(positive.min()) / 1.2, high * 1.2), True
    if name in ("learning_rate", "tokens_per_s"):
        low = min(low, 0.0)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-6):
        low, high = low - max(abs(low), 1e-6) / 2, high + max(abs(high), 1e-6) / 2
    edge = 0.04 * (high - low)
    return (low if low == 0 else low - edge, high + edge), False


def _path(chart: Chart, steps: np.ndarray, values: np.ndarray) -> str:
    """A line, broken where values are not finite; a point alone is a line of no length, which round ends show."""
    pieces, gap = [], True
    for step, value in zip(steps.tolist(), values.tolist(), strict=True):
        if not math.isfinite(value):
            gap = True
            continue
        pieces.append(f"{'M' if gap else 'L'}{chart.x(step):.1f} {chart.y(value):.1f}")
        gap = False
    path = "".join(pieces)
    return path + "h0" if path.count("L") < path.count("M") else path


def _share(most: int, runs: int) -> int:
    """How many points a run gets, so that the page of many runs stays small."""
    return max(12, most // max(1, runs // 3))


def _spread(count: int, most: int) -> list[int]:
    """Places from the first to the last, evenly."""
    return sorted({round(at) for at in np.linspace(0, count - 1, min(count, most))}) if count else []


def _extremes(values: np.ndarray, stretches: int) -> np.ndarray:
    """The places that are drawn: all, or the smallest and the largest value of each stretch."""
    if len(values) <= 2 * stretches:
        return np.arange(len(values))
    kept: set[int] = {0, len(values) - 1}
    for places in np.array_split(np.arange(len(values)), stretches):
        part = values[places]
        finite = places[np.isfinite(part)]
        if len(finite):
            kept |= {int(finite[np.argmin(values[finite])]), int(finite[np.argmax(values[finite])])}
        else:
            kept.add(int(places[0]))
    return np.asarray(sorted(kept))


def _ticks(low: float, high: float, about: int) -> list[float]:
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(times * power for times in (1, 2, 2.5, 5, 10) if times * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if len(decades) <= 4 else (1,)
    ticks = [digit * 10.0**power for power in decades[:: max(1, len(decades) // 6)] for digit in digits]
    return [tick for tick in ticks if low <= tick <= high]


def _label(value: float) -> str:
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-3:
        return f"{value:.3g}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}"
