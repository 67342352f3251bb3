"""Kernels that compute the attention rule on accelerators; `choice` says which of them a run gets."""

from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float

from janus_jax.model.attention import Slots
from janus_jax.parallel.mesh import Placement


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
