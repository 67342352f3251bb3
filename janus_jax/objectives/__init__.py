"""Objectives: pure maths over branch scores, as small frozen dataclasses.

An objective states what it needs (`head`, `branches` per segment, `needs_reference`), which counts its terms are
divided by (`denominators`), how those are taken (`normaliser`) and which metrics make up its loss (`loss_terms`). The
step and the loop know nothing else of it.

KTO (Ethayarajh et al. 2024) is left out on purpose: its baseline, the mean KL of mismatched pairs, needs a forward pass
of its own before the loss, which none of these has.
"""

from janus_jax.objectives.dpo import DPO
from janus_jax.objectives.orpo import ORPO
from janus_jax.objectives.reward import RewardModel
from janus_jax.objectives.scores import (
    BranchScores,
    Metrics,
    Objective,
    PairObjective,
    branch_scores,
    metric_values,
)
from janus_jax.objectives.sft import SFT
from janus_jax.objectives.simpo import SimPO

__all__ = [
    "DPO",
    "ORPO",
    "SFT",
    "BranchScores",
    "Metrics",
    "Objective",
    "PairObjective",
    "RewardModel",
    "SimPO",
    "branch_scores",
    "metric_values",
]
