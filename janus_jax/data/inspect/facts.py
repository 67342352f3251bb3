"""The numbers of a split: examples read and dropped, lengths, fill, duplicates, length bias, and broken examples."""

import dataclasses

import numpy as np

from janus_jax.data.dataset import Dataset
from janus_jax.data.inspect.boundary_check import BoundaryCheck, check_boundary
from janus_jax.data.inspect.opened import OpenedSplit
from janus_jax.data.inspect.scan import Scan
from janus_jax.data.inspect.thresholds import SHORT
from janus_jax.data.inspect.token_text import TokenDecoder, beginning
from janus_jax.data.rows import Outcome, outcome_counts
from janus_jax.data.statistics import Histogram, Quantiles, wilson_interval
from janus_jax.data.tally import NAMED

_NAMED = 3
"""How many broken examples and repeated prompts are named; the rest are counted."""


@dataclasses.dataclass(frozen=True)
class LengthBias:
    """How well length alone tells chosen from rejected, on the tokens that are read."""

    pairs: int
    longer: int
    shorter: int
    equal: int
    difference: Quantiles  # chosen minus rejected, tokens
    histogram: Histogram
    longer_wins: float
    """Accuracy of "the longer response is chosen"; equal lengths count half."""
    interval: tuple[float, float]
    """95 %, as if pairs were independent of each other."""


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Exact duplicates among the usable examples, by digests of ids."""

    examples: int
    distinct_prompts: int
    prompts_by_count: dict[int, int]
    """Number of examples with the same prompt -> number of such prompts."""
    most_repeated: list[tuple[int, str]]
    """The most frequent prompts: how often each occurs, and how it begins."""
    responses: int
    """Examples that repeat an earlier prompt and response (chosen)."""
    pairs: int
    """Pairs that repeat an earlier prompt, chosen and rejected."""
    swapped: int
    """Pairs that also occur with chosen and rejected swapped."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """A reason why examples must not be trained on."""

    fault: str
    count: int
    examples: str
    """The first of them: data set, split, number and how the prompt begins."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something to look at: nothing is broken, but a share is past its threshold."""

    kind: str
    """One of `thresholds.KINDS`."""
    where: str
    text: str
    count: int
    total: int
    share: float
    threshold: float


@dataclasses.dataclass(frozen=True)
class PartFacts:
    """Numbers of one built split, or of all parts of a mixture together."""

    name: str
    examples: int
    tokens: int
    dropped_while_building: dict[str, int]
    build_notes: dict[str, int]
    """What the build noted of examples that it kept, with their number."""
    build_places: dict[str, dict[str, list[str]]]
    """Of `dropped` and `notes`: the first places, FILE:RECORD."""
    usable: int
    """Examples that are read."""
    dropped: int
    """Over-long ones, as `truncated` and `zeroed`."""
    truncated: int
    zeroed: int
    equal_pairs: int
    """Pairs that are dropped because chosen and rejected have the same tokens."""
    keep_together: int
    """Examples that are dropped because a neighbour in their block is."""
    lengths: dict[str, Quantiles]
    histograms: dict[str, Histogram]
    length_bias: LengthBias | None
    duplicates: Duplicates
    eos_inside: int
    """Examples with EOS inside a response, before its end."""
    only_eos: int
    """Examples with a response of EOS alone."""
    short: int
    """Examples with a response of at most `thresholds.SHORT` tokens, as read."""
    unknown: int
    """Unknown tokens, in all examples."""
    boundary_check: BoundaryCheck | None
    """None for a mixture as a whole; each part has its own."""


@dataclasses.dataclass(frozen=True)
class Share:
    """What an epoch reads of one part of a mixture."""

    name: str
    weight: float | None
    """As configured, normalized to a sum of 1."""
    usable: int
    read: int
    examples: float
    """Share of the epoch's examples."""
    tokens: float
    """Share of the epoch's slots that hold a token."""
    passes: float
    """How often the epoch goes through the part."""


@dataclasses.dataclass(frozen=True)
class RowFacts:
    """Numbers of an epoch's rows; fill and examples per row leave out rows of padding."""

    epoch: int
    steps: int | None
    """None without a configuration, which has no batches."""
    rows_per_step: int
    row_length: int
    max_sequence_length: int
    max_segments: int
    rows: int
    padding_rows: int
    """Not counted in `rows`."""
    examples: int
    mean_fill: float
    fill_of_others: float | None
    """The mean without the emptiest row, which any data set has; None for a single row."""
    fill_histogram: Histogram
    padding: float
    """Share of all slots of the epoch, rows of padding included."""
    examples_per_row: Quantiles


@dataclasses.dataclass(frozen=True)
class SplitFacts:
    """All numbers of a split."""

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
    total: PartFacts
    parts: list[PartFacts]
    """Parts of a mixture; empty for a single data set."""
    shares: list[Share]
    epochs: int | None
    examples_read: int
    """Examples that a run reads at least once."""
    problems: list[Problem]
    findings: list[Finding] = dataclasses.field(default_factory=list)
    """Filled in by verdict.py."""
    first_title: str = ""
    """Title of the first split shown, in the splits after it."""
    prompts_in_first: int | None = None
    """Examples whose prompt also occurs in that split."""


def split_facts(opened: OpenedSplit, scans: list[Scan], epoch: int, decoder: TokenDecoder) -> SplitFacts:
    """All numbers of a split."""
    packed, parts = opened.packed, opened.mixture.parts
    joined = Scan.join(scans)
    is_mixture = len(parts) > 1
    rows = opened.rows(epoch)
    read = packed.examples_read() if opened.role == "training" else packed.fitted.index
    return SplitFacts(
        title=opened.title,
        role=opened.role,
        split=opened.split,
        kind=packed.dataset.kind,
        objective=opened.objective,
        boundary=parts[0].manifest.boundary,
        template=", ".join(dict.fromkeys(part.manifest.template for part in parts)),
        overlong=packed.settings.overlong,
        notes=list(opened.notes),
        rows=_row_facts(opened, rows, epoch),
        total=_part_facts(opened, None if is_mixture else 0, joined, decoder),
        parts=[_part_facts(opened, part, scans[part], decoder) for part in range(len(parts))] if is_mixture else [],
        shares=_shares(opened, rows) if is_mixture else [],
        epochs=opened.epochs,
        examples_read=len(read),
        problems=_problems(opened, joined, read, decoder),
    )


def _part_facts(opened: OpenedSplit, part: int | None, scanned: Scan, decoder: TokenDecoder) -> PartFacts:
    """Numbers of the part with that number, or of all parts together."""
    mixture, fitted, branches = opened.mixture, opened.packed.fitted, opened.packed.form.branches
    dataset: Dataset = mixture if part is None else mixture.parts[part]
    start = 0 if part is None else int(mixture.starts[part])
    chosen = np.ones(len(fitted.index), bool) if part is None else mixture.part_of(fitted.index) == part
    stored = dataset.lengths
    index, kept = fitted.index[chosen] - start, fitted.lengths[chosen]
    outcomes = fitted.outcomes[start : start + len(stored)]
    zeroed = outcomes[index] == Outcome.ZEROED
    names = ("prompt", "response") if branches == 1 else ("prompt", "chosen", "rejected")
    columns = {name: stored[:, column] for column, name in enumerate(names)}
    columns["prompt + response" if branches == 1 else "prompt + longer"] = stored[:, 0] + stored[:, 1:].max(1)
    return PartFacts(
        name=dataset.name,
        examples=len(stored),
        tokens=int(stored.sum()),
        dropped_while_building=_of_build(dataset, "dropped"),
        build_notes=_of_build(dataset, "notes"),
        build_places=_places_of_build(dataset),
        usable=len(index),
        **outcome_counts(outcomes),
        lengths={name: Quantiles.of(values) for name, values in columns.items()},
        histograms={name: Histogram.of(values, "tokens") for name, values in columns.items()},
        length_bias=_length_bias(kept[~zeroed]) if branches == 2 else None,
        duplicates=_duplicates(dataset, branches, scanned, index, decoder),
        eos_inside=int(scanned.eos_inside[index].sum()),
        only_eos=int((stored[index, 1 : 1 + branches] == 1).any(1).sum()),
        short=int(((kept[:, 1 : 1 + branches] <= SHORT).any(1) & ~zeroed).sum()),
        unknown=int(scanned.unknown.sum()),
        boundary_check=None if part is None else check_boundary(mixture.parts[part], index),
    )


def _of_build(dataset: Dataset, counts: str) -> dict[str, int]:
    """Counts that the manifests hold under that name, of all parts together. Older builds have no `notes`."""
    total: dict[str, int] = {}
    for built in dataset.parts:
        for reason, count in (getattr(built.manifest.splits[built.split], counts, None) or {}).items():
            total[reason] = total.get(reason, 0) + count
    return total


def _places_of_build(dataset: Dataset) -> dict[str, dict[str, list[str]]]:
    total: dict[str, dict[str, list[str]]] = {"dropped": {}, "notes": {}}
    for built in dataset.parts:
        kept = built.manifest.splits[built.split].places or {}
        for counts, by_reason in total.items():
            for reason, places in kept.get(counts, {}).items():
                by_reason[reason] = [*by_reason.get(reason, []), *places][:NAMED]
    return total


def _length_bias(lengths: np.ndarray) -> LengthBias | None:
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
        difference=Quantiles.of(difference),
        histogram=Histogram.of(difference, "tokens"),
        longer_wins=right / len(difference),
        interval=wilson_interval(right, len(difference)),
    )


def _duplicates(dataset: Dataset, branches: int, scanned: Scan, index: np.ndarray, decoder: TokenDecoder) -> Duplicates:
    prompts, first, counts = np.unique(scanned.digests[index, 0], return_index=True, return_counts=True)
    times, prompts_with = np.unique(counts, return_counts=True)
    ranked = np.argsort(-counts, kind="stable")[:_NAMED]
    named = [place for place in ranked.tolist() if counts[place] > 1]
    examples = dataset.read(index[first[named]]) if named else []
    with_chosen, with_both = scanned.with_chosen[index], scanned.with_both[index]
    return Duplicates(
        examples=len(index),
        distinct_prompts=len(prompts),
        prompts_by_count=dict(zip(times.tolist(), prompts_with.tolist(), strict=True)),
        most_repeated=[
            (int(counts[place]), beginning(decoder.text(example.prompt)))
            for place, example in zip(named, examples, strict=True)
        ],
        responses=len(with_chosen) - len(np.unique(with_chosen)),
        pairs=len(with_both) - len(np.unique(with_both)) if branches == 2 else 0,
        swapped=int(np.isin(scanned.with_both_swapped[index], with_both).sum()) if branches == 2 else 0,
    )


def _row_facts(opened: OpenedSplit, rows: list[np.ndarray], epoch: int) -> RowFacts:
    packed, length = opened.packed, opened.packed.settings.row_length
    sizes = np.array([len(row) for row in rows])
    used = np.array([int(packed.fitted.slots[row].sum()) for row in rows])
    filled = sizes > 0
    fill = used[filled] / length
    return RowFacts(
        epoch=epoch,
        steps=None if opened.epochs is None else packed.steps(epoch),
        rows_per_step=packed.rows,
        row_length=length,
        max_sequence_length=packed.settings.max_sequence_length,
        max_segments=packed.max_segments,
        rows=int(filled.sum()),
        padding_rows=int((~filled).sum()),
        examples=int(sizes.sum()),
        mean_fill=float(fill.mean()),
        fill_of_others=float((fill.sum() - fill.min()) / (len(fill) - 1)) if len(fill) > 1 else None,
        fill_histogram=Histogram.with_bins(
            np.minimum(fill * 100, 99.999), "% of the row", 0, 5, 20
        ),  # 100 % in the last bin
        padding=1 - float(used.sum()) / (length * len(rows)),
        examples_per_row=Quantiles.of(sizes[filled]),
    )


def _shares(opened: OpenedSplit, rows: list[np.ndarray]) -> list[Share]:
    read, parts = np.concatenate(rows), opened.mixture.parts
    part_of = opened.mixture.part_of(opened.packed.fitted.index)
    counts = np.bincount(part_of[read], minlength=len(parts))
    slots = np.bincount(part_of[read], weights=opened.packed.fitted.slots[read], minlength=len(parts))
    usable = np.bincount(part_of, minlength=len(parts))
    weights = None if opened.weights is None else np.array(opened.weights) / np.sum(opened.weights)
    return [
        Share(
            name=part.name,
            weight=None if weights is None else float(weights[n]),
            usable=int(usable[n]),
            read=int(counts[n]),
            examples=float(counts[n] / counts.sum()),
            tokens=float(slots[n] / slots.sum()),
            passes=float(counts[n] / max(1, usable[n])),
        )
        for n, part in enumerate(parts)
    ]


def _problems(opened: OpenedSplit, scanned: Scan, read: np.ndarray, decoder: TokenDecoder) -> list[Problem]:
    """What makes training on the examples `read` wrong without an error."""
    packed, branches = opened.packed, opened.packed.form.branches
    place = np.searchsorted(packed.fitted.index, read)
    kept, stored = packed.fitted.lengths[place], packed.dataset.lengths[read]
    zeroed = packed.fitted.outcomes[read] == Outcome.ZEROED
    responses = kept[:, 1 : 1 + branches]
    truncated = responses < stored[:, 1 : 1 + branches]
    if packed.form.head == "value":
        truncated = np.zeros_like(truncated)  # truncation keeps EOS last
    ends = scanned.ends[read][:, :branches]
    faults = {
        "a response without a token (all its weights are 0)": (responses == 0).any(1) & ~zeroed,
        "a response that does not end with EOS": (~ends & ~truncated & (responses > 0)).any(1) & ~zeroed,
        "a prompt that does not begin with BOS": scanned.bos_missing[read],
        "more than one BOS": scanned.bos_again[read],
    }
    return [_problem(opened, fault, read[broken], decoder) for fault, broken in faults.items() if broken.any()]


def _problem(opened: OpenedSplit, fault: str, examples: np.ndarray, decoder: TokenDecoder) -> Problem:
    named = []
    for example in examples[:_NAMED].tolist():
        part, number = opened.locate(example)
        text = beginning(decoder.text(part.read([number])[0].prompt))
        named.append(f"{part.name}, split {part.split}, example {number} ({text})")
    return Problem(fault, len(examples), "; ".join(named))
