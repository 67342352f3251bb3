"""One tokenized example: a prompt and its responses, as the packer takes them."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Example:
    """Token ids of one row of a built data set.

    The prompt carries BOS; a response carries its EOS (unless it was truncated away). SFT has no `rejected`.
    """

    prompt: np.ndarray  # [n] int32, n >= 1
    chosen: np.ndarray  # [c] int32; the response, for SFT; may be empty
    rejected: np.ndarray | None = None  # [r] int32; may be empty
    example_id: int = 0
    margin: float = 0.0

    def numbered(self, example_id: int) -> "Example":
        """The same under another number."""
        return dataclasses.replace(self, example_id=example_id)
