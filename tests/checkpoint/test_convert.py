"""Where models come from and go to: Hugging Face directories, runs, steps, converted directories."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import transformers

from janus_jax.checkpoint.convert import from_hf, to_hf
from janus_jax.checkpoint.hf.read import read_model_config, save_hf
from janus_jax.checkpoint.state import Checkpoints
from janus_jax.checkpoint.stored_model import open_model
from janus_jax.errors import ConversionError, DataError, StorageError
from janus_jax.model.mistral import param_specs
from janus_jax.parallel.mesh import MeshShape, build_mesh, merge_rules, param_shardings
from janus_jax.text.chat_format import ChatFormat
from janus_jax.text.template import CHATML
from janus_jax.text.tokenizer import load_tokenizer
from tests.support.models import SMALL, assert_same_bits, random_params, read_tensors
from tests.support.sentencepieces import trained
from tests.support.states import without_checksums

TIED = dataclasses.replace(SMALL, tie_embeddings=True)


@pytest.fixture
def run(tmp_path):
    """A run directory with steps 2 and 4, step s holding s times the weights."""
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=2)
    for step in (2, 4):
        params = jax.tree.map(lambda leaf, step=step: leaf * step, random_params(SMALL))
        meta = {"model": dataclasses.asdict(SMALL)}
        checkpoints.save(step, params=params, optimizer={"count": jnp.int32(step)}, data={}, meta=meta)
    checkpoints.close()
    return tmp_path / "run"


def times(step):
    return jax.tree.map(lambda leaf: leaf * step, random_params(SMALL))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("config", [SMALL, TIED])
def test_from_hf_and_back_keeps_every_bit(config, dtype, tmp_path):
    save_hf(random_params(config, dtype), config, tmp_path / "hf")
    from_hf(tmp_path / "hf", tmp_path / "converted")
    to_hf(tmp_path / "converted", tmp_path / "back", max_shard_size="6KB")
    assert read_tensors(tmp_path / "hf") == read_tensors(tmp_path / "back")
    assert read_model_config(tmp_path / "back") == config
    assert json.loads((tmp_path / "back" / "config.json").read_text())["dtype"] == jnp.dtype(dtype).name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "converted", "hf"]


def test_stock_orbax_reads_a_converted_directory(tmp_path):
    save_hf(random_params(SMALL), SMALL, tmp_path / "hf")
    from_hf(tmp_path / "hf", tmp_path / "converted")
    with ocp.StandardCheckpointer() as checkpointer:
        assert_same_bits(checkpointer.restore(tmp_path / "converted" / "params"), random_params(SMALL))


def test_to_hf_takes_the_newest_step_or_the_given_one(run, tmp_path):
    to_hf(run, tmp_path / "newest")
    to_hf(run, tmp_path / "second", step=2)
    to_hf(run / "checkpoints" / "2", tmp_path / "direct")
    for name, step in (("newest", 4), ("second", 2), ("direct", 2)):
        assert_same_bits(open_model(tmp_path / name).load(), times(step))


def test_relative_paths_do(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    to_hf("run", "out")
    from_hf("out", "converted")
    for name in ("run", "run/checkpoints/4", "out", "converted"):
        assert_same_bits(open_model(name).load(), times(4))


def test_to_hf_casts_when_asked(run, tmp_path):
    to_hf(run, tmp_path / "out", dtype="bfloat16")
    expected = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), times(4))
    assert open_model(tmp_path / "out").stored_dtype == jnp.bfloat16
    assert_same_bits(open_model(tmp_path / "out").load(), expected)


def test_the_tokenizer_travels(tmp_path):
    """From a directory with tokenizer.json through a converted one to an export: the same ids."""
    config = dataclasses.replace(SMALL, vocab_size=32000)
    template = ChatFormat(CHATML, load_tokenizer()).chat_template
    save_hf(random_params(config), config, tmp_path / "hf", tokenizer=load_tokenizer(), chat_template=template)
    from_hf(tmp_path / "hf", tmp_path / "converted")
    to_hf(tmp_path / "converted", tmp_path / "back")
    before, after = (transformers.AutoTokenizer.from_pretrained(tmp_path / name) for name in ("hf", "back"))
    chat = [{"role": "user", "content": "hello  there\n"}]
    assert before("a  b\nc").input_ids == after("a  b\nc").input_ids
    assert before.apply_chat_template(chat, tokenize=False) == after.apply_chat_template(chat, tokenize=False)
    assert open_model(tmp_path / "converted").tokenizer_directory == str(tmp_path / "converted" / "tokenizer")
    generation = json.loads((tmp_path / "back" / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"]) == (1, 2)


def test_a_bare_sentencepiece_model_becomes_a_whole_tokenizer(tmp_path):
    config = dataclasses.replace(SMALL, vocab_size=32000)
    save_hf(random_params(config), config, tmp_path / "hf")
    load_tokenizer().save(tmp_path / "hf")
    assert not (tmp_path / "hf" / "tokenizer.json").exists()
    to_hf(tmp_path / "hf", tmp_path / "back")
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")("The  sea\n").input_ids
    assert ids == [1, *load_tokenizer().encode("The  sea\n")]


@pytest.mark.parametrize(
    ("beside", "options", "reason"),
    [
        ({}, {"model_type": "word", "byte_fallback": False}, "a model of word pieces"),
        ({"extra_special_tokens": ["<|user|>"]}, {}, "adds '<|user|>', which tokenizer.model does not know"),
    ],
)
def test_a_tokenizer_that_cannot_become_a_tokenizer_json_travels_as_it_is(tmp_path, beside, options, reason):
    save_hf(random_params(SMALL), SMALL, tmp_path / "hf")
    files = {
        "tokenizer.model": trained(**options),
        "tokenizer_config.json": json.dumps(beside).encode(),
        "special_tokens_map.json": b'{"pad_token":  "</s>"}',
    }
    for name, content in files.items():
        (tmp_path / "hf" / name).write_bytes(content)
    report = to_hf(tmp_path / "hf", tmp_path / "out", verify="none")
    note = f"the tokenizer's files are copied as they are, and no tokenizer.json was made: {reason}"
    assert note in str(report) and note in (tmp_path / "out" / "conversion_report.json").read_text()
    assert {name: (tmp_path / "out" / name).read_bytes() for name in files} == files
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    (tmp_path / "hf" / "tokenizer.model").write_bytes(b"damaged")
    with pytest.raises(DataError, match="not a sentencepiece model"):
        to_hf(tmp_path / "hf", tmp_path / "damaged", verify="none")


def test_a_run_finds_the_tokenizer_of_its_data(tmp_path):
    load_tokenizer().save(tmp_path / "data" / "tokenizer")
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=1)
    meta = {"model": dataclasses.asdict(SMALL), "config": {"data": {"dir": str(tmp_path / "data")}}}
    checkpoints.save(1, params=random_params(SMALL), optimizer={"n": jnp.int32(0)}, data={}, meta=meta)
    checkpoints.close()
    for path in ("run", "run/checkpoints", "run/checkpoints/1"):
        assert open_model(tmp_path / path).tokenizer_directory == str(tmp_path / "data" / "tokenizer")
    load_tokenizer().save(tmp_path / "run" / "tokenizer")  # its own comes first
    for path in ("run", "run/checkpoints", "run/checkpoints/1"):
        assert open_model(tmp_path / path).tokenizer_directory == str(tmp_path / "run" / "tokenizer")


@pytest.mark.parametrize("kind", ["hf", "converted", "run", "step"])
def test_every_source_loads_on_a_mesh_and_in_a_dtype(kind, run, tmp_path):
    save_hf(times(4), SMALL, tmp_path / "hf")
    from_hf(tmp_path / "hf", tmp_path / "converted")
    path = {"hf": tmp_path / "hf", "converted": tmp_path / "converted", "run": run, "step": run / "checkpoints" / "4"}
    source = open_model(path[kind])
    assert source.config == SMALL and source.stored_dtype == np.float32
    specs = param_specs(SMALL)
    shardings = param_shardings(specs, build_mesh(MeshShape(2, 2, 2)), merge_rules({}))
    loaded = source.load(dtype=jnp.bfloat16, shardings=shardings)
    assert_same_bits(loaded, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), times(4)))
    for leaf, sharding in zip(jax.tree.leaves(loaded), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    assert_same_bits(source.load(), times(4))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(source.load_host()))


def test_what_holds_no_model_is_refused(run, tmp_path):
    with pytest.raises(ConversionError, match="none: no such directory"):
        open_model(tmp_path / "none")
    with pytest.raises(ConversionError, match=r"config.json.*checkpoints/STEP.*params and meta"):
        open_model(tmp_path)
    with pytest.raises(ConversionError, match="no step 3; existing steps: 2, 4"):
        open_model(run, step=3)
    with pytest.raises(ConversionError, match="step=2 can only be chosen for a run"):
        open_model(run / "checkpoints" / "4", step=2)
    save_hf(random_params(SMALL), SMALL, tmp_path / "hf")
    with pytest.raises(ConversionError, match="step=2 can only be chosen for a run"):
        open_model(tmp_path / "hf", step=2)
    with pytest.raises(ConversionError, match=r"it has no config\.json"):
        from_hf(run, tmp_path / "out")


def test_a_damaged_step_is_refused(run):
    step = run / "checkpoints" / "4"
    without_checksums(step)
    meta = step / "meta" / "metadata"
    text = meta.read_text()
    for damaged in ("{", json.dumps({"model": {"vocab_size": 3}}), json.dumps({}), "[]"):
        meta.write_text(damaged)
        with pytest.raises(ConversionError, match="4/meta"):
            open_model(run)
    meta.write_text(text.replace('"vocab_size": 80', '"vocab_size": 81'))
    with pytest.raises(ConversionError, match=r"4/params: embedding has shape \[80, 16\]; needed: \[81, 16\]"):
        open_model(run).load()
    meta.write_text(text)
    shutil.rmtree(step / "params")
    with pytest.raises(ConversionError, match="params"):
        open_model(step)


@pytest.mark.parametrize("convert", [from_hf, to_hf])
def test_a_destination_that_holds_something_is_left_alone(convert, tmp_path):
    save_hf(random_params(SMALL), SMALL, tmp_path / "hf")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(StorageError, match="out: exists and is not empty"):
        convert(tmp_path / "hf", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "out"]


def test_a_failed_conversion_leaves_nothing(run, tmp_path):
    save_hf(random_params(SMALL), SMALL, tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + np.float32(np.nan).tobytes())
    for attempt in (
        lambda out: from_hf(tmp_path / "hf", out),
        lambda out: from_hf("nobody/nothing-of-the-kind", out),
        lambda out: to_hf(run, out, dtype="int4"),
        lambda out: to_hf(run, out, max_shard_size="large"),
        lambda out: to_hf(run, out, step=9),
    ):
        with pytest.raises(ConversionError):
            attempt(tmp_path / "new" / "out")
        assert not (tmp_path / "new").exists()


def test_a_hub_id_without_network_is_one_clear_line(tmp_path):
    with pytest.raises(ConversionError, match=r"^nobody/nothing: no such .* could not be downloaded .* hub: .+$"):
        from_hf("nobody/nothing", tmp_path / "out")


def test_conversion_needs_neither_tensorflow_nor_torch_and_prints_nothing(tmp_path):
    save_hf(random_params(SMALL), SMALL, tmp_path / "[v1]" / "hf")
    script = """
import sys
from janus_jax.checkpoint.convert import from_hf, to_hf
from_hf(sys.argv[1] + "/hf", sys.argv[1] + "/converted")
to_hf(sys.argv[1] + "/converted", sys.argv[1] + "/back")
assert not {"tensorflow", "torch", "transformers"} & set(sys.modules)
"""
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}  # another process may be writing there
    command = [sys.executable, "-c", script, str(tmp_path / "[v1]")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "" and done.stderr == ""


def test_a_hub_id_is_taken_from_the_hubs_cache(tmp_path, monkeypatch):
    """What `snapshot_download` leaves behind serves offline; a path that begins with a folder here stays a path."""
    import huggingface_hub.constants

    cache = tmp_path / "cache"
    snapshot = cache / "models--somebody--janus" / "snapshots" / "0123456789012345678901234567890123456789"
    save_hf(random_params(SMALL), SMALL, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    assert open_model("somebody/janus").config == SMALL
    monkeypatch.chdir(tmp_path)
    (tmp_path / "somebody").mkdir()
    with pytest.raises(ConversionError, match=r"^somebody/janus: no such directory$"):
        open_model("somebody/janus")
