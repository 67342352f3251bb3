"""Reward modelling on pairs."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from janus_jax.batch import Batch
from janus_jax.config.objectives import RMSection
from janus_jax.objectives.pairs import pair_metrics
from janus_jax.objectives.scores import BranchScores, Metrics, PairObjective, pair_count


class RewardModel(RMSection, PairObjective):
    """Bradley-Terry loss on the rewards that a bias-free value head reads at the last token of each response.

        L = mean over pairs of [ -log sigmoid(r(c) - r(r) - margin)  +  center_weight * (r(c) + r(r))^2 ]

    The margin (Touvron et al. 2023, eq. 2) comes with the data and is 0 where it has none; centring is of Eisenstein et
    al. 2023. Equal to TRL 1.16's RewardTrainer (`center_rewards_coefficient`) and, without centring, to OpenRLHF's
    `PairWiseLoss`, which trained Janus-RM.
    """

    @property
    def loss_terms(self) -> Mapping[str, float]:
        """The preference term and, where it has a weight, the centring term."""
        return {"preference_loss": 1.0} | ({"center_loss": self.center_weight} if self.center_weight else {})

    def denominators(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """Pairs."""
        return {"pairs": pair_count(batch)}

    def margins(self, scores: BranchScores, batch: Batch) -> Float[Array, "B S"]:
        """Differences of rewards; the data's own margin is not taken off."""
        return scores.sums[..., 0] - scores.sums[..., 1]

    def __call__(
        self, scores: BranchScores, batch: Batch, denominators: dict[str, Float[Array, ""]]
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss share and metrics; `rewards/accuracies` is how often the chosen response has the higher reward.

        `rewards/squares` is the mean square of single rewards; `reward_statistics` reads it.
        """
        valid = batch.valid.astype(jnp.float32)
        chosen, rejected = scores.sums[..., 0], scores.sums[..., 1]
        total = -(jax.nn.log_sigmoid(self.margins(scores, batch) - batch.margin) * valid).sum()
        share = total / denominators["pairs"]
        metrics = pair_metrics(total, scores.sums, scores.sums, valid)
        metrics = {name: pair for name, pair in metrics.items() if not name.startswith("logps/")}
        squares = ((jnp.square(chosen) + jnp.square(rejected)) * valid).sum()
        metrics["rewards/squares"] = (squares, 2 * valid.sum())
        if self.center_weight:
            center = (jnp.square(chosen + rejected) * valid).sum()
            share += self.center_weight * center / denominators["pairs"]
            metrics["center_loss"] = (center, valid.sum())
        return share, metrics

    def reward_statistics(self, evaluation: Mapping[str, float], pairs: int) -> dict[str, float]:
        """`mean` and `std` of all rewards of an evaluation, chosen and rejected alike, from the means over its pairs.

        OpenRLHF keeps these two in the config.json of a reward model (std: the unbiased estimate, at least 1e-8). Empty
        if a reward was not finite.
        """
        mean = (evaluation["rewards/chosen"] + evaluation["rewards/rejected"]) / 2
        if not math.isfinite(mean + evaluation["rewards/squares"]):
            return {}
        rewards = 2 * pairs
        variance = max(0.0, evaluation["rewards/squares"] - mean**2) * rewards / (rewards - 1)
        return {"mean": mean, "std": max(math.sqrt(variance), 1e-8)}
