"""What is measured, on a card and in a rehearsal."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to fit a step into memory: rows at a time, what is kept, and in which types."""

    rows: int
    remat: str
    bfloat16_weights: bool = False
    moments: str = "float32"
    model: tuple[tuple[str, int], ...] = ()
    """Keys of `model` that differ from the case's."""


@dataclasses.dataclass(frozen=True)
class StepCase:
    """A training step. Settings are tried in order until one fits."""

    model: tuple[tuple[str, Any], ...]
    objective: str
    row_length: int
    longest: int
    settings: tuple[Setting, ...]
    settings_large: tuple[Setting, ...]
    """Those for a card with more than 100 GiB."""

    @property
    def branches(self) -> int:
        return 1 if self.objective == "sft" else 2


@dataclasses.dataclass(frozen=True)
class DecodeCase:
    """Texts that grow together. Prompts and new tokens keep to one bucket of lengths, so each number of rows compiles
    one decoding call."""

    model: tuple[tuple[str, Any], ...]
    rows: tuple[int, ...]
    prompt: int
    new: int


@dataclasses.dataclass(frozen=True)
class Sizes:
    """All sizes."""

    heads: int
    kv_heads: int
    head_dim: int
    row_length: int
    longest: int
    """As `batch.max_sequence_length`, of attention alone."""
    calls: int
    repeats: int
    matrix: int
    steps: int
    kernels: tuple[str, ...]
    cases: dict[str, StepCase]
    decode: DecodeCase
    shrink: int = 1
    """What the lengths of examples are divided by."""
    torch_rows: int = 2
    """Packed rows, or the pairs of so many, that transformers takes at once."""


_2B = (("preset", "mistral-7b"), ("hidden_size", 3072), ("intermediate_size", 9216), ("num_layers", 16))
_7B = (("preset", "mistral-7b"),)

_FLOAT32 = (Setting(2, "dots"), Setting(2, "full"), Setting(1, "full"))
_FLOAT32_LARGE = (Setting(2, "none"), *_FLOAT32)
_PAIRS, _PAIRS_LARGE = (
    tuple(dataclasses.replace(setting, rows=2 * setting.rows) for setting in settings)
    for settings in (_FLOAT32, _FLOAT32_LARGE)
)
_7B_SETTINGS = (
    Setting(2, "full", bfloat16_weights=True, moments="bfloat16"),
    Setting(1, "full", bfloat16_weights=True, moments="bfloat16"),
    Setting(1, "full", bfloat16_weights=True, moments="bfloat16", model=(("num_layers", 24),)),
)
_7B_LARGE = (Setting(1, "dots", moments="bfloat16"), Setting(1, "full", moments="bfloat16"), *_7B_SETTINGS)

ON_A_CARD = Sizes(
    heads=32,
    kv_heads=8,
    head_dim=128,
    row_length=8192,
    longest=8192,
    calls=20,
    repeats=5,
    matrix=8192,
    steps=8,
    kernels=("cudnn", "triton"),
    cases={
        "sft-2b": StepCase(_2B, "sft", 8192, 8192, _FLOAT32, _FLOAT32_LARGE),
        "dpo-2b": StepCase(_2B, "dpo", 4096, 2048, _PAIRS, _PAIRS_LARGE),
        "sft-7b": StepCase(_7B, "sft", 8192, 8192, _7B_SETTINGS, _7B_LARGE),
    },
    decode=DecodeCase(_7B, (8, 64, 128), prompt=520, new=96),
)
"""The 2B shape is as wide as Ministral 3B and has 16 of its 26 layers: 2.06 billion parameters."""

_TINY = (("preset", "tiny"), ("vocab_size", 64), ("hidden_size", 32), ("intermediate_size", 32), ("head_dim", 64))
_TINY += (("num_heads", 2), ("num_kv_heads", 1), ("num_layers", 1))
_TINY_SETTINGS = (Setting(1, "dots"),)

REHEARSAL = Sizes(
    heads=2,
    kv_heads=1,
    head_dim=64,
    row_length=128,
    longest=110,
    calls=2,
    repeats=2,
    matrix=128,
    steps=2,
    kernels=("triton", "splash"),
    cases={
        "sft-2b": StepCase(_TINY, "sft", 128, 110, _TINY_SETTINGS, _TINY_SETTINGS),
        "dpo-2b": StepCase(_TINY, "dpo", 256, 200, _TINY_SETTINGS, _TINY_SETTINGS),
        "sft-7b": StepCase(
            _TINY, "sft", 128, 110, (Setting(1, "full", True, "bfloat16"),), (Setting(1, "full", True, "bfloat16"),)
        ),
    },
    decode=DecodeCase(_TINY, (2, 4), prompt=20, new=32),
    shrink=8,
    torch_rows=1,
)
"""The same on a CPU, with the kernels that a CPU interprets."""
