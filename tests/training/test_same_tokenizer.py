"""Data and weights, held-out and training data, that do not fit."""

import dataclasses
import json
import re
import shutil

import pytest

from janus_jax.checkpoint.hf.read import save_hf
from janus_jax.checkpoint.stored_model import open_model
from janus_jax.data.dataset import TokenizedDataset
from janus_jax.errors import ConfigError
from janus_jax.text.tokenizer import load_tokenizer, save_hf_tokenizer
from janus_jax.training.same_tokenizer import notes, require_same_held_out, unused_rows
from janus_jax.training.setup import open_reference_source
from tests.support.models import SMALL, random_params
from tests.support.run_configs import run_config
from tests.support.tokenizers import byte_level_directory
from tests.support.training_examples import random_examples, write_dataset


@pytest.fixture
def data(tmp_path) -> TokenizedDataset:
    return TokenizedDataset(write_dataset(tmp_path / "data", {"train": random_examples(3, pairs=True)}, kind="rm"))


def held_out_with(directory, make_tokenizer) -> TokenizedDataset:
    write_dataset(directory, {"train": random_examples(3, pairs=True)}, kind="rm")
    shutil.rmtree(directory / "tokenizer")
    make_tokenizer(directory / "tokenizer")
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["tokenizer"]["fingerprint"] = load_tokenizer(directory / "tokenizer").fingerprint
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return TokenizedDataset(directory)


def byte_level(directory):
    byte_level_directory(directory)
    (directory / "tokenizer_config.json").write_text('{"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}')


def test_held_out_data_of_another_tokenizer_are_refused(data, tmp_path):
    other = held_out_with(tmp_path / "other", byte_level)
    expected = (
        f"data.eval_dir={other.name}: was built with another tokenizer than the training data {data.name}: id 1 is "
        "'<s>' in the training data and '<|im_start|>' in the held-out data"
    )
    with pytest.raises(ConfigError, match=re.escape(expected)):
        require_same_held_out(data, other)


def test_held_out_data_without_the_bos_of_the_training_data_are_refused(data, tmp_path):
    def without_bos(directory):
        save_hf_tokenizer(load_tokenizer(), directory)
        (directory / "tokenizer.model").unlink()
        written = json.loads((directory / "tokenizer_config.json").read_text()) | {"add_bos_token": False}
        (directory / "tokenizer_config.json").write_text(json.dumps(written))

    with pytest.raises(ConfigError, match="another tokenizer than the training data"):
        require_same_held_out(data, held_out_with(tmp_path / "other", without_bos))


def test_held_out_data_of_another_file_of_the_same_tokenizer_are_evaluated(data, tmp_path):
    other = held_out_with(tmp_path / "other", lambda directory: save_hf_tokenizer(load_tokenizer(), directory))
    (other.directory / "tokenizer" / "tokenizer.model").unlink()
    require_same_held_out(data, other)


def test_a_reference_of_another_shape_is_told_by_the_keys_that_differ(tmp_path):
    save_hf(random_params(SMALL), SMALL, tmp_path / "reference")
    config = run_config(tmp_path, tmp_path / "run", "dpo", reference={"from": str(tmp_path / "reference")})
    with pytest.raises(ConfigError) as caught:
        open_reference_source(config, dataclasses.replace(SMALL, vocab_size=7, rope_theta=5.0))
    shown = f"vocab_size {SMALL.vocab_size}, not 7; rope_theta {SMALL.rope_theta}, not 5.0"
    assert f"another shape than the trained model: {shown}; allowed" in str(caught.value)


@pytest.mark.parametrize("place", ["weights", "data", "run", "same"])
def test_a_chat_template_that_training_replaces_is_named_once(data, tmp_path, place):
    own = data.chat_format().chat_template if place == "same" else "{% for m in messages %}<|{{ m.role }}|>{% endfor %}"
    save_hf(random_params(SMALL), SMALL, tmp_path / "base", tokenizer=load_tokenizer(), chat_template=own)
    model = open_model(tmp_path / "base")
    if place == "data":
        model = None
        shutil.rmtree(data.directory / "tokenizer")
        save_hf_tokenizer(load_tokenizer(), data.directory / "tokenizer", chat_template=own)
    elif place == "run":  # whose own exports have another one
        model = dataclasses.replace(model, template=data.manifest.template)
    lines = [line for line in notes(model, TokenizedDataset(data.directory)) if "replaces the chat template" in line]
    whose = {"weights": f"init.from={tmp_path / 'base'}", "data": f"the tokenizer of {data.name}"}.get(place)
    assert [whose is not None and f"of {whose} in training" in line for line in lines] == [True] * (whose is not None)


@pytest.mark.parametrize(
    ("rows", "weights", "noted"), [(96, None, 0), (352, None, 0), (32000, None, 1), (32000, "x", 0)]
)
def test_rows_of_the_embedding_that_no_token_uses_are_counted(data, rows, weights, noted):
    lines = unused_rows(dataclasses.replace(SMALL, vocab_size=rows), data, weights)
    assert len(lines) == noted
    if noted:
        assert "96 ids, so no token uses 31,904 of the 32,000 rows" in lines[0] and "model.vocab_size=96," in lines[0]
