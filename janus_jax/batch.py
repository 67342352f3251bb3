"""The batch contract: packed rows with shared prompts, read by every objective.

A row holds several *segments* (examples) back to back. A segment is a shared prompt without its last token, then
its *branches* (one response, or chosen and rejected), each starting with that last prompt token:

    row      | p0 .. p(n-2) | p(n-1) c0 c1 .. | p(n-1) r0 r1 .. | next segment ... | pad
    targets  |  (weight 0)  | c0 c1 ..  </s>  | r0 r1 ..  </s>  |
    segment  |      1       |        1        |        1        |        2         |  0
    branch   |      0       |        1        |        2        |
    position | 0 ..  n-2    | n-1 ..          | n-1 ..          | 0 ..

So each slot predicts its own target, and nothing is derived by shifting. Prompt slots hold targets too, for objectives
that also learn prompts. A reward model reads a number at each branch's last token instead of predicting tokens, so
every branch is fed whole, with weight on its last slot only:

    row      | p0 .. p(n-2) | p(n-1) c0 c1 .. </s> | p(n-1) r0 r1 .. </s> | next segment ... | pad
    weights  |  0 ..     0  | 0      0  0  ..  1   | 0      0  0  ..  1   |
"""

import dataclasses
from typing import Any

import jax
import numpy as np

BRANCHES = 2
"""Branches of a segment: 1 is the response or chosen, 2 is rejected (0 marks the shared prompt)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows for one step. Arrays are numpy on the host, jax.Array on devices; B may have leading axes."""

    tokens: Any  # [B, L] int32   input token
    targets: Any  # [B, L] int32   token to predict at this slot
    weights: Any  # [B, L] float32 1 where the target counts (response tokens and EOS); value: the branch's last token
    segment: Any  # [B, L] int32   1.. within the row, 0 = padding
    branch: Any  # [B, L] int32   0 = shared prompt, 1 = response or chosen, 2 = rejected
    position: Any  # [B, L] int32   position in the example's own sequence, for RoPE
    example_id: Any  # [B, S] int32   example number in the built data set, -1 without a segment
    valid: Any  # [B, S] bool    True where there is a segment
    margin: Any  # [B, S] float32 reward margin of the pair, 0 without one
    reference_logps: Any  # [B, S, 2] float32 summed log-probs under the reference, zeros until filled


def empty_batch(rows: int, row_length: int, max_segments: int) -> Batch:
    """Rows of padding in numpy: [rows, row_length] and [rows, max_segments]."""

    def slots(dtype: type) -> np.ndarray:
        return np.zeros((rows, row_length), dtype)

    return Batch(
        tokens=slots(np.int32),
        targets=slots(np.int32),
        weights=slots(np.float32),
        segment=slots(np.int32),
        branch=slots(np.int32),
        position=slots(np.int32),
        example_id=np.full((rows, max_segments), -1, np.int32),
        valid=np.zeros((rows, max_segments), bool),
        margin=np.zeros((rows, max_segments), np.float32),
        reference_logps=np.zeros((rows, max_segments, BRANCHES), np.float32),
    )


def row_bytes(row_length: int, max_segments: int) -> int:
    """Bytes of one row in all fields."""
    slot, segment = (
        sum(getattr(empty, field.name).nbytes for field in dataclasses.fields(Batch))
        for empty in (empty_batch(1, 1, 0), empty_batch(1, 0, 1))
    )
    return row_length * slot + max_segments * segment
