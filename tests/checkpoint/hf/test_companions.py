"""Complete directories: what lies beside the weights travels, whichever way a model goes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
import yaml
from safetensors.numpy import load_file, save_file

from janus_jax import __version__
from janus_jax.checkpoint.convert import check, from_hf, to_hf
from janus_jax.checkpoint.hf.read import load_hf, save_hf
from janus_jax.checkpoint.state import Checkpoints
from janus_jax.checkpoint.stored_model import open_model
from janus_jax.errors import DataError
from janus_jax.model.mistral import param_specs
from janus_jax.text.chat_format import ChatFormat
from janus_jax.text.template import MISTRAL_INST
from janus_jax.text.tokenizer import load_tokenizer
from tests.support.models import SMALL, assert_same_bits, random_params, read_tensors

TEXTS = ["The  sea\n", " leading", "[INST] a\nb [/INST]", "\u00e9t\u00e9 \u6d77 \U0001f30a", "x\t\ty  ", ""]


def write(file, **values):
    raw = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(raw | values))


def read(directory, name="config.json"):
    return json.loads((directory / name).read_text())


def front_matter(directory):
    _, front, body = (directory / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), body


def both_ways(start, tmp_path):
    """Directories that came of it: straight, and through a converted one."""
    to_hf(start, tmp_path / "straight", verify="digest")
    from_hf(start, tmp_path / "converted", verify="digest")
    to_hf(tmp_path / "converted", tmp_path / "back", verify="digest")
    return tmp_path / "straight", tmp_path / "back"


# --- Ids and generation settings


@pytest.mark.parametrize("tokenizer", [False, True])
@pytest.mark.parametrize(
    "ids", [{"bos_token_id": 7, "eos_token_id": [9, 11], "pad_token_id": 13}, {"bos_token_id": None, "eos_token_id": 3}]
)
def test_ids_and_generation_settings_of_the_source_are_kept(ids, tokenizer, tmp_path):
    config = dataclasses.replace(SMALL, vocab_size=32000)
    save_hf(random_params(config), config, tmp_path / "hf", tokenizer=load_tokenizer() if tokenizer else None)
    write(tmp_path / "hf" / "config.json", **ids)
    generation = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.03, **ids}
    write(tmp_path / "hf" / "generation_config.json", transformers_version="4.0.0", **generation)
    (tmp_path / "hf" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Their model\n")
    for directory in both_ways(tmp_path / "hf", tmp_path):
        assert {name: read(directory).get(name) for name in ids} == ids
        result = read(directory, "generation_config.json")
        assert {name: result[name] for name in generation} == generation and "transformers_version" not in result
        loaded = transformers.GenerationConfig.from_pretrained(directory)
        assert (loaded.do_sample, loaded.temperature, loaded.eos_token_id) == (True, 0.7, ids["eos_token_id"])


def test_what_nobody_said_is_the_tokenizers_and_greedy(tmp_path):
    config = dataclasses.replace(SMALL, vocab_size=32000)
    save_hf(random_params(config), config, tmp_path / "hf", tokenizer=load_tokenizer())
    assert read(tmp_path / "hf", "generation_config.json") == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    prompt = torch.tensor([[1, 5, 6]])
    outputs = [model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6) for _ in range(2)]
    assert torch.equal(*outputs) and not model.generation_config.do_sample


# --- Tokenizers


@pytest.mark.parametrize("files", ["tokenizer.model", "tokenizer.json", "both"])
def test_an_exported_tokenizer_gives_sentencepieces_ids(files, tmp_path):
    config = dataclasses.replace(SMALL, vocab_size=32000)
    reference = load_tokenizer()
    template = ChatFormat(MISTRAL_INST, reference).chat_template
    save_hf(random_params(config), config, tmp_path / "hf", tokenizer=reference, chat_template=template)
    if files == "tokenizer.model":
        (tmp_path / "hf" / "tokenizer.json").unlink()
    elif files == "tokenizer.json":
        (tmp_path / "hf" / "tokenizer.model").unlink()
    if files == "tokenizer.json":  # as published ones do
        write(tmp_path / "hf" / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    for directory in both_ways(tmp_path / "hf", tmp_path):
        if files == "tokenizer.json":
            for file in (tmp_path / "hf").glob("*token*"):
                assert (directory / file.name).read_bytes() == file.read_bytes(), file.name
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        for text in TEXTS:
            assert tokenizer(text).input_ids == [1, *reference.encode(text)], (directory, text)
        chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
        message = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert message == "<s>" + MISTRAL_INST.prompt_text("Be brief.", "Why?")


@pytest.mark.parametrize("way", [from_hf, to_hf])
def test_a_tokenizer_that_cannot_be_read_stops_before_anything_is_written(way, tmp_path, monkeypatch):
    save_hf(random_params(SMALL), SMALL, tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.json").write_text("{}")
    monkeypatch.setattr("tempfile.mkdtemp", lambda *_, **__: pytest.fail("something was written"))
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizers file"):
        way(tmp_path / "hf", tmp_path / "out")


# --- Sources of all kinds


@pytest.mark.parametrize("norms", ["float32", "float16"])
def test_mixed_dtypes_are_widened_and_no_value_changes(norms, tmp_path):
    params = random_params(SMALL, jnp.bfloat16)
    save_hf(params, SMALL, tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(file)
    for name in list(tensors):
        if "norm" in name:
            tensors[name] = tensors[name].astype(norms)
    save_file(tensors, file, metadata={"format": "pt"})
    expected = {name: tensor.astype(np.float32).tobytes() for name, tensor in tensors.items()}
    for directory in both_ways(tmp_path / "hf", tmp_path):
        result = read_tensors(directory)
        assert {name: data for name, (_, _, data) in result.items()} == expected
        assert {dtype for dtype, _, _ in result.values()} == {"F32"}
        assert read(directory)["dtype"] == "float32"


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sharded_half_precision_sources_keep_every_bit(dtype, window, tmp_path):
    torch.manual_seed(0)
    theirs = transformers.MistralForCausalLM(
        transformers.MistralConfig(
            vocab_size=80, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, head_dim=6, sliding_window=window, max_position_embeddings=64,
        )
    ).to(dtype)  # fmt: skip
    theirs.save_pretrained(tmp_path / "hf", max_shard_size="2KB")
    assert len(list((tmp_path / "hf").glob("model-*"))) > 3
    before = read_tensors(tmp_path / "hf")
    for directory in both_ways(tmp_path / "hf", tmp_path):
        assert read_tensors(directory) == before
        assert read(directory)["sliding_window"] == window
    assert open_model(tmp_path / "converted").config.sliding_window == window
    assert check(tmp_path / "hf", tmp_path / "converted") == []


@pytest.mark.parametrize("tied", [False, True])
def test_a_llama_becomes_a_mistral_that_says_the_same(tied, tmp_path):
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=80, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, rope_parameters={"rope_theta": 5e5, "rope_type": "default"},
            max_position_embeddings=64, tie_word_embeddings=tied, initializer_range=0.3,
        )
    ).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path / "hf")
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 80, (2, 40)))
    with torch.no_grad():
        expected = theirs(tokens).logits
        for directory in both_ways(tmp_path / "hf", tmp_path):
            ours = transformers.AutoModelForCausalLM.from_pretrained(directory)
            assert isinstance(ours, transformers.MistralForCausalLM) and ours.config.sliding_window is None
            assert float((ours(tokens).logits - expected).abs().max()) <= 1e-6 * float(expected.abs().max())


# --- Model cards


def test_a_card_that_came_along_stays_and_gets_one_note(tmp_path):
    save_hf(random_params(SMALL), SMALL, tmp_path / "hf")
    theirs = "---\nlicense: apache-2.0\nbase_model: someone/base\n---\n# Their model\n\nDo not eat.\n"
    (tmp_path / "hf" / "README.md").write_text(theirs)
    to_hf(tmp_path / "hf", tmp_path / "once", dtype="bfloat16")
    from_hf(tmp_path / "once", tmp_path / "converted")
    to_hf(tmp_path / "converted", tmp_path / "twice", dtype="float32")
    card = (tmp_path / "twice" / "README.md").read_text()
    assert card.startswith(theirs.rstrip())
    assert card.count("janus_jax: conversion") == 1
    assert card.endswith(f"The weights were written in float32 by janus_jax {__version__}.\n")
    (tmp_path / "twice" / "README.md").write_text(card + "\n## Licence\n\nOurs.\n")
    to_hf(tmp_path / "twice", tmp_path / "thrice", verify="none")
    card = (tmp_path / "thrice" / "README.md").read_text()
    assert "## Licence\n\nOurs.\n" in card and card.count("The weights were written") == 1


def test_a_model_without_a_card_gets_one(tmp_path):
    save_hf(random_params(SMALL), SMALL, tmp_path / "hf")
    to_hf(tmp_path / "hf", tmp_path / "out", dtype="bfloat16")
    front, body = front_matter(tmp_path / "out")
    assert front == {
        "library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["janus_jax", "mistral"],
    }  # fmt: skip
    count = sum(np.prod(spec.shape) for spec in jax.tree.leaves(param_specs(SMALL)))
    assert f"| parameters | {count:,}, stored in bfloat16 |" in body
    assert "## Training" not in body


def test_the_hub_id_of_a_source_is_the_base_model(tmp_path, monkeypatch):
    save_hf(random_params(SMALL), SMALL, tmp_path / "snapshot")
    monkeypatch.setattr(
        "janus_jax.checkpoint.stored_model.local_copy",
        lambda path: str(tmp_path / "snapshot") if path == "a/b" else path,
    )
    from_hf("a/b", tmp_path / "converted")
    to_hf(tmp_path / "converted", tmp_path / "back")
    assert front_matter(tmp_path / "back")[0]["base_model"] == "a/b"
    assert_same_bits(load_hf(tmp_path / "back")[1], random_params(SMALL))


def test_a_run_that_says_little_gets_the_card_that_this_allows(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=1)
    meta = {"model": dataclasses.asdict(SMALL), "config": {"data": {"dir": "gs://a|b\n/c"}, "init": {"from": "x|\ny"}}}
    checkpoints.save(7, params=random_params(SMALL), optimizer={"n": jnp.int32(0)}, data={}, meta=meta)
    checkpoints.close()
    to_hf(tmp_path / "run", tmp_path / "out")
    body = front_matter(tmp_path / "out")[1]
    assert "| initial weights | x\\| y |\n| step | 7 |" in body
    assert yaml.safe_load(body.partition("```yaml\n")[2].partition("```")[0]) == meta["config"]
