"""How probable given continuations are. Those of one context share a row, as the branches of a pair do in training."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Array, Int

from janus_jax.batch import Batch, empty_batch
from janus_jax.data.rows import RowFormat, assign_rows, branch_spans, place_segment
from janus_jax.errors import DataError
from janus_jax.generation import placement
from janus_jax.generation.requests import MOST_TOP, LogProbs, require_ids
from janus_jax.generation.sizes import bucket, top_bucket
from janus_jax.model import head
from janus_jax.model.attention import Slots
from janus_jax.model.config import Head, ModelConfig
from janus_jax.model.mistral import Compute, Params, bind
from janus_jax.parallel.mesh import Placement

Pair = tuple[Sequence[int], Sequence[int]]
"""Ids of a context, and of its continuation."""

_SHORT, _LONG = 512, 2048
"""Slots of a row. What is shorter is packed to the first: attention costs little there. What shares a context is spread
over rows of the second, unless the context takes more than its half: longer rows would save few slots, and attention
costs more in them."""

SLOTS_PER_CALL = 1 << 14
"""Of a device, unless a row is longer."""


def log_probs(
    config: ModelConfig, params: Params, compute: Compute, pairs: Sequence[Pair], *, top: int = 0
) -> list[LogProbs]:
    """As `Engine.log_probs`."""
    if not 0 <= top <= MOST_TOP:
        raise DataError(f"top={top}: allowed: 0 to {MOST_TOP}")
    require_pairs(config, pairs)
    most = min(top_bucket(top), config.vocab_size)
    program = functools.partial(scored, params, config=config, compute=compute, top=most)
    results: list[LogProbs] = [LogProbs((), 0.0, True)] * len(pairs)
    for number, (logps, greedy, *best) in run(program, pairs, "lm", compute.place):
        results[number] = LogProbs(
            tuple(map(float, logps)),
            float(logps.sum(dtype=np.float64)),
            bool(greedy.all()),
            tuple(
                tuple(zip(*one, strict=True)) for one in zip(*(kind[:, :top].tolist() for kind in best), strict=True)
            ),
        )
    return results


def require_pairs(config: ModelConfig, pairs: Sequence[Pair]) -> None:
    """Raises DataError for a context without ids, an unknown id, or more tokens than a text may have.

    A language model does not read the last token of a pair, which it predicts: a pair may have one more for it.
    """
    room = -1 if config.head == "lm" else 0
    for place, (context, continuation) in enumerate(pairs, 1):
        require_ids(config, f"context {place}", context)
        require_ids(config, f"context {place} with its continuation", [*context, *continuation], room=room)


def run(
    program: Callable[..., Sequence[Array]], pairs: Sequence[Pair], kind: Head, place: Placement
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Number of a pair -> the part of each output of a program in the slots of its continuation (`branch_spans`).

    Args:
        program: tokens and targets [B, L], slots -> outputs [B, L, ...] on every device.
        kind: the model's head, which says what is fed.
    """
    for call in packed(pairs, kind, place.shards("batch")):
        rows = call.rows
        fields = (rows.tokens, rows.targets, rows.segment, rows.branch, rows.position)
        tokens, targets, *slots = placement.on_all(fields, place)
        outputs = list(map(np.asarray, program(tokens, targets, Slots(*slots))))
        for number, row, span in call.continuations:
            yield number, [output[row, span] for output in outputs]


@dataclasses.dataclass(frozen=True)
class Packed:
    """Rows that a program reads together."""

    rows: Batch
    """Without what it says of examples."""
    continuations: list[tuple[int, int, slice]]
    """Number of a pair, its row, and the slots of its branch."""


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A context and some of its continuations: a segment of a row."""

    context: np.ndarray
    continuations: list[np.ndarray]
    numbers: list[int]
    spans: list[slice]
    row_length: int


def packed(pairs: Sequence[Pair], kind: Head, shards: int = 1) -> Iterator[Packed]:
    """Pairs as rows. There are few sizes: lengths are buckets, and numbers of rows are powers of two times `shards`.

    Args:
        shards: of the rows, over devices.
    """
    form = RowFormat(head=kind)
    pieces = _pieces(pairs, form)
    slots, rows = np.array([piece.spans[-1].stop for piece in pieces], np.int64), []
    for length in {piece.row_length: None for piece in pieces}:
        members = np.array([i for i, piece in enumerate(pieces) if piece.row_length == length])
        assigned = assign_rows(
            slots[members], row_length=length, max_segments=len(members), seed=0, epoch=0, shuffle=False
        )
        rows += [members[row] for row in assigned]
    rows.sort(key=lambda row: -slots[row].sum())
    while rows:
        length = bucket(int(slots[rows[0]].sum()))
        most = max(1, SLOTS_PER_CALL // length)
        count = shards * _power(min(-(-len(rows) // shards), 1 << most.bit_length() - 1))
        yield _filled(rows[:count], pieces, count, length, form)
        rows = rows[count:]


def _power(count: int) -> int:
    """The smallest power of two that is at least `count`."""
    return 1 << (count - 1).bit_length()


def _pieces(pairs: Sequence[Pair], form: RowFormat) -> list[_Piece]:
    groups: dict[bytes, list[int]] = {}
    ids = [tuple(np.asarray(part, np.int32) for part in pair) for pair in pairs]
    for number, (context, _) in enumerate(ids):
        groups.setdefault(context.tobytes(), []).append(number)
    pieces = []
    for numbers in groups.values():
        context = ids[numbers[0]][0]

        def spans(lengths: Sequence[int], prompt: int = len(context)) -> list[slice]:
            return branch_spans(0, prompt, lengths, form)

        lengths = [len(ids[number][1]) for number in numbers]
        whole, longest = spans(lengths)[-1].stop, len(context) + max(lengths)
        row_length = max(_SHORT, min(bucket(whole), max(_LONG, bucket(2 * longest))))
        own = np.array([(one := spans([length])[0]).stop - one.start for length in lengths])
        room = row_length - spans([0])[0].start
        for part in assign_rows(own, row_length=room, max_segments=len(own), seed=0, epoch=0, shuffle=False):
            members = [numbers[i] for i in part]
            continuations = [ids[number][1] for number in members]
            pieces.append(_Piece(context, continuations, members, spans(list(map(len, continuations))), row_length))
    return pieces


def _filled(rows: Sequence[np.ndarray], pieces: Sequence[_Piece], count: int, length: int, form: RowFormat) -> Packed:
    batch, continuations = empty_batch(count, length, 0), []
    for row, members in enumerate(rows):
        at = 0
        for number, piece in enumerate(pieces[i] for i in members):
            spans = [slice(at + span.start, at + span.stop) for span in piece.spans]
            place_segment(batch, row, number, piece.context, piece.continuations, spans, form)
            continuations += [(pair, row, span) for pair, span in zip(piece.numbers, spans, strict=True)]
            at = spans[-1].stop
    return Packed(batch, continuations)


@functools.partial(jax.jit, static_argnames=("config", "compute", "top"))
def scored(
    params: Params,
    tokens: Int[Array, "B L"],
    targets: Int[Array, "B L"],
    slots: Slots,
    *,
    config: ModelConfig,
    compute: Compute,
    top: int,
) -> tuple[Array, ...]:
    """`head.scored` of packed rows, on every device."""
    place = compute.place
    tokens, targets, slots = jax.tree.map(lambda x: place.constrain(x, ("batch", None)), (tokens, targets, slots))
    model = bind(config, params)
    scores = head.scored(model(tokens, slots, compute), model.head(), targets, top=top, place=place)
    return tuple(place.constrain(x, (None,) * x.ndim) for x in scores)
