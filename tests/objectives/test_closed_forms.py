"""Each objective on given scores equals its formula in float64, written out here a second time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.data.rows import pack
from janus_jax.objectives import BranchScores, PairObjective, metric_values
from janus_jax.objectives.dpo import DPO
from janus_jax.objectives.orpo import ORPO, log_odds
from janus_jax.objectives.reward import RewardModel
from janus_jax.objectives.sft import SFT
from janus_jax.objectives.simpo import SimPO

VALID = np.array([[True, True, False], [True, False, True]])


@dataclasses.dataclass(frozen=True)
class Case:
    """Random scores of four pairs in two rows; the last has an empty rejected branch."""

    sums: np.ndarray
    tokens: np.ndarray
    prompt_sum: np.ndarray
    prompt_tokens: np.ndarray
    reference: np.ndarray
    margin: np.ndarray

    def of(self, name):
        """float64 values of the valid pairs: [4, 2] or [4]."""
        return getattr(self, name)[VALID].astype(np.float64)

    @property
    def means(self):
        return self.of("sums") / np.maximum(self.of("tokens"), 1)


def make_case(seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 20, (2, 3, 2)).astype(np.float32)
    tokens[1, 2, 1] = 0
    sums = (-rng.uniform(0.2, 4, (2, 3, 2)) * tokens).astype(np.float32)
    reference = (sums + rng.normal(size=(2, 3, 2)) * 5 * (tokens > 0)).astype(np.float32)
    return Case(
        sums * VALID[..., None],
        tokens * VALID[..., None],
        (-rng.uniform(1, 30, (2, 3)) * VALID).astype(np.float32),
        (rng.integers(1, 9, (2, 3)) * VALID).astype(np.float32),
        reference * VALID[..., None],
        (rng.uniform(0, 2, (2, 3)) * VALID).astype(np.float32),
    )


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


def delta(case, per_token=False):
    ratios = case.of("sums") - case.of("reference")
    ratios = ratios / np.maximum(case.of("tokens"), 1) if per_token else ratios
    return ratios[:, 0] - ratios[:, 1]


def nll(case, prompt=False):
    total, tokens = -case.of("sums")[:, 0].sum(), case.of("tokens")[:, 0].sum()
    if prompt:
        total, tokens = total - case.of("prompt_sum").sum(), tokens + case.of("prompt_tokens").sum()
    return total / tokens


def odds(case):
    p = np.where(case.of("tokens") > 0, np.exp(case.means), 0.5)
    return np.log(p / (1 - p))


def smoothed(m, e):
    return -(1 - e) * log_sigmoid(m) - e * log_sigmoid(-m)


FORMULAS = {
    "sft": (SFT(), nll),
    "sigmoid": (DPO(beta=0.2), lambda c: -log_sigmoid(0.2 * delta(c)).mean()),
    "cdpo": (DPO(beta=0.2, label_smoothing=0.1), lambda c: smoothed(0.2 * delta(c), 0.1).mean()),
    "hinge": (DPO(beta=0.2, loss="hinge"), lambda c: np.maximum(0, 1 - 0.2 * delta(c)).mean()),
    "robust": (
        DPO(beta=0.2, loss="robust", label_smoothing=0.1),
        lambda c: ((-0.9 * log_sigmoid(0.2 * delta(c)) + 0.1 * log_sigmoid(-0.2 * delta(c))) / 0.8).mean(),
    ),
    "ipo": (DPO(beta=0.2, loss="ipo"), lambda c: ((delta(c, True) - 2.5) ** 2).mean()),
    "normalised": (DPO(beta=2.0, length_normalised=True), lambda c: -log_sigmoid(2 * delta(c, True)).mean()),
    "dpo with sft": (DPO(beta=0.2, sft_weight=0.3), lambda c: -log_sigmoid(0.2 * delta(c)).mean() + 0.3 * nll(c)),
    "simpo": (
        SimPO(beta=2.5, gamma=0.8, label_smoothing=0.05, sft_weight=0.4),
        lambda c: smoothed(2.5 * (c.means[:, 0] - c.means[:, 1]) - 0.8, 0.05).mean() + 0.4 * nll(c),
    ),
    "orpo": (ORPO(beta=0.25), lambda c: nll(c) - 0.25 * log_sigmoid(odds(c)[:, 0] - odds(c)[:, 1]).mean()),
    "orpo of prompts": (
        ORPO(beta=0.25, nll="prompt_and_response"),
        lambda c: nll(c, prompt=True) - 0.25 * log_sigmoid(odds(c)[:, 0] - odds(c)[:, 1]).mean(),
    ),
    "rm": (
        RewardModel(center_weight=0.01),
        lambda c: (
            -log_sigmoid(c.of("sums")[:, 0] - c.of("sums")[:, 1] - c.of("margin")) + 0.01 * c.of("sums").sum(1) ** 2
        ).mean(),
    ),
    # OpenRLHF's PairWiseLoss has two spellings; both are this one: -logsigmoid(c - r), log(1 + exp(r - c))
    "openrlhf": (
        RewardModel(),
        lambda c: np.log1p(np.exp(c.of("sums")[:, 1] - c.of("sums")[:, 0] + c.of("margin"))).mean(),
    ),
}


def denominators(objective, case):
    """What the batch's own counts would be."""
    counts = {"pairs": VALID.sum(), "tokens": case.of("tokens")[:, 0].sum()}
    if getattr(objective, "nll", None) == "prompt_and_response":
        counts["tokens"] += case.of("prompt_tokens").sum()
    return {name: jnp.float32(count) for name, count in counts.items()}


def scores_of(case) -> BranchScores:
    other = np.zeros(len(case.sums))
    fields = (case.sums, case.tokens, case.prompt_sum, case.prompt_tokens, other, other)
    return BranchScores(*map(jnp.asarray, fields))


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_logged_loss_equal_the_formula(name, seed):
    objective, formula = FORMULAS[name]
    case = make_case(seed)
    empty = pack([[], []], row_length=4, max_segments=3)
    batch = dataclasses.replace(empty, valid=VALID, reference_logps=case.reference, margin=case.margin)
    scores = scores_of(case)
    loss, metrics = objective(scores, jax.tree.map(jnp.asarray, batch), denominators(objective, case))
    np.testing.assert_allclose(loss, formula(case), rtol=1e-5)
    values = metric_values(metrics, objective)
    np.testing.assert_allclose(values["loss"], formula(case), rtol=1e-5)
    assert len(objective.loss_terms) == 1 or all(term in values for term in objective.loss_terms)


def test_accuracy_counts_pairs_whose_chosen_response_has_the_higher_reward():
    case = make_case(3)
    empty = pack([[], []], row_length=4, max_segments=3)
    batch = jax.tree.map(jnp.asarray, dataclasses.replace(empty, valid=VALID))
    scores = scores_of(case)
    objective = RewardModel()
    right, pairs = objective(scores, batch, denominators(objective, case))[1]["rewards/accuracies"]
    assert pairs == 4 and right == (case.of("sums")[:, 0] > case.of("sums")[:, 1]).sum()


MARGINS = {
    "dpo": (DPO(beta=0.3), lambda c: 0.3 * delta(c)),
    "ipo": (DPO(beta=0.3, loss="ipo"), lambda c: 0.3 * delta(c)),
    "simpo": (SimPO(beta=2.5, gamma=1.0), lambda c: 2.5 * (c.means[:, 0] - c.means[:, 1])),
    "orpo": (ORPO(beta=0.4), lambda c: odds(c)[:, 0] - odds(c)[:, 1]),
    "rm": (RewardModel(center_weight=0.1), lambda c: c.of("sums")[:, 0] - c.of("sums")[:, 1]),
}


@pytest.mark.parametrize("name", MARGINS)
def test_the_margin_of_each_pair_equals_its_formula(name):
    objective, formula = MARGINS[name]
    assert isinstance(objective, PairObjective)
    case = make_case(4)
    empty = pack([[], []], row_length=4, max_segments=3)
    batch = dataclasses.replace(empty, valid=VALID, reference_logps=case.reference, margin=case.margin)
    scores = scores_of(case)
    margins = objective.margins(scores, jax.tree.map(jnp.asarray, batch))
    np.testing.assert_allclose(margins[VALID], formula(case), rtol=1e-5)


def test_what_has_one_response_has_no_margins():
    assert not isinstance(SFT(), PairObjective)


def test_log_odds_and_their_gradient_hold_at_both_ends():
    logp = np.array([-1e-6, -1e-3, -0.5, -0.6931, -0.6932, -3.0, -30.0, -90.0], np.float32)
    exact = logp.astype(np.float64)
    p = np.exp(exact)
    np.testing.assert_allclose(log_odds(jnp.asarray(logp)), exact - np.log(-np.expm1(exact)), rtol=2e-6, atol=1e-7)
    slopes = jax.grad(lambda x: log_odds(x).sum())(jnp.asarray(logp))
    np.testing.assert_allclose(slopes, 1 / (1 - p), rtol=1e-5)
    assert np.isfinite(log_odds(jnp.zeros(1))) and np.isfinite(jax.grad(lambda x: log_odds(x).sum())(jnp.zeros(1)))


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (DPO, {"beta": 0.0}),
        (DPO, {"label_smoothing": 0.5}),
        (DPO, {"loss": "ipo", "label_smoothing": 0.1}),
        (DPO, {"loss": "hinge", "label_smoothing": 0.1}),
        (DPO, {"sft_weight": -1.0}),
        (SimPO, {"gamma": -0.1}),
        (ORPO, {"beta": -0.1}),
        (RewardModel, {"center_weight": -0.1}),
    ],
)
def test_values_without_meaning_are_refused(kind, wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong)))):
        kind(**wrong)
