"""A new objective is its section, its class and its test: nothing else in the package names it."""

import json
from typing import Literal

import pytest

from janus_jax.config.objectives import OBJECTIVES, ObjectiveSection, Positive, register
from janus_jax.config.run import RunConfig, load_config, to_yaml
from janus_jax.errors import ConfigError
from janus_jax.objectives.scores import Objective, chosen_tokens
from janus_jax.training.run import train
from tests.support.training_examples import random_examples, write_dataset


class ScaledSection(ObjectiveSection):
    """The NLL of responses, times a constant."""

    implementation = f"{__name__}:ScaledSFT"
    title = "scaled fine-tuning"
    branches = 1
    name: Literal["scaled"] = "scaled"
    scale: Positive = 3.0
    """What the NLL is multiplied by."""


class ScaledSFT(ScaledSection, Objective):
    @property
    def loss_terms(self):
        return {"nll_loss": self.scale}

    def denominators(self, batch):
        return {"tokens": chosen_tokens(batch)}

    def __call__(self, scores, batch, denominators):
        total = -scores.sums[..., 0].sum()
        return self.scale * total / denominators["tokens"], {"nll_loss": (total, scores.tokens[..., 0].sum())}


@pytest.fixture
def scaled():
    register(ScaledSection)
    RunConfig.model_rebuild(force=True)
    yield
    del OBJECTIVES["scaled"]
    RunConfig.model_rebuild(force=True)


def config(root, name, objective):
    path = root / f"{name}.yaml"
    path.write_text(
        json.dumps(
            {
                "run": {"dir": str(root / name)},
                "model": {"preset": "tiny", "vocab_size": 96, "hidden_size": 32, "num_layers": 1, "head_dim": 8},
                "data": {"dir": str(root / "data")},
                "batch": {"rows": 8, "row_length": 64, "max_sequence_length": 32},
                "objective": objective,
                "schedule": {"name": "constant", "learning_rate": 1e-3, "steps": 2},
                "precision": {"compute": "float32"},
                "logging": {"tensorboard": False, "curves": False},
                "eval": {"every_steps": 2},
            }
        )
    )
    return path


def test_a_registered_objective_is_read_shown_checked_and_trained(scaled, tmp_path, janus):
    splits = {"train": random_examples(40, pairs=False, seed=1), "validation": random_examples(5, pairs=False, seed=2)}
    write_dataset(tmp_path / "data", splits, kind="sft")
    mine = config(tmp_path, "mine", {"name": "scaled", "scale": 5.0})
    code, shown, _ = janus("config", "show", mine)
    assert code == 0 and "name: scaled" in shown and "scale: 5.0" in shown
    assert to_yaml(load_config(mine)) == shown
    for change, message in {
        "objective.scale=0": "objective.scale = 0: allowed: a number > 0",
        "objective.scala=1": "did you mean 'objective.scale'?",
        "objective.name=scalded": f"allowed: {' | '.join(sorted(OBJECTIVES))}",
        "reference.mode=online": "objective scaled has no reference",
    }.items():
        with pytest.raises(ConfigError) as refused:
            load_config(mine, [change])
        assert message in str(refused.value)
    ours = train(load_config(mine), writers=())
    assert ours.step == 2 and ours.evaluation["loss"] > 0
    train(load_config(config(tmp_path, "plain", {"name": "sft"})), writers=(), until_step=1)
    first = [json.loads((tmp_path / run / "metrics.jsonl").read_text().split("\n")[0]) for run in ("mine", "plain")]
    assert first[0]["loss"] == pytest.approx(5 * first[1]["loss"], rel=1e-6)


def test_it_is_gone_afterwards(tmp_path):
    with pytest.raises(ConfigError, match=r"objective.name = scaled: allowed: [^(]*$") as refused:
        load_config(config(tmp_path, "mine", {"name": "scaled"}))
    assert "scaled" not in str(refused.value).split("allowed:")[1]
