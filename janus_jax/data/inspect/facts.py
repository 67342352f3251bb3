"""The numbers of a split: what is read and what is not, lengths, fill, repeats, bias, and what is wrong."""

import dataclasses

import numpy as np

from janus_jax.data.dataset import TokenizedDataset
from janus_jax.data.inspect.boundary_check import Borders, check_borders
from janus_jax.data.inspect.opened import View
from janus_jax.data.inspect.scan import Scan, scan
from janus_jax.data.inspect.token_text import Pieces, beginning
from janus_jax.data.statistics import Histogram, Spread, wilson_interval

_NAMED = 3
"""Mistakes and repeated prompts that are named; the others are counted."""


@dataclasses.dataclass(frozen=True)
class LengthBias:
    """Of pairs, on the tokens that are read: how far length alone tells chosen from rejected."""

    pairs: int
    longer: int
    shorter: int
    equal: int
    difference: Spread  # chosen minus rejected, tokens
    histogram: Histogram
    longer_wins: float
    """Accuracy of "the longer one is chosen", equal lengths being half."""
    interval: tuple[float, float]
    """95 %, as if pairs were independent of each other."""


@dataclasses.dataclass(frozen=True)
class Repeats:
    """Exact repeats among the examples that fit, by digests of ids."""

    examples: int
    prompts: int
    """Different ones."""
    times: dict[int, int]
    """How often a prompt occurs: how many prompts do."""
    most: list[tuple[int, str]]
    """The prompts that occur most often: how often, how they begin."""
    responses: int
    """Examples whose prompt and response (chosen) both occurred before."""
    wholes: int
    """Pairs that occurred before, rejected included."""
    reversed: int
    """Pairs that are there the other way round too."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """Why an example must not be trained on."""

    what: str
    count: int
    where: str
    """The first of them: data set, split, example, its text's beginning."""


@dataclasses.dataclass(frozen=True)
class PartFacts:
    """Of one built split, or of all parts of a mixture together."""

    name: str
    examples: int
    tokens: int
    dropped_while_building: dict[str, int]
    fit: int
    dropped: int
    truncated: int
    zeroed: int
    lengths: dict[str, Spread]
    histograms: dict[str, Histogram]
    bias: LengthBias | None
    repeats: Repeats
    eos_inside: int
    """Examples with EOS inside a response, before its end: text that ends twice."""
    empty: int
    """Examples with a response that is nothing but EOS."""
    borders: Borders | None
    """None of a mixture as a whole: its parts have theirs."""


@dataclasses.dataclass(frozen=True)
class Share:
    """What an epoch reads of a part of a mixture."""

    name: str
    weight: float | None
    """As stated, all parts together making 1."""
    fit: int
    read: int
    examples: float
    """Of the epoch's examples."""
    tokens: float
    """Of the epoch's slots that hold a token."""
    passes: float
    """How often the epoch goes through the part."""


@dataclasses.dataclass(frozen=True)
class RowFacts:
    """Of the rows of an epoch."""

    epoch: int
    steps: int | None
    """None of a bare data set, which has no batches."""
    rows_per_step: int
    row_length: int
    max_sequence_length: int
    max_segments: int
    rows: int
    """That hold anything."""
    padding_rows: int
    examples: int
    fill: float
    """Mean over rows that hold anything."""
    fills: Histogram
    padding: float
    """Share of all slots of the epoch, rows of padding included."""
    examples_per_row: Spread


@dataclasses.dataclass(frozen=True)
class SplitFacts:
    """Everything about a split but its rows themselves."""

    title: str
    role: str
    split: str
    kind: str
    objective: str
    boundary: str
    template: str
    overlong: str
    notes: list[str]
    rows: RowFacts
    whole: PartFacts
    parts: list[PartFacts]
    """Of a mixture; empty otherwise."""
    shares: list[Share]
    epochs: int | None
    read_ever: int
    """Examples that a run reads at least once."""
    problems: list[Problem]
    first: str = ""
    """Title of the split that is shown first, of the others."""
    prompts_also_in_first: int | None = None
    """Examples whose prompt is in that one too."""


def scan_parts(view: View) -> list[Scan]:
    """One pass over the ids of each part."""
    return [scan(part) for part in view.plan.dataset.parts]


def split_facts(view: View, scans: list[Scan], epoch: int, pieces: Pieces) -> SplitFacts:
    """All numbers of a split."""
    plan, parts = view.plan, view.plan.dataset.parts
    of = view.part_of(plan.fitted.index)
    several = len(parts) > 1
    each = [_part_facts(view, part.name, part, scans[n], of == n, n, pieces) for n, part in enumerate(parts)]
    if several:
        whole = _part_facts(view, plan.dataset.name, None, Scan.join(scans), np.ones(len(of), bool), None, pieces)
    else:
        whole = each[0]
    rows = view.rows(epoch)
    manifest = parts[0].manifest
    ever = plan.examples_read() if view.role == "training" else plan.fitted.index
    return SplitFacts(
        title=view.title,
        role=view.role,
        split=view.split,
        kind=plan.dataset.kind,
        objective=view.objective,
        boundary=manifest.boundary,
        template=", ".join(dict.fromkeys(part.manifest.template for part in parts)),
        overlong=plan.settings.overlong,
        notes=list(view.notes),
        rows=_row_facts(view, rows, epoch),
        whole=whole,
        parts=each if several else [],
        shares=_shares(view, rows, of) if several else [],
        epochs=view.epochs,
        read_ever=len(ever),
        problems=_problems(view, Scan.join(scans), ever, pieces),
    )


def _part_facts(
    view: View,
    name: str,
    part: TokenizedDataset | None,
    scanned: Scan,
    mine: np.ndarray,
    number: int | None,
    pieces: Pieces,
) -> PartFacts:
    """Of one part, or of all (None); `mine` says which positions in `fitted` are of it."""
    dataset, fitted = view.plan.dataset, view.plan.fitted
    start = 0 if number is None else int(view.starts[number])
    stored = dataset.lengths if part is None else part.lengths
    index, kept = fitted.index[mine] - start, fitted.lengths[mine]
    zeroed = _zeroed(kept, stored[index])
    names = ("prompt", "response") if view.plan.form.branches == 1 else ("prompt", "chosen", "rejected")
    columns = {column: stored[:, place] for place, column in enumerate(names)}
    columns["prompt + longer" if len(names) == 3 else "prompt + response"] = stored[:, 0] + stored[:, 1:].max(1)
    building: dict[str, int] = {}
    for one in dataset.parts if part is None else [part]:
        for reason, count in one.manifest.splits[one.split].dropped.items():
            building[reason] = building.get(reason, 0) + count
    return PartFacts(
        name=name,
        examples=len(stored),
        tokens=int(stored.sum()),
        dropped_while_building=building,
        fit=len(index),
        dropped=len(stored) - len(index),
        truncated=int(((kept != stored[index]).any(1) & ~zeroed).sum()),
        zeroed=int(zeroed.sum()),
        lengths={column: Spread.of(values) for column, values in columns.items()},
        histograms={column: Histogram.of(values, "tokens") for column, values in columns.items()},
        bias=_bias(kept[~zeroed]) if view.plan.form.branches == 2 else None,
        repeats=_repeats(view, scanned, index, start, pieces),
        eos_inside=int(scanned.eos_inside[index].sum()),
        empty=int((stored[index, 1 : 1 + view.plan.form.branches] == 1).any(1).sum()),
        borders=None if part is None else check_borders(part, index),
    )


def _zeroed(kept: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """Pairs that `zero_grad` left without responses on purpose."""
    return (kept[:, 1:] == 0).all(1) & (stored[:, 1:] > 0).any(1)


def _bias(lengths: np.ndarray) -> LengthBias | None:
    difference = lengths[:, 1].astype(np.int64) - lengths[:, 2]
    if not len(difference):
        return None
    longer, shorter = int((difference > 0).sum()), int((difference < 0).sum())
    equal = len(difference) - longer - shorter
    right = longer + equal / 2
    return LengthBias(
        pairs=len(difference),
        longer=longer,
        shorter=shorter,
        equal=equal,
        difference=Spread.of(difference),
        histogram=Histogram.of(difference, "tokens"),
        longer_wins=right / len(difference),
        interval=wilson_interval(right, len(difference)),
    )


def _repeats(view: View, scanned: Scan, index: np.ndarray, start: int, pieces: Pieces) -> Repeats:
    prompts, first, counts = np.unique(scanned.digests[index, 0], return_index=True, return_counts=True)
    times, how_many = np.unique(counts, return_counts=True)
    ranked = np.argsort(-counts, kind="stable")[:_NAMED]
    named = [place for place in ranked.tolist() if counts[place] > 1]
    texts = view.plan.dataset.read(start + index[first[named]]) if named else []
    pairs, wholes = scanned.pairs[index], scanned.wholes[index]
    double = view.plan.form.branches == 2
    return Repeats(
        examples=len(index),
        prompts=len(prompts),
        times=dict(zip(times.tolist(), how_many.tolist(), strict=True)),
        most=[(int(counts[p]), beginning(pieces.text(one.prompt))) for p, one in zip(named, texts, strict=True)],
        responses=len(pairs) - len(np.unique(pairs)),
        wholes=len(wholes) - len(np.unique(wholes)) if double else 0,
        reversed=int(np.isin(scanned.reversed_wholes[index], wholes).sum()) if double else 0,
    )


def _row_facts(view: View, rows: list[np.ndarray], epoch: int) -> RowFacts:
    plan, length = view.plan, view.plan.settings.row_length
    sizes = np.array([len(row) for row in rows])
    used = np.array([int(plan.fitted.slots[row].sum()) for row in rows])
    there = sizes > 0
    fill = used[there] / length
    return RowFacts(
        epoch=epoch,
        steps=None if view.epochs is None else plan.steps(epoch),
        rows_per_step=plan.rows,
        row_length=length,
        max_sequence_length=plan.settings.max_sequence_length,
        max_segments=plan.max_segments,
        rows=int(there.sum()),
        padding_rows=int((~there).sum()),
        examples=int(sizes.sum()),
        fill=float(fill.mean()),
        fills=Histogram.with_bins(np.minimum(fill * 100, 99.999), "% of the row", 0, 5, 20),  # full rows: the last bin
        padding=1 - float(used.sum()) / (length * len(rows)),
        examples_per_row=Spread.of(sizes[there]),
    )


def _shares(view: View, rows: list[np.ndarray], of: np.ndarray) -> list[Share]:
    read, parts = np.concatenate(rows), view.plan.dataset.parts
    counts = np.bincount(of[read], minlength=len(parts))
    slots = np.bincount(of[read], weights=view.plan.fitted.slots[read], minlength=len(parts))
    fits = np.bincount(of, minlength=len(parts))
    weights = None if view.weights is None else np.array(view.weights) / np.sum(view.weights)
    return [
        Share(
            name=part.name,
            weight=None if weights is None else float(weights[n]),
            fit=int(fits[n]),
            read=int(counts[n]),
            examples=float(counts[n] / counts.sum()),
            tokens=float(slots[n] / slots.sum()),
            passes=float(counts[n] / max(1, fits[n])),
        )
        for n, part in enumerate(parts)
    ]


def _problems(view: View, scanned: Scan, read: np.ndarray, pieces: Pieces) -> list[Problem]:
    """Of the examples that are read: what makes training on them wrong in silence."""
    plan, branches = view.plan, view.plan.form.branches
    place = np.searchsorted(plan.fitted.index, read)
    kept, stored = plan.fitted.lengths[place], plan.dataset.lengths[read]
    zeroed = _zeroed(kept, stored)
    responses = kept[:, 1 : 1 + branches]
    cut = responses < stored[:, 1 : 1 + branches]
    if plan.form.head == "value":
        cut = np.zeros_like(cut)  # there EOS stays last whatever is cut
    ends = scanned.ends[read][:, :branches]
    found = {
        "a response without a token: its weights are all zero": (responses == 0).any(1) & ~zeroed,
        "a response that does not end with EOS": (~ends & ~cut & (responses > 0)).any(1) & ~zeroed,
        "a prompt that does not begin with BOS": scanned.bos_missing[read],
        "more than one BOS": scanned.bos_again[read],
    }
    return [_problem(view, what, read[bad], pieces) for what, bad in found.items() if bad.any()]


def _problem(view: View, what: str, examples: np.ndarray, pieces: Pieces) -> Problem:
    named = []
    for number in examples[:_NAMED].tolist():
        at = int(view.part_of(np.array([number]))[0])
        example = view.plan.dataset.read([number])[0]
        text = beginning(pieces.text(example.prompt))
        part = view.plan.dataset.parts[at]
        named.append(f"{part.name}, split {part.split}, example {number - int(view.starts[at])} ({text})")
    return Problem(what, len(examples), "; ".join(named))
