"""The pictures of `janus measure`: one SVG file each, which needs no other file."""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from janus_jax.evaluation.measure.diversity import Diversity
from janus_jax.evaluation.paper import paper
from janus_jax.storage.local import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can tell apart. Markers tell series apart as well."""
_NAME = 40
"""Characters of a name that are shown; of a longer one, both ends."""


def write(path: Path, size: tuple[float, float], draw: Callable[[Any], None]) -> None:
    """Writes a picture whole. The same numbers give the same bytes.

    Args:
        size: width and height in inches.
        draw: fills an empty figure.

    Raises:
        StorageError: it cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"font.size": 10, "axes.titlesize": 10.5, "axes.titleweight": "bold"}
    style |= {"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "janus"}
    with warnings.catch_warnings(action="ignore"), matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None})
    write_bytes(path, buffer.getvalue())


def plain(name: str) -> str:
    """A name that matplotlib takes for no formula, whatever a file is called."""
    shown = "".join(c if c.isprintable() else "?" for c in name).replace("\\", "/").replace("$", r"\$")
    return shown if len(shown) <= _NAME else f"{shown[: _NAME // 2]}...{shown[-_NAME // 2 :]}"


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


def dot(axis: "Axes", value: float, ends: tuple[float, float] | None, at: float, **style: Any) -> Any:
    """A mean with its interval; without ends, hollow: a number of others."""
    if ends is None:
        return axis.plot([value], [at], linestyle="", markerfacecolor="white", markersize=7, **style)[0]
    return axis.errorbar(
        [value],
        [at],
        xerr=[[max(0.0, value - ends[0])], [max(0.0, ends[1] - value)]],
        capsize=3,
        markersize=6,
        linestyle="",
        markeredgecolor="white",
        **style,
    )


def diversity(measured: Mapping[str, Diversity], path: Path) -> None:
    """Averages and maxima of each model, the poster's below."""
    poster = paper("diversity")["rows"]
    names = [*measured, *(f"{name}, poster" for name in poster)]

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        for at, one in enumerate(measured.values()):
            row = one.row("")
            for column, (colour, marker, values) in enumerate(
                ((COLOURS[0], "o", one.averages), (COLOURS[1], "s", one.maxima))
            ):
                height = at - 0.2 + 0.4 * column
                box(axis, values, height, colour, 0.3)
                assert row.low is not None and row.high is not None
                ends = float(row.low[column] or 0), float(row.high[column] or 0)
                dot(axis, float(values.mean()), ends, height, color=colour, marker=marker)
        for at, numbers in enumerate(poster.values(), len(measured)):
            for number, colour, marker in zip(numbers, COLOURS, "os", strict=False):
                dot(axis, number, None, at, color=colour, marker=marker)
        rows_of(axis, names)
        axis.set_xlim(left=0)
        axis.set_xlabel("ROUGE-L between the answers to one instruction; lower is more diverse")
        axis.set_title("Diversity of answers", loc="left")
        _legend(figure, [("average of its pairs", COLOURS[0], "o"), ("its most alike pair", COLOURS[1], "s")])

    write(path, (8, 1.6 + 0.55 * len(names)), draw)


def _legend(figure: Any, entries: Sequence[tuple[str, str, str]]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=label) for label, colour, marker in entries
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False, alignment="left")
