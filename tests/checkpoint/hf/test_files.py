"""Files of a model directory: damaged ones are named as what they are, and each travels or is listed with a reason."""

import dataclasses
import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from janus_jax.checkpoint.convert import from_hf, to_hf
from janus_jax.checkpoint.hf.hub import is_wanted
from janus_jax.checkpoint.hf.read import load_hf, save_hf
from janus_jax.checkpoint.state import Checkpoints
from janus_jax.checkpoint.stored_model import open_model
from janus_jax.text.tokenizer import load_tokenizer
from tests.support import models
from tests.support.models import SMALL, random_params

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9942981696\n"
PAGE = b"\n<!DOCTYPE html>\n<html><body>503 Service Unavailable</body></html>"
LATIN = "Copyright \u00a9 J\u00fcrgen\r\n".encode("latin-1")  # neither UTF-8 nor the line ends of this system


@pytest.fixture
def model(tmp_path):
    save_hf(random_params(SMALL), SMALL, tmp_path / "m", max_shard_size="6KB")
    return tmp_path / "m"


@pytest.fixture
def worded(tmp_path):
    """With the files of a tokenizer, which has more ids than the model rows."""
    save_hf(random_params(SMALL), SMALL, tmp_path / "m", tokenizer=load_tokenizer())
    return tmp_path / "m"


def write(file, **values):
    raw = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(raw | values))


def report(directory):
    return json.loads((directory / "conversion_report.json").read_text())


refused = functools.partial(models.refused, read=open_model)


@pytest.mark.parametrize("content", [POINTER, PAGE, b""])
@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "generation_config.json", "model.safetensors.index.json", "model-00002-of-00008.safetensors"),
        *("tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
    ],
)
def test_what_lies_in_the_place_of_a_file_is_named(name, content, model):
    (model / name).write_bytes(content)
    way_out = "`git lfs pull`" if content == POINTER else "download it again"
    refused(model, model / name, way_out)
    refused(model, model / name, way_out, read=load_hf)


def test_a_pickle_that_is_a_pointer(model):
    for file in model.glob("model*"):
        file.unlink()
    (model / "pytorch_model.bin").write_bytes(POINTER)
    refused(model, "pytorch_model.bin", "git lfs pull")


@pytest.mark.parametrize("rest", ["{name}.incomplete", ".cache/huggingface/download/{name}.4d7a.incomplete"])
def test_a_download_that_did_not_finish_is_named(rest, model):
    file = model / "model-00002-of-00008.safetensors"
    file.unlink()
    other = model / rest.format(name=file.name)
    other.parent.mkdir(parents=True, exist_ok=True)
    other.write_bytes(b"x")
    refused(model, file, "missing", "a download that did not finish")


def test_an_adapter_is_no_model(model, tmp_path):
    (model / "adapter_config.json").write_text("{}")
    for read in (open_model, load_hf):
        refused(model, "adapter_config.json", "adapter (LoRA)", "merge_and_unload", read=read)
    alone = tmp_path / "adapter"
    alone.mkdir()
    (alone / "adapter_config.json").write_text("{}")
    (alone / "adapter_model.safetensors").write_bytes(b"")
    refused(alone, "adapter_config.json", "adapter (LoRA)")


def test_all_that_stays_behind_is_listed_with_a_reason(model, tmp_path, capsys):
    files = {
        "pytorch_model.bin": "another format",
        "model.gguf": "another format",
        "consolidated.safetensors": "own format",
        "params.json": "own format",
        "other.safetensors": "not listed in the index",
        "model.safetensors.partial.incomplete": "did not finish",
        "preprocessor_config.json": "image or audio",
        "chat_template.json": "image or audio",
        "tekken.json": "own library",
        "training_args.bin": "program that trained",
        "modeling_x.py": "code",
        "vocab.json": "tokenizer",
        ".gitattributes": "git",
        "sums.txt": "not a file of a text model",
    }
    for name in files:
        (model / name).write_bytes(b"{}")
    folders = {".git/": "git", "onnx/": "a directory", "LICENSES/": "a directory"}
    for name in folders:
        (model / name).mkdir()
        (model / name / "LICENSE").write_text("x")
    write(model / "config.json", attention_dropout=0.1, tokenizer_class="LlamaTokenizer")
    done = from_hf(model, tmp_path / "c", verify="none")
    left_out = report(tmp_path / "c")["left_out"]
    keys = {"config.json: attention_dropout": "dropout", "config.json: tokenizer_class": "wrote the file"}
    expected = files | folders | keys
    assert left_out.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in left_out[name], (name, left_out[name])
    assert (
        str(done).count("\n") == 0 and "left out: .git/, " in str(done) and "more (conversion_report.json" in str(done)
    )
    assert not {name for name in files if list((tmp_path / "c").rglob(name))}


def test_a_whole_directory_leaves_nothing_behind(worded, tmp_path):
    (worded / "conversion_report.json").write_text("{}")
    assert report_of(worded, tmp_path)["left_out"] == {}


def report_of(directory, tmp_path):
    to_hf(directory, tmp_path / "out", verify="none")
    return report(tmp_path / "out")


def test_licences_and_templates_travel_byte_for_byte(model, tmp_path):
    texts = {"LICENSE": LATIN, "NOTICE.txt": b"mine\n", "license.md": b"\xff", "USE_POLICY.md": b""}
    texts["additional_chat_templates/tool_use.jinja"] = "{{ 'é' }}\r\n".encode()
    for name, content in texts.items():
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(content)
    (model / "additional_chat_templates" / "notes").write_text("x")
    to_hf(model, tmp_path / "straight", verify="digest")
    from_hf(model, tmp_path / "converted", verify="digest")
    to_hf(tmp_path / "converted", tmp_path / "back", verify="digest")
    for directory in (tmp_path / "straight", tmp_path / "back"):
        assert {name: (directory / name).read_bytes() for name in texts} == texts
        left_out = report(tmp_path / "straight")["left_out"]
        assert [*left_out] == ["additional_chat_templates/notes"]


def test_what_a_run_takes_over_from_its_base(model, tmp_path):
    (model / "LICENSE").write_bytes(LATIN)
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tool_use.jinja").write_text("{{ x }}")
    write(model / "generation_config.json", temperature=0.7, eos_token_id=[2, 7])
    facts = open_model(model).facts.after_training({})
    meta = {
        "model": dataclasses.asdict(SMALL),
        "facts": dataclasses.asdict(facts),
        "template": "plain",
        "config": {"x": 1},
    }
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=1)
    checkpoints.save(1, params=random_params(SMALL), optimizer={"n": jnp.int32(0)}, data={}, meta=meta)
    checkpoints.close()
    to_hf(tmp_path / "run", tmp_path / "out", verify="none")
    assert (tmp_path / "out" / "LICENSE").read_bytes() == LATIN
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (written["temperature"], written["eos_token_id"]) == (0.7, 2)
    assert not (tmp_path / "out" / "additional_chat_templates").exists()
    left_out = report(tmp_path / "out")["left_out"]
    assert left_out == {"additional_chat_templates/tool_use.jinja": "the model was trained with the template plain"}


@pytest.mark.parametrize("own_file", [False, True])
def test_generation_settings_of_config_json_count_without_a_file_of_their_own(own_file, model, tmp_path):
    (model / "generation_config.json").unlink()
    write(model / "config.json", temperature=0.6, max_length=40, top_k=None)
    if own_file:
        write(model / "generation_config.json", top_k=7)
    to_hf(model, tmp_path / "out", verify="none")
    settings = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    expected = (None, None, 7) if own_file else (0.6, 40, None)
    assert (settings.temperature, settings.max_length, settings.top_k) == expected


@pytest.mark.parametrize("ids", [{"pad_token_id": 80}, {"eos_token_id": [2, 81]}])
def test_a_special_id_without_a_row_is_refused_with_a_way_out(ids, model):
    write(model / "config.json", **ids)
    refused(model, *ids, "vocab_size=80", "resize_token_embeddings", "remove the key")


@pytest.mark.parametrize("way", [from_hf, to_hf])
def test_a_tokenizer_with_more_ids_than_rows_gets_a_note(way, worded, tmp_path):
    done = way(worded, tmp_path / "out", verify="none")
    (note,) = report(tmp_path / "out")["notes"]
    assert note in str(done) and "32000 ids, the embedding 80 rows" in note and "resize_token_embeddings" in note


def test_old_buffers_are_listed(model, tmp_path):
    file = sorted(model.glob("model-*"))[-1]
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file(load_file(file) | {buffer: np.zeros(3, np.float32)}, file)
    index = model / "model.safetensors.index.json"
    raw = json.loads(index.read_text())
    raw["weight_map"][buffer] = file.name
    index.write_text(json.dumps(raw))
    assert report_of(model, tmp_path)["left_out"] == {f"tensor {buffer}": "follows from rope_theta"}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        *[(name, True) for name in ("config.json", "LICENSE", "license.txt", "NOTICE")],
        ("additional_chat_templates/tool_use.jinja", True),
        *[(name, False) for name in ("onnx/config.json", "original/LICENSE", "consolidated.safetensors", "a/b.jinja")],
    ],
)
def test_which_files_of_a_repository_are_fetched(name, wanted):
    assert is_wanted(name) == wanted
