"""Prints plans and timings on a terminal, at most 80 columns wide when piped. Colours only repeat what words say."""

import math
import re
from collections.abc import Callable

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from janus_jax.errors import counted
from janus_jax.parallel.environment import gpu_memory_share
from janus_jax.planning.chips.slices import CPU
from janus_jax.planning.report.grouping import buffer_groups, collective_traffic
from janus_jax.planning.result import Plan, Timing

CAVEAT = (
    "A bound, not a promise: it assumes that collectives overlap with computing and that every unit runs at its "
    "peak without a pause. A run takes longer."
)
GPU_CAVEAT = (
    "Compiled for a GPU that is not here, and not checked on one. There, XLA also times its kernels and may choose "
    "others. What cuDNN needs while it works is not counted."
)

_SHOWN = 10
_WIDEST = 100
_LABEL = 11
_TEMPORARIES = "the compiler's peak minus the arguments above"
_BLOCK = "one block, allocated for the step; the compiler's"


def show(plan: Plan, console: Console | None = None, *, prices_of: str | None = None) -> None:
    """Prints a plan, its verdict first.

    Args:
        prices_of: the date of the prices in `Plan.usd_per_hour`.
    """
    _print(console, lambda output: _show(plan, output, prices_of))


def show_timing(timing: Timing, console: Console | None = None) -> None:
    """Prints measured figures beside those of the plan."""
    _print(console, lambda output: _show_timing(timing, output))


def _print(console: Console | None, write: Callable[[Console], None]) -> None:
    console = console or Console(markup=False, highlight=False, emoji=False)
    console.width = min(console.width, _WIDEST)
    if console.is_terminal:
        write(console)
        return
    with console.capture() as captured:
        write(console)
    console.file.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))  # rich pads lines


def _show(plan: Plan, console: Console, prices_of: str | None) -> None:
    console.print(Text(f"{verdict(plan)}\n", style="bold green" if plan.fits else "bold red"))
    _compiled(plan, console)
    _memory(plan, console)
    if plan.memory.peak is None:
        console.print("The compiler gave up, so collectives, findings and time are unknown.\n")
    else:
        _collectives(plan, console)
        _findings(plan, console)
    _time(plan, console, prices_of)


def resource(plan: Plan, part: str) -> str:
    """The name of a part of `Bound.parts`."""
    return plan.target.network if part == "ici" else "compute" if part == "compute" else part.upper()


def verdict(plan: Plan) -> str:
    """One sentence: does the step fit?"""
    memory, name = plan.memory, f"{'' if plan.num_slices == 1 else f'{plan.num_slices} x '}{plan.target.name}"
    if not plan.fits:
        return f"DOES NOT FIT {name}: {plan.reason}"
    if memory.usable is None or memory.needed is None:
        return f"COMPILES for {name}: simulated devices have no memory limit and no bound on time"
    free, needed = size(memory.usable - memory.needed), f"{memory.needed / 2**30:.2f} of {memory.usable / 2**30:.2f}"
    return f"FITS: {needed} GiB on each device of {name}, {free} free"


def size(count: float) -> str:
    """Bytes in KiB, MiB or GiB."""
    unit, name = _unit(count)
    return f"{count / unit:,.2f} {name}"


def operations(count: float) -> str:
    """Floating-point operations with an SI prefix."""
    step = min(max(int(math.log10(max(count, 1)) // 3), 0), 6)
    return f"{count / 1000**step:.2f} {' kMGTPE'[step].strip()}FLOP"


def seconds(value: float) -> str:
    """Three significant digits, in seconds or milliseconds."""
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
    chips = f"{target.chips * times:,} chips, {devices:,} devices, {counted(target.hosts * times, 'host')}"
    if target.topology is None:
        kind = "simulated devices" if target.family == CPU else f"{target.family} devices"
        chips = f"{devices:,} {kind}"
    if target.is_gpu:
        chips = f"{counted(devices, 'GPU')} of one machine"
    shape = "" if target.topology in (None, target.name) else f" ({target.topology})"
    per_device = f"{plan.rows_per_device:g} {'row' if plan.rows_per_device == 1 else 'rows'} per device"
    split = f" in {plan.microbatches} microbatches of {per_device}" if plan.microbatches > 1 else f", {per_device}"
    rows = f"{plan.rows:,} rows of {plan.row_length:,} slots{split}"
    _line(console, "slice", f"{'' if times == 1 else f'{times} x '}{target.name}{shape}: {chips}")
    _line(console, "mesh", " x ".join(f"{axis} {count}" for axis, count in plan.mesh.items()))
    _line(console, "step", f"{plan.objective}, {rows}")
    _line(console, "memory", f"remat {plan.remat}, moments {plan.moments}")
    _line(console, "attention", plan.attention)
    versions = ", ".join(f"{name} {version}" for name, version in plan.versions.items())
    _line(console, "compiled", f"in {plan.compile_s:.0f} s with {versions}; program {plan.program_sha256[:12]}")
    for assumption in plan.assumed:
        _line(console, "assumed", assumption)
    for note in plan.notes:
        _line(console, "note", note)
    console.print()


def _memory(plan: Plan, console: Console) -> None:
    memory = plan.memory
    arguments = sum(memory.arguments.values())
    unit, name = _unit(memory.usable or memory.needed or arguments)
    table = _table("HBM per device" if memory.usable else "memory per device", f">{name}", "")

    def row(label: str, count: float, note: str = "", style: str = "") -> None:
        table.add_row(label, f"{count / unit:,.2f}", note, style=style)

    for label, count in memory.arguments.items():
        row(label, count, "exact")
    if memory.reference:
        row("reference", memory.reference, "weights of the online reference; exact")
    if memory.evaluation_failed:
        table.add_row("evaluation", "", "more than a device has; the compiler gave up")
    if memory.evaluation is not None:
        row("evaluation", memory.evaluation, "its own total, moments included; not added to the step's")
    if memory.samples:
        row("samples", memory.sampling, "their total, weights and moments included; not added to the step's")
    if memory.needed is not None and memory.peak is not None:
        host = "estimated; the compiler's figure may be for host memory"
        row(
            "temporaries",
            memory.peak - arguments,
            host if memory.peak_is_estimate else _BLOCK if plan.target.is_gpu else _TEMPORARIES,
        )
        if memory.code:
            row("code", memory.code, "the compiled programs; exact")
        row("needed", memory.needed, style="bold")
    else:
        row("needed", arguments + memory.reference, "plus temporaries; the compiler gave up, see above")
    if memory.usable is not None:
        pool = f"{gpu_memory_share():.0%} of the GPU's memory; XLA_CLIENT_MEM_FRACTION changes it"
        row("usable", memory.usable, pool if plan.target.is_gpu else "what libtpu lets a program use")
        if memory.needed is not None and not memory.evaluation_failed:
            row("free" if memory.needed <= memory.usable else "missing", abs(memory.usable - memory.needed))
    console.print(table)
    console.print()
    if memory.samples:
        parts = ", ".join(f"{part} {size(count)}" for part, count in memory.samples.items())
        of_samples = f"{size(sum(memory.samples.values()))} beside the step's weights and moments, between steps"
        _line(console, "samples", f"{of_samples}: {parts}; an estimate")
    _line(console, "host", f"{_host(memory.host, memory.host_present)}\n")
    groups = buffer_groups(plan)
    if memory.peak is None or not groups:
        return
    table = _table("live at the peak", f">{name}", ">buffers", "largest")
    for group in groups[:_SHOWN]:
        table.add_row(group.label, f"{group.bytes / unit:,.2f}", f"{group.count:,}", group.largest)
    if rest := groups[_SHOWN:]:
        count = sum(group.count for group in rest)
        table.add_row("more", f"{sum(group.bytes for group in rest) / unit:,.2f}", f"{count:,}", "")
    console.print(table)
    if memory.peak_is_estimate:
        console.print("Estimated from the program's text.\n", style="dim")
        return
    estimate, reported = memory.estimated_temporaries / unit, (memory.peak - arguments) / unit
    text = f"Estimated from the program's text: {estimate:,.2f} {name} in total; the compiler reports {reported:,.2f}."
    console.print(f"{text}\n", style="dim")


def _host(needed: int, present: int | None) -> str:
    has = "what a host of this slice has is not known here" if present is None else f"this machine has {size(present)}"
    return f"at least {size(needed)} of a host's own memory, libraries and data files not counted; {has}"


def _collectives(plan: Plan, console: Console) -> None:
    groups = collective_traffic(plan)
    if not groups:
        console.print("collectives: none\n")
        return
    unit, name = _unit(max(group.wire_bytes for group in groups))
    table = _table("collectives per step", "mesh axes", "network", ">count", f">{name} sent", ">async")
    for group in groups:
        share = group.async_bytes / group.wire_bytes if group.wire_bytes else 0
        count = f"{group.count:,}" if group.is_certain else f"~{group.count:,}"
        axes = " ".join(group.axes) or "none"
        network = group.network if plan.target.topology else "simulated"
        table.add_row(group.kind, axes, network, count, f"{group.wire_bytes / unit:,.2f}", _share(share))
    console.print(table)
    dcn = sum(group.wire_bytes for group in groups if group.over_dcn)
    total = sum(group.wire_bytes for group in groups)
    slow = f", {size(dcn) if dcn else 'none'} of it over DCN" if plan.target.topology and not plan.target.is_gpu else ""
    console.print(f"Each device sends {size(total)} per step{slow}.\n", style="dim")


def _findings(plan: Plan, console: Console) -> None:
    if not plan.findings:
        console.print("findings: none")
    for finding in plan.findings[:_SHOWN]:
        place = f" in {_brief(finding.op_name)}" if finding.op_name else ""
        amount = f"{size(finding.bytes)}, " if finding.bytes else ""
        _line(console, "warning", f"{finding.kind}{place}: {amount}{finding.text}", "yellow")
    if len(plan.findings) > _SHOWN:
        console.print(f"and {len(plan.findings) - _SHOWN} more; --json writes all of them")
    console.print()


def _time(plan: Plan, console: Console, prices_of: str | None) -> None:
    flops, bound = plan.flops, plan.bound
    work = f"{operations(flops.model)} per step for the model"
    work += f", {operations(flops.recomputed)} recomputed to save memory" if flops.recomputed else ""
    work += f", {operations(flops.reference)} for the reference that scores each batch" if flops.reference else ""
    _line(console, "work", work)
    if bound is None:
        reason = "the devices are simulated" if plan.target.topology is None else "the compiler gave up"
        _line(console, "bound", f"none: {reason}")
    else:
        console.print()
        table = _table("least time per step", ">on its own", "")
        for part, value in bound.parts.items():
            note = "<- limits the step" if part == bound.limit else "" if value else "not used"
            table.add_row(resource(plan, part), seconds(value), note)
        console.print(table)
        console.print()
        tokens = f"{bound.tokens_per_s:,.0f} tokens/s, MFU {100 * bound.mfu:.1f} %"
        _line(
            console, "bound", f"{seconds(bound.seconds)} per step, {tokens}, limited by {resource(plan, bound.limit)}"
        )
        _line(console, "in series", f"{seconds(bound.serial_seconds)} per step if nothing overlaps")
    if (expected := _expected(plan)) is not None:
        _line(console, "expected", expected)
    if plan.target.topology is not None:
        _line(console, "epoch", _epoch(plan, prices_of))
    if bound is not None:
        console.print(CAVEAT, style="dim")
    if plan.target.is_gpu:
        console.print(GPU_CAVEAT, style="dim")


def _show_timing(timing: Timing, console: Console) -> None:
    plan, bound = timing.plan, timing.plan.bound
    fastest, slowest = min(timing.seconds), max(timing.seconds)
    steps = counted(len(timing.seconds), "step")
    median = seconds(timing.median_s)
    console.print(Text(f"MEASURED on {timing.devices} x {timing.device}: {median} per step\n"), style="bold")
    _compiled(plan, console)
    table = _table("", ">measured", ">plan", "")

    def row(label: str, measured: str, planned: str | None, note: str) -> None:
        table.add_row(label, measured, planned or "", note if planned else "")

    serial = bound and seconds(bound.serial_seconds)
    row("step", median, bound and seconds(bound.seconds), f"at the bound; {serial} in series")
    row("tokens/s", f"{timing.tokens_per_s:,.0f}", bound and f"{bound.tokens_per_s:,.0f}", "at the bound")
    row("work per device", f"{operations(timing.flops_per_s)}/s", None, "")
    if bound is not None and timing.mfu is not None:
        row("MFU", f"{timing.mfu:.1%}", f"{bound.mfu:.1%}", "at the bound")
    held = "not reported" if timing.held_bytes is None else size(timing.held_bytes)
    row("memory per device", held, size(plan.memory.peak or 0), "the compiler's")
    console.print(table)
    console.print()
    times = f"median of {steps}, {seconds(fastest)} to {seconds(slowest)}, after one warm-up step"
    _line(console, "measured", f"{times}; random weights, made-up rows with {timing.tokens_per_step:,} tokens per step")
    if timing.held_bytes is not None:
        _line(console, "memory", "the process's peak on a device, including while it made weights and moments")
    if bound is None:
        _line(console, "bound", f"none: no figures for {plan.target.name}")


def _expected(plan: Plan) -> str | None:
    """The step beside its bound, and why; None without a bound."""
    bound, expected, family = plan.bound, plan.expected, plan.target.family
    if bound is None:
        return None
    if expected is None or plan.expected_seconds is None:
        return f"nothing: no step on {family} was measured; --measured takes files of janus time-step --json"
    factor, many = expected.factor, len(expected.sources)
    figures = f"{seconds(plan.expected_seconds)} per step, {bound.tokens_per_s / factor:,.0f} tokens/s"
    figures += f", MFU {100 * bound.mfu / factor:.1f} %: the bound times {factor:.2f}"
    if not expected.own:
        return f"{figures}, as published for {expected.sources[0]} on {family}; janus_jax was not measured"
    spread = f", from {expected.low:.2f} to {expected.high:.2f}" if many > 1 else ""
    alike = " and ".join(expected.alike)
    of = f"of the same {alike}" if alike else "of other objectives"
    return f"{figures}, as measured in {counted(many, 'file')} {of}{spread}"


def _epoch(plan: Plan, prices_of: str | None) -> str:
    price = "no price for this chip"
    if plan.usd_per_hour is not None:
        price = f"{plan.usd_per_hour:,.2f} USD per hour on demand, list prices of {prices_of or 'an unknown date'}"
    if plan.steps_per_epoch is None:
        hours = None if plan.bound is None else plan.bound.seconds * 1000 / 3600
        thousand = ""
        if hours is not None and math.isfinite(hours):
            thousand = f"; 1,000 steps take {_hours(plan, hours)}"
        return f"its length is unknown without the data set{thousand}; {price}"
    if plan.hours_per_epoch is None:
        return f"{counted(plan.steps_per_epoch, 'step')}; {price}"
    return f"{counted(plan.steps_per_epoch, 'step')}, {_hours(plan, plan.hours_per_epoch)}; {price}"


def _hours(plan: Plan, hours: float) -> str:
    """Hours and cost at the bound, and those that are expected."""

    def with_cost(hours: float) -> str:
        return f"{hours:,.2f} hours" + ("" if plan.usd_per_hour is None else f", {plan.usd_per_hour * hours:,.2f} USD")

    expected = "" if plan.expected is None else f", expected {with_cost(hours * plan.expected.factor)}"
    return f"{with_cost(hours)} at the bound{expected}"


def _table(*headers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    for header in headers:
        right = header.startswith(">")
        table.add_column(header.removeprefix(">"), justify="right" if right else "left", no_wrap=right)
    return table


def _line(console: Console, label: str, text: str, style: str = "") -> None:
    """A label, and its text in a column of its own."""
    grid = Table.grid(padding=0)
    grid.add_column(width=_LABEL, no_wrap=True)
    grid.add_column()
    grid.add_row(Text(f"{label}:", style="dim" if not style else style), Text(text, style=style, overflow="fold"))
    console.print(Padding(grid, 0))


def _share(share: float) -> str:
    return "all" if share > 0.999 else "none" if share < 0.001 else f"{100 * share:.0f} %"


def _brief(op_name: str) -> str:
    """The last two parts of an operation's name, or the whole name of an argument."""
    return "/".join(re.sub(r"\\+'", "'", op_name).split("/")[-2:])
