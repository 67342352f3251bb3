"""An exported reward model gives the same rewards in transformers, wherever a batch is padded."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers

from janus_jax.checkpoint.hf.read import load_hf, save_hf
from janus_jax.text.tokenizer import HFTokenizer, load_tokenizer, save_hf_tokenizer
from tests.support.models import SMALL, assert_same_bits, random_params
from tests.support.reward_models import LENGTHS, REWARD_MODELS, our_reward, reward_texts


@pytest.mark.parametrize("name", REWARD_MODELS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_transformers_gives_the_same_rewards_on_a_padded_batch(name, side, tmp_path):
    model = REWARD_MODELS[name]
    params = random_params(model)
    save_hf(params, model, tmp_path / "out")
    theirs, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert isinstance(theirs, transformers.MistralForSequenceClassification)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    rows = reward_texts(model.vocab_size)
    tokens, mask = np.full((2, len(rows), max(LENGTHS)), theirs.config.pad_token_id)
    mask[:] = 0
    for row, (ids, length) in enumerate(zip(rows, LENGTHS, strict=True)):
        place = slice(0, length) if side == "right" else slice(max(LENGTHS) - length, None)
        tokens[row, place], mask[row, place] = ids, 1
    with torch.no_grad():
        result = theirs(torch.from_numpy(tokens), attention_mask=torch.from_numpy(mask)).logits.numpy()
    ours = np.array([our_reward(model, params, ids) for ids in rows])
    assert result.shape == (len(rows), 1) and np.ptp(ours) > 0.01
    assert np.abs(result[:, 0] - ours).max() <= 1e-4 * np.abs(ours).max()


@pytest.mark.parametrize("name", REWARD_MODELS)
def test_a_reward_model_comes_back_from_its_directory_bit_for_bit(name, tmp_path):
    params = random_params(REWARD_MODELS[name])
    save_hf(params, REWARD_MODELS[name], tmp_path / "out", max_shard_size="6KB")
    model, loaded = load_hf(tmp_path / "out")
    assert model == REWARD_MODELS[name]
    assert_same_bits(loaded, params)
    described = json.loads((tmp_path / "out" / "config.json").read_text())
    assert described["architectures"] == ["MistralForSequenceClassification"]
    assert described["pad_token_id"] != described["eos_token_id"]


@pytest.mark.parametrize("own", [False, True], ids=["embedded tokenizer", "a directory's tokenizer"])
def test_what_the_exported_tokenizer_pads_gives_the_rewards_of_single_texts(own, tmp_path):
    tokenizer = load_tokenizer(None)
    if own:
        save_hf_tokenizer(tokenizer, tmp_path / "tokenizer")
        (tmp_path / "tokenizer" / "tokenizer.model").unlink()
        tokenizer = load_tokenizer(tmp_path / "tokenizer")
        assert isinstance(tokenizer, HFTokenizer)
    model = dataclasses.replace(SMALL, vocab_size=tokenizer.vocab_size, head="value")
    save_hf(random_params(model), model, tmp_path / "out", tokenizer=tokenizer)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    tokenize = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenize.pad_token_id == theirs.config.pad_token_id != tokenize.eos_token_id

    texts = [
        f"{text}{tokenize.eos_token}" for text in ("[INST] Be brief.\nWhy? [/INST] Because.", "[INST] So [/INST] a")
    ]
    with torch.no_grad():
        together = theirs(**tokenize(texts, padding=True, return_tensors="pt")).logits[:, 0]
        alone = torch.cat([theirs(**tokenize(text, return_tensors="pt")).logits[:, 0] for text in texts])
    assert float((together - alone).abs().max()) <= 1e-5 * float(alone.abs().max())
