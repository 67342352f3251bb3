"""Tokens that only the files beside a tokenizer.json or tokenizer.model declare, as transformers reads them."""

import json

import pytest
import transformers

from janus_jax.data.boundary import encode_example
from janus_jax.data.schema import Record
from janus_jax.errors import DataError
from janus_jax.text.chat_format import ChatFormat
from janus_jax.text.served import Conversation, check_built, require_servable
from janus_jax.text.template import CHATML, MISTRAL_INST, PLAIN
from janus_jax.text.tokenizer import load_tokenizer, save_hf_tokenizer
from tests.support.sentencepieces import trained
from tests.support.tokenizers import byte_level

INST, CHAT = list(MISTRAL_INST.marks), list(CHATML.marks)


def declare(directory, **config):
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | config))


def undeclared(directory, tokens):
    """A tokenizer whose vocabulary has `tokens`, but not as added tokens."""
    byte_level(directory, tokens, bos="<s>")
    content = json.loads((directory / "tokenizer.json").read_text())
    content["added_tokens"] = [one for one in content["added_tokens"] if one["content"] not in tokens]
    (directory / "tokenizer.json").write_text(json.dumps(content))
    return directory


def conversation(chat):
    record = Record("Be brief.", "the quick fox?", "brown fox")
    prompt, response = (part.tolist() for part in encode_example(chat, record, "sft")[:2])
    return Conversation("row 0", record.system, record.prompt, [record.chosen], prompt, [response])


@pytest.mark.parametrize("place", ["extra", "named", "additional", "decoder", "special_tokens_map.json"])
def test_tokens_of_the_vocabulary_that_only_a_config_declares_are_control_tokens(tmp_path, place):
    from transformers import AutoTokenizer

    directory = undeclared(tmp_path / "tokenizer", INST)
    ids = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    fields = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    keys = {
        "extra": {"extra_special_tokens": INST},
        "named": {"extra_special_tokens": {"a_token": INST[0], "b_token": INST[1]}},
        "additional": {"additional_special_tokens": INST},
        "decoder": {"added_tokens_decoder": {ids[one]: {"content": one, **fields} for one in [*INST, "<s>", "</s>"]}},
    }
    declare(directory, **keys.get(place, {}))
    if place not in keys:
        (directory / place).write_text(json.dumps({"additional_special_tokens": INST}))
    tokenizer = load_tokenizer(directory)
    assert [tokenizer.control_id(mark) for mark in INST] == [ids[mark] for mark in INST]
    assert [ids[mark] for mark in INST] == AutoTokenizer.from_pretrained(directory).convert_tokens_to_ids(INST)
    chat = ChatFormat(MISTRAL_INST, tokenizer)
    assert check_built(chat, [conversation(chat)], whole=True).checked == 1
    assert not {ids[mark] for mark in INST} & set(tokenizer.encode("".join(INST)))
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").fingerprint == tokenizer.fingerprint


def test_a_declaration_changes_the_fingerprint_only_if_it_changes_the_reading(tmp_path):
    directory = undeclared(tmp_path / "tokenizer", INST)
    before = load_tokenizer(directory).fingerprint
    declare(directory, extra_special_tokens=["</s>"])
    assert load_tokenizer(directory).fingerprint == before
    declare(directory, extra_special_tokens=INST)
    assert load_tokenizer(directory).fingerprint != before


def test_tokens_that_would_get_new_ids_are_refused_by_name_but_not_a_pad_token(tmp_path):
    padded = byte_level(tmp_path / "padded", config={"pad_token": "[PAD]"})
    require_servable(ChatFormat(CHATML, load_tokenizer(padded)))
    directory = byte_level(tmp_path / "tokenizer", bos="<s>")
    declare(directory, extra_special_tokens=CHAT)
    chat = ChatFormat(CHATML, load_tokenizer(directory))
    with pytest.raises(DataError, match=r"declares '<\|im_start\|>' \(new id \d+\), .*save_pretrained\(NEW\)"):
        require_servable(chat)


def test_the_model_type_of_an_export_decides_with_the_class_that_a_config_names(tmp_path):
    """Published Mistral files name LlamaTokenizer, which transformers uses beside a config.json of llama only: it reads
    white space in another way than their tokenizer.json."""
    save_hf_tokenizer(load_tokenizer(None), tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}
    content["pre_tokenizer"] = None
    content.pop("janus_jax_made_of", None)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    declare(tmp_path, tokenizer_class="LlamaTokenizer", legacy=True)
    require_servable(ChatFormat(MISTRAL_INST, load_tokenizer(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    other, text = transformers.AutoTokenizer.from_pretrained(tmp_path), "    if a[i] == 1"
    assert other(text, add_special_tokens=False)["input_ids"] != load_tokenizer(tmp_path).encode(text)


def sentencepiece(directory, config, **options):
    directory.mkdir()
    (directory / "tokenizer.model").write_bytes(trained(normalization_rule_name="identity", **options))
    declare(directory, **config)
    return directory


def test_bos_and_eos_beside_a_sentencepiece_model_are_read(tmp_path):
    config = {"eos_token": {"content": "<|im_end|>"}, "add_bos_token": False}
    directory = sentencepiece(tmp_path / "tokenizer", config, user_defined_symbols=CHAT)
    tokenizer = load_tokenizer(directory)
    end = tokenizer.control_id("<|im_end|>")
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, end) and end not in tokenizer.encode("a<|im_end|>b")
    chat = ChatFormat(CHATML, tokenizer)
    assert chat.encode_response("So.") == [*tokenizer.encode("So."), end]
    assert check_built(chat, [conversation(chat)], whole=True).checked == 1
    save_hf_tokenizer(tokenizer, tmp_path / "export", chat_template=chat.chat_template)
    assert load_tokenizer(tmp_path / "export").fingerprint == tokenizer.fingerprint


def test_pieces_that_are_declared_special_are_control_tokens(tmp_path):
    from transformers import AutoTokenizer

    config = {"tokenizer_class": "LlamaTokenizer", "extra_special_tokens": INST}
    directory = sentencepiece(tmp_path / "tokenizer", config, user_defined_symbols=INST)
    plain = sentencepiece(tmp_path / "plain", {}, user_defined_symbols=INST)
    tokenizer = load_tokenizer(directory)
    numbers = [tokenizer.control_id(mark) for mark in INST]
    assert numbers == AutoTokenizer.from_pretrained(directory).convert_tokens_to_ids(INST)
    assert not set(numbers) & set(tokenizer.encode("[INST] a [/INST]"))
    assert set(numbers) <= set(load_tokenizer(plain).encode("[INST] a [/INST]"))
    chat = ChatFormat(MISTRAL_INST, tokenizer)
    assert check_built(chat, [conversation(chat)], whole=True).checked == 1
    save_hf_tokenizer(tokenizer, tmp_path / "export")
    assert load_tokenizer(tmp_path / "export").fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"eos_token": "<|end|>"}, r"tokenizer_config.json: eos_token '<\|end\|>' is not in tokenizer.model; let tr"),
        ({"extra_special_tokens": ["<|user|>"]}, r"tokenizer_config.json: adds '<\|user\|>', which tokenizer.model"),
        ({"added_tokens_decoder": {"420": {"content": "<x>"}}}, r"tokenizer_config.json: adds '<x>', which"),
        ({"added_tokens_decoder": {"7": {"content": "</s>"}}}, r"config.json: gives '</s>' the id 7, .* it is 2"),
        ({"eos_token": {"content": "</s>", "rstrip": True}}, r"tokenizer_config.json: has '</s>' with rstrip: true"),
        (
            {"add_prefix_space": False, "do_lower_case": True},
            r"config.json: has add_prefix_space: false, do_lower_case",
        ),
        (
            {"legacy": False},
            r"config.json: has legacy: false, with which .* set legacy: true; .* let transformers write",
        ),
        ({"bos_token": ""}, r'config.json: bos_token is "" \(empty\).* such as "<s>"; .* set add_bos_token: false'),
        ({"eos_token": {"content": ""}}, r'config.json: eos_token is "" \(empty\).* such as "</s>"$'),
        ({"sp_model_kwargs": {"enable_sampling": True}}, r'has sp_model_kwargs: {"enable_sampling": true}, which'),
    ],
)
def test_what_a_sentencepiece_model_lacks_is_refused_by_name(tmp_path, config, reason):
    directory = sentencepiece(tmp_path / "tokenizer", config)
    with pytest.raises(DataError, match=reason):
        load_tokenizer(directory)


def test_settings_that_say_what_the_model_does_are_accepted(tmp_path):
    config = {"add_prefix_space": True, "legacy": True, "sp_model_kwargs": {}, "split_special_tokens": False}
    plain = sentencepiece(tmp_path / "plain", {})
    directory = sentencepiece(tmp_path / "tokenizer", config | {"added_tokens_decoder": {"2": {"content": "</s>"}}})
    assert load_tokenizer(directory).fingerprint == load_tokenizer(plain).fingerprint


@pytest.mark.parametrize("make", [lambda d: byte_level(d, ["<|end|>"]), lambda d: sentencepiece(d, {})])
def test_two_files_that_name_another_eos_are_refused_by_both_names(tmp_path, make):
    directory = make(tmp_path / "tokenizer")
    declare(directory, eos_token={"content": "</s>"})
    (directory / "special_tokens_map.json").write_text('{"eos_token": "<|end|>"}')
    reason = r"tokenizer_config.json: has eos_token '</s>', but special_tokens_map.json beside it has '<\|end\|>'"
    with pytest.raises(DataError, match=reason):
        load_tokenizer(directory)
    (directory / "special_tokens_map.json").write_text('{"eos_token": "</s>"}')
    assert load_tokenizer(directory).eos_id is not None


@pytest.mark.parametrize("make", [byte_level, lambda d: sentencepiece(d, {})])
def test_an_empty_token_is_none_at_all_or_refused(tmp_path, make):
    directory = make(tmp_path / "tokenizer")
    before = load_tokenizer(directory).fingerprint
    declare(directory, unk_token="", pad_token="", sep_token={"content": ""})
    assert load_tokenizer(directory).fingerprint == before
    declare(directory, bos_token="")
    with pytest.raises(DataError, match=r'tokenizer_config.json: bos_token is "" \(empty\)'):
        load_tokenizer(directory)


def test_legacy_false_is_read_by_transformers_as_the_error_says(tmp_path):
    """And both ways out lead to a tokenizer that loads, the second with the ids of transformers."""
    directory = sentencepiece(tmp_path / "tokenizer", {"tokenizer_class": "LlamaTokenizer", "legacy": False})
    ids = {}
    for legacy in (False, True):
        declare(directory, legacy=legacy)
        server = transformers.AutoTokenizer.from_pretrained(directory)
        ids[legacy] = server("<s>the quick fox", add_special_tokens=False)["input_ids"]
        server.save_pretrained(tmp_path / f"new {legacy}")
    assert ids[False] != ids[True] == [1, *load_tokenizer(directory).encode("the quick fox")]
    chat = ChatFormat(PLAIN, load_tokenizer(tmp_path / "new False"))
    assert chat.encode_prompt("", "the quick fox") == ids[False]


ADDED = {"<|im_end|>": True, "<|im_start|>": False}


def added(directory, place, first=420, **fields):
    """tokenizer.model and two tokens that follow it, as OpenHermes has them."""
    declared = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "eos_token": "<|im_end|>", "unk_token": "<unk>"}
    sentencepiece(directory, declared | {"bos_token": "<s>"}, vocab_size=420)
    numbers = {token: first + place for place, token in enumerate(ADDED)}
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False} | fields
    if place == "decoder":
        decoder = {numbers[token]: {"content": token, **flags, "special": special} for token, special in ADDED.items()}
        declare(directory, added_tokens_decoder=decoder)
    else:
        declare(directory, extra_special_tokens=["<|im_start|>"])
        (directory / "added_tokens.json").write_text(json.dumps(numbers))
    return directory


@pytest.mark.parametrize("place", ["decoder", "added_tokens.json"])
def test_tokens_that_follow_a_sentencepiece_model_are_read_as_transformers_reads_them(tmp_path, place):
    directory = added(tmp_path / "tokenizer", place)
    tokenizer, server = load_tokenizer(directory), transformers.AutoTokenizer.from_pretrained(directory)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.vocab_size) == (1, 420, 0, 422)
    chat = ChatFormat(CHATML, tokenizer)
    one = conversation(chat)
    text = "<s>" + chat.text(one.system, one.prompt, one.responses[0]) + "<|im_end|>"
    assert server(text, add_special_tokens=False)["input_ids"] == one.prompt_ids + one.response_ids[0]
    assert check_built(chat, [one], whole=True).checked == 1
    require_servable(chat)
    for number, save in enumerate((tokenizer.save, lambda path: save_hf_tokenizer(tokenizer, path))):
        save(tmp_path / f"saved {number}")
        assert load_tokenizer(tmp_path / f"saved {number}").fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("first", [420, 421])
@pytest.mark.parametrize("fields", [{}, {"normalized": True}])
def test_added_tokens_with_gaps_or_a_normalizer_before_them_are_refused_with_the_way_out(tmp_path, first, fields):
    directory = added(tmp_path / "tokenizer", "decoder", first, **fields)
    if (first, fields) == (420, {}):
        assert load_tokenizer(directory).eos_id == 420
        return
    with pytest.raises(DataError, match=r"'<\|im_end\|>'.* let transformers write a tokenizer.json"):
        load_tokenizer(directory)
