"""Odds ratio preference optimisation: SFT and preference in one stage, without a reference."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from janus_jax.batch import Batch
from janus_jax.config.objectives import ORPOSection
from janus_jax.objectives.pairs import pair_metrics
from janus_jax.objectives.scores import BranchScores, Metrics, PairObjective, chosen_tokens, pair_count, prompt_targets

_CERTAIN = -1e-7
"""Mean log-probs are kept below this: of a response predicted with certainty the odds would be infinite."""


class ORPO(ORPOSection, PairObjective):
    """NLL of the chosen response and a penalty on the odds of the rejected one (Hong et al. 2024, eqs. 4, 6 and 7).

        p     = exp(mean_t log p(y_t)) of a response, odds = p / (1 - p)
        L     = token mean of -log p(chosen)  +  beta * mean over pairs of -log sigmoid(log odds(c) - log odds(r))

    Equal to TRL 1.16's ORPOTrainer (trl.experimental.orpo) with `nll: prompt_and_response`, which is what that trainer
    does: there the chosen sequence's NLL runs over its prompt too. A response without tokens has even odds, so that its
    pair counts and carries no gradient of the response it lacks.
    """

    @property
    def loss_terms(self) -> Mapping[str, float]:
        """NLL and beta times the odds ratio term."""
        return {"nll_loss": 1.0, "preference_loss": self.beta}

    def counted(self, batch: Batch) -> Bool[Array, "B L"]:
        """Those of responses, and of prompts if the NLL runs over them."""
        responses = super().counted(batch)
        return responses | prompt_targets(batch) if self.nll == "prompt_and_response" else responses

    def denominators(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """Pairs, and tokens of the chosen sequences that the NLL runs over."""
        tokens = chosen_tokens(batch)
        if self.nll == "prompt_and_response":
            tokens += prompt_targets(batch).astype(jnp.float32).sum()
        return {"pairs": pair_count(batch), "tokens": tokens}

    def margins(self, scores: BranchScores, batch: Batch) -> Float[Array, "B S"]:
        """Differences of log odds."""
        odds = log_odds(jnp.where(scores.tokens > 0, scores.means, -math.log(2)))
        return odds[..., 0] - odds[..., 1]

    def __call__(
        self, scores: BranchScores, batch: Batch, denominators: dict[str, Float[Array, ""]]
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss share and metrics; rewards are beta times per-token means, logps the means, as TRL logs them."""
        valid = batch.valid.astype(jnp.float32)
        margins = self.margins(scores, batch)
        total = -(jax.nn.log_sigmoid(margins) * valid).sum()
        nll, tokens = -scores.sums[..., 0].sum(), scores.tokens[..., 0].sum()
        if self.nll == "prompt_and_response":
            nll, tokens = nll - scores.prompt_sum.sum(), tokens + scores.prompt_tokens.sum()
        metrics = pair_metrics(total, self.beta * scores.means, scores.means, valid)
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
