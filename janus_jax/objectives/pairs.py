"""What the objectives over pairs share: losses of a margin, and the metrics that are logged."""

from collections.abc import Mapping

import jax
from jaxtyping import Array, Float

from janus_jax.objectives.scores import BranchScores, Metrics


def logistic_loss(margin: Float[Array, "*S"], label_smoothing: float) -> Float[Array, "*S"]:
    """-(1 - e) log sigmoid(m) - e log sigmoid(-m): a label is wrong with probability e (cDPO, Mitchell 2023).

    TRL 0.8.6 computes this for `sigmoid`; TRL 1.16 ignores `label_smoothing` there.
    """
    return -(1 - label_smoothing) * jax.nn.log_sigmoid(margin) - label_smoothing * jax.nn.log_sigmoid(-margin)


def robust_loss(margin: Float[Array, "*S"], label_smoothing: float) -> Float[Array, "*S"]:
    """The unbiased estimate of the loss under labels flipped with probability e < 1/2 (Chowdhury et al. 2024, eq. 7).

    (-(1 - e) log sigmoid(m) + e log sigmoid(-m)) / (1 - 2 e)
    """
    right, flipped = -jax.nn.log_sigmoid(margin), -jax.nn.log_sigmoid(-margin)
    return ((1 - label_smoothing) * right - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def hinge_loss(margin: Float[Array, "*S"], label_smoothing: float) -> Float[Array, "*S"]:
    """max(0, 1 - m) (SLiC, Zhao et al. 2023); it knows no label smoothing."""
    del label_smoothing
    return jax.nn.relu(1 - margin)


def preference_terms(sft_weight: float) -> Mapping[str, float]:
    """The `loss_terms` of a preference term and, where it has a weight, an SFT term."""
    return {"preference_loss": 1.0} | ({"nll_loss": sft_weight} if sft_weight else {})


def add_sft_term(
    share: Float[Array, ""], metrics: Metrics, scores: BranchScores, sft_weight: float, tokens: Float[Array, ""]
) -> tuple[Float[Array, ""], Metrics]:
    """Adds `sft_weight` times the NLL of chosen responses over `tokens`; without a weight all stays as it is."""
    if not sft_weight:
        return share, metrics
    nll = -scores.sums[..., 0].sum()
    return share + sft_weight * nll / tokens, metrics | {"nll_loss": (nll, scores.tokens[..., 0].sum())}


def pair_metrics(
    loss: Float[Array, ""], rewards: Float[Array, "B S 2"], scores: Float[Array, "B S 2"], valid: Float[Array, "B S"]
) -> Metrics:
    """The metrics that TRL logs, under its names, and the share of ties, which its accuracy counts as wrong.

    Args:
        loss: total over pairs, logged as `preference_loss`.
        rewards: of chosen and rejected.
        scores: what is logged as `logps`.
        valid: 1 for pairs, 0 for empty segments.
    """
    pairs = valid.sum()
    chosen, rejected = rewards[..., 0] * valid, rewards[..., 1] * valid
    return {
        "preference_loss": (loss, pairs),
        "rewards/chosen": (chosen.sum(), pairs),
        "rewards/rejected": (rejected.sum(), pairs),
        "rewards/margins": ((chosen - rejected).sum(), pairs),
        "rewards/accuracies": (((chosen > rejected) * valid).sum(), pairs),
        "rewards/ties": (((chosen == rejected) * valid).sum(), pairs),
        "logps/chosen": ((scores[..., 0] * valid).sum(), pairs),
        "logps/rejected": ((scores[..., 1] * valid).sum(), pairs),
    }
