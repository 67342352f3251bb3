"""Conversion a tensor at a time: the same bytes, little memory, and nothing that is not what it came from."""

import dataclasses
import json
import math
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from etils import epath
from safetensors.numpy import load_file, save_file

from janus_jax.checkpoint import item, verify
from janus_jax.checkpoint.conversion_report import REPORT
from janus_jax.checkpoint.convert import check, from_hf, to_hf
from janus_jax.checkpoint.digest import digest
from janus_jax.checkpoint.hf import write as hf_write
from janus_jax.checkpoint.hf.keys import key_table, leaves
from janus_jax.checkpoint.hf.read import save_hf
from janus_jax.checkpoint.item import ItemReader, ItemWriter, chunk_shape
from janus_jax.checkpoint.stored_model import open_model
from janus_jax.errors import ConversionError
from janus_jax.model.attention import Slots
from janus_jax.model.mistral import Compute, logits, param_specs, token_values
from tests.support.models import SMALL, assert_same_bits, random_params
from tests.support.repository import ROOT

TIED = dataclasses.replace(SMALL, tie_embeddings=True)
REWARD = dataclasses.replace(SMALL, head="value")


def write_item(directory, params, config, dtype):
    writer = ItemWriter(epath.Path(directory), config, dtype)
    flat = leaves(params)
    for entry in key_table(config):
        leaf = np.asarray(flat[entry.path])
        writer.write(entry.path, entry.layer, leaf if entry.layer is None else leaf[entry.layer])
    writer.close()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("config", [SMALL, TIED, REWARD], ids=["lm", "tied", "reward"])
def test_what_was_written_by_blocks_is_what_orbax_would_have_written(config, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(item, "CHUNK_BYTES", 700)  # several chunks a layer
    params = random_params(config, dtype)
    write_item(tmp_path / "params", params, config, np.dtype(dtype))
    with ocp.StandardCheckpointer() as checkpointer:
        assert_same_bits(checkpointer.restore(tmp_path / "params"), params)
    reader = ItemReader(epath.Path(tmp_path / "params"))
    for path, leaf in leaves(params).items():
        whole = np.asarray(leaf)
        assert (reader.dtype(path), reader.shape(path)) == (whole.dtype, whole.shape)
        index = tuple(slice(size // 3, size) for size in whole.shape)
        np.testing.assert_array_equal(reader.read(path, index), whole[index])


def test_blocks_of_a_checkpoint_that_orbax_wrote_read_alike(tmp_path):
    params = random_params(SMALL)
    for name, options in {"ocdbt": {}, "files": {"use_ocdbt": False}, "zarr3": {"use_zarr3": True}}.items():
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
            checkpointer.save(tmp_path / name, params)
        reader = ItemReader(epath.Path(tmp_path / name))
        for path, leaf in leaves(params).items():
            np.testing.assert_array_equal(reader.read(path), np.asarray(leaf))


def test_chunks_are_of_one_layer_and_bounded():
    assert chunk_shape((32, 4096, 14336), 2, stacked=True) == [1, 2048, 14336]
    assert chunk_shape((32, 4096), 4, stacked=True) == [1, 4096]
    assert chunk_shape((32000, 4096), 4, stacked=False) == [4000, 4096]
    assert chunk_shape((), 4, stacked=False) == []


# --- Verification


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("config", [SMALL, TIED, REWARD], ids=["lm", "tied", "reward"])
def test_layer_by_layer_a_model_says_what_it_says_whole(config, dtype, tmp_path):
    params = random_params(config, dtype)
    save_hf(params, config, tmp_path / "hf")
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, 20).astype(np.int32)
    result = np.concatenate(verify.outputs(open_model(tmp_path / "hf"), tokens).result(), axis=-1)
    places = jnp.arange(20, dtype=jnp.int32)[None]
    layout = Slots(jnp.ones_like(places), jnp.ones_like(places), places)
    exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    compute = Compute(dtype=jnp.float32)
    if config.head == "value":
        whole = jax.jit(token_values, static_argnums=(0, 4))
        expected = whole(config, exact, jnp.asarray(tokens)[None], layout, compute)[0][:, None]
    else:
        whole = jax.jit(logits, static_argnums=(0, 4))
        expected = whole(config, exact, jnp.asarray(tokens)[None], layout, compute)[0]
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def test_a_report_lies_beside_what_was_written(tmp_path):
    params = random_params(SMALL)
    save_hf(params, SMALL, tmp_path / "hf")
    from_hf(tmp_path / "hf", tmp_path / "orbax")
    to_hf(tmp_path / "orbax", tmp_path / "back", dtype="bfloat16")
    report, back = (json.loads((tmp_path / name / REPORT).read_text()) for name in ("orbax", "back"))
    assert (report["stored_dtype"], report["dtype"], report["verify"]) == ("float32", "float32", "logits")
    assert (back["stored_dtype"], back["dtype"]) == ("float32", "bfloat16")
    assert report["largest_logit_difference"] == 0 < back["largest_logit_difference"] < 1
    assert set(report["seconds"]) == {"convert", "verification"}
    flat = leaves(params)
    for entry in key_table(SMALL):
        leaf = np.asarray(flat[entry.path])
        block = leaf if entry.layer is None else leaf[entry.layer]
        assert report["xxh3_128"][entry.key] == digest(block)
        assert back["xxh3_128"][entry.key] == digest(block.astype(jnp.bfloat16))


@pytest.mark.parametrize("mode", ["digest", "logits"])
@pytest.mark.parametrize("way", [from_hf, to_hf])
def test_a_tensor_that_was_written_wrongly_is_found_and_nothing_is_kept(way, mode, tmp_path, monkeypatch):
    save_hf(random_params(SMALL), SMALL, tmp_path / "hf")
    from_hf(tmp_path / "hf", tmp_path / "orbax")

    def wrong(original):
        def write(*arguments, **options):
            *rest, block = arguments
            changed = np.array(block)
            changed.flat[-1] += 1
            return original(*rest, changed, **options)

        return write

    if way is from_hf:
        monkeypatch.setattr(ItemWriter, "write", wrong(ItemWriter.write))
    else:
        from janus_jax.checkpoint.hf.keys import KeyEntry

        monkeypatch.setattr(KeyEntry, "to_torch", wrong(KeyEntry.to_torch))
    source = tmp_path / ("hf" if way is from_hf else "orbax")
    with pytest.raises(ConversionError, match=r"tensor model.embed_tokens.weight is not what was written"):
        way(source, tmp_path / "out", verify=mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "orbax"]
    way(source, tmp_path / "out", verify="none")
    monkeypatch.undo()
    assert len(check(tmp_path / "hf", tmp_path / "out")) == len(key_table(SMALL))


@pytest.mark.parametrize("mode", ["digest", "logits"])
@pytest.mark.parametrize(
    ("key", "value"), [("sliding_window", None), ("rms_norm_eps", 1e-2), ("tie_word_embeddings", 1)]
)
def test_a_config_that_was_written_wrongly_is_found_and_nothing_is_kept(key, value, mode, tmp_path, monkeypatch):
    save_hf(random_params(SMALL), SMALL, tmp_path / "hf")
    right = hf_write.hf_config
    monkeypatch.setattr(hf_write, "hf_config", lambda *a, **named: right(*a, **named) | {key: value})
    with pytest.raises(ConversionError, match=f"{key}") as caught:
        to_hf(tmp_path / "hf", tmp_path / "out", verify=mode)
    assert "incomplete" not in str(caught.value)  # a name that nobody gave
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_weights_of_which_the_logits_overflow_are_the_same_model(tmp_path):
    params = random_params(SMALL)
    params["lm_head"] = params["lm_head"] * (1e38 / jnp.abs(params["lm_head"]).max())
    save_hf(params, SMALL, tmp_path / "hf")
    a, again = (verify.outputs(open_model(tmp_path / "hf")) for _ in range(2))
    assert not all(np.isfinite(block).all() for block in a.result())
    assert verify.largest_logit_difference(a, again) == 0


def test_a_cast_after_which_logits_overflow_is_refused_and_nothing_is_kept(tmp_path, monkeypatch):
    save_hf(random_params(SMALL), SMALL, tmp_path / "hf")
    monkeypatch.setattr(verify, "largest_logit_difference", lambda ours, theirs: math.inf)
    with pytest.raises(ConversionError, match="logits differ by inf from those of"):
        to_hf(tmp_path / "hf", tmp_path / "out", dtype="bfloat16")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_logits_that_differ_are_found_where_digests_are_not_asked(tmp_path):
    """A layer's norm that is a little off: every tensor is still finite, and the model says something else."""
    params = random_params(SMALL)
    save_hf(params, SMALL, tmp_path / "a")
    params["layers"]["mlp_norm"] = params["layers"]["mlp_norm"].at[1, 3].add(0.1)
    save_hf(params, SMALL, tmp_path / "b")
    a, again, b = (verify.outputs(open_model(tmp_path / name)) for name in "aab")
    assert verify.largest_logit_difference(a, again) == 0
    assert verify.largest_logit_difference(a, b) > 1e-3


def test_check_names_what_differs(tmp_path):
    params = random_params(SMALL)
    save_hf(params, SMALL, tmp_path / "a")
    from_hf(tmp_path / "a", tmp_path / "same")
    assert check(tmp_path / "a", tmp_path / "same") == []
    params["layers"]["mlp"]["gate"] = params["layers"]["mlp"]["gate"].at[2, 0, 0].add(0.5)
    save_hf(params, SMALL, tmp_path / "b")
    (result,) = check(tmp_path / "same", tmp_path / "b")
    assert result.key == "model.layers.2.mlp.gate_proj.weight"
    assert result.largest == pytest.approx(0.5, rel=1e-5) and 0 < result.relative < 1
    save_hf(random_params(TIED), TIED, tmp_path / "tied")
    with pytest.raises(ConversionError, match="models of different shape: tie_embeddings False and True"):
        check(tmp_path / "a", tmp_path / "tied")
    to_hf(tmp_path / "same", tmp_path / "half", dtype="bfloat16")
    result = check(tmp_path / "a", tmp_path / "half")
    assert len(result) == len(key_table(SMALL)) and all(one.steps <= 0.5 for one in result)
    assert max(one.steps for one in result) > 0.4


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (-0.0, "1 different tensor: equal values; only dtypes or signs of zeros differ, as in model.norm.weight"),
        (
            1.00390625,
            "1 different tensor: all at most half a step of bfloat16 apart, as after rounding to it; the worst",
        ),
        (1.0078125, "1 of 1 different tensor: more than half a step of bfloat16 apart"),  # the number after 1
    ],
)
def test_check_says_in_words_whether_rounding_explains_what_differs(value, words, tmp_path, janus):
    params = random_params(SMALL)
    save_hf(params, SMALL, tmp_path / "a")
    save_hf(params, SMALL, tmp_path / "b")
    for name, one in (("a", value), ("b", abs(value) // 1)):
        (file,) = (tmp_path / name).glob("*.safetensors")
        loaded = load_file(file)
        loaded["model.norm.weight"][3] = one
        save_file(loaded, file, {"format": "pt"})
    code, out, err = janus("convert", "check", tmp_path / "a", tmp_path / "b")
    assert code == 2 and err.endswith("1 tensor differs\n") and out.startswith(words)
    assert "model.norm.weight: largest difference" in out


def test_an_unknown_verification_is_refused(tmp_path):
    with pytest.raises(ConversionError, match="verify=some: allowed: logits, digest, none"):
        from_hf(tmp_path, tmp_path / "out", verify="some")


def test_an_item_that_is_none_or_damaged_is_named(tmp_path):
    with pytest.raises(ConversionError, match="not an Orbax item, or a damaged one"):
        ItemReader(epath.Path(tmp_path))
    write_item(tmp_path / "params", random_params(SMALL), SMALL, np.dtype(np.float32))
    for file in (tmp_path / "params").rglob("d/*"):
        file.unlink()
    reader = ItemReader(epath.Path(tmp_path / "params"))
    with pytest.raises(ConversionError, match="embedding is damaged and cannot be read"):
        reader.read(("embedding",))


# --- Memory


def test_no_more_than_a_few_tensors_are_in_memory(tmp_path):
    """A model of 300 MB whose layers take 6 MB: conversion both ways, verified, allocates less than a stacked leaf."""
    config = dataclasses.replace(
        SMALL, num_layers=48, hidden_size=256, intermediate_size=2048, vocab_size=512, head_dim=64, sliding_window=None
    )
    random = np.random.default_rng(0)
    specs = param_specs(config, jnp.float32)
    params = jax.tree.map(lambda spec: jnp.asarray(random.random(spec.shape, np.float32)), specs)
    save_hf(params, config, tmp_path / "hf")
    size = sum(path.stat().st_size for path in (tmp_path / "hf").glob("*.safetensors"))
    leaf = 48 * 256 * 2048 * 4
    assert size > 3 * leaf > 290e6
    code = f"""
import re, sys, threading, time
from pathlib import Path
from janus_jax.checkpoint.convert import from_hf, to_hf
from janus_jax.checkpoint import verify
import jax, tensorstore
jax.devices()
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
root, peak, before = Path({str(tmp_path)!r}), [0], anonymous()
def watch():
    while True:
        peak[0] = max(peak[0], anonymous() - before)
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
from_hf(root / "hf", root / "orbax", verify="digest")
to_hf(root / "orbax", root / "back", verify="digest")
print(peak[0])
"""
    root = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": root, "JAX_PLATFORMS": "cpu"},
    )
    assert int(re.findall(r"\d+", done.stdout)[-1]) < leaf


# --- Names, changes and gaps


@pytest.mark.parametrize("name", ["lr%3D1", "lr#1", "what?", "a|b", "100%", "a b"])
def test_names_mean_themselves(name, tmp_path):
    """To tensorstore's URLs some of these characters mean something else."""
    save_hf(random_params(SMALL), SMALL, tmp_path / "hf")
    from_hf(tmp_path / "hf", tmp_path / name)
    to_hf(tmp_path / name, tmp_path / f"{name} back")
    assert check(tmp_path / name, tmp_path / "hf") == check(tmp_path / f"{name} back", tmp_path / "hf") == []
    assert {path.name for path in tmp_path.iterdir()} == {"hf", name, f"{name} back"}


@pytest.mark.parametrize("way", ["exchanged", "written to"])
@pytest.mark.parametrize("mode", ["none", "digest"])
def test_a_source_that_changes_meanwhile_is_refused(way, mode, tmp_path, monkeypatch):
    save_hf(random_params(SMALL), SMALL, tmp_path / "hf")
    save_hf(jax.tree.map(lambda leaf: leaf + 1, random_params(SMALL)), SMALL, tmp_path / "other")
    file, write = tmp_path / "hf" / "model.safetensors", item.ItemWriter.write
    left = [5]

    def interfere(self, *arguments):
        left[0] -= 1
        if left[0] == 0 and way == "exchanged":
            (tmp_path / "other" / file.name).rename(file)
        elif left[0] == 0:
            with file.open("r+b") as stream:  # in place; a file that is cut short would end the process (SIGBUS)
                stream.write((tmp_path / "other" / file.name).read_bytes())
        write(self, *arguments)

    monkeypatch.setattr(item.ItemWriter, "write", interfere)
    with pytest.raises(ConversionError, match=r"is not what was written|model.safetensors: was changed while it was"):
        from_hf(tmp_path / "hf", tmp_path / "out", verify=mode)
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "other"}


def test_a_part_that_is_missing_is_not_read_as_zeros(tmp_path):
    save_hf(random_params(SMALL), SMALL, tmp_path / "hf")
    from_hf(tmp_path / "hf", tmp_path / "item")
    base = {"driver": "file", "path": f"{tmp_path / 'item' / 'params'}/"}
    store = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
    key = next(key for key in store.list().result() if key.startswith(b"layers.attention.q/1."))
    store.delete_range(ts.KvStore.KeyRange(key, key + b"\0")).result()
    with pytest.raises(ConversionError, match=r"layers/attention/q is damaged and cannot be read"):
        to_hf(tmp_path / "item", tmp_path / "out")
    assert not (tmp_path / "out").exists()
