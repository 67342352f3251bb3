"""The 7B recipes on TPU slices: a mesh to begin with, its memory and its bounds. Writes the tables of docs/slices.md.

    python -m tests.benchmarks.slices            # needs libtpu; about half an hour on two cores

Each cell is a sweep over meshes, microbatches and remat: all are estimated, the likeliest compiled until one fits. What
was compiled is kept ($JANUS_CACHE), so that a run that was ended goes on where it was. Moments are float32 unless the
cell says otherwise, and batches those of the recipe. Cells without `compiled` are the estimate alone, and say so.
"""

import dataclasses
import re
import sys
from typing import Any

import yaml

from janus_jax.config.changes import changed
from janus_jax.config.run import load_config
from janus_jax.planning.chips.slices import find_slice, load_chips
from janus_jax.planning.compile import versions
from janus_jax.planning.search.candidates import SearchSpace
from janus_jax.planning.search.estimate import estimate
from janus_jax.planning.search.sweep import Cell, sweep
from tests.support.repository import ROOT

PAGE = ROOT / "docs" / "slices.md"
GIB = 2**30
MOST_COMPILED, TRIES = 24, 2
SLICES = ("v5litepod-16", "v5litepod-64", "v5litepod-256", "v4-32", "v5p-8", "v5p-16", "v6e-16", "v6e-64")


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A cell of a table."""

    recipe: str
    topology: str
    num_slices: int = 1
    changes: tuple[str, ...] = ()
    moments: str = "float32"
    remat: tuple[str, ...] = ("none", "dots", "full")
    compiled: bool = True


_COMPILED = {
    "sft_65k": SLICES,
    "dpo": ("v5litepod-16", "v4-32", "v5p-8", "v6e-16"),
    "orpo": ("v5litepod-16", "v5p-8"),
    "rm": ("v5litepod-16",),
}
LADDER = [Wanted(recipe, name, compiled=name in _COMPILED[recipe]) for recipe in _COMPILED for name in SLICES]
_ANY = ("none", "dots", "full", "offload")
SMALLEST = [
    Wanted("sft_65k", "v5litepod-8", changes=("batch.rows=8", "batch.microbatches=1"), remat=_ANY),
    Wanted("sft_65k", "v5litepod-8", moments="bfloat16", remat=_ANY),
    Wanted("sft_65k", "v6e-4", changes=("batch.rows=4", "batch.microbatches=1"), remat=_ANY),
    Wanted("sft_65k", "v4-8", changes=("batch.rows=4", "batch.microbatches=1"), remat=_ANY),
    Wanted("sft_65k", "v5p-8", remat=_ANY),
    Wanted("sft_65k", "tpu7x-2", remat=_ANY),
    Wanted("dpo", "v5litepod-8", remat=_ANY),
    Wanted("dpo", "v6e-4", remat=_ANY),
    Wanted("dpo", "v4-8", remat=_ANY),
    Wanted("dpo", "v5p-8", remat=_ANY),
    Wanted("dpo", "tpu7x-2", remat=_ANY, compiled=False),
]
SEVERAL = [Wanted("sft_65k", "v5litepod-16", num_slices=2)]


class Count:
    """How many programs may still be compiled; those that are known count as well."""

    def __init__(self, most: int):
        self.left = most
        self.seen: set[tuple[Any, ...]] = set()
        self.estimates: dict[tuple[Any, ...], float] = {}  # over what the compiler found
        self.rows: dict[Wanted, list[str]] = {}

    def take(self, wanted: Wanted, cells: list[Cell]) -> None:
        compiled = [cell for cell in cells if cell.status in ("fits", "too large", "failed")]
        keys = [(wanted.recipe, wanted.topology, wanted.num_slices, wanted.changes, each.changes) for each in compiled]
        self.left -= len(set(keys) - self.seen)
        self.seen |= set(keys)
        self.estimates |= {
            key: cell.estimated_bytes / cell.peak for key, cell in zip(keys, compiled, strict=True) if cell.peak
        }


def row(wanted: Wanted, count: Count) -> list[str]:
    """One line of a table."""
    if wanted in count.rows:
        return count.rows[wanted]
    config = load_config(f"configs/{wanted.recipe}.yaml", list(wanted.changes))
    axes = SearchSpace(remat=wanted.remat, moments=(wanted.moments,))
    known: list[Cell] = []
    for limit in range(1, TRIES + 1) if wanted.compiled else ():
        if count.left <= 0:
            break
        known = sweep(config, wanted.topology, wanted.num_slices, axes, limit=limit, workers=1)
        count.take(wanted, known)
        if known[0].status == "fits":
            break
    cells = known or sweep(config, wanted.topology, wanted.num_slices, axes, limit=0)
    message = count.rows[wanted] = _said(config, wanted, cells)
    print(" | ".join(message), file=sys.stderr, flush=True)
    return message


def _said(config: Any, wanted: Wanted, cells: list[Cell]) -> list[str]:
    target = find_slice(wanted.topology)
    usable = (load_chips().chips[target.family].usable_hbm_bytes_per_device or 0) / GIB
    name = wanted.topology if wanted.num_slices == 1 else f"{wanted.num_slices} x {wanted.topology}"
    asked = " ".join(wanted.changes)
    fitting = [cell for cell in cells if cell.status == "fits"]
    tried = [cell for cell in cells if cell.status in ("too large", "failed")]
    if fitting or tried:
        cell = (fitting or tried)[0]
        how = "compiled" if fitting else f"{cell.status}, compiled"
        needs = "more" if cell.peak is None else f"{cell.peak / GIB:.2f}"
        needs = f"about {needs}" if cell.plan and cell.plan["memory"]["peak_is_estimate"] else needs
        speeds = (cell.tokens_per_s, cell.serial_tokens_per_s)
        mfu = cell.plan["bound"]["mfu"] if cell.plan and cell.plan["bound"] else None
    else:
        cell, how = cells[0], "estimate"
        if cell.status == "hopeless":
            return [wanted.recipe, name, asked, "none: too large", f"of {usable:.2f}", "", "", how]
        made = changed(config, dict(_parsed(each) for each in cell.changes))
        bound = estimate(made, target, wanted.num_slices).bound
        assert bound is not None
        tokens = bound.tokens_per_s * bound.seconds
        needs, mfu = f"about {cell.estimated_bytes / GIB:.1f}", bound.mfu
        speeds = (bound.tokens_per_s, tokens / bound.serial_seconds)
    mesh = " ".join(f"{axis} {size}" for axis, size in cell.mesh.items() if size > 1)
    what = f"{mesh}; {cell.microbatches} x {cell.rows_per_device:g} rows; remat {cell.remat}"
    if cell.moments != "float32":
        what += f"; {cell.moments} moments"
    rate = "" if speeds[0] is None or speeds[1] is None else f"{speeds[1]:,.0f} to {speeds[0]:,.0f}"
    part = "" if mfu is None else f"{mfu:.0%}"
    return [wanted.recipe, name, asked, what, f"{needs} of {usable:.2f}", rate, part, how]


def _parsed(override: str) -> tuple[str, Any]:
    key, _, value = override.partition("=")
    return key, yaml.safe_load(value)


def table(lines: list[list[str]]) -> str:
    """Markdown."""
    head = ["recipe", "slice", "with", "mesh; microbatches x rows of a device", "GiB", "tokens/s", "MFU", ""]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *lines))


def write(name: str, text: str) -> None:
    """Puts a table between its marks in the page."""
    page = PAGE.read_text(encoding="utf-8")
    marks = rf"(<!-- {name} -->\n\n).*?(\n\n<!-- end -->)"
    assert re.search(marks, page, re.DOTALL), name
    PAGE.write_text(re.sub(marks, lambda m: m[1] + text + m[2], page, flags=re.DOTALL), encoding="utf-8")


def main() -> None:
    count = Count(MOST_COMPILED)
    needed = [Wanted("sft_65k", "v5litepod-256"), *SEVERAL, *SMALLEST]
    for wanted in needed:  # before what may be left to the estimate
        row(wanted, count)
    for name, cells in (("smallest", SMALLEST), ("several", SEVERAL), ("ladder", LADDER)):
        write(name, table([row(wanted, count) for wanted in cells]))
    written = ", ".join(f"{package} {version}" for package, version in versions().items())
    low, high = min(count.estimates.values()) - 1, max(count.estimates.values()) - 1
    accuracy = f"The estimates were {low:+.0%} to {high:+.0%} of the compiler's figures."
    write("versions", f"{len(count.seen)} programs were compiled, with {written}. {accuracy}")


if __name__ == "__main__":
    main()
