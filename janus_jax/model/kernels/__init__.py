"""Kernels that compute the attention rule on accelerators; `choice` says which of them a run gets."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float

from janus_jax.model.attention import Slots
from janus_jax.parallel.mesh import NOWHERE, Placement


@runtime_checkable
class Kernel(Protocol):
    """A frozen, hashable description of a kernel, called like `attention.attention`."""

    def __call__(
        self,
        q: Float[Array, "B L N H"],
        k: Float[Array, "B L K H"],
        v: Float[Array, "B L K H"],
        slots: Slots,
        *,
        window: int | None,
        place: Placement,
    ) -> Float[Array, "B L N H"]:
        """Softmax attention under the rule of `attention.visible`, softmax in float32; differentiable in q, k and v.

        Padding slots get finite, unused values. Runs on the devices of `place`, each on its own rows and heads.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Need:
    """What a run's attention is computed on."""

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None
    dtype: Any
    """Of queries, keys and values."""
    row_length: int
    longest: int
    """Tokens of the longest sequence, a prompt with one of its branches."""
    copies: int
    """The most slots of shared prompts that a row has; only asked for where `choice.counts` says so."""
    segments: int
    """The most segments that a row has."""
    branches: int
    """The most branches that a segment has."""
    place: Placement = NOWHERE
