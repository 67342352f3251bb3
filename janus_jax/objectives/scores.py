"""From one scalar per token to one score per branch, and the interface of an objective."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from janus_jax.batch import BRANCHES, Batch
from janus_jax.config.objectives import ObjectiveSection

Normaliser = Literal["global", "per_microbatch"]
"""`global`: denominators counted over the whole global batch, so microbatches, hosts and meshes change nothing.
`per_microbatch`: each microbatch is divided by its own counts and the results are averaged, as some trainers do."""

Metrics = dict[str, tuple[Array, Array]]
"""Name -> (total, count). Totals and counts add over microbatches and batches; the value is their quotient."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BranchScores:
    """Sums of a per-token scalar, and how many tokens went into them.

    The scalar is the log-prob of the target (head `lm`) or the reward read at the branch's last token (head `value`).
    """

    sums: Float[Array, "B S 2"]  # of weights * scalar; 0 for a branch without tokens
    tokens: Float[Array, "B S 2"]
    prompt_sum: Float[Array, "B S"]  # log-probs of the prompt's tokens after the first
    prompt_tokens: Float[Array, "B S"]
    other_sum: Float[Array, " B"]  # of weights * scalar in no branch: `compat.orpo_padding` gives weights there
    other_tokens: Float[Array, " B"]

    @property
    def means(self) -> Float[Array, "B S 2"]:
        """Per-token means; 0 for a branch without tokens."""
        return self.sums / jnp.maximum(self.tokens, 1)


class Objective(ObjectiveSection, abc.ABC):
    """What the step and the loop ask of an objective: its section's keys and facts, and this maths."""

    normaliser: Normaliser = "global"

    @property
    @abc.abstractmethod
    def loss_terms(self) -> Mapping[str, float]:
        """Name -> weight of the metrics whose weighted sum is the loss."""

    @abc.abstractmethod
    def denominators(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """The counts that the loss terms are divided by, over the given rows."""

    @abc.abstractmethod
    def __call__(
        self, scores: BranchScores, batch: Batch, denominators: dict[str, Float[Array, ""]]
    ) -> tuple[Float[Array, ""], Metrics]:
        """This microbatch's share of the loss, and its metrics."""

    def counted(self, batch: Batch) -> Bool[Array, "B L"]:
        """The slots whose scalars the scores of this objective are made of."""
        return batch.weights > 0

    def reward_statistics(self, evaluation: Mapping[str, float], pairs: int) -> dict[str, float]:
        """What a held-out evaluation says of the rewards, to be stored with the weights; empty where there are none.

        Args:
            evaluation: means over all held-out pairs.
            pairs: their number.
        """
        del evaluation, pairs
        return {}


class PairObjective(Objective):
    """An objective over pairs: it also says how far it prefers each chosen response."""

    @abc.abstractmethod
    def margins(self, scores: BranchScores, batch: Batch) -> Float[Array, "B S"]:
        """How far each chosen response is preferred to the rejected one, in what the objective compares; positive is
        right, 0 a tie."""


def branch_scores(values: Float[Array, "B L"], batch: Batch) -> BranchScores:
    """Sums per-token scalars by (segment, branch), and those of prompts by segment.

    A masked sum over a small static axis: no scatter, so the result does not depend on the order of additions that
    a device chooses, and it stays float32 on hardware whose matmuls round to bfloat16.
    """
    segments = batch.valid.shape[-1]
    slot = jnp.where(batch.branch > 0, (batch.segment - 1) * BRANCHES + batch.branch - 1, -1)
    belongs = slot[..., None] == jnp.arange(segments * BRANCHES, dtype=slot.dtype)
    of_prompt = prompt_targets(batch)
    prompt_of = (batch.segment - 1)[..., None] == jnp.arange(segments, dtype=slot.dtype)
    prompt_of &= of_prompt[..., None]

    def by_branch(values: Float[Array, "B L"]) -> Float[Array, "B S 2"]:
        sums = jnp.where(belongs, values[..., None], jnp.float32(0)).sum(-2)
        return sums.reshape(*sums.shape[:-1], segments, BRANCHES)

    def by_segment(values: Float[Array, "B L"]) -> Float[Array, "B S"]:
        return jnp.where(prompt_of, values[..., None], jnp.float32(0)).sum(-2)

    return BranchScores(
        sums=by_branch(values * batch.weights),
        tokens=by_branch(batch.weights),
        prompt_sum=by_segment(values),
        prompt_tokens=by_segment(jnp.ones_like(batch.weights)),
        other_sum=(values * other_weights(batch)).sum(-1),
        other_tokens=other_weights(batch).sum(-1),
    )


def prompt_targets(batch: Batch) -> Bool[Array, "... L"]:
    """True where a slot predicts a token of the prompt; once for a pair, also where each branch has its own copy."""
    return (batch.segment > 0) & (batch.branch < 2) & (batch.weights == 0)


def other_weights(batch: Batch) -> Float[Array, "... L"]:
    """Weights of slots in no branch; 0 without `compat.orpo_padding`."""
    return jnp.where(batch.branch == 0, batch.weights, jnp.float32(0))


def chosen_tokens(batch: Batch) -> Float[Array, ""]:
    """Counted tokens of all responses, or of all chosen ones of pairs."""
    return jnp.where(batch.branch == 1, batch.weights, jnp.float32(0)).sum()


def pair_count(batch: Batch) -> Float[Array, ""]:
    """Segments, also those whose branches are empty."""
    return batch.valid.astype(jnp.float32).sum()


def metric_values(metrics: Mapping[str, Any], objective: Objective) -> dict[str, float]:
    """Quotients of (total, count) as Python floats, nan where the count is zero, and `loss`, their weighted sum.

    A loss of one term is not listed a second time under the term's own name.
    """
    values = {
        name: float(total) / float(count) if float(count) else float("nan")
        for name, (total, count) in jax.device_get(metrics).items()
    }
    terms = objective.loss_terms
    loss = sum(weight * values[name] for name, weight in terms.items())
    if len(terms) == 1:
        values.pop(next(iter(terms)))
    return {"loss": loss, **values}
