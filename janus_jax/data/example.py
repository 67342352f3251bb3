"""One tokenized example: a prompt and its responses, as the packer takes them."""

import dataclasses

import numpy as np

TOKEN_FEATURES = ("prompt", "chosen", "rejected")
"""The fields of an example that hold token ids, in the order in which they are stored."""


def token_features(kind: str) -> tuple[str, ...]:
    """The token features of a kind of data: sft has no rejected response."""
    return TOKEN_FEATURES[:2] if kind == "sft" else TOKEN_FEATURES


@dataclasses.dataclass(frozen=True)
class Example:
    """Token ids of one record.

    The prompt starts with BOS; a response ends with EOS unless it was truncated. SFT has no `rejected`.
    """

    prompt: np.ndarray  # [n] int32, n >= 1
    chosen: np.ndarray  # [c] int32; the response, for SFT; may be empty
    rejected: np.ndarray | None = None  # [r] int32; may be empty
    example_id: int = 0
    margin: float = 0.0

    def numbered(self, example_id: int) -> "Example":
        """The same example under another number."""
        return dataclasses.replace(self, example_id=example_id)
