"""Direct preference optimisation."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from janus_jax.batch import Batch
from janus_jax.objectives.scores import BranchScores, Metrics, Normaliser


@dataclasses.dataclass(frozen=True)
class DPO:
    """Sigmoid DPO (Rafailov et al. 2023, eq. 7; TRL 1.16 `loss_type="sigmoid"`).

        L = - mean over pairs of log sigmoid(beta * [(log p(c) - log ref(c)) - (log p(r) - log ref(r))])

    with log-probs summed over response tokens, EOS included. `beta` is the strength of the KL constraint (TRL and,
    by its silence, the published Janus run use 0.1). The reference comes with the batch, as numbers.
    """

    name: Literal["dpo"] = "dpo"
    beta: float = 0.1
    normaliser: Normaliser = "global"

    branches: ClassVar[int] = 2
    needs_reference: ClassVar[bool] = True

    def denominators(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """Pairs."""
        return {"pairs": batch.valid.astype(jnp.float32).sum()}

    def __call__(
        self, scores: BranchScores, batch: Batch, denominators: dict[str, Float[Array, ""]]
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss share and the metrics that TRL logs, under its names (rewards are beta * log-ratios)."""
        valid = batch.valid.astype(jnp.float32)
        rewards = self.beta * (scores.logps - batch.reference_logps) * valid[..., None]
        chosen, rejected = rewards[..., 0], rewards[..., 1]
        margin = chosen - rejected
        total = -(jax.nn.log_sigmoid(margin) * valid).sum()
        pairs = valid.sum()
        metrics = {
            "loss": (total, pairs),
            "rewards/chosen": (chosen.sum(), pairs),
            "rewards/rejected": (rejected.sum(), pairs),
            "rewards/margins": (margin.sum(), pairs),
            "rewards/accuracies": (((margin > 0) * valid).sum(), pairs),
            "logps/chosen": ((scores.logps[..., 0] * valid).sum(), pairs),
            "logps/rejected": ((scores.logps[..., 1] * valid).sum(), pairs),
        }
        return total / denominators["pairs"], metrics
