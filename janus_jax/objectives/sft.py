"""Supervised fine-tuning on responses."""

from collections.abc import Mapping

from jaxtyping import Array, Float

from janus_jax.batch import Batch
from janus_jax.config.objectives import SFTSection
from janus_jax.objectives.scores import BranchScores, Metrics, Objective, chosen_tokens


class SFT(SFTSection, Objective):
    """Token mean of the negative log-likelihood of responses, EOS included, prompts excluded.

        L = - sum_t w_t log p(target_t) / sum_t w_t

    `normaliser: global` counts tokens over all microbatches and hosts (TRL 1.16 SFTTrainer with
    `average_tokens_across_devices`); `per_microbatch` averages microbatch means (axolotl of April 2024, as Janus ran).
    """

    @property
    def loss_terms(self) -> Mapping[str, float]:
        """The loss is the mean over tokens alone."""
        return {"nll_loss": 1.0}

    def denominators(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """Response tokens."""
        return {"tokens": chosen_tokens(batch)}

    def __call__(
        self, scores: BranchScores, batch: Batch, denominators: dict[str, Float[Array, ""]]
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss share and the metric `nll_loss` (nats per response token)."""
        total = -scores.sums[..., 0].sum()
        return total / denominators["tokens"], {"nll_loss": (total, scores.tokens[..., 0].sum())}
