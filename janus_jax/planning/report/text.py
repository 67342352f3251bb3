"""A plan on a terminal: 80 columns will do, and colours only repeat what words say."""

import math
import re
from collections.abc import Callable

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from janus_jax.planning.chips.slices import CPU
from janus_jax.planning.report.grouping import buffer_groups, collective_traffic
from janus_jax.planning.result import Plan, Timing

CAVEAT = (
    "A bound, not a promise: collectives are taken to overlap with computing, and every unit to run at its peak "
    "without a pause. A run takes longer."
)
RESOURCES = {"compute": "compute", "hbm": "HBM", "ici": "ICI", "dcn": "DCN"}

_SHOWN = 10
_WIDEST = 100
_LABEL = 11
_TOLD = "the compiler's: its peak without the above"


def show(plan: Plan, console: Console | None = None, *, prices_of: str | None = None) -> None:
    """Prints a plan, its verdict first.

    Args:
        prices_of: the day of the prices in `Plan.usd_per_hour`.
    """
    _printed(console, lambda where: _show(plan, where, prices_of))


def show_timing(timing: Timing, console: Console | None = None) -> None:
    """Prints what was measured beside what the plan says."""
    _printed(console, lambda where: _show_timing(timing, where))


def _printed(console: Console | None, to: Callable[[Console], None]) -> None:
    console = console or Console(markup=False, highlight=False, emoji=False)
    console.width = min(console.width, _WIDEST)
    if console.is_terminal:
        to(console)
        return
    with console.capture() as captured:
        to(console)
    console.file.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))  # rich fills lines up


def _show(plan: Plan, console: Console, prices_of: str | None) -> None:
    console.print(Text(verdict(plan), style="bold green" if plan.fits else "bold red"))
    console.print()
    _compiled(plan, console)
    _memory(plan, console)
    if plan.memory.peak is None:
        console.print("The compiler gave up: there is no program whose collectives, findings or time could be told.")
    else:
        _collectives(plan, console)
        _findings(plan, console)
    _time(plan, console, prices_of)


def verdict(plan: Plan) -> str:
    """Whether it fits, in one sentence."""
    memory, slices = plan.memory, "" if plan.num_slices == 1 else f"{plan.num_slices} x "
    where = f"each device of {slices}{plan.target.name}"
    if not plan.fits:
        return f"DOES NOT FIT {slices}{plan.target.name}: {plan.reason}"
    if memory.usable is None or memory.needed is None:
        return f"COMPILES for {slices}{plan.target.name}, which is simulated: no TPU, no limit of memory, no bound"
    free = size(memory.usable - memory.needed)
    return f"FITS: {memory.needed / 2**30:.2f} of {memory.usable / 2**30:.2f} GiB on {where}, {free} free"


def size(count: float) -> str:
    """Bytes with a unit that suits them."""
    unit, name = _unit(count)
    return f"{count / unit:,.2f} {name}"


def operations(count: float) -> str:
    """Floating-point operations with a prefix that suits them."""
    step = min(max(int(math.log10(max(count, 1)) // 3), 0), 6)
    return f"{count / 1000**step:.2f} {' kMGTPE'[step].strip()}FLOP"


def seconds(value: float) -> str:
    """Three digits and a unit."""
    if not math.isfinite(value):
        return "no figure"
    if value == 0:
        return "0 s"
    return f"{value:.3g} s" if value >= 1 else f"{value * 1000:.3g} ms"


def _unit(count: float) -> tuple[int, str]:
    if count >= 2**30 / 10:
        return 2**30, "GiB"
    return (2**20, "MiB") if count >= 2**20 / 10 else (2**10, "KiB")


def _compiled(plan: Plan, console: Console) -> None:
    target, times = plan.target, plan.num_slices
    devices = target.devices * times
    chips = f"{target.chips * times:,} chips, {devices:,} devices, {_counted(target.hosts * times, 'host')}"
    if target.topology is None:
        what = "simulated devices of this machine" if target.family == CPU else f"devices, {target.family}"
        chips = f"{devices:,} {what}: no TPU, so that there is no bound on time"
    shape = "" if target.topology is None else f" ({target.topology})"
    each = f"{plan.rows_per_device:g} {'row' if plan.rows_per_device == 1 else 'rows'}"
    micro = f", {each} a device"
    if plan.microbatches > 1:
        micro = f" in {plan.microbatches} microbatches, {each} of each on a device"
    rows = f"{plan.rows:,} rows of {plan.row_length:,} slots{micro}"
    _line(console, "slice", f"{'' if times == 1 else f'{times} x '}{target.name}{shape}: {chips}")
    _line(console, "mesh", " x ".join(f"{axis} {count}" for axis, count in plan.mesh.items()))
    _line(console, "step", f"{plan.objective}, {rows}")
    _line(console, "memory", f"remat {plan.remat}, moments {plan.moments}")
    _line(console, "attention", plan.attention)
    versions = ", ".join(f"{name} {version}" for name, version in plan.versions.items())
    _line(console, "compiled", f"in {plan.compile_s:.0f} s by {versions}; program {plan.program_sha256[:12]}")
    for each in plan.assumed:
        _line(console, "assumed", each)
    console.print()


def _memory(plan: Plan, console: Console) -> None:
    memory = plan.memory
    arguments = sum(memory.arguments.values())
    unit, name = _unit(memory.usable or memory.needed or arguments)
    table = _table("HBM of a device" if memory.usable else "memory of a device", f">{name}", "")

    def row(label: str, count: float, note: str = "", style: str = "") -> None:
        table.add_row(label, f"{count / unit:,.2f}", note, style=style)

    for label, count in memory.arguments.items():
        row(label, count, "exact")
    if memory.reference:
        row("reference", memory.reference, "kept beside the step; exact")
    if memory.evaluation_failed:
        table.add_row("evaluation", "", "more than there is: the compiler gave up")
    if memory.evaluation is not None:
        row("evaluation", memory.evaluation, "all that it needs, moments included; not at the same time as the rest")
    if memory.needed is not None and memory.peak is not None:
        told = "estimated: the compiler's figure may be of the host" if memory.peak_is_estimate else _TOLD
        row("temporaries", memory.peak - arguments, told)
        if memory.code:
            row("code", memory.code, "of the programs themselves; exact")
        row("needed", memory.needed, style="bold")
    else:
        row("needed", arguments + memory.reference, "and temporaries: the compiler gave up, see above")
    if memory.usable is not None:
        row("usable", memory.usable, "what libtpu gives a program")
        if memory.needed is not None and not memory.evaluation_failed:
            row("free" if memory.needed <= memory.usable else "lacking", abs(memory.usable - memory.needed))
    console.print(table)
    console.print()
    groups = buffer_groups(plan)
    if memory.peak is None or not groups:
        return
    table = _table("alive at the peak", f">{name}", ">buffers", "largest")
    for group in groups[:_SHOWN]:
        table.add_row(group.label, f"{group.bytes / unit:,.2f}", f"{group.count:,}", group.largest)
    if rest := groups[_SHOWN:]:
        count = sum(group.count for group in rest)
        table.add_row("more", f"{sum(group.bytes for group in rest) / unit:,.2f}", f"{count:,}", "")
    console.print(table)
    if memory.peak_is_estimate:
        console.print("An estimate from the program's text.", style="dim")
        console.print()
        return
    estimate, real = memory.estimated_temporaries / unit, (memory.peak - arguments) / unit
    text = f"An estimate from the program's text: {estimate:,.2f} {name} in all, where the compiler says {real:,.2f}."
    console.print(text, style="dim")
    console.print()


def _collectives(plan: Plan, console: Console) -> None:
    groups = collective_traffic(plan)
    if not groups:
        console.print("collectives: none")
        console.print()
        return
    unit, name = _unit(max(group.wire_bytes for group in groups))
    table = _table("collectives of a step", "along", "over", ">count", f">{name} sent", ">async")
    for group in groups:
        share = group.async_bytes / group.wire_bytes if group.wire_bytes else 0
        count = f"{group.count:,}" if group.is_certain else f"~{group.count:,}"
        axes = " ".join(group.axes) or "none"
        network = group.network if plan.target.topology else "simulated"
        table.add_row(group.kind, axes, network, count, f"{group.wire_bytes / unit:,.2f}", _share(share))
    console.print(table)
    dcn = sum(group.wire_bytes for group in groups if group.over_dcn)
    total = sum(group.wire_bytes for group in groups)
    slow = f", {size(dcn) if dcn else 'nothing'} of it over DCN" if plan.target.topology else ""
    console.print(f"Each device sends {size(total)} a step{slow}.", style="dim")
    console.print()


def _findings(plan: Plan, console: Console) -> None:
    if not plan.findings:
        console.print("findings: none")
    for each in plan.findings[:_SHOWN]:
        where = f" in {_brief(each.op_name)}" if each.op_name else ""
        many = f"{size(each.bytes)}, " if each.bytes else ""
        _line(console, "warning", f"{each.kind}{where}: {many}{each.text}", "yellow")
    if len(plan.findings) > _SHOWN:
        console.print(f"and {len(plan.findings) - _SHOWN} more: --json has them all")
    console.print()


def _time(plan: Plan, console: Console, prices_of: str | None) -> None:
    flops, bound = plan.flops, plan.bound
    again = f", {operations(flops.recomputed)} recomputed to save memory" if flops.recomputed else ""
    again += f", {operations(flops.reference)} of the reference that scores each batch" if flops.reference else ""
    _line(console, "work", f"{operations(flops.model)} a step that the model asks for{again}")
    if bound is None:
        reason = "simulated devices are no TPU" if plan.target.topology is None else "there is no program"
        _line(console, "bound", f"none: {reason}")
    else:
        console.print()
        table = _table("least time of a step", ">by itself", "")
        for part, value in bound.parts.items():
            note = "<- limits" if part == bound.limit else "" if value else "not used"
            table.add_row(RESOURCES[part], seconds(value), note)
        console.print(table)
        console.print()
        tokens = f"{bound.tokens_per_s:,.0f} tokens/s, MFU {100 * bound.mfu:.1f} %"
        _line(console, "bound", f"{seconds(bound.seconds)} a step, {tokens}, by {RESOURCES[bound.limit]}")
        _line(console, "in series", f"{seconds(bound.serial_seconds)} a step, if nothing overlapped")
    if plan.target.topology is not None:
        _line(console, "epoch", _epoch(plan, prices_of))
    if bound is not None:
        console.print(CAVEAT, style="dim")


def _show_timing(timing: Timing, console: Console) -> None:
    plan, bound = timing.plan, timing.plan.bound
    fastest, slowest = min(timing.seconds), max(timing.seconds)
    steps = _counted(len(timing.seconds), "step")
    console.print(
        Text(f"MEASURED on {timing.devices} x {timing.device}: {seconds(timing.median_s)} a step"), style="bold"
    )
    console.print()
    _compiled(plan, console)
    table = _table("", ">measured", ">plan", "")

    def row(label: str, measured: str, planned: str | None, note: str) -> None:
        table.add_row(label, measured, planned or "", note if planned else "")

    serial = bound and seconds(bound.serial_seconds)
    row("a step", seconds(timing.median_s), bound and seconds(bound.seconds), f"at the bound; {serial} in series")
    row("tokens/s", f"{timing.tokens_per_s:,.0f}", bound and f"{bound.tokens_per_s:,.0f}", "at the bound")
    row("work of a device", f"{operations(timing.flops_per_s)}/s", None, "")
    if bound is not None and timing.mfu is not None:
        row("MFU", f"{timing.mfu:.1%}", f"{bound.mfu:.1%}", "at the bound")
    held = "not told" if timing.held_bytes is None else size(timing.held_bytes)
    row("memory of a device", held, size(plan.memory.peak or 0), "the compiler's")
    console.print(table)
    console.print()
    spread = f"median of {steps}, {seconds(fastest)} to {seconds(slowest)}, after one that is left out"
    rows = f"rows are made up, {timing.tokens_per_step:,} tokens a step; weights are random"
    _line(console, "measured", f"{spread}; {rows}")
    if timing.held_bytes is not None:
        _line(console, "memory", "the most that the process held on a device, also while it made weights and moments")
    if bound is None:
        _line(console, "bound", f"none: there are no figures of {plan.target.name}")


def _epoch(plan: Plan, prices_of: str | None) -> str:
    price = "no price for this chip"
    if plan.usd_per_hour is not None:
        price = f"{plan.usd_per_hour:,.2f} USD an hour on demand, list prices of {prices_of or 'no stated day'}"
    if plan.steps_per_epoch is None:
        hours = None if plan.bound is None else plan.bound.seconds * 1000 / 3600
        some = ""
        if hours is not None and math.isfinite(hours):
            cost = "" if plan.usd_per_hour is None else f", {plan.usd_per_hour * hours:,.2f} USD"
            some = f"; 1,000 steps take {hours:,.2f} hours{cost} at the bound"
        return f"no epoch to count, as the data are not here{some}; {price}"
    if plan.hours_per_epoch is None:
        return f"{plan.steps_per_epoch:,} steps; {price}"
    cost = "" if plan.usd_per_epoch is None else f", {plan.usd_per_epoch:,.2f} USD"
    return f"{plan.steps_per_epoch:,} steps, {plan.hours_per_epoch:,.2f} hours{cost} at the bound; {price}"


def _table(*headers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    for header in headers:
        right = header.startswith(">")
        table.add_column(header.removeprefix(">"), justify="right" if right else "left", no_wrap=right)
    return table


def _line(console: Console, label: str, text: str, style: str = "") -> None:
    """A label and its text, which goes on below itself."""
    grid = Table.grid(padding=0)
    grid.add_column(width=_LABEL, no_wrap=True)
    grid.add_column()
    grid.add_row(Text(f"{label}:", style="dim" if not style else style), Text(text, style=style, overflow="fold"))
    console.print(Padding(grid, 0))


def _share(share: float) -> str:
    return "all" if share > 0.999 else "none" if share < 0.001 else f"{100 * share:.0f} %"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _brief(op_name: str) -> str:
    """The last two parts of an operation's name; an argument's name whole."""
    parts = re.sub(r"\\+'", "'", op_name).split("/")
    return "/".join(parts[-2:])
