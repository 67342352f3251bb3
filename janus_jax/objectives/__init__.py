"""Objectives: pure maths over branch scores.

An objective is its section in `config/objectives.py` (keys, defaults, facts such as `head` and `branches`), and a class
here that inherits the section and adds the maths: what its terms are divided by (`denominators`), which metrics make up
its loss (`loss_terms`), and the loss itself. The step and the loop know nothing else of it.

KTO (Ethayarajh et al. 2024) is left out on purpose: its baseline, the mean KL of mismatched pairs, needs a forward pass
of its own before the loss, which none of these has.
"""

import importlib

from janus_jax.config.run import RunConfig
from janus_jax.objectives.scores import BranchScores, Metrics, Objective, PairObjective, branch_scores, metric_values

__all__ = ["BranchScores", "Metrics", "Objective", "PairObjective", "branch_scores", "build_objective", "metric_values"]


def build_objective(config: RunConfig) -> Objective:
    """The objective of a run, normalised as `compat.token_mean` says, ORPO also with `compat.orpo_padding`."""
    section, compat = config.objective, config.compat
    module, _, name = section.implementation.partition(":")
    padding = {"padding": compat.orpo_padding} if section.name == "orpo" else {}
    implementation = getattr(importlib.import_module(module), name)
    return implementation(**section.model_dump(), normaliser=compat.token_mean, **padding)
