"""Odds ratio preference optimisation: SFT and preference in one stage, without a reference."""

import math
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from janus_jax.batch import Batch
from janus_jax.config.objectives import ORPOSection
from janus_jax.objectives.pairs import pair_metrics
from janus_jax.objectives.scores import (
    BranchScores,
    Metrics,
    PairObjective,
    chosen_tokens,
    other_weights,
    pair_count,
    prompt_targets,
)

_CERTAIN = -1e-7
"""Mean log-probs are kept below this: of a response predicted with certainty the odds would be infinite."""


class ORPO(ORPOSection, PairObjective):
    """NLL of the chosen response and a penalty on the odds of the rejected one (Hong et al. 2024, eqs. 4, 6 and 7).

        p     = exp(mean_t log p(y_t)) of a response, odds = p / (1 - p)
        L     = token mean of -log p(chosen)  +  beta * mean over pairs of -log sigmoid(log odds(c) - log odds(r))

    Equal to TRL 1.16's ORPOTrainer (trl.experimental.orpo) with `nll: prompt_and_response`, which is what that trainer
    does: there the chosen sequence's NLL runs over its prompt too. A response without tokens has even odds, so that its
    pair counts and carries no gradient of the response it lacks.

    `padding` is `compat.orpo_padding`, for rows with slots of padding (`data/padding.py`). The NLL is then the mean
    over pairs of means over all positions of a padded row but the last; with `axolotl` all rows have the same length.
    There p(chosen) is a mean over prompt and response, p(rejected) over the response and the padding token after it.
    """

    padding: Literal["trl", "axolotl"] | None = None

    @property
    def loss_terms(self) -> Mapping[str, float]:
        """NLL and beta times the odds ratio term."""
        return {"nll_loss": 1.0, "preference_loss": self.beta}

    def counted(self, batch: Batch) -> Bool[Array, "B L"]:
        """Those of responses, and of prompts if the NLL runs over them."""
        responses = super().counted(batch)
        return responses | prompt_targets(batch) if self.nll == "prompt_and_response" else responses

    def denominators(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """Pairs, and tokens of the chosen sequences that the NLL runs over, or pairs if it is a mean of means."""
        pairs = pair_count(batch)
        if self.padding == "trl":
            return {"pairs": pairs, "tokens": pairs}
        tokens = chosen_tokens(batch) + other_weights(batch).sum()
        if self.nll == "prompt_and_response":
            tokens += prompt_targets(batch).astype(jnp.float32).sum()
        return {"pairs": pairs, "tokens": tokens}

    def margins(self, scores: BranchScores, batch: Batch) -> Float[Array, "B S"]:
        """Differences of log odds."""
        odds = log_odds(jnp.where(scores.tokens > 0, self._means(scores), -math.log(2)))
        return odds[..., 0] - odds[..., 1]

    def _means(self, scores: BranchScores) -> Float[Array, "B S 2"]:
        """Mean log-probs of the responses, of axolotl's chosen ones with their prompts."""
        if self.padding != "axolotl":
            return scores.means
        tokens = jnp.maximum(scores.tokens[..., 0] + scores.prompt_tokens, 1)
        chosen = (scores.sums[..., 0] + scores.prompt_sum) / tokens
        return jnp.stack([chosen, scores.means[..., 1]], axis=-1)

    def __call__(
        self, scores: BranchScores, batch: Batch, denominators: dict[str, Float[Array, ""]]
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss share and metrics; rewards are beta times per-token means, logps the means, as TRL logs them."""
        valid = batch.valid.astype(jnp.float32)
        margins = self.margins(scores, batch)
        total = -(jax.nn.log_sigmoid(margins) * valid).sum()
        nll, tokens = -scores.sums[..., 0], scores.tokens[..., 0]
        if self.nll == "prompt_and_response":
            nll, tokens = nll - scores.prompt_sum, tokens + scores.prompt_tokens
        if self.padding == "trl":
            nll, tokens = (nll / jnp.maximum(tokens, 1) * valid).sum(), valid.sum()
        else:
            nll, tokens = nll.sum() - scores.other_sum.sum(), tokens.sum() + scores.other_tokens.sum()
        means = self._means(scores)
        metrics = pair_metrics(total, self.beta * means, means, valid)
        metrics["nll_loss"] = (nll, tokens)
        metrics["log_odds"] = ((margins * valid).sum(), valid.sum())
        return nll / denominators["tokens"] + self.beta * total / denominators["pairs"], metrics


def log_odds(logp: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """log(p / (1 - p)) of log p < 0, without cancellation near either end (Maechler 2012)."""
    logp = jnp.minimum(logp, _CERTAIN)
    small = logp < -math.log(2)
    # Each form sees only what it is meant for: the one that is not taken must not turn the gradient into NaN.
    log1mexp = jnp.where(
        small, jnp.log1p(-jnp.exp(jnp.where(small, logp, -1.0))), jnp.log(-jnp.expm1(jnp.where(small, -0.5, logp)))
    )
    return logp - log1mexp
