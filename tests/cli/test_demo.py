"""`janus demo` end to end on a model of a few weights: what each second stage leaves and claims."""

import concurrent.futures
import json
import logging

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from janus_jax.checkpoint.hf.read import read_model_config, save_hf
from janus_jax.cli import demo
from janus_jax.evaluation.pairs import Accuracy
from janus_jax.model.config import ModelConfig
from janus_jax.text.tokenizer import load_tokenizer
from tests.support.models import random_params

STEPS = 2


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A Hugging Face directory with the embedded tokenizer's vocabulary."""
    config = ModelConfig(
        vocab_size=32000,
        hidden_size=16,
        intermediate_size=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        initializer_range=0.3,
    )
    out = tmp_path_factory.mktemp("model") / "hf"
    save_hf(random_params(config), config, out, tokenizer=load_tokenizer())
    return out


@pytest.fixture
def compiled(tmp_path, caplog):
    """Has JAX keep programs in an empty directory; gives the keys of a program that were compiled, and those found."""
    before = jax.config.jax_compilation_cache_dir
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "programs"))
    logger = "jax._src.compiler"

    def keys(name):
        records = [record for record in caplog.records if record.name == logger and record.args[:1] == (f"jit_{name}",)]
        return tuple({record.args[1] for record in records if word in record.msg} for word in ("MISS", "hit"))

    with caplog.at_level(logging.DEBUG, logger):
        yield keys
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.mark.parametrize(
    ("objective", "label", "head", "exported", "metric"),
    [
        pytest.param("dpo", "DPO", "lm", "logits", "rewards/margins", marks=pytest.mark.slow),
        pytest.param("orpo", "ORPO", "lm", "logits", "log_odds", marks=pytest.mark.slow),
        ("rm", "RM", "value", "logits, rewards", "rewards/margins"),
    ],
)
def test_each_second_stage_is_trained_exported_and_printed(
    model, objective, label, head, exported, metric, tmp_path, capsys, compiled
):
    out = tmp_path / "demo"
    demo.run(model=model, steps=STEPS, out=out, devices=8, objective=objective)
    printed = capsys.readouterr().out
    assert f"{label} accuracy, training" in printed and f"exported {exported}" in printed
    assert ("DPO" in printed) == (label == "DPO")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["resumed"] is True and summary[objective]["step"] == STEPS
    assert summary[objective]["train"][metric] is not None
    assert summary["export_errors"].keys() == {"sft", objective}
    assert max(summary["export_errors"].values()) <= 1e-4
    assert read_model_config(out / objective / "exports" / str(STEPS)).head == head
    trained, *held_out = summary["accuracies"].values()
    # Whole prompts: each response is chosen as often as it is rejected, so neither side is the longer one.
    assert trained["pairs"] == 6 * STEPS and trained["longer_wins"] == 0.5
    assert held_out and all(accuracy["pairs"] for accuracy in held_out)
    for accuracy in (trained, *held_out):
        assert 0 <= accuracy["right"] <= accuracy["pairs"]
        for since_start in (accuracy["at_start"], accuracy["margin_grew"]):
            # At its start DPO's policy is its own reference: all rewards are 0.
            assert since_start is None if objective == "dpo" else 0 <= since_start <= 1
    assert (out / "curves.png").stat().st_size > 10_000
    # SFT's step serves the resumed run, what was compiled beside SFT the second stage: nothing is compiled twice.
    made, found = compiled("train")
    assert len(made) == 2 and made == found
    if objective == "dpo":
        made, found = compiled("reference")
        assert made and made == found


def test_wilson_intervals_are_the_published_ones():
    """Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20 and 1 of 29."""
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (right, pairs), interval in published.items():
        assert Accuracy(right, pairs, 0.5, None, None).interval() == pytest.approx(interval, abs=1e-4)


def test_an_error_of_what_goes_on_beside_a_run_ends_the_run():
    beside = concurrent.futures.Future()
    watch = demo._Watch(beside)
    watch.write("train", 1, {})
    beside.set_exception(OSError("the disk is full"))
    with pytest.raises(OSError, match="the disk is full"):
        watch.write("train", 2, {})
