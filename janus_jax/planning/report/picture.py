"""Draws a plan: what fills a device's memory, what bounds a step, what each device sends."""

import math
import textwrap
from pathlib import Path
from typing import Any

from janus_jax.planning.report.grouping import buffer_groups, collective_traffic
from janus_jax.planning.report.text import operations, resource, seconds, size, verdict
from janus_jax.planning.result import Plan

# Okabe and Ito's palette, which colour-blind readers can tell apart. Hatching also sets arguments apart.
_ARGUMENTS = {
    "parameters": "#0072B2",
    "moments": "#56B4E9",
    "batch": "#999999",
    "reference": "#333333",
    "code": "#777777",
}
_TEMPORARIES = ("#E69F00", "#F0E442", "#009E73", "#CC79A7", "#D55E00")
_OTHER, _FREE, _LIMIT = "#BBBBBB", "#FFFFFF", "#D55E00"
_GROUPS = len(_TEMPORARIES)
_ROWS = 6
_WIDTH = 100


def picture(plan: Plan, path: Path) -> Path:
    """Writes a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "hatch.linewidth": 0.6}):
        figure = plt.figure(figsize=(12, 7), dpi=110, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12, hspace=0.04, wspace=0.04)  # type: ignore[union-attr]
        grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.05))
        colour = "black" if plan.fits else "#B00000"
        figure.suptitle(_title(plan), fontsize=12.5, x=0.012, ha="left", linespacing=1.4, color=colour)
        _memory(figure.add_subplot(grid[:, 0]), plan)
        _bounds(figure.add_subplot(grid[0, 1]), plan)
        _collectives(figure.add_subplot(grid[1, 1]), plan)
        figure.savefig(path, facecolor="white")
        plt.close(figure)
    return path


def _title(plan: Plan) -> str:
    mesh = " x ".join(f"{axis} {count}" for axis, count in plan.mesh.items() if count > 1) or "one device"
    micro = f" in {plan.microbatches} microbatches" if plan.microbatches > 1 else ""
    batch = f"{plan.rows:,} rows of {plan.row_length:,} slots{micro}"
    lines = (verdict(plan), f"{plan.objective}, mesh {mesh}, {batch}, remat {plan.remat}")
    return "\n".join("\n".join(textwrap.wrap(line, _WIDTH, max_lines=2)) for line in lines)


def _parts(plan: Plan) -> list[tuple[str, float, str, str]]:
    """Label, bytes, colour and hatch of each part of the bar, from below. Temporaries are split by estimate."""
    memory = plan.memory
    exact = memory.arguments | {"reference": memory.reference, "code": memory.code}
    parts: list[tuple[str, float, str, str]] = [
        (label, count, _ARGUMENTS.get(label, _OTHER), "//") for label, count in exact.items() if count
    ]
    if memory.peak is None:
        return parts
    temporary = max(0, memory.peak - sum(memory.arguments.values()))
    groups = [(group.label, group.bytes) for group in buffer_groups(plan)]
    named = [group for group in groups if group[0] != "other"][:_GROUPS]
    rest = sum(count for _, count in groups) - sum(count for _, count in named)
    scale = temporary / max(1, sum(count for _, count in groups))
    colours = zip(named, _TEMPORARIES, strict=False)
    parts += [(f"{label} (about)", count * scale, colour, "") for (label, count), colour in colours]
    return [*parts, ("other temporaries (about)", rest * scale, _OTHER, "")] if rest else parts


def _memory(axis: Any, plan: Plan) -> None:
    memory, parts = plan.memory, _parts(plan)
    total = sum(count for _, count, _, _ in parts)
    usable = memory.usable
    if usable is not None and memory.needed is not None and memory.needed < usable:
        parts.append(("free", usable - memory.needed, _FREE, ""))
    top = max(total, usable or 0)
    bottom, labels = 0.0, []
    for label, count, colour, hatch in parts:
        edge = {"edgecolor": "black", "linewidth": 0.6, "linestyle": ":" if label == "free" else "-"}
        axis.bar(0, count, bottom=bottom, width=0.8, color=colour, hatch=hatch, **edge)
        labels.append((bottom + count / 2, f"{label}  {size(count)}"))
        bottom += count
    if memory.peak is None:
        labels.append((bottom, "temporaries: more than the free memory"))
    for (at, text), shown in zip(labels, _apart([at for at, _ in labels], 0.052 * top), strict=True):
        axis.plot([0.4, 0.52, 0.6], [at, shown, shown], color="black", linewidth=0.6, clip_on=False)
        axis.text(0.63, shown, text, va="center")
    if usable is not None:
        axis.plot([-0.46, 0.46], [usable, usable], color="black", linewidth=2.5, linestyle="--")
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        axis.text(0, usable + 0.018 * top, f"usable {size(usable)}", va="bottom", ha="center", weight="bold", bbox=box)
    unit, name = (2**30, "GiB") if top >= 2**30 else (2**20, "MiB")
    axis.set(xlim=(-0.5, 2.35), ylim=(0, 1.07 * top), xticks=[], ylabel=f"{name} per device")
    axis.set_title("Memory per device" if usable is None else "HBM per device", loc="left")
    axis.yaxis.set_major_locator(_locator(unit, top))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value / unit:g}")
    axis.spines[["top", "right", "bottom"]].set_visible(False)


def _locator(unit: int, top: float) -> Any:
    from matplotlib.ticker import MultipleLocator

    rough = top / unit / 8
    step = 10 ** math.floor(math.log10(rough)) if rough > 0 else 1
    return MultipleLocator(unit * next(step * times for times in (1, 2, 5, 10) if step * times >= rough))


def _apart(places: list[float], least: float) -> list[float]:
    """Moves ascending places to at least `least` apart, in one upward and one downward sweep."""
    shown: list[float] = []
    for place in places:
        shown.append(max(place, shown[-1] + least) if shown else max(place, least / 2))
    over = shown[-1] - max(places[-1], least * (len(places) - 0.5)) if shown else 0
    if over > 0:
        shown[-1] -= over
        for i in range(len(shown) - 2, -1, -1):
            shown[i] = min(shown[i], shown[i + 1] - least)
    return shown


def _bounds(axis: Any, plan: Plan) -> None:
    bound = plan.bound
    if bound is None:
        reason = "the devices are simulated" if plan.target.topology is None else "the compiler gave up"
        _empty(axis, "Least time per step", f"no bound: {reason}")
        return
    finite = [value if math.isfinite(value) else 0 for value in bound.parts.values()]
    longest = max([*finite, 1e-9])
    for row, (part, value) in enumerate(bound.parts.items()):
        limits = part == bound.limit
        shown = finite[row]
        axis.barh(row, shown, color=_LIMIT if limits else "#0072B2", edgecolor="black", linewidth=0.6, height=0.6)
        text = f" {seconds(value)}" if value else " not used"
        axis.text(shown, row, f"{text}, limits" if limits else text, va="center", weight="bold" if limits else None)
    axis.set(
        yticks=range(len(finite)),
        xlim=(0, 1.35 * longest),
        xlabel="each resource on its own, at its peak: a bound, not a promise",
    )
    axis.locator_params(axis="x", nbins=5)
    axis.xaxis.set_major_formatter(lambda value, _: seconds(value))
    axis.set_yticklabels([resource(plan, part) for part in bound.parts])
    axis.invert_yaxis()
    axis.set_title(
        f"Least time per step: {seconds(bound.seconds)}, MFU {100 * bound.mfu:.0f} %\n"
        f"{bound.tokens_per_s:,.0f} tokens/s, {operations(plan.flops.total)} per step",
        loc="left",
    )
    axis.spines[["top", "right"]].set_visible(False)


def _collectives(axis: Any, plan: Plan) -> None:
    groups = [group for group in collective_traffic(plan) if group.wire_bytes]
    if not groups:
        reason = "unknown: the compiler gave up" if plan.memory.peak is None else "nothing"
        _empty(axis, "Sent per device and step", reason)
        return
    total = size(sum(group.wire_bytes for group in groups))
    rest = groups[_ROWS:]
    rows = [(f"{group.kind}\nalong {' '.join(group.axes)}", group) for group in groups[:_ROWS]]
    most = rows[0][1].wire_bytes
    for row, (_, group) in enumerate(rows):
        blocking = group.wire_bytes - group.async_bytes
        colour = "#CC79A7" if group.over_dcn else "#009E73"
        edge = {"edgecolor": "black", "linewidth": 0.6, "height": 0.6}
        axis.barh(row, group.async_bytes, color=colour, **edge)
        axis.barh(row, blocking, left=group.async_bytes, color=colour, hatch="xx", **edge)
        over = f" over {group.network}" if plan.target.topology else ""
        axis.text(group.wire_bytes, row, f" {size(group.wire_bytes)}{over}, {group.count:,} times", va="center")
    axis.set(yticks=range(len(rows)), xlim=(0, 1.9 * most), xticks=[])
    axis.set_yticklabels([label for label, _ in rows], fontsize=9)
    axis.invert_yaxis()
    more = f", {len(rest)} smaller not shown" if rest else ""
    axis.set_title(
        f"Sent per device and step: {total}{more}\nplain: asynchronous; hatched: computing waits", loc="left"
    )
    axis.spines[["top", "right", "bottom"]].set_visible(False)


def _empty(axis: Any, title: str, text: str) -> None:
    axis.set_title(title, loc="left")
    axis.text(0.02, 0.8, text, transform=axis.transAxes)
    axis.set_axis_off()
