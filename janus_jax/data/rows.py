"""Which examples share a row, as a pure function of lengths and seed, and the packing of examples into rows."""

import bisect
import dataclasses
import enum
import functools
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from janus_jax.batch import Batch, empty_batch
from janus_jax.data.example import Example
from janus_jax.data.padding import Padding
from janus_jax.errors import ConfigError, DataError, counted
from janus_jax.model.config import Head

OverlongPolicy = Literal["drop", "truncate", "error", "zero_grad"]

_BLOCK = 2048
"""Examples that are packed together: enough for rows over 99 % full, few enough to keep the order random."""


@dataclasses.dataclass(frozen=True)
class RowFormat:
    """How an example is laid out in a row.

    Args:
        head: `value` feeds every branch whole, because a reward is read at its last token; `lm` leaves out the last
            token.
        branches: responses of an example, 1 or 2.
        share_prompts: False gives each branch a copy of the whole prompt, as trainers of padded pairs do; the scores
            are the same, but it takes more slots.
        padding: padding that counts in the loss of pairs; needs shared prompts.
    """

    head: Head = "lm"
    branches: int = 1
    share_prompts: bool = True
    padding: Padding | None = None

    def slots(self, lengths: np.ndarray) -> np.ndarray:
        """Row slots [E] of examples of lengths [E, 3]: the shared prompt, then each branch with the last prompt token
        (unshared: with all of them)."""
        shared = lengths[:, 0] - 1 if self.share_prompts else np.zeros(len(lengths), np.int32)
        own = lengths[:, 0] - shared - (self.head == "lm")
        padding = 0 if self.padding is None else self.padding.slots(lengths)
        return shared + self.branches * own + lengths[:, 1:].sum(1) + padding


class Outcome(enum.IntEnum):
    """What `fit` makes of an example. The values from DROPPED on are not read."""

    WHOLE = 0
    TRUNCATED = 1
    ZEROED = 2  # over-long, kept without its responses
    DROPPED = 3  # over-long
    EQUAL_PAIRS = 4  # chosen and rejected have the same ids: the gradient is rounding, which Adam scales up to a step
    KEEP_TOGETHER = 5  # a neighbour of its block is not read


def outcome_counts(outcomes: np.ndarray) -> dict[str, int]:
    """Number of examples by the name of their outcome, WHOLE left out: truncated, zeroed, ..."""
    return {outcome.name.lower(): int((outcomes == outcome).sum()) for outcome in Outcome if outcome}


@dataclasses.dataclass(frozen=True)
class FittedExamples:
    """The examples that fit, and what became of the others."""

    index: np.ndarray  # [F] int64 their example numbers
    lengths: np.ndarray  # [F, 3] int32 tokens of prompt, chosen, rejected after truncation
    slots: np.ndarray  # [F] row slots
    outcomes: np.ndarray  # [E] int8 an `Outcome` for each example of the data set

    @functools.cached_property
    def counts(self) -> dict[str, int]:
        """`outcome_counts` of all examples."""
        return outcome_counts(self.outcomes)


def fit(
    lengths: np.ndarray,
    *,
    row_length: int,
    max_sequence_length: int,
    overlong: OverlongPolicy,
    keep_together: int = 1,
    name: str = "data",
    form: RowFormat | None = None,
    equal: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> FittedExamples:
    """Applies the policy for over-long examples, and leaves out pairs of equal responses.

    An example is over-long if prompt + longer branch exceed `max_sequence_length`, or if it needs more than a row.

    `truncate` cuts responses from the right, EOS first, and drops only examples whose prompt leaves no room.
    `zero_grad` keeps one prompt token of an over-long pair: the pair counts but teaches nothing.

    Args:
        lengths: [E, 3] tokens of prompt, chosen and rejected (0 without a rejected branch).
        form: how examples are laid out; None: head `lm` with shared prompts, as many branches as the lengths have.
        keep_together: examples 0 to n - 1, n to 2n - 1, ... of the data set are read in one step or not at all. A
            dropped example takes its neighbours with it, because without it they no longer cancel out.
        equal: says [P] bool which of the pairs with these numbers [P] have equal responses when they are cut to these
            lengths [P, 3]. It is asked only about pairs whose responses are equally long then. None: no pair has.
    Raises:
        DataError: the policy is `error` and an example is over-long, or no example is left.
    """
    lengths = np.asarray(lengths, np.int32)
    form = form or RowFormat(branches=2 if lengths[:, 2].any() else 1)
    prompt, branches = lengths[:, 0], lengths[:, 1:]
    whole = prompt + branches.max(1)
    limits = f"max_sequence_length {max_sequence_length}, row_length {row_length}"
    kept = lengths.copy()
    if overlong == "truncate":
        room = np.maximum(max_sequence_length - prompt, 0)
        kept[:, 1:] = np.minimum(branches, room[:, None])
        # both branches of a pair must also fit in one row: cut the longer one first
        excess = np.maximum(form.slots(kept) - row_length, 0)
        gap = kept[:, 1] - kept[:, 2]
        from_longer = np.minimum(excess, np.abs(gap))
        kept[:, 1] -= np.where(gap > 0, from_longer, 0)
        kept[:, 2] -= np.where(gap < 0, from_longer, 0)
        rest = excess - from_longer
        kept[:, 1] -= (rest + 1) // 2 if form.branches == 2 else rest
        kept[:, 2] -= rest // 2 if form.branches == 2 else 0
        had = branches > 0
        bad = ((kept[:, 1:] <= 0) & had).any(1) | (prompt >= max_sequence_length)
    else:
        bad = (whole > max_sequence_length) | (form.slots(lengths) > row_length)
    outcomes = np.full(len(lengths), Outcome.WHOLE, np.int8)
    outcomes[(kept != lengths).any(1)] = Outcome.TRUNCATED
    outcomes[bad] = Outcome.DROPPED
    if overlong == "zero_grad":
        kept[bad] = [1, 0, 0]
        outcomes[bad] = Outcome.ZEROED
        if bad.all():
            raise DataError(
                name,
                f"every pair of {len(bad)} is over-long ({limits}): without their responses nothing would be learned",
            )
    if overlong == "error" and bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise DataError(
            name,
            f"over-long: {int(bad.sum())} of {counted(len(lengths), 'example')}, the first is example {first} "
            f"(prompt {prompt[first]}, responses {branches[first].tolist()} tokens; {limits}); "
            "set batch.overlong to drop or truncate, or raise a limit",
        )
    if bad.all():
        raise DataError(
            name,
            f"none of {counted(len(lengths), 'example')} fits {limits}; the shortest takes {int(whole.min())} tokens",
        )
    if equal is not None:
        alike = np.flatnonzero((outcomes < Outcome.ZEROED) & (kept[:, 1] == kept[:, 2]) & (kept[:, 1] > 0))
        outcomes[alike[equal(alike, kept[alike])]] = Outcome.EQUAL_PAIRS
        if (outcomes >= Outcome.ZEROED).all():
            same = int((outcomes == Outcome.EQUAL_PAIRS).sum())
            others = "" if same == len(lengths) else ", and the others are over-long"
            raise DataError(
                name,
                f"in {same} of {counted(len(lengths), 'pair')} chosen and rejected have the same tokens{others} "
                f"({limits}, batch.overlong {overlong}): nothing would be learned",
            )
    apart = np.arange(len(bad)) // keep_together
    unread = outcomes >= Outcome.DROPPED
    outcomes[np.bincount(apart, weights=unread).astype(bool)[apart] & ~unread] = Outcome.KEEP_TOGETHER
    index = np.flatnonzero(outcomes < Outcome.DROPPED)
    if not len(index):
        needed = _shortest_block(whole, form.slots(lengths), outcomes != Outcome.EQUAL_PAIRS, keep_together)
        raise DataError(
            name,
            f"every block of batch.keep_together={keep_together} neighbours holds an example that is dropped "
            f"({limits}); {needed}",
        )
    return FittedExamples(index, kept[index], form.slots(kept[index]), outcomes)


def _shortest_block(whole: np.ndarray, slots: np.ndarray, possible: np.ndarray, size: int) -> str:
    """The limits that leave at least one block of neighbours whole.

    Args:
        whole, slots: [E] tokens of prompt + longer branch, and row slots.
        possible: [E] False for examples that no limit would keep.
    """
    starts = np.arange(0, len(whole), size)
    longest = np.where(np.logical_and.reduceat(possible, starts), np.maximum.reduceat(whole, starts), np.inf)
    if np.isinf(longest.min()):
        return "with any limits, each has a pair in which chosen and rejected have the same tokens"
    block = int(longest.argmin())
    row = max(int(longest[block]), int(slots[block * size : (block + 1) * size].max()))
    return f"the shortest block needs max_sequence_length {int(longest[block])} and row_length {row}"


def default_max_segments(fitted: FittedExamples, row_length: int) -> int:
    """A static cap that rows rarely reach: three times the average number of examples in a row.

    Twice the average wasted 1.4 % of the slots where many examples are short (0.979 instead of 0.993 full).
    """
    slots = fitted.slots[fitted.slots > 0]  # pairs without responses take no slot; a row holds up to the cap of them
    most = row_length // max(1, int(slots.min()))
    return int(max(1, min(most, np.ceil(3 * row_length / slots.mean()))))


def assign_rows(
    slots: np.ndarray, *, row_length: int, max_segments: int, seed: int, epoch: int, shuffle: bool = True
) -> list[np.ndarray]:
    """The rows of an epoch as arrays of indices into `slots`.

    Shuffles the examples, packs best-fit-decreasing within blocks, and shuffles the rows. The second shuffle mixes long
    and short rows, so that lengths follow no curriculum.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(slots)) if shuffle else np.arange(len(slots))
    rows: list[np.ndarray] = []
    for start in range(0, len(order), _BLOCK):
        block = order[start : start + _BLOCK]
        rows.extend(_best_fit_decreasing(block, slots, row_length, max_segments))
    if shuffle:
        rows = [rows[i] for i in rng.permutation(len(rows))]
    return rows


def _best_fit_decreasing(block: np.ndarray, slots: np.ndarray, capacity: int, cap: int) -> list[np.ndarray]:
    members: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (room left, row), sorted: the first that fits is the tightest
    for example in block[np.argsort(-slots[block], kind="stable")].tolist():
        size = int(slots[example])
        at = bisect.bisect_left(open_rows, (size, -1))
        if at == len(open_rows):
            members.append([])
            room, row = capacity, len(members) - 1
        else:
            room, row = open_rows.pop(at)
        members[row].append(example)
        if len(members[row]) < cap and room - size > 0:
            bisect.insort(open_rows, (room - size, row))
    return [np.asarray(row) for row in members]


def assign_steps(
    slots: np.ndarray,
    *,
    examples: int,
    row_length: int,
    max_segments: int,
    seed: int,
    epoch: int,
    rows: int,
    keep_together: int = 1,
) -> list[list[np.ndarray]] | None:
    """Steps of exactly `examples` examples (the last may have fewer), each balanced over `rows` rows.

    The longest examples come first, onto the least loaded row with room. The shuffle moves blocks of `keep_together`
    neighbours, which `fit` left whole: if all pairs of a prompt (a over b, b over a, ...) are in one step, preferences
    for a response by itself cancel out.

    Returns None if a step does not fit into `rows` rows.
    """
    whole, rest = divmod(len(slots), keep_together)
    blocks = np.random.default_rng((seed, epoch)).permutation(whole)
    order = (blocks[:, None] * keep_together + np.arange(keep_together)).ravel()
    order = np.concatenate([order, np.arange(len(slots) - rest, len(slots))])  # an incomplete block would split others
    steps = []
    for start in range(0, len(order), examples):
        group = order[start : start + examples]
        members: list[list[int]] = [[] for _ in range(rows)]
        load = [0] * rows
        for example in group[np.argsort(-slots[group], kind="stable")].tolist():
            size = int(slots[example])
            open_rows = [r for r in range(rows) if len(members[r]) < max_segments and load[r] + size <= row_length]
            if not open_rows:
                return None
            row = min(open_rows, key=load.__getitem__)
            members[row].append(example)
            load[row] += size
        steps.append([np.asarray(row, np.int64) for row in members])
    return steps


def rows_per_step(
    epochs: Sequence[np.ndarray],
    *,
    examples: int,
    row_length: int,
    max_segments: int,
    seed: int,
    multiple: int,
    keep_together: int = 1,
) -> int:
    """The fewest rows, a multiple of `multiple`, that hold every step of all epochs.

    Args:
        epochs: for each epoch, the slots of its examples.
    Raises:
        ConfigError: not even one row per example is enough, because an example is longer than a row.
    """
    rows = multiple
    for epoch, slots in enumerate(epochs):
        while True:
            steps = assign_steps(
                slots,
                examples=examples,
                row_length=row_length,
                max_segments=max_segments,
                seed=seed,
                epoch=epoch,
                rows=rows,
                keep_together=keep_together,
            )
            if steps is not None:
                break
            if rows >= examples + multiple:
                raise ConfigError(f"batch.examples={examples}: examples do not fit rows of row_length={row_length}")
            rows += multiple
    return rows


def pack(
    rows: Sequence[Sequence[Example]], *, row_length: int, max_segments: int, form: RowFormat | None = None
) -> Batch:
    """Rows of the batch contract in numpy, one per list of examples; an empty list makes a row of padding.

    Args:
        form: how examples are laid out; None: head `lm` with shared prompts. Its `branches` is not used.

    Raises:
        DataError: a row's examples need more than `row_length` slots or `max_segments` segments.
    """
    batch, form = empty_batch(len(rows), row_length, max_segments), form or RowFormat()
    for row, examples in enumerate(rows):
        if len(examples) > max_segments:
            raise DataError(f"row {row}: {len(examples)} examples, but max_segments is {max_segments}")
        at = 0
        for number, example in enumerate(examples):
            at = _place(batch, row, at, number, example, row_length, form)
        if form.padding is not None:
            form.padding.after_row(batch, row, [(e.prompt, _responses(e)) for e in examples], at)
    return batch


def _responses(example: Example) -> list[np.ndarray]:
    return [example.chosen] if example.rejected is None else [example.chosen, example.rejected]


def _place(batch: Batch, row: int, at: int, number: int, example: Example, row_length: int, form: RowFormat) -> int:
    """Writes one example as segment `number + 1` from slot `at`; returns the next free slot."""
    responses, prompt, padding = _responses(example), len(example.prompt), form.padding
    placed = responses if padding is None else padding.responses(prompt, responses)
    spans = branch_spans(at, prompt, list(map(len, placed)), form)
    end = spans[-1].stop if padding is None else padding.end(prompt, responses, spans[-1].stop)
    if end > row_length:
        raise DataError(f"row {row}: example {example.example_id} ends at slot {end}, but row_length is {row_length}")
    place_segment(batch, row, number, example.prompt, placed, spans, form)
    if padding is not None:
        padding.after_segment(batch, row, number + 1, spans, prompt, responses)
    batch.example_id[row, number] = example.example_id
    batch.valid[row, number] = True
    batch.margin[row, number] = example.margin
    return end


def branch_spans(at: int, prompt: int, responses: Sequence[int], form: RowFormat) -> list[slice]:
    """The slots of each branch of a segment that begins at slot `at`, one after the other after the shared prompt.

    Args:
        prompt, responses: their tokens. `form.branches` is not used.
    """
    shared = prompt - 1 if form.share_prompts else 0
    ends = at + shared + np.cumsum([prompt - shared - (form.head == "lm") + length for length in responses])
    starts = [at + shared, *ends[:-1]]
    return [slice(int(start), int(end)) for start, end in zip(starts, ends, strict=True)]


def place_segment(
    batch: Batch,
    row: int,
    number: int,
    prompt: np.ndarray,
    responses: Sequence[np.ndarray],
    spans: Sequence[slice],
    form: RowFormat,
) -> None:
    """Writes the slots of segment `number + 1`: a prompt and any number of responses to it, at their `branch_spans`."""
    shared = len(prompt) - 1 if form.share_prompts else 0
    first = slice(spans[0].start - shared, spans[0].start)
    batch.tokens[row, first] = prompt[:shared]
    batch.targets[row, first] = prompt[1 : shared + 1]
    batch.position[row, first] = np.arange(shared)
    batch.segment[row, first.start : spans[-1].stop] = number + 1
    for branch, (span, response) in enumerate(zip(spans, responses, strict=True), start=1):
        ids, size = np.concatenate([prompt[shared:], response]), span.stop - span.start
        batch.tokens[row, span] = ids[:size]
        batch.targets[row, span.start : span.start + len(ids) - 1] = ids[1:]
        counted = len(response) if form.head == "lm" else 1
        batch.weights[row, span.stop - counted : span.stop] = 1
        batch.branch[row, span] = branch
        batch.position[row, span] = np.arange(shared, shared + size)
