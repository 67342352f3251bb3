"""Packed rows as they are shown: what each slot is, and the pieces of text that its ids stand for."""

import dataclasses
import itertools

import numpy as np

from janus_jax.batch import Batch
from janus_jax.data.inspect.opened import View
from janus_jax.data.inspect.token_text import Pieces
from janus_jax.errors import ConfigError

ROLES = ("padding", "prompt", "chosen", "rejected", "eos")
"""Of slots, by number; the only response of SFT has the role of a chosen one."""

PADDING, PROMPT, CHOSEN, REJECTED, EOS = range(5)


@dataclasses.dataclass(frozen=True)
class Part:
    """Neighbouring slots of one role and branch, of one segment."""

    role: int
    branch: int
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class Segment:
    """An example in a row."""

    number: int  # among those of its row
    dataset: str
    example: int  # number in its split
    lengths: tuple[int, int, int]  # tokens of prompt, chosen, rejected as they are read
    cut: bool  # batch.overlong changed them
    margin: float
    start: int
    end: int
    parts: list[Part]
    ends: list[int]
    """Slots whose target is the EOS of a response: it is predicted there, and not fed (lm head)."""

    def described(self, names: tuple[str, ...]) -> str:
        """Where it lies, and how long it is."""
        prompt, chosen, rejected = self.lengths
        lengths = f"prompt {prompt} + {names[CHOSEN]} {chosen}" + (f" + rejected {rejected}" if names[REJECTED] else "")
        where = f"slots {self.start}-{self.end - 1}" if self.end > self.start else "no slots: it has no responses"
        margin = f", margin {self.margin:g}" if self.margin else ""
        return f"{where}; {lengths} tokens{margin}{', cut by batch.overlong' if self.cut else ''}"


@dataclasses.dataclass(frozen=True)
class ShownRow:
    """One row of an epoch: fields of the batch contract, [L] each, and how to read them."""

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
    """Of each slot's token; empty for padding."""
    segments: list[Segment]
    names: tuple[str, ...]
    """Of the roles: a response is called so where there is one only."""

    @property
    def used(self) -> int:
        """Slots that hold a token."""
        return int((self.segment > 0).sum())


def show_rows(view: View, epoch: int, numbers: list[int], pieces: Pieces) -> list[ShownRow]:
    """Rows of an epoch by number.

    Raises:
        ConfigError: there is no row of that number.
        DataError: a record cannot be read.
    """
    rows = view.rows(epoch)
    for number in numbers:
        if not 0 <= number < len(rows):
            raise ConfigError(f"--row {number}: {view.title} has rows 0 to {len(rows) - 1} in epoch {epoch}")
    return [_shown(view, epoch, number, rows[number], pieces) for number in numbers]


def _shown(view: View, epoch: int, number: int, members: np.ndarray, pieces: Pieces) -> ShownRow:
    plan, fitted = view.plan, view.plan.fitted
    batch = plan.read([members])
    eos = plan.dataset.parts[0].manifest.tokenizer["eos"]
    tokens, targets, weights, segment, branch, position = (
        getattr(batch, name)[0] for name in ("tokens", "targets", "weights", "segment", "branch", "position")
    )
    # A branch begins with prompt tokens: the last one, or all of them where prompts are not shared.
    prompts = np.append(fitted.lengths[members, 0], 0)[segment - 1]
    roles = np.where(segment == 0, PADDING, np.where(position < prompts, PROMPT, branch + PROMPT))
    if plan.form.head == "value":
        roles[(weights > 0) & (tokens == eos)] = EOS
    texts = [""] * len(tokens)
    segments = []
    for place, at in enumerate(members.tolist()):
        found = _segment(view, at, place, batch, roles, eos)
        for part in found.parts:
            texts[part.start : part.end] = pieces.run(tokens[part.start : part.end])
        segments.append(found)
    return ShownRow(
        number,
        epoch,
        None if view.epochs is None else number // plan.rows,
        tokens,
        targets,
        weights,
        segment,
        branch,
        position,
        roles,
        texts,
        segments,
        names=ROLES if plan.form.branches == 2 else ("padding", "prompt", "response", "", "eos"),
    )


def _segment(view: View, at: int, place: int, batch: Batch, roles: np.ndarray, eos: int) -> Segment:
    fitted, parts = view.plan.fitted, view.plan.dataset.parts
    index = int(fitted.index[at])
    part = int(view.part_of(np.array([index]))[0])
    slots = np.flatnonzero(batch.segment[0] == place + 1)
    start, end = (int(slots[0]), int(slots[-1]) + 1) if len(slots) else (0, 0)
    inside = slice(start, end)
    changes = np.diff(roles[inside]) + 10 * np.diff(batch.branch[0, inside])
    borders = [0, *(np.flatnonzero(changes) + 1).tolist(), end - start]
    found = [
        Part(int(roles[start + a]), int(batch.branch[0, start + a]), start + a, start + b)
        for a, b in itertools.pairwise(borders)
        if a < b
    ]
    counts = batch.weights[0, inside] > 0
    last = (batch.targets[0, inside] == eos) & counts & (view.plan.form.head == "lm")
    kept = tuple(fitted.lengths[at].tolist())
    return Segment(
        number=place,
        dataset=parts[part].name,
        example=index - int(view.starts[part]),
        lengths=(kept[0], kept[1], kept[2]),
        cut=kept != tuple(view.plan.dataset.lengths[index].tolist()),
        margin=float(batch.margin[0, place]),
        start=start,
        end=end,
        parts=found,
        ends=(start + np.flatnonzero(last)).tolist(),
    )
