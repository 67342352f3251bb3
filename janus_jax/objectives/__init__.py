"""Objectives: pure maths over branch scores, as small frozen dataclasses.

An objective states what it needs (`branches` per segment, `needs_reference`), which counts its terms are divided by
(`denominators`) and how those are taken (`normaliser`). The step and the loop know nothing else of it.
"""

from janus_jax.objectives.dpo import DPO
from janus_jax.objectives.scores import BranchScores, Metrics, Objective, branch_scores
from janus_jax.objectives.sft import SFT

__all__ = ["DPO", "SFT", "BranchScores", "Metrics", "Objective", "branch_scores"]
