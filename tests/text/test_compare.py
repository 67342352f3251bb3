"""Two tokenizers give the same ids in all that data can use, or the first difference is named."""

import json

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer

from janus_jax.text.compare import difference
from janus_jax.text.tokenizer import load_tokenizer, save_hf_tokenizer
from tests.support.tokenizers import byte_level_directory


@pytest.fixture
def directory(tmp_path):
    directory = byte_level_directory(tmp_path / "data")
    (directory / "tokenizer_config.json").write_text('{"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}')
    return directory


def changed(directory, tmp_path, change):
    """A copy whose tokenizer.json `change` has changed."""
    save_hf_tokenizer(load_tokenizer(directory), tmp_path / "model")
    file = tmp_path / "model" / "tokenizer.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return load_tokenizer(tmp_path / "model")


def test_tokens_that_texts_cannot_become_may_differ(directory, tmp_path):
    grown = RustTokenizer.from_file(str(directory / "tokenizer.json"))
    grown.add_special_tokens([AddedToken("<pad>", special=True), AddedToken("<unused>", special=True)])
    save_hf_tokenizer(load_tokenizer(directory), tmp_path / "model")
    grown.save(str(tmp_path / "model" / "tokenizer.json"))
    data, weights = load_tokenizer(directory), load_tokenizer(tmp_path / "model")
    assert data.fingerprint != weights.fingerprint and difference(data, weights, [1, 2]) == ""


def test_a_tokenizer_json_that_was_made_of_a_model_is_the_same(tmp_path):
    save_hf_tokenizer(load_tokenizer(), tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    assert difference(load_tokenizer(), load_tokenizer(tmp_path), [1, 2]) == ""


def swap_merges(content):
    merges = content["model"]["merges"]
    merges.reverse()


def swap_tokens(content):
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def no_merge(content):
    content["model"]["merges"].clear()


@pytest.mark.parametrize(
    ("change", "reason"),
    [(swap_tokens, "2 tokens have other ids: 'a' is "), (no_merge, "the text "), (swap_merges, "the text ")],
)
def test_other_vocabularies_and_merges_are_named(directory, tmp_path, change, reason):
    other = changed(directory, tmp_path, change)
    assert reason in difference(load_tokenizer(directory), other, [1, 2])


def test_another_control_token_of_the_data_is_named(directory, tmp_path):
    def rename(content):
        for token in content["added_tokens"]:
            token["content"] = token["content"].replace("<|im_end|>", "<|eot|>")
        content["model"]["vocab"] = {
            k.replace("<|im_end|>", "<|eot|>"): v for k, v in content["model"]["vocab"].items()
        }

    save_hf_tokenizer(load_tokenizer(directory), tmp_path / "model")
    (tmp_path / "model" / "tokenizer_config.json").write_text('{"bos_token": "<|im_start|>", "eos_token": "<|eot|>"}')
    (tmp_path / "model" / "special_tokens_map.json").unlink(missing_ok=True)
    file = tmp_path / "model" / "tokenizer.json"
    content = json.loads(file.read_text())
    rename(content)
    file.write_text(json.dumps(content))
    reason = difference(load_tokenizer(directory), load_tokenizer(tmp_path / "model"), [1, 2])
    assert reason == "id 2 is '<|im_end|>' in the data and '<|eot|>' in the model"
