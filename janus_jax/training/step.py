"""The pure functions that the loop jits: train step, evaluation step, reference scores."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from janus_jax.batch import Batch
from janus_jax.model.attention import Slots
from janus_jax.model.config import ModelConfig
from janus_jax.model.mistral import Compute, Params, token_scalars, working_params
from janus_jax.objectives import BranchScores, Metrics, Objective, branch_scores
from janus_jax.training.optimizer import clip


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a checkpoint must hold besides the data position."""

    params: Params
    optimizer: optax.OptState


@dataclasses.dataclass(frozen=True)
class StepFunctions:
    """Pure functions over batches with a leading microbatch axis, [M, B, L]; jit them with the run's shardings."""

    model: ModelConfig
    objective: Objective
    compute: Compute
    transformation: optax.GradientTransformation
    clip_norm: float | None
    skip_nonfinite: bool = False

    def init(self, params: Params) -> TrainState:
        """Optimizer state for fresh parameters; what they are made from is float32, whatever the parameters."""
        return TrainState(params, self.transformation.init(_float32(params)))

    def scores(self, params: Params, batch: Batch, sums: Params | None = None) -> BranchScores:
        """Branch scores of one microbatch [B, L]. `sums`: as in `token_scalars`."""
        slots = Slots(batch.segment, batch.branch, batch.position)
        # Asked for float32, accelerators would still multiply in fewer bits unless told not to.
        exact = "highest" if jnp.dtype(self.compute.dtype) == jnp.float32 else "default"
        with jax.default_matmul_precision(exact):
            counted = self.objective.counted(batch)
            scalars = token_scalars(self.model, params, batch.tokens, batch.targets, slots, self.compute, sums, counted)
        return branch_scores(scalars, batch)

    def reference(self, params: Params, batch: Batch) -> Float[Array, "M B S 2"]:
        """Summed log-probs of each branch under frozen weights, for `Batch.reference_logps`."""
        return jax.lax.map(lambda micro: self.scores(params, micro).sums, batch)

    def evaluate(self, params: Params, batch: Batch) -> Metrics:
        """Metrics (total, count) of a whole batch; they add up over batches."""

        def metrics(micro: Batch) -> Metrics:
            return self.objective(self.scores(params, micro), micro, self.objective.denominators(micro))[1]

        return _sum_microbatches(jax.lax.map(metrics, batch))

    def gradients(self, params: Params, batch: Batch) -> tuple[Float[Array, ""], Params, Metrics]:
        """Loss, gradients and metrics of a whole batch; those of several microbatches are summed in float32.

        With the `global` normaliser denominators are counted over all microbatches before the first of them runs.
        """
        microbatches = batch.tokens.shape[0]
        whole = self.objective.denominators(batch)
        # Of the last batch of an epoch some microbatches may be all padding: they are no part of the mean of means.
        used = jax.tree.map(lambda counts: (counts > 0).sum(), jax.vmap(self.objective.denominators)(batch))

        def share(params: Params, micro: Batch, sums: Params | None = None) -> tuple[Array, Metrics]:
            denominators = whole
            if self.objective.normaliser == "per_microbatch":
                denominators = {k: v * used[k] for k, v in self.objective.denominators(micro).items()}
            denominators = jax.tree.map(lambda count: jnp.maximum(count, 1), denominators)  # empty: loss 0, not 0/0
            return self.objective(self.scores(params, micro, sums), micro, denominators)

        if microbatches == 1:  # no scan: the compiler sees one forward and one backward pass
            working = working_params(params, self.compute.dtype)
            differentiate = jax.value_and_grad(share, has_aux=True)
            (loss, metrics), grads = differentiate(working, jax.tree.map(lambda x: x[0], batch))
            return loss, grads, metrics

        def share_of(learned: Params, micro: Batch) -> tuple[Array, Metrics]:
            return share(learned | {"layers": params["layers"]}, micro, learned["layers"])

        def accumulate(carry: tuple[Array, Params], micro: Batch) -> tuple[tuple[Array, Params], Metrics]:
            loss, total = carry
            layers = {"layers": total["layers"]}  # the backward pass adds to them, and returns the sums
            (share_loss, metrics), grads = jax.value_and_grad(share_of, has_aux=True)(params | layers, micro)
            layers = {"layers": grads["layers"]}
            total = jax.tree.map(lambda a, g: a + g.astype(jnp.float32), total, grads) | layers
            return (loss + share_loss, total), metrics

        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        (loss, grads), metrics = jax.lax.scan(accumulate, (jnp.float32(0), zeros), batch)
        return loss, grads, _sum_microbatches(metrics)

    def train(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array], Metrics]:
        """One optimizer step. With `skip_nonfinite`, one whose loss or gradient is not finite changes nothing.

        Returns:
            the new state, scalars {loss, grad_norm} of this step, and the objective's metrics.
        """
        loss, grads, metrics = self.gradients(state.params, batch)
        grads, norm = clip(_float32(grads), self.clip_norm)
        updates, optimizer = self.transformation.update(grads, state.optimizer, state.params)
        params = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), state.params, updates)
        updated = TrainState(params, optimizer)
        if self.skip_nonfinite:
            finite = jnp.isfinite(loss) & jnp.isfinite(norm)
            updated = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state)
        return updated, {"loss": loss, "grad_norm": norm}, metrics


def _float32(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def _sum_microbatches(metrics: Metrics) -> Metrics:
    return jax.tree.map(lambda x: x.sum(0), metrics)
