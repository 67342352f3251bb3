"""Direct preference optimisation and its variants."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from janus_jax.batch import Batch
from janus_jax.config.objectives import DPOSection
from janus_jax.objectives.pairs import (
    add_sft_term,
    hinge_loss,
    logistic_loss,
    pair_metrics,
    preference_terms,
    robust_loss,
)
from janus_jax.objectives.scores import BranchScores, Metrics, PairObjective, chosen_tokens, pair_count

_LOSSES: dict[str, Callable[[Array, float], Array]] = {
    "sigmoid": logistic_loss,
    "hinge": hinge_loss,
    "robust": robust_loss,
}
"""Losses of beta * delta; ipo is a loss of delta itself."""


class DPO(DPOSection, PairObjective):
    """The DPO family: a loss of how much more than the reference the policy prefers the chosen response.

        delta = [log p(c) - log ref(c)] - [log p(r) - log ref(r)]
        L     = mean over pairs of f(delta)  +  sft_weight * token mean of -log p(c)

        sigmoid   f = -(1 - e) log sigmoid(beta delta) - e log sigmoid(-beta delta)
        hinge     f = max(0, 1 - beta delta)
        robust    f = [-(1 - e) log sigmoid(beta delta) + e log sigmoid(-beta delta)] / (1 - 2 e)
        ipo       f = (delta - 1 / (2 beta))^2 with per-token means, as its authors confirmed to TRL

    with e = label_smoothing. The keys of `DPOSection` are its arguments; a value out of range is a ValueError.

    Sources: sigmoid Rafailov et al. 2023 eq. 7; hinge Zhao et al. 2023; robust Chowdhury et al. 2024 eq. 7; ipo Azar
    et al. 2023 eq. 17. Equal to TRL 1.16 (`loss_type` of the same name; `sigmoid_norm` with `length_normalised`;
    `["sigmoid", "sft"]` with `loss_weights` for the SFT term), and for label smoothing of `sigmoid` to TRL 0.8.6.
    Log-probs are sums over response tokens, EOS included; the reference comes with the batch, as numbers. A response
    without tokens has log-prob 0 under both, and its pair still counts.
    """

    @property
    def loss_terms(self) -> Mapping[str, float]:
        """The preference term and, where it has a weight, the SFT term."""
        return preference_terms(self.sft_weight)

    def denominators(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """Pairs, and tokens of chosen responses."""
        return {"pairs": pair_count(batch), "tokens": chosen_tokens(batch)}

    def margins(self, scores: BranchScores, batch: Batch) -> Float[Array, "B S"]:
        """Differences of rewards, which are beta times summed log-ratios whatever the loss."""
        rewards = self.beta * (scores.sums - batch.reference_logps)
        return rewards[..., 0] - rewards[..., 1]

    def __call__(
        self, scores: BranchScores, batch: Batch, denominators: dict[str, Float[Array, ""]]
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss share and metrics; rewards are beta times summed log-ratios whatever the loss, as TRL logs them."""
        valid = batch.valid.astype(jnp.float32)
        ratios = scores.sums - batch.reference_logps
        per_token = self.length_normalised or self.loss == "ipo"
        compared = ratios / jnp.maximum(scores.tokens, 1) if per_token else ratios
        delta = compared[..., 0] - compared[..., 1]
        if self.loss == "ipo":
            losses = jnp.square(delta - 1 / (2 * self.beta))
        else:
            losses = _LOSSES[self.loss](self.beta * delta, self.label_smoothing)
        total = (losses * valid).sum()
        metrics = pair_metrics(total, self.beta * ratios, scores.sums, valid)
        return add_sft_term(total / denominators["pairs"], metrics, scores, self.sft_weight, denominators["tokens"])
