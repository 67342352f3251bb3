"""Packed rows with the role and the text of each slot."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from janus_jax.batch import Batch
from janus_jax.data.inspect.opened import OpenedSplit
from janus_jax.data.inspect.token_text import TokenDecoder
from janus_jax.errors import ConfigError

ROLES = ("padding", "prompt", "chosen", "rejected", "eos")
"""Roles of slots by number; the response of SFT has the role `chosen`."""

PADDING, PROMPT, CHOSEN, REJECTED, EOS = range(5)


@dataclasses.dataclass(frozen=True)
class Span:
    """Neighbouring slots of a segment with one role and branch."""

    role: int
    branch: int
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class Segment:
    """An example in a row."""

    number: int  # in its row
    dataset: str
    example: int  # number in its split
    lengths: tuple[int, int, int]  # tokens of prompt, chosen, rejected that are read
    shortened: bool  # by batch.overlong
    margin: float
    start: int
    end: int
    spans: list[Span]
    eos_targets: list[int]
    """Slots whose target is the EOS of a response, which the lm head predicts and never reads."""

    def description(self, role_names: tuple[str, ...]) -> str:
        """Slots and lengths."""
        prompt, chosen, rejected = self.lengths
        lengths = f"prompt {prompt} + {role_names[CHOSEN]} {chosen}"
        if role_names[REJECTED]:
            lengths += f" + rejected {rejected}"
        slots = f"slots {self.start}-{self.end - 1}" if self.end > self.start else "no slots: it has no responses"
        margin = f", margin {self.margin:g}" if self.margin else ""
        return f"{slots}; {lengths} tokens{margin}{', shortened by batch.overlong' if self.shortened else ''}"


@dataclasses.dataclass(frozen=True)
class AnnotatedRow:
    """One row of an epoch: fields of the batch contract, [L] each, with roles and texts."""

    number: int
    epoch: int
    step: int | None
    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    segment: np.ndarray
    branch: np.ndarray
    position: np.ndarray
    roles: np.ndarray
    texts: list[str]
    """Text of each slot's token; empty for padding."""
    eos: str
    """How the tokenizer spells EOS."""
    segments: list[Segment]
    role_names: tuple[str, ...]
    """ROLES as a reader knows them: the response of SFT is called that."""

    @property
    def used(self) -> int:
        """Slots that hold a token."""
        return int((self.segment > 0).sum())


def annotate_rows(opened: OpenedSplit, epoch: int, numbers: Sequence[int], decoder: TokenDecoder) -> list[AnnotatedRow]:
    """Rows of an epoch by number.

    Raises:
        ConfigError: the epoch has no row of that number.
        DataError: a record cannot be read.
    """
    rows = opened.rows(epoch)
    for number in numbers:
        if not 0 <= number < len(rows):
            raise ConfigError(f"--row {number}: {opened.title} has rows 0 to {len(rows) - 1} in epoch {epoch}")
    return [_annotate(opened, epoch, number, rows[number], decoder) for number in numbers]


def _annotate(opened: OpenedSplit, epoch: int, number: int, members: np.ndarray, decoder: TokenDecoder) -> AnnotatedRow:
    packed, fitted = opened.packed, opened.packed.fitted
    batch = packed.read([members])
    eos = packed.dataset.parts[0].manifest.tokenizer["eos"]
    tokens, targets, weights, segment, branch, position = (
        getattr(batch, name)[0] for name in ("tokens", "targets", "weights", "segment", "branch", "position")
    )
    # A branch begins with prompt tokens: the last one, or all of them if prompts are not shared.
    prompts = np.append(fitted.lengths[members, 0], 0)[segment - 1]
    roles = np.where(segment == 0, PADDING, np.where(position < prompts, PROMPT, branch + PROMPT))
    if packed.form.head == "value":
        roles[(weights > 0) & (tokens == eos)] = EOS
    texts = [""] * len(tokens)
    segments = []
    for place, at in enumerate(members.tolist()):
        segments.append(_segment(opened, at, place, batch, roles, eos))
        for span in segments[-1].spans:
            texts[span.start : span.end] = decoder.tokens(tokens[span.start : span.end])
    return AnnotatedRow(
        number,
        epoch,
        None if opened.epochs is None else number // packed.rows,
        tokens,
        targets,
        weights,
        segment,
        branch,
        position,
        roles,
        texts,
        decoder.token(eos),
        segments,
        role_names=ROLES if packed.form.branches == 2 else ("padding", "prompt", "response", "", "eos"),
    )


def _segment(opened: OpenedSplit, at: int, place: int, batch: Batch, roles: np.ndarray, eos: int) -> Segment:
    fitted = opened.packed.fitted
    index = int(fitted.index[at])
    part, example = opened.locate(index)
    slots = np.flatnonzero(batch.segment[0] == place + 1)
    start, end = (int(slots[0]), int(slots[-1]) + 1) if len(slots) else (0, 0)
    inside = slice(start, end)
    changes = np.diff(roles[inside]) + 10 * np.diff(batch.branch[0, inside])
    edges = [0, *(np.flatnonzero(changes) + 1).tolist(), end - start]
    spans = [
        Span(int(roles[start + a]), int(batch.branch[0, start + a]), start + a, start + b)
        for a, b in itertools.pairwise(edges)
        if a < b
    ]
    learned = batch.weights[0, inside] > 0
    last = (batch.targets[0, inside] == eos) & learned & (opened.packed.form.head == "lm")
    kept = tuple(fitted.lengths[at].tolist())
    return Segment(
        number=place,
        dataset=part.name,
        example=example,
        lengths=(kept[0], kept[1], kept[2]),
        shortened=kept != tuple(opened.packed.dataset.lengths[index].tolist()),
        margin=float(batch.margin[0, place]),
        start=start,
        end=end,
        spans=spans,
        eos_targets=(start + np.flatnonzero(last)).tolist(),
    )
