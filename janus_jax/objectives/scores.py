"""From one scalar per token to one score per branch, and the interface of an objective."""

import dataclasses
from typing import ClassVar, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from janus_jax.batch import BRANCHES, Batch

Normaliser = Literal["global", "per_microbatch"]
"""`global`: denominators counted over the whole global batch, so microbatches, hosts and meshes change nothing.
`per_microbatch`: each microbatch is divided by its own counts and the results are averaged, as some trainers do."""

Metrics = dict[str, tuple[Array, Array]]
"""Name -> (total, count). Totals and counts add over microbatches and batches; the value is their quotient."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BranchScores:
    """Masked sums of a per-token log-prob, and how many tokens went into them."""

    logps: Float[Array, "B S 2"]
    tokens: Float[Array, "B S 2"]


@runtime_checkable
class Objective(Protocol):
    """What the step asks of an objective."""

    branches: ClassVar[int]  # branches that each segment must have: 1 response, or 2 for pairs
    needs_reference: ClassVar[bool]  # batch.reference_logps must be filled

    @property
    def name(self) -> str:
        """As in a config's `objective.name`."""
        ...

    @property
    def normaliser(self) -> Normaliser:
        """How microbatches are averaged."""
        ...

    def denominators(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """The counts that the objective divides by, over the given rows."""
        ...

    def __call__(
        self, scores: BranchScores, batch: Batch, denominators: dict[str, Float[Array, ""]]
    ) -> tuple[Float[Array, ""], Metrics]:
        """This microbatch's share of the loss, and its metrics."""
        ...


def branch_scores(token_logps: Float[Array, "B L"], batch: Batch) -> BranchScores:
    """Sums `weights * token_logps` by (segment, branch). A branch without tokens scores zero.

    A masked sum over a small static axis: no scatter, so the result does not depend on the order of additions that
    a device chooses, and it stays float32 on hardware whose matmuls round to bfloat16.
    """
    segments = batch.valid.shape[-1]
    slot = jnp.where(batch.branch > 0, (batch.segment - 1) * BRANCHES + batch.branch - 1, -1)
    belongs = slot[..., None] == jnp.arange(segments * BRANCHES, dtype=slot.dtype)

    def by_branch(values: Float[Array, "B L"]) -> Float[Array, "B S 2"]:
        sums = jnp.where(belongs, values[..., None], jnp.float32(0)).sum(-2)
        return sums.reshape(*sums.shape[:-1], segments, BRANCHES)

    return BranchScores(logps=by_branch(token_logps * batch.weights), tokens=by_branch(batch.weights))
