"""Model directories that cannot be used: one line that names file and tensor or key, and nothing left behind."""

import dataclasses
import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from janus_jax.checkpoint.hf.read import HFDirectory, hf_config, load_hf, read_model_config, save_hf
from janus_jax.checkpoint.stored_model import open_model
from janus_jax.errors import ConversionError, StorageError
from tests.support.models import SMALL, assert_same_bits, random_params, refused

Q1 = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def single(tmp_path):
    save_hf(random_params(SMALL), SMALL, tmp_path / "m")
    return tmp_path / "m"


@pytest.fixture
def sharded(tmp_path):
    save_hf(random_params(SMALL), SMALL, tmp_path / "m", max_shard_size="6KB")
    return tmp_path / "m"


def change(directory, edit):
    file = directory / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return file


def change_index(directory, edit):
    file = directory / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    edit(index)
    file.write_text(json.dumps(index))
    return file


def test_missing_tensor(single):
    change(single, lambda tensors: tensors.pop(Q1))
    refused(single, single, Q1, "missing")


def test_missing_head_points_at_tied_embeddings(single):
    change(single, lambda tensors: tensors.pop("lm_head.weight"))
    refused(single, "lm_head.weight", "tie_word_embeddings")


def test_extra_tensor(single):
    file = change(single, lambda tensors: tensors.update(surplus=np.zeros(3, np.float32)))
    refused(single, file, "surplus", "not expected")


def test_extra_bias_of_a_layer(single):
    bias = "model.layers.0.self_attn.q_proj.bias"
    file = change(single, lambda tensors: tensors.update({bias: np.zeros(24, np.float32)}))
    refused(single, file, bias)


@pytest.mark.parametrize("where", [0, -1])
def test_a_head_beside_tied_embeddings_must_equal_them(where, single):
    config = json.loads((single / "config.json").read_text()) | {"tie_word_embeddings": True}
    (single / "config.json").write_text(json.dumps(config))
    tie = lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()})  # noqa: E731
    change(single, tie)
    assert HFDirectory(single).config == dataclasses.replace(SMALL, tie_embeddings=True)
    assert [*HFDirectory(single).left_out] == ["tensor lm_head.weight"]

    def edit(tensors):
        tensors["lm_head.weight"][where, where] += 1e-7

    file = change(single, edit)
    refused(single, file, "lm_head.weight differs from model.embed_tokens.weight", "tie_word_embeddings")


def test_derived_rotary_buffers_are_no_surplus(single):
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    _, before = load_hf(single)
    change(single, lambda tensors: tensors.update({buffer: np.zeros(3, np.float32)}))
    assert_same_bits(load_hf(single)[1], before)


def test_misshaped_tensor(single):
    file = change(single, lambda tensors: tensors.update({Q1: tensors[Q1].T.copy()}))
    refused(single, file, Q1, "[16, 24]", "[24, 16]")


def test_integer_weights(single):
    file = change(single, lambda tensors: tensors.update({Q1: tensors[Q1].astype(np.int8)}))
    refused(single, file, Q1, "I8", "F32, BF16, F16")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(value, single):
    def edit(tensors):
        tensors[Q1][3, 4] = value

    refused(single, change(single, edit), Q1, "NaN or infinite")


@pytest.mark.parametrize("left", [7, 100, -1])
def test_truncated_file(left, single):
    file = single / "model.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    refused(single, file, "not a whole safetensors file")


def test_missing_shard_names_a_tensor_in_it(sharded):
    (shard,) = sharded.glob("model-00002-*")
    tensors = load_file(shard)
    shard.unlink()
    refused(sharded, shard, "missing")
    with pytest.raises(ConversionError) as caught:
        load_hf(sharded)
    assert any(key in str(caught.value) for key in tensors)


def test_truncated_shard(sharded):
    shard = sorted(sharded.glob("model-*"))[-1]
    shard.write_bytes(shard.read_bytes()[:-10])
    refused(sharded, shard, "not a whole safetensors file")


def test_index_that_promises_a_tensor_elsewhere(sharded):
    last = sorted(sharded.glob("model-*"))[-1]
    change_index(sharded, lambda index: index["weight_map"].update({"model.embed_tokens.weight": last.name}))
    refused(sharded, "model.embed_tokens.weight", "index.json")


def test_index_without_a_tensor(sharded):
    change_index(sharded, lambda index: index["weight_map"].pop(Q1))
    refused(sharded, Q1)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', "{}", '{"weight_map": {"a": 1}}'])
def test_index_that_is_none(text, sharded):
    file = sharded / "model.safetensors.index.json"
    file.write_text(text)
    refused(sharded, file)


def test_pickled_weights_only(single):
    (single / "model.safetensors").rename(single / "pytorch_model.bin")
    refused(single, single, "pytorch_model.bin", "safetensors")


def test_no_weights_at_all(single):
    (single / "model.safetensors").unlink()
    refused(single, single, "model.safetensors", "model.safetensors.index.json")


def test_no_directory_and_no_config(tmp_path):
    refused(tmp_path / "none", tmp_path / "none", "no such directory")
    refused(tmp_path, tmp_path / "config.json", "no such file")


@pytest.mark.parametrize("text", ["{'a': 1}", "[]", "null", '{"a": 1,\n', "\xff"])
def test_config_that_is_no_json_object(text, tmp_path):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    refused(tmp_path, tmp_path / "config.json", read=read_model_config)
    if text == "null":
        refused(tmp_path, "config.json: holds null; allowed: an object", read=read_model_config)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model_type": "llama"}, ["model_type", "llama", "architectures", "MistralForCausalLM"]),
        ({"rope_theta": float("nan")}, ["rope_theta", "NaN", "positive"]),
        ({"architectures": ["GPT2LMHeadModel"]}, ["architectures", "GPT2LMHeadModel", "MistralForCausalLM"]),
        ({"architectures": None, "model_type": "gemma"}, ["model_type", "gemma", "mistral"]),
        ({"model_type": None}, ["model_type=null: allowed: mistral, llama"]),
        ({"model_type": ["mistral"]}, ['model_type=["mistral"]: allowed: mistral, llama']),
        ({"attention_bias": True}, ["attention_bias"]),
        ({"mlp_bias": True}, ["mlp_bias"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu", "silu"]),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ["rope_scaling", "linear", "default"]),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, ["rope_parameters", "llama3"]),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, ["rope_parameters", "full_attention"]),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, ["rope_parameters", "partial_rotary_factor"]),
        ({"rope_theta": 5e5}, ["rope_theta", "500000", "10000"]),
        ({"rope_theta": "big", "rope_parameters": None}, ["rope_theta", "big"]),
        ({"layer_types": ["full_attention", "sliding_attention"]}, ["layer_types"]),
        ({"hidden_size": 0}, ["hidden_size=0", "positive"]),
        ({"hidden_size": "16"}, ["hidden_size", '"16"']),
        ({"vocab_size": None}, ["vocab_size"]),
        ({"num_hidden_layers": 2.5}, ["num_hidden_layers=2.5"]),
        ({"num_key_value_heads": 3}, ["num_kv_heads", "3"]),
        ({"head_dim": 5}, ["head_dim", "even"]),
        ({"head_dim": None, "hidden_size": 18}, ["hidden_size=18", "num_attention_heads=4"]),
        ({"sliding_window": -1}, ["sliding_window=-1"]),
        ({"tie_word_embeddings": "no"}, ["tie_word_embeddings", "no"]),
    ],
)
def test_config_of_another_model(changes, parts, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(hf_config(SMALL, "float32") | changes))
    refused(tmp_path, tmp_path / "config.json", *parts, read=read_model_config)


NAMED_TWICE = {
    "config.json": ('"hidden_act": ', '"silu", "hidden_act": '),
    "generation_config.json": ('"eos_token_id": ', '7, "eos_token_id": '),
    "model.safetensors.index.json": (f'"{Q1}": ', f'"model-00001.safetensors", "{Q1}": '),
}


@pytest.mark.parametrize("name", NAMED_TWICE)
def test_a_key_that_a_file_names_twice(name, sharded):
    before, after = NAMED_TWICE[name]
    text = (sharded / name).read_text()
    assert text.count(before) == 1
    (sharded / name).write_text(text.replace(before, before + after))
    key = before.split('"')[1]
    refused(sharded, sharded / name, f"names the key {key!r} twice", read=lambda directory: open_model(str(directory)))


@pytest.mark.parametrize("name", ["../{}", "{parent}/m/{}", "inner/../{}", "./{}", "..", ""])
def test_an_index_that_leads_out_of_its_directory(name, sharded):
    def lead(index):
        index["weight_map"][Q1] = name.format(index["weight_map"][Q1], parent=sharded.parent)

    refused(sharded, change_index(sharded, lead), Q1, "allowed: a .safetensors file of the same directory")


def test_missing_size(tmp_path):
    raw = hf_config(SMALL, "float32")
    del raw["intermediate_size"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    refused(tmp_path, tmp_path / "config.json", "intermediate_size is missing", read=read_model_config)


def leaves_nothing(tmp_path, error, match, **options):
    params = options.pop("params", None) or random_params(SMALL)
    config = options.pop("config", SMALL)
    with pytest.raises(error, match=match):
        save_hf(params, config, tmp_path / "deep" / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_export_of_weights_that_are_not_finite(tmp_path):
    params = random_params(SMALL)
    params["layers"]["attention"]["q"] = params["layers"]["attention"]["q"].at[1, 0, 0, 0].set(np.nan)
    leaves_nothing(tmp_path, ConversionError, re.escape(Q1), params=params)


def test_export_that_overflows_the_dtype(tmp_path):
    params = random_params(SMALL)
    params["final_norm"] = params["final_norm"] * 1e6
    leaves_nothing(tmp_path, ConversionError, "model.norm.weight.*float16", params=params, dtype="float16")


@pytest.mark.parametrize("dtype", ["int8", "float64", "brain"])
def test_export_dtype(dtype, tmp_path):
    leaves_nothing(tmp_path, ConversionError, f"dtype={dtype}.*float32, bfloat16, float16", dtype=dtype)


@pytest.mark.parametrize("size", ["5 apples", "0", "-1GB", "", "GB"])
def test_export_shard_size(size, tmp_path):
    leaves_nothing(tmp_path, ConversionError, "max_shard_size=", max_shard_size=size)


def test_export_of_parameters_of_another_shape(tmp_path):
    leaves_nothing(tmp_path, ConversionError, "embedding", config=dataclasses.replace(SMALL, vocab_size=81))
    leaves_nothing(tmp_path, ConversionError, "lm_head", config=dataclasses.replace(SMALL, tie_embeddings=True))


def test_export_does_not_touch_what_is_there(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(StorageError, match="not empty"):
        save_hf(random_params(SMALL), SMALL, out)
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "mine.txt"]


def test_export_that_fails_midway_leaves_nothing(tmp_path):
    class Broken:
        bos_id, eos_id = 1, 2

        def save(self, directory):
            raise OSError(28, "No space left on device")

    leaves_nothing(tmp_path, StorageError, "No space left on device", tokenizer=Broken())


@pytest.mark.parametrize("edit", [lambda tensors: tensors.pop("lm_head.weight"), lambda t: t.update(x=np.ones(2))])
def test_names_are_checked_before_any_value_is_read(edit, single, monkeypatch):
    change(single, edit)
    monkeypatch.setattr(HFDirectory, "read", lambda *_: pytest.fail("a tensor was read"))
    refused(single)
