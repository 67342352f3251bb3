"""The pictures of `janus measure`: one SVG file each, which needs no other file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from janus_jax.evaluation.intervals import Cell, mean_cell
from janus_jax.evaluation.measure.diversity import Diversity
from janus_jax.evaluation.measure.system_effect import Measured
from janus_jax.evaluation.measure.verbosity import REFERENCE, Verbosity
from janus_jax.evaluation.paper import paper
from janus_jax.evaluation.picture import plain, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can tell apart. Markers tell series apart as well."""


def rows_of(axis: "Axes", names: Sequence[str]) -> None:
    """One line of an upright axis for each name, the first one above."""
    axis.set_yticks(range(len(names)), [plain(name) for name in names])
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.25)


def box(axis: "Axes", values: np.ndarray, at: float, colour: str, width: float = 0.5) -> None:
    """Lying: quartiles, median, and whiskers from 5 to 95 %."""
    axis.boxplot(
        values,
        positions=[at],
        orientation="horizontal",
        widths=width,
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": colour, "alpha": 0.25, "edgecolor": colour},
        medianprops={"color": colour, "linewidth": 1.8},
        whiskerprops={"color": colour},
        capprops={"color": colour},
    )


def violin(axis: "Axes", values: np.ndarray, at: float, colour: str) -> None:
    """Lying: how often values occur. Nothing for values that are all alike."""
    if len(values) > 1 and np.ptp(values) > 0:
        made = axis.violinplot(values, [at], orientation="horizontal", widths=0.85, showextrema=False)
        for body in made["bodies"]:  # type: ignore[reportGeneralTypeIssues]
            body.set(facecolor=colour, alpha=0.3)


def dot(axis: "Axes", cell: Cell, at: float, **style: Any) -> None:
    """A mean with its interval; without ends, hollow: a number of others. Without a mean, nothing."""
    mean, low, high = cell
    if mean is not None and low is not None and high is not None:
        ends = [[max(0.0, mean - low)], [max(0.0, high - mean)]]
        style |= {"xerr": ends, "capsize": 3, "markersize": 6, "markeredgecolor": "white"}
        axis.errorbar([mean], [at], linestyle="", **style)
    elif mean is not None:
        axis.plot([mean], [at], linestyle="", markerfacecolor="white", markersize=7, **style)


def diversity(measured: Mapping[str, Diversity], path: Path) -> None:
    """Averages and maxima of each model, the poster's below."""
    poster = paper("diversity")["rows"]
    names = [*measured, *(f"{name}, poster" for name in poster)]
    series = list(zip(COLOURS, "os", (-0.2, 0.2), strict=False))

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        for at, one in enumerate(measured.values()):
            for values, (colour, marker, offset) in zip((one.averages, one.maxima), series, strict=True):
                box(axis, values, at + offset, colour, 0.3)
                dot(axis, mean_cell(values), at + offset, color=colour, marker=marker)
        for at, numbers in enumerate(poster.values(), len(measured)):
            for number, (colour, marker, _) in zip(numbers, series, strict=True):
                dot(axis, Cell(number), at, color=colour, marker=marker)
        rows_of(axis, names)
        axis.set_xlim(left=0)
        axis.set_xlabel("ROUGE-L between the answers to one instruction; lower is more diverse")
        axis.set_title("Diversity of answers", loc="left")
        named = zip(("average of its pairs", "its most alike pair"), series, strict=True)
        legend(figure, [(name, colour, marker) for name, (colour, marker, _) in named], hollow="the poster's means")

    write(path, (8, 1.8 + 0.55 * len(names)), draw)


def verbosity(measured: Mapping[str, Verbosity], reference: Verbosity | None, unit: str, path: Path) -> None:
    """Lengths of each model's answers, of the references above."""
    shown = {**({} if reference is None else {REFERENCE: reference}), **measured}
    far = max(float(np.quantile(one.lengths, 0.99)) for one in shown.values())

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        for at, one in enumerate(shown.values()):
            number = at - (reference is not None)
            colour = "#555555" if number < 0 else COLOURS[number % len(COLOURS)]
            violin(axis, one.lengths[one.lengths <= 1.15 * far], at, colour)
            box(axis, one.lengths, at, colour, 0.14)
            dot(axis, mean_cell(one.means), at, color=colour, marker="o")
            if len(one.cut):
                axis.text(1.01, at, f"{one.cut.mean():.0%} cut", transform=axis.get_yaxis_transform(), va="center")
        rows_of(axis, list(shown))
        axis.set_xlim(0, 1.15 * far + 1)
        axis.set_xlabel(f"{unit} of an answer")
        axis.set_title("Lengths of answers", loc="left")
        legend(figure)

    write(path, (8, 1.5 + 0.75 * len(shown)), draw)


def system_effect(measured: Sequence[Measured], path: Path) -> None:
    """Lengths under each condition, then similarity and differences of every two."""
    names = [one.name for one in measured]
    differences = [one for one in measured if one.is_difference]
    conditions = [one for one in measured if not one.is_difference]
    panels = [
        ("Words of an answer", [(one, one.words) for one in conditions]),
        ("ROUGE-L between answers", [(one, one.similarity) for one in measured]),
        ("Difference in words", [(one, one.words) for one in differences]),
        ("Difference in score", [(one, one.score) for one in differences]),
        ("Difference in log-prob of a token", [(one, one.log_prob) for one in differences]),
    ]
    filled = [
        (title, [(one, kept) for one, values in rows if len(kept := values[~np.isnan(values)])])
        for title, rows in panels
    ]
    filled = [(title, rows) for title, rows in filled if rows]
    lines = -(-len(filled) // 2)

    def draw(figure: Any) -> None:
        axes = list(figure.subplots(lines, 2, squeeze=False).flat)
        for axis, (title, rows) in zip(axes, filled, strict=False):
            for at, (one, values) in enumerate(rows):
                colour = COLOURS[names.index(one.name) % len(COLOURS)]
                box(axis, values, at, colour, 0.35)
                dot(axis, mean_cell(values), at, color=colour, marker="s" if one.is_difference else "o")
            rows_of(axis, [one.name for one, _ in rows])
            if title.startswith("Difference"):
                axis.axvline(0, color="#777777", linestyle=":", linewidth=1)
            else:
                axis.set_xlim(left=0)
            axis.set_title(title, loc="left")
        for axis in axes[len(filled) :]:
            axis.set_axis_off()
        legend(figure)

    write(path, (10, 0.7 + lines * (0.9 + 0.28 * len(measured))), draw)


def legend(figure: Any, series: Sequence[tuple[str, str, str]] = (), *, hollow: str = "") -> None:
    """Says what is drawn.

    Args:
        series: name, colour and marker of what differs in them.
        hollow: what hollow markers are.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    def mark(label: str, colour: str, marker: str, **style: Any) -> Line2D:
        return Line2D([], [], color=colour, marker=marker, linestyle="", label=label, **style)

    grey = "#555555"
    handles: list[Any] = [mark(*one) for one in series]
    handles.append(mark("mean, 95 % interval", grey, "o"))
    handles.append(Patch(facecolor=grey, alpha=0.3, label="median, quartiles; whiskers: 5 and 95 %"))
    handles += [mark(hollow, grey, "o", markerfacecolor="white")] if hollow else []
    figure.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False, alignment="left", fontsize=9)
