"""Which kernel computes attention: the platform of the mesh's devices names candidates, the first that can be is taken.

The devices may be none of this host: a plan compiles for others.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from janus_jax.errors import ConfigError
from janus_jax.model.config import ModelConfig
from janus_jax.model.kernels import Kernel, splash
from janus_jax.parallel.mesh import NOWHERE, Placement


@dataclasses.dataclass(frozen=True)
class Need:
    """What a run's attention is computed on."""

    model: ModelConfig
    dtype: Any
    """Of q, k and v."""
    row_length: int
    longest: int
    """Tokens of the longest sequence, a prompt with one of its branches."""
    copies: int
    """The most slots of shared prompts that a row has; only asked for where `counts_copies`."""
    sequences: int
    """The most sequences that a row has: one for each branch of each segment."""
    place: Placement = NOWHERE

    @property
    def sizes(self) -> dict[str, Any]:
        """The arguments that every kernel's `unsupported_reason` takes."""
        return {
            "row_length": self.row_length,
            "heads": self.model.num_heads,
            "kv_heads": self.model.num_kv_heads,
            "head_dim": self.model.head_dim,
            "window": self.model.sliding_window,
            "copies": self.copies,
            "longest": self.longest,
            "place": self.place,
        }


def _splash(need: Need) -> tuple[Kernel, str] | str:
    reason = splash.unsupported_reason(**need.sizes)
    if reason is not None:
        return reason
    interpret = need.place.platform != "tpu"
    how = "splash kernel, interpreted" if interpret else "splash kernel"
    copied = f"{how}, {need.copies:,} copies of shared prompt slots"
    return splash.Splash(need.copies, interpret), copied if need.copies else how


def _absent(need: Need) -> str:
    return "this version has no such kernel"


_KERNELS: dict[str, Callable[[Need], tuple[Kernel, str] | str]] = {
    "splash": _splash,
    "cudnn": _absent,
    "triton": _absent,
}
"""Name -> the kernel and what a user reads of it, or why it cannot be."""

_CANDIDATES = {"tpu": ("splash",), "gpu": ("cudnn", "triton"), "cuda": ("cudnn", "triton")}
"""Platform -> kernels, best first. On other platforms attention is plain JAX."""

_COUNT_COPIES = ("splash", "cudnn")
"""Kernels that repeat shared prompts, so the most shared slots of a row must be known."""


def counts_copies(wanted: str, place: Placement) -> bool:
    """Whether `Need.copies` is used.

    Args:
        wanted: `precision.attention`.
    """
    return any(name in _COUNT_COPIES for name in _candidates(wanted, place))


def choose(wanted: str, need: Need) -> tuple[Kernel | None, str]:
    """The kernel, None for plain JAX, and a line for the user that says what was chosen and why.

    Args:
        wanted: `precision.attention`.
    Raises:
        ConfigError: a kernel is named that cannot be.
    """
    candidates, reasons = _candidates(wanted, need.place), []
    for name in candidates:
        built = _KERNELS[name](need)
        if not isinstance(built, str):
            kernel, how = built
            return kernel, f"{how} ({'; '.join(reasons)})" if reasons else how
        if wanted == name:
            raise ConfigError(f"precision.attention={name}: cannot be: {built}; allowed: auto, reference")
        reasons.append(f"{name}: {built}" if len(candidates) > 1 else built)
    if not candidates:
        reasons = ["precision.attention" if wanted == "reference" else f"devices are {need.place.platform}"]
    return None, f"plain JAX ({'; '.join(reasons)})"


def _candidates(wanted: str, place: Placement) -> tuple[str, ...]:
    if wanted == "auto":
        return _CANDIDATES.get(place.platform or "", ())
    return () if wanted == "reference" else (wanted,)
