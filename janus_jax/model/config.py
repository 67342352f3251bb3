"""The shape of a Mistral-like decoder, and the presets."""

import dataclasses
from typing import Literal, get_args

Head = Literal["lm", "value"]
"""What a model ends in: log-probs over the vocabulary, or one number per token (a reward)."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture only; field names follow the Hugging Face `MistralConfig` where it has one.

    Raises:
        ValueError: a size is not positive, heads do not divide, or head_dim is odd (RoPE rotates halves).
    """

    vocab_size: int
    hidden_size: int  # D
    intermediate_size: int  # F
    num_layers: int
    num_heads: int  # N
    num_kv_heads: int  # K
    head_dim: int  # H
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-5
    sliding_window: int | None = None  # a query sees keys with position distance < window
    tie_embeddings: bool = False
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    head: Head = "lm"  # value: a reward model, which ends in one number per token

    def __post_init__(self) -> None:
        if self.head not in get_args(Head):
            raise ValueError(f"head={self.head!r}: allowed: {', '.join(get_args(Head))}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
                raise ValueError(f"{field.name}={value!r} must be positive")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even")


PRESETS = {
    "mistral-7b": ModelConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
    ),
    "tiny": ModelConfig(
        vocab_size=32000,
        hidden_size=128,
        intermediate_size=384,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        rope_theta=1e4,
        max_position_embeddings=4096,
    ),
}
"""`mistral-7b` is Mistral-7B-v0.2, the base of Janus (no sliding window, rope theta 1e6)."""
