"""The cells of a sweep that no other beats in both memory and speed, and a plot of them."""

import os
from collections.abc import Iterable

from janus_jax.planning.search.sweep import Cell

_LIST = "list of tensors"


def pareto(cells: Iterable[Cell]) -> list[Cell]:
    """Fitting cells on the Pareto front: no other is at least as fast with less memory, or faster with no more."""
    fitting = [cell for cell in cells if cell.status == "fits" and cell.peak and cell.serial_tokens_per_s]
    front: list[Cell] = []
    for cell in sorted(fitting, key=lambda cell: (_gib(cell), -_speed(cell))):
        if not front or _speed(cell) > _speed(front[-1]):
            front.append(cell)
    return front


def plot(cells: Iterable[Cell], path: str | os.PathLike[str]) -> None:
    """Writes a PNG: peak memory against tokens per second if nothing overlaps, and the Pareto front."""
    from matplotlib.figure import Figure

    shown = [cell for cell in cells if cell.status in ("fits", "too large") and cell.peak and cell.serial_tokens_per_s]
    front = pareto(shown)
    figure = Figure(figsize=(9, 6), layout="constrained")
    chart = figure.subplots()
    for remat in dict.fromkeys(map(_remat, shown)):
        for status, marker in (("fits", "o"), ("too large", "x")):
            some = [cell for cell in shown if (_remat(cell), cell.status) == (remat, status)]
            if some:
                label = f"remat {remat}" if status == "fits" else f"remat {remat}, does not fit"
                places = [_gib(cell) for cell in some], [_speed(cell) for cell in some]
                chart.scatter(*places, marker=marker, label=label)
    chart.plot([_gib(cell) for cell in front], [_speed(cell) for cell in front], "k--", lw=1, label="Pareto front")
    for cell in front:
        at = (_gib(cell), _speed(cell))
        text = f"{_mesh(cell.mesh)}\n{cell.rows_per_device:g} rows, {cell.moments}"
        text += f"\n{cell.remat}" if _remat(cell) == _LIST else ""
        chart.annotate(text, at, xytext=(4, -18), textcoords="offset points", fontsize=7)
    usable = next((cell.plan["memory"]["usable"] for cell in shown if cell.plan), None)
    if usable:
        chart.axvline(usable / 2**30, color="grey", lw=1)
    chart.set_xlabel("peak memory per device, GiB (grey line: usable)")
    chart.set_ylabel("tokens/s if nothing overlaps and every unit runs at its peak")
    chart.yaxis.set_major_formatter("{x:,.0f}")
    if shown:
        chart.legend(fontsize=8)
    figure.savefig(path, dpi=120, format="png")


def _remat(cell: Cell) -> str:
    return _LIST if cell.remat.startswith("[") else cell.remat


def _gib(cell: Cell) -> float:
    return (cell.peak or 0) / 2**30


def _speed(cell: Cell) -> float:
    return cell.serial_tokens_per_s or 0.0


def _mesh(sizes: dict[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1) or "one device"
