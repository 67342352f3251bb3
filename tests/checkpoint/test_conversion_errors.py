"""`janus convert` on what cannot be converted: exit 2, one line that names the cause, and a disk as it was.

Whatever headers show is found before a byte is written; values are read only while they are written.
"""

import dataclasses
import json
import shutil
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from janus_jax.checkpoint import convert
from janus_jax.checkpoint.convert import from_hf
from janus_jax.checkpoint.hf.read import save_hf
from janus_jax.checkpoint.state import Checkpoints
from janus_jax.cli.main import main
from tests.support.models import SMALL, random_params
from tests.support.states import without_checksums

Q1 = "model.layers.1.self_attn.q_proj.weight"


def contents(directory):
    """Every path below, hidden ones too, with what is in it."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(directory.rglob("*"))}


def refused(arguments, parts, root, capsys, monkeypatch):
    """Asserts that the command ends with 2 and one line that names all parts, and leaves everything as it was."""
    monkeypatch.setattr(sys, "argv", ["janus", "convert", *map(str, arguments)])
    before = contents(root)
    with pytest.raises(SystemExit) as caught:
        main()
    out, error = capsys.readouterr()
    assert (caught.value.code, out) == (2, "")
    assert error.startswith("error: ") and error.count("\n") == 1 and len(error) < 600, error
    for part in parts:
        assert str(part) in error, error
    assert contents(root) == before


@pytest.fixture
def unwritten(monkeypatch):
    """Fails the test when a conversion begins to write."""
    writes = {"output": lambda *_: pytest.fail("it began to write")}
    monkeypatch.setattr(convert, "staging", types.SimpleNamespace(**vars(convert.staging) | writes))


def shard_with(directory, key):
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    return directory / index["weight_map"][key]


def edit_tensors(directory, edit):
    file = shard_with(directory, Q1)
    tensors = {name: tensor.copy() for name, tensor in load_file(file).items()}
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return [file, Q1]


def edit_config(directory, **changes):
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return file


def missing_shard(directory):
    (file := shard_with(directory, Q1)).unlink()
    return [file, "missing"]


def truncated(directory):
    (file := shard_with(directory, Q1)).write_bytes(shard_with(directory, Q1).read_bytes()[:-7])
    return [file, "not a whole safetensors file"]


def cut_header(directory):
    (file := shard_with(directory, Q1)).write_bytes(file.read_bytes()[:50])
    return [file, "not a whole safetensors file"]


def misshaped(directory):
    return [*edit_tensors(directory, lambda t: t.update({Q1: t[Q1].T.copy()})), "[16, 24]", "[24, 16]", "config.json"]


def integers(directory):
    return [*edit_tensors(directory, lambda t: t.update({Q1: t[Q1].astype(np.int8)})), "I8", "F32, BF16, F16"]


def unknown_architecture(directory):
    return [edit_config(directory, architectures=["GemmaForCausalLM"]), "architectures", "GemmaForCausalLM", "Mistral"]


def fewer_layers(directory):
    edit_config(directory, num_hidden_layers=2)
    return ["model.layers.2.", "is not expected"]


def more_layers(directory):
    edit_config(directory, num_hidden_layers=4)
    return ["model.layers.3.input_layernorm.weight is missing"]


def another_vocabulary(directory):
    edit_config(directory, vocab_size=81)
    return ["model.embed_tokens.weight", "[80, 16]", "config.json asks for [81, 16]"]


def tied_with_a_head(directory):
    edit_config(directory, tie_word_embeddings=True)
    return ["lm_head.weight differs from model.embed_tokens.weight", "tie_word_embeddings=true"]


def pickled(directory):
    for file in directory.glob("model*"):
        file.unlink()
    (directory / "pytorch_model.bin").write_bytes(b"PK")
    return [directory, "pytorch_model.bin is not read: save the model with safetensors first"]


def adapter(directory):
    for file in directory.glob("model*"):
        file.unlink()
    (directory / "adapter_model.safetensors").write_bytes(b"")
    return [directory, "adapter_model.safetensors is an adapter: merge it into its base model first"]


def broken_config(directory):
    (directory / "config.json").write_text('{"vocab_size": 80,\n')
    return [directory / "config.json:2: not valid JSON"]


def broken_generation_config(directory):
    (directory / "generation_config.json").write_text("[]")
    return [directory / "generation_config.json", "allowed: an object"]


def bad_ids(directory):
    return [edit_config(directory, eos_token_id=[]), "eos_token_id=[]: allowed: a token id or null"]


def ids_beyond_the_embedding(directory):
    (directory / "generation_config.json").write_text('{"eos_token_id": [2, 999]}')
    return [directory / "generation_config.json: eos_token_id=[2, 999]: the embedding has no such row"]


def nested_ids_beyond_the_embedding(directory):
    (directory / "generation_config.json").write_text('{"bad_words_ids": [[1], [999]]}')
    return [directory / "generation_config.json: bad_words_ids=[[1], [999]]: the embedding has no such row"]


def negative_ids(directory):
    return [edit_config(directory, pad_token_id=-1), "pad_token_id=-1: allowed: token ids, which are 0 or more"]


HEADERS = [
    missing_shard,
    truncated,
    cut_header,
    misshaped,
    integers,
    unknown_architecture,
    fewer_layers,
    more_layers,
    another_vocabulary,
    tied_with_a_head,
    pickled,
    adapter,
    broken_config,
    broken_generation_config,
    bad_ids,
    ids_beyond_the_embedding,
    nested_ids_beyond_the_embedding,
    negative_ids,
]


@pytest.mark.parametrize("way", ["from-hf", "to-hf"])
@pytest.mark.parametrize("damage", HEADERS, ids=lambda damage: damage.__name__)
def test_what_headers_show_is_found_before_anything_is_written(damage, way, unwritten, tmp_path, capsys, monkeypatch):
    save_hf(random_params(SMALL), SMALL, tmp_path / "hf", max_shard_size="6KB")
    parts = damage(tmp_path / "hf")
    refused((way, tmp_path / "hf", tmp_path / "new" / "out"), parts, tmp_path, capsys, monkeypatch)


@pytest.mark.parametrize("way", ["from-hf", "to-hf"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_value_that_is_not_finite_leaves_nothing(value, way, tmp_path, capsys, monkeypatch):
    save_hf(random_params(SMALL), SMALL, tmp_path / "hf", max_shard_size="6KB")

    def edit(tensors):
        tensors[Q1][3, 4] = value

    parts = [*edit_tensors(tmp_path / "hf", edit), "NaN or infinite"]
    refused((way, tmp_path / "hf", tmp_path / "new" / "out"), parts, tmp_path, capsys, monkeypatch)


# --- Orbax sources


def write_run(directory, params):
    checkpoints = Checkpoints(directory / "checkpoints", keep=1)
    meta = {"model": dataclasses.asdict(SMALL)}
    checkpoints.save(3, params=params, optimizer={"n": jnp.int32(0)}, data={}, meta=meta)
    checkpoints.close()
    return directory / "checkpoints" / "3"


def edit_meta(step, **changes):
    without_checksums(step)
    file = step / "meta" / "metadata"
    meta = json.loads(file.read_text())
    file.write_text(json.dumps(meta | {"model": meta["model"] | changes}))


def other_vocabulary(step):
    edit_meta(step, vocab_size=81)
    return [step / "params", "embedding has shape [80, 16]; needed: [81, 16]"]


def other_head(step):
    edit_meta(step, tie_embeddings=True)
    return [step / "params", "lm_head is stored but not needed"]


def no_meta(step):
    (step / "meta" / "metadata").write_text("{")
    return [step / "meta", "cannot be read"]


def later_facts(step):
    without_checksums(step)
    file = step / "meta" / "metadata"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"facts": {"colour": "blue"}}))
    return [step / "meta", "facts", "colour", "a later version"]


def no_item(step):
    shutil.rmtree(step / "params")
    return [step]


@pytest.mark.parametrize("damage", [other_vocabulary, other_head, no_meta, later_facts, no_item])
def test_a_step_that_contradicts_itself_is_found_before_anything_is_written(
    damage, unwritten, tmp_path, capsys, monkeypatch
):
    step = write_run(tmp_path / "run", random_params(SMALL))
    parts = damage(step)
    refused(("to-hf", step, tmp_path / "new" / "out"), parts, tmp_path, capsys, monkeypatch)


def test_weights_of_a_run_that_are_not_finite_leave_nothing(tmp_path, capsys, monkeypatch):
    params = random_params(SMALL)
    params["layers"]["attention"]["q"] = params["layers"]["attention"]["q"].at[1, 0, 0, 0].set(np.nan)
    write_run(tmp_path / "run", params)
    parts = [Q1, "NaN or infinite", "not exported"]
    refused(("to-hf", tmp_path / "run", tmp_path / "new" / "out"), parts, tmp_path, capsys, monkeypatch)


def test_a_cast_that_overflows_leaves_nothing(tmp_path, capsys, monkeypatch):
    params = jax.tree.map(lambda leaf: leaf * 3.4e38 / jnp.abs(leaf).max(), random_params(SMALL))
    write_run(tmp_path / "run", params)
    arguments = ("to-hf", tmp_path / "run", tmp_path / "new" / "out", "--dtype", "bfloat16")
    refused(arguments, ["NaN or infinite values in bfloat16"], tmp_path, capsys, monkeypatch)


def test_lost_and_cut_files_of_a_converted_directory_leave_nothing(tmp_path, capsys, monkeypatch):
    save_hf(random_params(SMALL), SMALL, tmp_path / "hf")
    from_hf(tmp_path / "hf", tmp_path / "whole")
    for name, damage in (("lost", Path.unlink), ("cut", lambda file: file.write_bytes(file.read_bytes()[:-9]))):
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        for file in (tmp_path / name / "params").rglob("d/*"):
            damage(file)
        arguments = ("to-hf", tmp_path / name, tmp_path / "new" / "out")
        refused(arguments, [tmp_path / name / "params", "damaged"], tmp_path, capsys, monkeypatch)
