"""Hugging Face directories: what is read, what is written, and who else reads it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from jax.sharding import NamedSharding, PartitionSpec

from janus_jax.checkpoint.hf.facts import ModelFacts
from janus_jax.checkpoint.hf.keys import key_table
from janus_jax.checkpoint.hf.read import hf_config, load_hf, read_model_config, save_hf
from janus_jax.checkpoint.hf.write import parse_size
from janus_jax.model.attention import Slots
from janus_jax.model.config import ModelConfig
from janus_jax.model.mistral import Compute, logits, param_specs
from janus_jax.parallel.mesh import MeshShape, build_mesh, merge_rules, param_shardings
from janus_jax.text.tokenizer import load_tokenizer
from tests.support.models import SMALL, assert_same_bits, random_params, read_safetensors, read_tensors

TIED = dataclasses.replace(SMALL, tie_embeddings=True, sliding_window=None)


def our_logits(config, params, tokens):
    tokens = jnp.asarray(tokens, jnp.int32)
    position = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    layout = Slots(jnp.ones_like(position), jnp.zeros_like(position), position)
    whole = jax.jit(logits, static_argnums=(0, 4))
    return np.asarray(whole(config, params, tokens, layout, Compute(dtype=jnp.float32)))


def test_key_table_covers_each_parameter_element_once():
    for config in (SMALL, TIED):
        table = key_table(config)
        specs = param_specs(config)
        assert len({entry.key for entry in table}) == len(table)
        assert sum(np.prod(entry.torch_shape) for entry in table) == sum(
            np.prod(spec.shape) for spec in jax.tree.leaves(specs)
        )
        assert ("lm_head.weight" in {entry.key for entry in table}) is not config.tie_embeddings


@pytest.mark.parametrize("torch_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shards", [False, True])
def test_round_trip_of_a_transformers_directory_keeps_every_bit(torch_dtype, tied, shards, tmp_path):
    torch.manual_seed(0)
    theirs = transformers.MistralForCausalLM(
        transformers.MistralConfig(**hf_config(dataclasses.replace(SMALL, tie_embeddings=tied), "float32"))
    ).to(torch_dtype)
    size = "3KB" if shards else "1GB"
    theirs.save_pretrained(tmp_path / "in", max_shard_size=size)
    config, params = load_hf(tmp_path / "in", dtype=None)
    save_hf(params, config, tmp_path / "out", max_shard_size=size)
    before, after = read_tensors(tmp_path / "in"), read_tensors(tmp_path / "out")
    assert before == after
    names = sorted(file.name for file in (tmp_path / "out").glob("model*"))
    if shards:
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        count = len(names) - 1
        assert count > 3
        assert names[:-1] == [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
        assert index["weight_map"].keys() == after.keys()
        assert index["metadata"]["total_size"] == sum(len(data) for _, _, data in after.values())
        for key, name in index["weight_map"].items():
            assert key in read_safetensors(tmp_path / "out" / name)
        # a shard is over the limit only when it holds a single tensor
        for name in names[:-1]:
            tensors = read_safetensors(tmp_path / "out" / name)
            assert len(tensors) == 1 or sum(len(data) for _, _, data in tensors.values()) <= 3000
    else:
        assert names == ["model.safetensors"]


@pytest.mark.parametrize("config", [SMALL, TIED])
@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 2, 2)])
def test_sharded_load_and_save_equal_unsharded(config, mesh, tmp_path):
    # head_dim sharded too: the axis that is folded into the torch matrix behind another
    rules = merge_rules({"kv_heads": None, "q_heads": None, "head_dim": "tensor", "layers": None})
    params = random_params(config)
    save_hf(params, config, tmp_path / "a")
    shape = MeshShape(*mesh)
    shardings = param_shardings(param_specs(config), build_mesh(shape), rules)
    _, loaded = load_hf(tmp_path / "a", shardings=shardings)
    for leaf, sharding in zip(jax.tree.leaves(loaded), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding == sharding
    assert_same_bits(loaded, params)
    save_hf(loaded, config, tmp_path / "b")
    assert read_tensors(tmp_path / "a") == read_tensors(tmp_path / "b")


def test_layers_can_be_sharded(tmp_path):
    config = dataclasses.replace(SMALL, num_layers=4)
    params = random_params(config)
    save_hf(params, config, tmp_path / "a")
    mesh = build_mesh(MeshShape(2, 2, 2))
    shardings = jax.tree.map(lambda leaf: NamedSharding(mesh, PartitionSpec()), params)
    shardings["layers"] = jax.tree.map(
        lambda leaf: NamedSharding(mesh, PartitionSpec("data", *(None,) * (leaf.ndim - 1))), params["layers"]
    )
    assert_same_bits(load_hf(tmp_path / "a", shardings=shardings)[1], params)


def test_dtypes_are_cast_once(tmp_path):
    params = random_params(SMALL)
    save_hf(params, SMALL, tmp_path / "bf16", dtype="bfloat16")
    assert json.loads((tmp_path / "bf16" / "config.json").read_text())["dtype"] == "bfloat16"
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    assert_same_bits(load_hf(tmp_path / "bf16", dtype=None)[1], rounded)
    assert_same_bits(load_hf(tmp_path / "bf16")[1], jax.tree.map(lambda leaf: leaf.astype(jnp.float32), rounded))


@pytest.mark.parametrize("config", [SMALL, TIED])
def test_transformers_loads_what_we_write_with_equal_logits(config, tmp_path):
    params = random_params(config)
    save_hf(params, config, tmp_path / "out", max_shard_size="6KB", facts=ModelFacts(generation={"max_new_tokens": 7}))
    model, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert model.generation_config.max_new_tokens == 7
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 20))
    theirs = model(torch.from_numpy(tokens)).logits.detach().numpy()
    ours = our_logits(config, params, tokens)
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    assert read_model_config(tmp_path / "out") == config


@pytest.mark.parametrize("tied", [False, True])
def test_mistralrs_continues_a_text_as_transformers_does(tied, tmp_path, monkeypatch):
    """A second reader that shares no code with transformers: greedy text, every top-2 gap clear of rounding."""
    mistralrs = pytest.importorskip("mistralrs")
    monkeypatch.setenv("MISTRALRS_CPU_KV_F32", "1")
    config = ModelConfig(
        vocab_size=32000,
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        rope_theta=1e4,
        max_position_embeddings=256,
        tie_embeddings=tied,
        initializer_range=0.3,
    )
    out = tmp_path / "out"
    save_hf(random_params(config), config, out, max_shard_size="5MB", tokenizer=load_tokenizer())
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    prompt = tokenizer("The sea is", return_tensors="pt")
    generated = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0]
    start = prompt["input_ids"].shape[1]
    top = torch.topk(model(generated[None]).logits[0, start - 1 : -1], 2).values
    assert (top[:, 0] - top[:, 1]).min() > 1e-3
    plain = mistralrs.Which.Plain(
        model_id=str(out), arch=mistralrs.Architecture.Mistral, dtype=mistralrs.ModelDType.F32
    )
    request = mistralrs.CompletionRequest(model="m", prompt="The sea is", max_tokens=8, temperature=0.0, top_k=1)
    answer = mistralrs.Runner(which=plain).send_completion_request(request)
    assert answer.usage.prompt_tokens == start
    assert answer.choices[0].text.strip() == tokenizer.decode(generated[start:]).strip()


def write_config(directory, **changes):
    raw = hf_config(SMALL, "float32") | changes
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({key: value for key, value in raw.items() if value is not ...}))
    return read_model_config(directory)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_parameters": ..., "rope_scaling": None, "dtype": ...},  # transformers 4
        {"rope_theta": ..., "torch_dtype": ...},  # transformers 5
        {"rope_parameters": ..., "rope_scaling": {"type": "default"}},
        {"architectures": ...},
        {"tie_word_embeddings": ...},
    ],
)
def test_spellings_of_config_json_mean_the_same(changes, tmp_path):
    assert write_config(tmp_path, **changes) == SMALL


@pytest.mark.parametrize("architecture", ["Mistral", "Llama"])
@pytest.mark.parametrize(
    "silent", ["head_dim", "num_key_value_heads", "sliding_window", "max_position_embeddings", "rms_norm_eps"]
)
def test_a_silent_config_json_means_what_transformers_takes_it_for(architecture, silent, tmp_path):
    raw = {"architectures": [f"{architecture}ForCausalLM"], "model_type": architecture.lower()}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8}
    raw |= {"sliding_window": None} if architecture == "Llama" else {}
    config = write_config(tmp_path, **(raw | heads | {silent: ...}))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert config.head_dim == theirs.head_dim
    assert config.num_kv_heads == theirs.num_key_value_heads
    assert config.sliding_window == (theirs.sliding_window if architecture == "Mistral" else None)
    assert config.max_position_embeddings == theirs.max_position_embeddings
    assert config.rms_norm_eps == theirs.rms_norm_eps


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("200MB", 2 * 10**8), ("1KiB", 1024), (123, 123), ("7", 7), ("1.5 kb", 1500)]
)
def test_shard_sizes(text, size):
    assert parse_size(text) == size
