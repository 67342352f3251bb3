"""Simple preference optimisation: DPO without a reference."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from janus_jax.batch import Batch
from janus_jax.config.objectives import SimPOSection
from janus_jax.objectives.pairs import add_sft_term, logistic_loss, pair_metrics, preference_terms
from janus_jax.objectives.scores import BranchScores, Metrics, PairObjective, chosen_tokens, pair_count


class SimPO(SimPOSection, PairObjective):
    """Length-normalised log-probs with a target margin (Meng et al. 2024, eq. 6).

        d = mean_t log p(c_t) - mean_t log p(r_t)
        L = mean over pairs of -log sigmoid(beta d - gamma)  +  sft_weight * token mean of -log p(c)

    with label smoothing e as in `logistic_loss`. Equal to TRL 1.16's CPOTrainer with `loss_type="simpo"`,
    `simpo_gamma=gamma` and `cpo_alpha=sft_weight` (TRL's own default of cpo_alpha is 1, the paper has no such term).
    """

    @property
    def loss_terms(self) -> Mapping[str, float]:
        """The preference term and, where it has a weight, the SFT term."""
        return preference_terms(self.sft_weight)

    def denominators(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """Pairs, and tokens of chosen responses."""
        return {"pairs": pair_count(batch), "tokens": chosen_tokens(batch)}

    def margins(self, scores: BranchScores, batch: Batch) -> Float[Array, "B S"]:
        """Differences of rewards, beta times per-token means; gamma is not taken off."""
        rewards = self.beta * scores.means
        return rewards[..., 0] - rewards[..., 1]

    def __call__(
        self, scores: BranchScores, batch: Batch, denominators: dict[str, Float[Array, ""]]
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss share and metrics; rewards are beta times per-token means, logps the means, as TRL logs them."""
        valid = batch.valid.astype(jnp.float32)
        rewards = self.beta * scores.means
        losses = logistic_loss(self.margins(scores, batch) - self.gamma, self.label_smoothing)
        total = (losses * valid).sum()
        metrics = pair_metrics(total, rewards, scores.means, valid)
        return add_sft_term(total / denominators["pairs"], metrics, scores, self.sft_weight, denominators["tokens"])
