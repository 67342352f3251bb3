"""Padding that counts in a mean: slots for what older trainers computed at the padding of their rows.

Trainers that pad rows of a microbatch usually mask what they compute at padding. Two of spring 2024 did not, in the NLL
of ORPO (`compat.orpo_padding`):

- `trl`: TRL 0.8.2 to 0.8.6. Padding is on the right. It sees the prompt and the chosen response, but no padding, itself
  included. Each position has another logit, so each has a slot.
- `axolotl`: axolotl's own trainer, until 19 April 2024, with FlashAttention. Padding of the chosen row is on the left.
  FlashAttention skips it, and its output there is 0. All positions have the same logits, so one slot with a weight
  stands for them, and one for the last of them, whose target is the first token of the prompt.

`docs/objectives.md` has both side by side.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from janus_jax.batch import Batch
from janus_jax.errors import DataError

PaddingKind = Literal["trl", "axolotl"]

SEES_CHOSEN = -1
"""`Batch.branch` of padding that sees the prompt and the chosen response and is seen by no slot."""

MULTIPLE = 64
"""axolotl pads to multiples of this."""


@dataclasses.dataclass(frozen=True)
class Padding:
    """Padding of pairs as a trainer computed it.

    Args:
        token: its id; also the target at padding and at the last token before it.
        length: tokens of each padded row; None, or too few: those of the longer sequence of the pair.
    """

    kind: PaddingKind
    token: int
    length: int | None = None

    def counts(self, lengths: np.ndarray) -> np.ndarray:
        """[E, 2] tokens of padding of the chosen and the rejected row, of lengths [E, 3]."""
        whole = lengths[:, :1] + lengths[:, 1:]
        return np.maximum(whole.max(1), self.length or 0)[:, None] - whole

    def slots(self, lengths: np.ndarray) -> np.ndarray:
        """[E] row slots that pairs of lengths [E, 3] take for padding."""
        chosen, rejected = self.counts(lengths).T
        return chosen if self.kind == "trl" else np.minimum(chosen, 2) + np.minimum(rejected, 1)

    def responses(self, prompt: int, responses: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The responses; the one whose last token predicts padding has that as a further target."""
        at = 0 if self.kind == "trl" else 1
        extended = list(responses)
        if self._of(prompt, responses)[at]:
            extended[at] = np.append(extended[at], np.int32(self.token))
        return extended

    def end(self, prompt: int, responses: Sequence[np.ndarray], at: int) -> int:
        """The first slot after a segment whose branches end before slot `at`."""
        return at + max(self._of(prompt, responses)[0] - 1, 0) if self.kind == "trl" else at

    def after_segment(
        self, batch: Batch, row: int, segment: int, spans: Sequence[slice], prompt: int, responses: Sequence[np.ndarray]
    ) -> None:
        """Writes the padding of a segment, up to `end`, and the weights of the slots that padding changes.

        Args:
            spans: the slots of its branches.
            prompt, responses: tokens of the prompt, and the responses without padding.
        """
        count, chosen = self._of(prompt, responses)[0], spans[0]
        if self.kind == "axolotl":
            # The mask of the chosen response lies at the place that the prompt has without padding on the left, so the
            # odds take in the last tokens of the prompt, as many as there is padding.
            start = chosen.start - (prompt - 1)
            batch.weights[row, start : start + max(prompt - 1 - count, 0)] = 1
            return
        if not count:
            return
        batch.weights[row, chosen.stop - 1] = 0  # predicts padding: counts in the NLL, not in the odds
        span = slice(spans[-1].stop, spans[-1].stop + count - 1)
        batch.tokens[row, span] = batch.targets[row, span] = self.token
        batch.segment[row, span], batch.branch[row, span] = segment, SEES_CHOSEN
        first = prompt + len(responses[0])
        batch.position[row, span] = np.arange(first, first + count - 1)

    def after_row(
        self, batch: Batch, row: int, pairs: Sequence[tuple[np.ndarray, Sequence[np.ndarray]]], at: int
    ) -> None:
        """Writes the padding that sees nothing, of the pairs (prompt, responses) of a row, from slot `at` on.

        Raises:
            DataError: the row is too short.
        """
        if self.kind == "trl":
            return
        for prompt, responses in pairs:
            count = self._of(len(prompt), responses)[0]
            for target, weight in ((prompt[0], min(count, 1)), (self.token, count - 1)):
                if weight > 0:
                    if at == batch.tokens.shape[1]:
                        raise DataError(f"row {row}: padding ends after slot {at}, which is its row_length")
                    batch.tokens[row, at], batch.targets[row, at], batch.weights[row, at] = self.token, target, weight
                    at += 1

    def _of(self, prompt: int, responses: Sequence[np.ndarray]) -> list[int]:
        return self.counts(np.asarray([[prompt, *map(len, responses)]]))[0].tolist()
