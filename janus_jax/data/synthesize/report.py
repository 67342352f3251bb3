"""What a synthesis made, as report.json and one page: counts beside the paper's, the hierarchy, gates, samples."""

import itertools
import math
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from janus_jax.data.inspect import html
from janus_jax.data.synthesize.config import SynthesisConfig
from janus_jax.data.synthesize.files import StepDirectory, number_of, shuffled
from janus_jax.data.synthesize.hierarchy import Hierarchy, of_rows
from janus_jax.storage import local
from janus_jax.storage.endpoint_journal import Spent

PAPER = {
    "instructions": 65_653,
    "system messages": 196_956,
    "dimensions": 4,
    "subdimensions": 6_027,
    "preferences": 797_904,
}
"""Unique counts of the Multifaceted Collection, as the poster of the paper has them."""
_MADE = {
    "instructions": "instructions",
    "systems": "system messages",
    "responses": "responses",
    "rubrics": "rubrics",
    "collection": "rows of the collection and the bench",
}
_SAMPLES = 5
_RADIUS = (40, 110, 200, 290)
_SHOWN = {1: 24, 2: 8}
"""Children that are drawn of a dimension, and of a subdimension."""
_COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5")


def write(
    out: Path, config: SynthesisConfig, directories: Mapping[str, StepDirectory], spent: Mapping[str, Spent]
) -> None:
    """Writes report.json and report.html into the output directory.

    Args:
        spent: by step, of its whole journal: also before it was made again, or made last.
    """
    hierarchy = of_rows(directories["hierarchy"].rows())
    kept = {row["id"] for row in directories["collection"].rows()}
    instructions, systems, used = set[str](), set[int](), Counter[str]()
    for row in _kept(directories, kept):  # a row at a time: all texts would not fit into memory
        instructions.add(row["instruction"])
        systems.add(number_of(row["system"]))
        used.update("/".join(list(p.values())[:3]) for p in row["preferences"])
    statistics = {"instructions": len(instructions), "system messages": len(systems), **hierarchy.statistics()}
    table = [{"what": name, "here": statistics[name], "paper": PAPER[name]} for name in PAPER]
    steps = [_step(directory, spent.get(name)) for name, directory in directories.items() if directory.facts()]
    usage = {
        "preferences_used": len(used),
        "least": min(used.values(), default=0),
        "most": max(used.values(), default=0),
    }
    made = list(_yields({step["step"]: step for step in steps}))
    facts = {"statistics": table, "yields": made, "steps": steps, "use_of_preferences": usage}
    local.write_json(out / "report.json", facts)
    page = html.render(
        Path(__file__).parent / "assets",
        "synthesis",
        f"Synthesis in {local.near(out)}",
        table=table,
        made=made,
        steps=steps,
        usage=usage,
        sunburst=sunburst(hierarchy),
        left_out=_left_out(hierarchy),
        samples=list(_samples(config, directories, kept, instructions)),
    )
    local.write_whole(out / "report.html", page)


def _step(directory: StepDirectory, spent: Spent | None) -> dict[str, Any]:
    facts = directory.facts()
    if spent is not None and spent.tokens:
        facts["usage"] = {"prompt_tokens": spent.prompt_tokens, "completion_tokens": spent.completion_tokens}
    names = ("step", "counts", "dropped", "rejected", "usage", "notes", "limit", "unanswered")
    return {name: facts.get(name) for name in names} | {"edited": directory.is_edited()}


def _yields(steps: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Of what each step was to make, how much it made, and how many answers gates refused for it."""
    wanted_texts = 0
    for name, what in _MADE.items():
        if (step := steps.get(name)) is None:
            continue
        rows = step["counts"].get("rows", 0)
        wanted = rows + sum(step["dropped"].values())
        wanted_texts = wanted if name == "systems" else wanted_texts
        if wanted:
            wanted = wanted_texts if name == "collection" else wanted
            refused = sum(step["rejected"].values())
            yield {"what": what, "wanted": wanted, "made": rows, "left_out": wanted - rows, "answers_refused": refused}


def _kept(directories: Mapping[str, StepDirectory], ids: Container[str]) -> Iterator[dict[str, Any]]:
    """The system messages of the rows that were published."""
    return (row for row in directories["systems"].rows() if row["id"] in ids)


def _samples(
    config: SynthesisConfig, directories: Mapping[str, StepDirectory], kept: set[str], instructions: Iterable[str]
) -> Iterator[dict[str, Any]]:
    """Some instructions with all their system messages and responses."""
    chosen = set(shuffled(instructions, config.seed, "samples")[:_SAMPLES])
    prompts = {row["id"]: row["prompt"] for row in directories["instructions"].rows() if row["id"] in chosen}
    rows = sorted((row for row in _kept(directories, kept) if row["instruction"] in chosen), key=lambda row: row["id"])
    ids = {row["id"] for row in rows}
    outputs = {row["id"]: row["output"] for row in directories["responses"].rows() if row["id"] in ids}
    for one, group in itertools.groupby(rows, key=lambda row: row["instruction"]):
        yield {"prompt": prompts[one], "rows": [{**row, "output": outputs.get(row["id"], "")} for row in group]}


def _left_out(hierarchy: Hierarchy) -> int:
    """Subdimensions and preferences that the picture does not show."""
    shown = sum(
        1 + min(len(inner), _SHOWN[2])
        for subdimensions in hierarchy.dimensions.values()
        for inner in list(subdimensions.values())[: _SHOWN[1]]
    )
    counts = hierarchy.statistics()
    return counts["subdimensions"] + counts["preferences"] - shown


def sunburst(hierarchy: Hierarchy) -> Markup:
    """Rings of dimensions, subdimensions and preferences; angles by the number of preferences that are drawn."""
    parts: list[str] = []
    drawn = {
        dimension: {name: inner[: _SHOWN[2]] for name, inner in list(subdimensions.items())[: _SHOWN[1]]}
        for dimension, subdimensions in hierarchy.dimensions.items()
    }
    total = sum(len(inner) for subdimensions in drawn.values() for inner in subdimensions.values())
    at, unit = 0.0, 2 * math.pi / max(total, 1)
    for number, (dimension, subdimensions) in enumerate(drawn.items()):
        colour, start = _COLOURS[number % len(_COLOURS)], at
        for name, inner in subdimensions.items():
            begin = at
            for one in inner:
                parts.append(_arc(2, at, at + unit, colour, 0.25, one.preference, f"{name}: {one.description}"))
                at += unit
            of = len(hierarchy.dimensions[dimension][name])
            parts.append(_arc(1, begin, at, colour, 0.4, name, f"{dimension}, {of:,} preferences"))
        parts.append(_arc(0, start, at, colour, 0.6, dimension.replace("_", " "), f"{len(subdimensions)} drawn"))
    size = _RADIUS[-1] + 10
    label = "Sunburst of dimensions, subdimensions and preferences"
    inner = f'<circle r="{_RADIUS[-1]}" fill="#fff"/>{"".join(parts)}'  # white also below a dark page
    return Markup(f'<svg viewBox="{-size} {-size} {2 * size} {2 * size}" role="img" aria-label="{label}">{inner}</svg>')


def _arc(ring: int, start: float, end: float, colour: str, opacity: float, name: str, more: str) -> str:
    inner, outer = _RADIUS[ring], _RADIUS[ring + 1]
    end = min(end, start + 2 * math.pi - 1e-4)  # a whole circle has no arc
    large = int(end - start > math.pi)
    points = [
        (outer * math.sin(start), -outer * math.cos(start)),
        (outer * math.sin(end), -outer * math.cos(end)),
        (inner * math.sin(end), -inner * math.cos(end)),
        (inner * math.sin(start), -inner * math.cos(start)),
    ]
    a, b, c, d = (f"{x:.2f} {y:.2f}" for x, y in points)
    path = f"M{a}A{outer} {outer} 0 {large} 1 {b}L{c}A{inner} {inner} 0 {large} 0 {d}Z"
    title = f"<title>{escape(name)}: {escape(more)}</title>"
    shape = f'<path d="{path}" fill="{colour}" fill-opacity="{opacity}" stroke="#fff">{title}</path>'
    middle, width = (start + end) / 2, (end - start) * (inner + outer) / 2
    if width < 9:
        return shape
    radius, turn = (inner + outer) / 2, math.degrees(middle) - 90
    turn += 180 if middle > math.pi else 0
    x, y = radius * math.sin(middle), -radius * math.cos(middle)
    short = name if len(name) <= 18 else f"{name[:17]}\u2026"
    place = f'x="{x:.2f}" y="{y:.2f}" transform="rotate({turn:.1f} {x:.2f} {y:.2f})"'
    return f'{shape}<text {place} text-anchor="middle" dominant-baseline="middle" fill="#111">{escape(short)}</text>'
