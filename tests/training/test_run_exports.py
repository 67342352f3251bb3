"""What a run knows goes into its export: the recipe, the data, and how its rewards are spread."""

import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest
import torch
import transformers
import yaml
from safetensors.numpy import load_file

from janus_jax import __version__
from janus_jax.checkpoint.conversion_report import REPORT, Report
from janus_jax.checkpoint.convert import check, from_hf, to_hf
from janus_jax.checkpoint.hf import write
from janus_jax.checkpoint.hf.card import model_card
from janus_jax.checkpoint.hf.facts import ModelFacts
from janus_jax.checkpoint.stored_model import open_model
from janus_jax.data.dataset import TokenizedDataset
from janus_jax.data.from_config import describe
from janus_jax.errors import ConfigError, ConversionError
from janus_jax.objectives.reward import RewardModel
from janus_jax.text.template import CHATML
from janus_jax.training.run import train
from tests.support import run_configs
from tests.support.run_configs import ONE_LAYER, SIX_STEPS
from tests.support.training_examples import TINY, random_examples, write_dataset

pytestmark = pytest.mark.usefixtures("programs")

run_config = functools.partial(run_configs.run_config, model=ONE_LAYER)
HELD_OUT = random_examples(9, pairs=True, seed=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A reward model's run of six steps, evaluated at steps 4 and 6, exported at its end."""
    root = tmp_path_factory.mktemp("runs")
    examples = {"train": random_examples(100, pairs=True, seed=1), "validation": HELD_OUT}
    write_dataset(root / "dpo", examples, kind="dpo")
    settings = {"schedule": {"epochs": None, "steps": 6}, "export": {"hf": True}, "checkpoint": {"every_steps": 5}}
    train(run_config(root, root / "run", "dpo", objective={"name": "rm"}, **settings), writers=())
    return root / "run"


def read(directory, name="config.json"):
    return json.loads((directory / name).read_text())


def rewards(directory):
    """Of all held-out responses, by transformers."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory)
    with torch.no_grad():
        return np.array(
            [
                float(model(torch.from_numpy(np.concatenate([pair.prompt, response]).astype(np.int64))[None]).logits)
                for pair in HELD_OUT
                for response in (pair.chosen, pair.rejected)
            ]
        )


def test_an_export_is_verified_against_its_checkpoint(run):
    export = run / "exports" / "6"
    report = read(export, REPORT)
    assert (report["verify"], report["largest_logit_difference"], report["step"]) == ("logits", 0.0, 6)
    assert report["xxh3_128"].keys() == load_file(export / "model.safetensors").keys()
    assert check(run, export) == []


def test_an_export_that_is_not_its_checkpoint_is_not_kept(tmp_path, monkeypatch):
    """A bit that flips between device and disk."""
    write_dataset(tmp_path / "sft", {"train": random_examples(20, pairs=False, seed=1)}, kind="sft")
    wanted = {"hf": True, "verify": "digest"}
    settings = {"schedule": SIX_STEPS, "eval": {"every_steps": None}, "export": wanted}
    write_file = write.write_file

    def flip(directory, file, *arguments):
        write_file(directory, file, *arguments)
        content = bytearray((directory / file.name).read_bytes())
        content[-3] ^= 1
        (directory / file.name).write_bytes(content)

    monkeypatch.setattr(write, "write_file", flip)
    with pytest.raises(ConversionError, match=r"tensor lm_head.weight is not what was written; nothing is kept"):
        train(run_config(tmp_path, tmp_path / "run", **settings), writers=())
    assert not (tmp_path / "run" / "exports").exists()
    monkeypatch.undo()
    train(run_config(tmp_path, tmp_path / "run", **settings), writers=())  # makes up for it
    report = read(tmp_path / "run" / "exports" / "6", REPORT)
    assert report["verify"] == "digest" and report["largest_logit_difference"] is None and report["xxh3_128"]


def test_the_export_of_an_earlier_run_is_not_taken_for_that_of_this_one(tmp_path):
    write_dataset(tmp_path / "sft", {"train": random_examples(20, pairs=False, seed=1)}, kind="sft")

    def settings(**schedule):
        steps = {**SIX_STEPS, **schedule}
        return run_config(tmp_path, tmp_path / "run", schedule=steps, eval={"every_steps": None}, export={"hf": True})

    for _ in range(2):
        train(settings(), writers=())
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(ConfigError, match=r"exports/6 exists already, of another run; remove it"):
        train(settings(learning_rate=0.5), writers=())


def test_mean_and_std_are_those_of_the_held_out_rewards(run, tmp_path):
    export = run / "exports" / "6"
    scores = rewards(export)
    config = read(export)
    assert config["mean"] == pytest.approx(scores.mean(), abs=1e-4 * np.abs(scores).max())
    assert config["std"] == pytest.approx(scores.std(ddof=1), rel=1e-4)
    to_hf(run, tmp_path / "out", layout="openrlhf")
    assert {name: read(tmp_path / "out")[name] for name in ("mean", "std")} == {
        name: config[name] for name in ("mean", "std")
    }


def test_a_step_that_was_not_evaluated_has_no_spread(run, tmp_path):
    to_hf(run, tmp_path / "out", layout="openrlhf", step=5)
    assert not {"mean", "std"} & read(tmp_path / "out").keys()
    assert "standard deviation" not in (tmp_path / "out" / "README.md").read_text()


def test_spread_of_rewards_in_closed_form():
    rewards = np.array([[1.5, -0.25], [0.5, 2.0], [3.0, 1.0]])
    values = {
        "rewards/chosen": rewards[:, 0].mean(),
        "rewards/rejected": rewards[:, 1].mean(),
        "rewards/squares": np.square(rewards).mean(),
    }
    spread = RewardModel().reward_statistics(values, pairs=3)
    assert spread["mean"] == pytest.approx(rewards.mean()) and spread["std"] == pytest.approx(rewards.std(ddof=1))
    same = {"rewards/chosen": 2.0, "rewards/rejected": 2.0, "rewards/squares": 4.0}
    assert RewardModel().reward_statistics(same, pairs=2) == {"mean": 2.0, "std": 1e-8}  # nothing divides by zero
    assert RewardModel().reward_statistics({**same, "rewards/chosen": float("nan")}, pairs=2) == {}


def test_the_card_tells_the_recipe(run, tmp_path):
    to_hf(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card == (run / "exports" / "6" / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["janus_jax", "mistral", "rm", "reward-model"],
    }
    for line in (
        "# A Mistral-shaped reward model, trained by reward modelling",
        "| objective | rm (center_weight 0.0) |",
        "| initial weights | random |",
        "| batch | 8 packed rows per step, rows of 64 tokens, sequences up to 32 tokens |",
        "| schedule | cosine (learning_rate 0.003, warmup_steps 2, steps 6) |",
        "| optimizer | adamw (b1 0.9, b2 0.999, eps 1e-08, weight_decay 0.0, clip_norm 1.0, moments float32, ",
        "| step | 6 |",
        f"| code | janus_jax {__version__}, jax ",
        "| random | dpo | 100 | chatml | separate | no | `random-dpo` |",
        "Fingerprint of all training data: `random-dpo`.",
        CHATML.prompt_text("{system}", "{instruction}"),
        "`score.weight`",
        "r' = (r - mean) / std",
    ):
        assert line in body, line
    whole = yaml.safe_load(body.partition("```yaml\n")[2].partition("```")[0])
    assert whole == json.loads(json.dumps(whole)) and whole["schedule"]["learning_rate"] == 3e-3
    assert whole["data"]["dir"].endswith("dpo")


def test_the_card_counts_texts_that_spell_a_control_token(run):
    data = TokenizedDataset(run.parent / "dpo")
    described = {}
    for name, served in (("checked", {"checked": 9, "control_text": 2}), ("clean", {"control_text": 0}), ("old", None)):
        data.manifest = dataclasses.replace(data.manifest, source=name, served=served)
        described[name] = describe(data)
    described["older"] = {
        key: value for key, value in described["old"].items() if key not in ("records", "control_text")
    }
    meta = {"config": {"objective": {"name": "rm"}}, "data": [*described.values()]}
    card = model_card(TINY, np.float32, facts=ModelFacts(), meta=meta, step=6)
    lines = [line for line in card.splitlines() if "a control token in a text" in line]
    of_all_splits = sum(split.examples for split in data.manifest.splits.values())
    assert of_all_splits > len(data)
    assert lines == [f"checked: 2 of {of_all_splits} records spell a control token in a text; a server parses it."]


def test_a_later_stage_knows_the_base_model_of_the_first(run, tmp_path, monkeypatch):
    root = run.parent
    shutil.copytree(run / "exports" / "6", tmp_path / "snapshot")
    monkeypatch.setattr(
        "janus_jax.checkpoint.stored_model.local_copy",
        lambda path: str(tmp_path / "snapshot") if path == "a/b" else path,
    )
    from_hf("a/b", tmp_path / "base")
    settings = {"model": None, "schedule": {"epochs": None, "steps": 6}, "eval": {"every_steps": None}}
    for start, name in ((tmp_path / "base", "first"), (tmp_path / "first", "second")):
        train(
            run_config(root, tmp_path / name, "dpo", objective={"name": "rm"}, init={"from": str(start)}, **settings),
            until_step=1,
            writers=(),
        )
    to_hf(tmp_path / "second", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == "a/b"
    assert f"| initial weights | {tmp_path / 'first'} |" in card


@pytest.mark.parametrize("own", ["{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}", None])
def test_report_and_card_name_the_chat_template_that_an_export_replaces(run, own):
    source = open_model(run)
    chat = source.chat_format()
    assert chat is not None
    facts = ModelFacts(chat_template=chat.chat_template if own is None else own, base_model="org/base")
    assert facts.after_training({}).chat_template == facts.chat_template
    source = dataclasses.replace(source, facts=facts)
    report = Report.of(source, np.dtype("float32"), "none", "transformers")
    card = model_card(source.config, np.float32, facts=facts, meta=source.meta, step=6, chat=chat)
    line = f"emplate {chat.template.name} replaces the chat template of org/base"
    assert (line in str(report), line in card) == (own is not None, own is not None)
