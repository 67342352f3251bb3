"""Reward models for two readers: one key differs, the rewards do not, and what the rewards' spread was is kept."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers.models.mistral.modeling_mistral import MistralPreTrainedModel

from janus_jax.checkpoint.conversion_report import REPORT
from janus_jax.checkpoint.convert import check, from_hf, to_hf
from janus_jax.checkpoint.hf.facts import ModelFacts
from janus_jax.checkpoint.hf.keys import key_table
from janus_jax.checkpoint.hf.read import load_hf, save_hf
from janus_jax.checkpoint.stored_model import open_model
from janus_jax.cli.main import main
from janus_jax.errors import ConversionError
from tests.support.models import SMALL, assert_same_bits, random_params, read_tensors
from tests.support.reward_models import EOS, LENGTHS, REWARD_MODELS, our_reward, reward_texts

REWARD = dataclasses.replace(SMALL, head="value")
STATISTICS = {"mean": 0.75, "std": 2.5}


class ValueHeadModel(MistralPreTrainedModel):
    """A decoder and a linear head without bias under the name that OpenRLHF gives it."""

    def __init__(self, config):
        super().__init__(config)
        self.model = transformers.MistralModel(config)
        self.value_head = torch.nn.Linear(config.hidden_size, 1, bias=False)
        self.post_init()

    def forward(self, tokens, mask):
        """Rewards of a batch, each read at its text's last token, wherever the padding is."""
        values = self.value_head(self.model(tokens, attention_mask=mask).last_hidden_state)[..., 0]
        last = (torch.arange(mask.shape[1]) * mask).argmax(1)
        return values[torch.arange(len(tokens)), last]


def padded(rows, pad, side):
    tokens, mask = np.full((2, len(rows), max(LENGTHS)), pad)
    mask[:] = 0
    for row, (ids, length) in enumerate(zip(rows, LENGTHS, strict=True)):
        place = slice(0, length) if side == "right" else slice(max(LENGTHS) - length, None)
        tokens[row, place], mask[row, place] = ids, 1
    return torch.from_numpy(tokens), torch.from_numpy(mask)


def theirs(tmp_path, config=REWARD, **changes):
    """A directory as OpenRLHF's `save_pretrained` would write it, by transformers."""
    torch.manual_seed(0)
    model = ValueHeadModel(
        transformers.MistralConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_theta": config.rope_theta, "rope_type": "default"},
            sliding_window=config.sliding_window,
            max_position_embeddings=config.max_position_embeddings,
            initializer_range=config.initializer_range,
        )
    ).eval()
    model.save_pretrained(tmp_path / "theirs")
    edit_config(tmp_path / "theirs", architectures=["LLMForSequenceRegression"], **changes)
    return model


def edit_config(directory, **changes):
    file = directory / "config.json"
    raw = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in raw.items() if value is not ...}))


def described(directory):
    return json.loads((directory / "config.json").read_text())


def test_a_layout_renames_one_key():
    ours, other = key_table(REWARD), key_table(REWARD, "openrlhf")
    differing = [(a.key, b.key) for a, b in zip(ours, other, strict=True) if a != b]
    assert differing == [("score.weight", "value_head.weight")]
    assert key_table(SMALL) == key_table(SMALL, "openrlhf")


@pytest.mark.parametrize("name", REWARD_MODELS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_torch_gives_the_same_rewards_through_both_heads(name, side, tmp_path):
    model, rows = REWARD_MODELS[name], reward_texts(REWARD_MODELS[name].vocab_size)
    params = random_params(model)
    save_hf(params, model, tmp_path / "score")
    to_hf(tmp_path / "score", tmp_path / "value", layout="openrlhf")
    ours = np.array([our_reward(model, params, ids) for ids in rows])
    read, report = ValueHeadModel.from_pretrained(tmp_path / "value", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    score = transformers.MistralForSequenceClassification.from_pretrained(tmp_path / "score")
    tokens, mask = padded(rows, score.config.pad_token_id, side)
    with torch.no_grad():
        result = {"value_head": read(tokens, mask), "score": score(tokens, attention_mask=mask).logits[:, 0]}
    for head, rewards in result.items():
        assert np.abs(rewards.numpy() - ours).max() <= 1e-4 * np.abs(ours).max(), head
    assert np.ptp(ours) > 0.01


def test_what_openrlhf_wrote_is_read_and_gives_its_rewards(tmp_path):
    model = theirs(tmp_path, **STATISTICS, normalize_reward=False)
    rows = reward_texts(REWARD.vocab_size)
    tokens, mask = padded(rows, EOS, "left")  # it pads with EOS, on the left
    with torch.no_grad():
        expected = model(tokens, mask).numpy()
    from_hf(tmp_path / "theirs", tmp_path / "converted")
    source = open_model(tmp_path / "converted")
    assert source.config == REWARD
    result = np.array([our_reward(REWARD, source.load(), ids) for ids in rows])
    assert np.abs(result - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("way", ["directly", "converted", "by way of transformers' layout"])
def test_there_and_back_keeps_bits_and_statistics(way, tmp_path):
    theirs(tmp_path, **STATISTICS, normalize_reward=True)
    start = tmp_path / "theirs"
    if way == "converted":
        from_hf(start, start := tmp_path / "converted")
    elif way != "directly":
        to_hf(start, start := tmp_path / "score")
        assert "score.weight" in read_tensors(start)
        assert described(start)["architectures"] == ["MistralForSequenceClassification"]
        assert {key: described(start)[key] for key in STATISTICS} == STATISTICS
    to_hf(start, tmp_path / "back", layout="openrlhf")
    assert read_tensors(tmp_path / "back") == read_tensors(tmp_path / "theirs")
    back = described(tmp_path / "back")
    assert back["architectures"] == ["LLMForSequenceRegression"] and back["value_head_prefix"] == "value_head"
    assert {key: back[key] for key in STATISTICS} == STATISTICS
    assert back["normalize_reward"] is (way != "by way of transformers' layout")
    assert check(tmp_path / "theirs", tmp_path / "back") == []
    report = json.loads((tmp_path / "back" / REPORT).read_text())
    assert report["layout"] == "openrlhf" and report["xxh3_128"].keys() == read_tensors(tmp_path / "back").keys()
    assert "(r - mean) / std" in (tmp_path / "back" / "README.md").read_text()


def test_rewards_that_would_be_normalised_otherwise_are_told_apart(tmp_path):
    for name, mean in (("a", 0.75), ("b", 5.0)):
        save_hf(random_params(REWARD), REWARD, tmp_path / name, facts=ModelFacts(reward={"mean": mean, "std": 2.5}))
    (result,) = check(tmp_path / "a", tmp_path / "b")
    assert str(result).startswith("config.json's mean (0.75 and 5.0): largest difference 4.25")


def test_without_statistics_none_are_written(tmp_path):
    save_hf(random_params(REWARD), REWARD, tmp_path / "out", layout="openrlhf")
    result = described(tmp_path / "out")
    assert not {"mean", "std"} & result.keys() and result["normalize_reward"] is False


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["LLMForSequenceRegression"]},
        {"architectures": ["RewardModel"]},
        {"architectures": ["MistralForCausalLM"]},
        {"architectures": ...},
        {"architectures": ["MistralForSequenceClassification"], "id2label": {"0": "reward"}},
        {"architectures": ["RewardModel"], "model_type": "llama", "sliding_window": ...},
    ],
)
def test_the_stored_head_says_what_it_is(changes, tmp_path):
    params = random_params(REWARD)
    save_hf(params, REWARD, tmp_path / "out", layout="openrlhf")
    edit_config(tmp_path / "out", **changes)
    model, loaded = load_hf(tmp_path / "out")
    assert model == (REWARD if "model_type" not in changes else dataclasses.replace(REWARD, sliding_window=None))
    assert_same_bits(loaded, params)


def test_openrlhfs_class_with_a_head_that_is_called_score(tmp_path):
    """Its later versions call the head so (`value_head_prefix`)."""
    params = random_params(REWARD)
    save_hf(params, REWARD, tmp_path / "out")
    edit_config(tmp_path / "out", architectures=["RewardModel"], id2label=...)
    model, loaded = load_hf(tmp_path / "out")
    assert model == REWARD
    assert_same_bits(loaded, params)


def run(*arguments, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["janus", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code, capsys.readouterr().err


def test_a_language_model_has_no_such_layout(tmp_path, capsys, monkeypatch):
    save_hf(random_params(SMALL), SMALL, tmp_path / "hf")
    arguments = ("convert", "to-hf", tmp_path / "hf", tmp_path / "out", "--layout", "openrlhf")
    code, error = run(*arguments, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 2 and error.startswith("error: layout=openrlhf: is for reward models")
    with pytest.raises(ConversionError, match="layout=trl: allowed: transformers, openrlhf"):
        to_hf(tmp_path / "hf", tmp_path / "out", layout="trl")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"mean": 1.0}, "mean without std: reward statistics need both"),
        ({"mean": "x", "std": 1.0}, 'mean="x": allowed: a finite number'),
        ({"mean": 0.0, "std": 0}, "std=0: allowed: a positive number"),
        ({"mean": float("nan"), "std": 1.0}, "mean=NaN: allowed: a finite number"),
        ({"normalize_reward": "yes"}, 'normalize_reward="yes": allowed: true or false'),
        ({"pad_token_id": "<pad>"}, 'pad_token_id="<pad>": allowed: a token id or null'),
        ({"model_type": "gpt2"}, 'model_type="gpt2": allowed: mistral, llama'),
    ],
)
def test_a_config_that_makes_no_sense_is_named(changes, text, tmp_path, capsys, monkeypatch):
    save_hf(random_params(REWARD), REWARD, tmp_path / "hf", layout="openrlhf")
    edit_config(tmp_path / "hf", **changes)
    for way in ("from-hf", "to-hf"):
        code, error = run(
            "convert", way, tmp_path / "hf", tmp_path / "new" / "out", capsys=capsys, monkeypatch=monkeypatch
        )
        assert code == 2 and error.startswith(f"error: {tmp_path / 'hf' / 'config.json'}: {text}"), error
        assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda t: t.update({"lm_head.weight": np.zeros((80, 16), np.float32)}), "lm_head.weight is not expected"),
        (lambda t: t.update({"score.weight": np.zeros((1, 16), np.float32)}), "score.weight is not expected"),
        (lambda t: t.update({"value_head.weight": np.zeros((2, 16), np.float32)}), "has shape [2, 16]"),
        (
            lambda t: t.pop("value_head.weight"),
            "score.weight is missing; a reward model has score.weight or value_head",
        ),
    ],
)
def test_a_head_that_does_not_fit_is_named(edit, text, tmp_path):
    save_hf(random_params(REWARD), REWARD, tmp_path / "hf", layout="openrlhf")
    file = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ConversionError) as caught:
        load_hf(tmp_path / "hf")
    assert text in str(caught.value)


@pytest.mark.parametrize(("pad", "expected"), [(5, 5), (EOS, 0), (None, 0), (-1, 0), (80, 0)])
def test_a_reward_model_never_pads_with_its_end(pad, expected, tmp_path):
    theirs(tmp_path, pad_token_id=pad, eos_token_id=EOS)
    to_hf(tmp_path / "theirs", tmp_path / "out")
    assert described(tmp_path / "out")["pad_token_id"] == expected
