"""Tokenizers against recorded ids of raw sentencepiece and mistral_common, and through transformers."""

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece

from janus_jax.errors import DataError
from janus_jax.text.chat_format import ChatFormat
from janus_jax.text.template import CHATML, MISTRAL_INST, PLAIN
from janus_jax.text.tokenizer import EMBEDDED, HFTokenizer, SentencePieceTokenizer, load_tokenizer, save_hf_tokenizer
from tests.support.tokenizers import byte_level_directory

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "tokenizer.json").read_text())
TEXTS = [case["text"] for case in GOLDEN["texts"]]


@pytest.fixture(scope="module")
def embedded():
    return load_tokenizer()


@pytest.fixture(scope="module")
def exported(embedded, tmp_path_factory) -> Path:
    """The embedded tokenizer as files of an exported Mistral directory, config.json included."""
    directory = tmp_path_factory.mktemp("exported")
    (directory / "config.json").write_text('{"model_type": "mistral", "architectures": ["MistralForCausalLM"]}')
    save_hf_tokenizer(embedded, directory, chat_template=ChatFormat(MISTRAL_INST, embedded).chat_template)
    return directory


@pytest.fixture(scope="module")
def auto(exported):
    """What transformers makes of the exported directory."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(exported)


def fuzz_texts(count: int) -> list[str]:
    """Random strings that lean on spaces, newlines, marks, digits, accents, CJK, emoji and control characters."""
    rng = random.Random(11)
    parts = [" ", "  ", "\n", "\t", "▁", "the", "The", "ing", "INST", "[", "]", "/", "0", "42", "é", "ß", "中", "文"]
    parts += [
        "😀",
        "👍🏽",
        "\0",
        "\x07",
        "\u00a0",
        "\u200b",
        ".",
        ",",
        "'s",
        "-",
        "_",
        "Ω",
        "العربية",
        "한",
        "ﬁ",
        "<",
        ">",
    ]
    words = [piece.replace("▁", "") for piece in sentencepiece_pieces()[300:32000:37]]
    return ["".join(rng.choice(rng.choice([parts, words])) for _ in range(rng.randint(0, 25))) for _ in range(count)]


def sentencepiece_pieces() -> list[str]:
    raw = sentencepiece.SentencePieceProcessor(model_file=str(EMBEDDED))
    return [raw.id_to_piece(i) for i in range(raw.vocab_size())]


def test_embedded_model_is_the_published_file(embedded):
    published = "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055"
    assert hashlib.sha256(EMBEDDED.read_bytes()).hexdigest() == published == embedded.fingerprint
    assert published in (EMBEDDED.parent / "NOTICE").read_text()
    assert "Apache License" in (EMBEDDED.parent / "LICENSE").read_text()
    assert (embedded.vocab_size, embedded.bos_id, embedded.eos_id, embedded.unk_id) == (32000, 1, 2, 0)


@pytest.mark.parametrize("case", GOLDEN["texts"], ids=lambda case: ascii(case["text"])[:30])
def test_ids_equal_recorded_raw_sentencepiece(embedded, case):
    assert embedded.encode(case["text"]) == case["ids"]


@pytest.mark.parametrize("text", ["<s>", "</s>", "<unk>", "a <s> b", "</s></s>"])
def test_special_token_text_stays_text(embedded, text):
    ids = embedded.encode(text)
    assert not {0, 1, 2} & set(ids)
    assert embedded.decode(ids) == text


def test_decode_gives_the_text_back_and_leaves_special_ids_out(embedded):
    for text in ("Why does bread rise?", "  two  spaces ", "line\nline", "😀 中文", "a\0b"):
        assert embedded.decode([1, *embedded.encode(text), 2]) == text


def test_saved_tokenizer_loads_equal(embedded, tmp_path):
    embedded.save(tmp_path / "t")
    again = load_tokenizer(tmp_path / "t")
    assert again.fingerprint == embedded.fingerprint
    assert [again.encode(text) for text in TEXTS] == [embedded.encode(text) for text in TEXTS]


def test_exported_directory_loads_as_sentencepiece(exported, embedded):
    again = load_tokenizer(exported)
    assert isinstance(again, SentencePieceTokenizer)
    assert again.fingerprint == embedded.fingerprint


def test_what_was_made_of_a_model_is_copied_and_not_made_again(exported, tmp_path, monkeypatch):
    again = load_tokenizer(exported)
    monkeypatch.setattr("janus_jax.text.tokenizer.tokenizer_json", None)
    monkeypatch.setattr("janus_jax.text.tokenizer._embedded_json", None)
    save_hf_tokenizer(again, tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (exported / "tokenizer.json").read_bytes()
    assert isinstance(load_tokenizer(tmp_path), SentencePieceTokenizer)


def test_exported_files_leave_the_model_config_alone(exported):
    assert json.loads((exported / "config.json").read_text())["model_type"] == "mistral"


def test_transformers_gives_sentencepiece_ids_on_fuzzed_text(auto):
    raw = sentencepiece.SentencePieceProcessor(model_file=str(EMBEDDED))
    texts = [text for text in fuzz_texts(600) + TEXTS if not any(token in text for token in ("<s>", "</s>", "<unk>"))]
    assert len(texts) > 600
    wrong = [text for text in texts if auto(text, add_special_tokens=False)["input_ids"] != raw.encode(text)]
    assert wrong == []


def test_transformers_puts_bos_once_and_pads_with_eos(auto):
    assert auto("Hi").input_ids == [1, 15359]
    assert (auto.bos_token_id, auto.eos_token_id, auto.unk_token_id, auto.pad_token_id) == (1, 2, 0, 2)
    assert auto.decode([1, 15359, 736, 2], skip_special_tokens=True) == "Hi there"


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_exported_chat_template_gives_the_ids_of_training(auto, embedded, system):
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": "Why does\n bread rise?"})
    prompt = ChatFormat(MISTRAL_INST, embedded).encode_prompt(system, "Why does\n bread rise?")
    assert auto.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == prompt

    messages.append({"role": "assistant", "content": "Yeast."})
    response = ChatFormat(MISTRAL_INST, embedded).encode_response("Yeast.")
    assert auto.apply_chat_template(messages, return_dict=False) == prompt + response


def test_exported_chat_template_follows_the_template_of_the_data(embedded, tmp_path):
    from transformers import AutoTokenizer

    save_hf_tokenizer(embedded, tmp_path, chat_template=ChatFormat(CHATML, embedded).chat_template)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "<s>" + CHATML.prompt_text("Be brief.", "Why?")


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_an_exported_plain_template_takes_one_prompt_and_one_response(embedded, tmp_path, system):
    from transformers import AutoTokenizer

    save_hf_tokenizer(embedded, tmp_path, chat_template=ChatFormat(PLAIN, embedded).chat_template)
    apply = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template
    asked = "\n\nHuman: Why does\n bread rise?\n\nAssistant:"
    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": asked})
    prompt = ChatFormat(PLAIN, embedded).encode_prompt(system, asked)
    assert apply(turns, add_generation_prompt=True, return_dict=False) == prompt
    answer = {"role": "assistant", "content": "Yeast."}
    response = ChatFormat(PLAIN, embedded).encode_response("Yeast.")
    assert apply([*turns, answer], return_dict=False) == prompt + response
    for bad in ([*turns, answer, turns[-1]], [answer], [*turns, turns[-1]]):
        with pytest.raises(Exception, match="no marks between turns"):
            apply(bad, tokenize=False)


def test_hf_directory_tokenizer_equals_transformers_on_ordinary_text(tmp_path):
    from transformers import AutoTokenizer

    directory = byte_level_directory(tmp_path)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = load_tokenizer(directory), AutoTokenizer.from_pretrained(directory)
    assert isinstance(ours, HFTokenizer)
    assert (ours.bos_id, ours.eos_id, ours.unk_id, ours.vocab_size) == (1, 2, None, len(theirs))
    for text in [text for text in TEXTS if "<|" not in text]:
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.decode(ours.encode(text)) == text


def test_hf_special_tokens_in_text_stay_text_but_ordinary_added_words_do_not(tmp_path):
    directory = byte_level_directory(tmp_path)
    (directory / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|im_end|>"}}')
    tokenizer = load_tokenizer(directory)
    ids = tokenizer.encode("bread<|im_end|>the")
    assert not {0, 1, 2} & set(ids)
    assert tokenizer.decode(ids) == "bread<|im_end|>the"
    assert tokenizer.encode("janusword") == [tokenizer.vocab_size - 1]
    assert tokenizer.bos_id is None


def test_hf_add_bos_token_false_is_believed(tmp_path):
    directory = byte_level_directory(tmp_path)
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "add_bos_token": False}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(directory)
    assert tokenizer.bos_id is None
    ids = ChatFormat(MISTRAL_INST, tokenizer).encode_prompt("", "the bread")
    assert tokenizer.decode(ids) == "[INST] the bread [/INST]"


def test_hf_bos_token_null_is_believed_beside_a_config_json(tmp_path):
    """As Qwen has it, whose config.json names a bos_token_id."""
    from transformers import AutoTokenizer

    directory = byte_level_directory(tmp_path / "in")
    (directory / "config.json").write_text('{"model_type": "llama", "bos_token_id": 0, "eos_token_id": 2}')
    declared = {"bos_token": None, "eos_token": "<|im_end|>", "tokenizer_class": "Qwen2Tokenizer"}
    (directory / "tokenizer_config.json").write_text(json.dumps(declared))
    tokenizer = load_tokenizer(directory)
    assert tokenizer.bos_id is AutoTokenizer.from_pretrained(directory).bos_token is None
    save_hf_tokenizer(tokenizer, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").bos_token is load_tokenizer(tmp_path / "out").bos_id is None


def test_hf_tokenizer_with_ids_from_config_saves_and_exports_complete(tmp_path):
    directory = byte_level_directory(tmp_path / "in")
    (directory / "config.json").write_text('{"model_type": "llama", "bos_token_id": 1, "eos_token_id": [2, 0]}')
    tokenizer = load_tokenizer(directory)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    save_hf_tokenizer(tokenizer, tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()
    again = load_tokenizer(tmp_path / "out")
    assert (again.bos_id, again.eos_id, again.fingerprint) == (1, 2, tokenizer.fingerprint)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (directory / "tokenizer.json").read_bytes()


def test_a_sentencepiece_model_keeps_the_template_and_the_pad_token_that_lie_beside_it(embedded, tmp_path):
    from transformers import AutoTokenizer

    embedded.save(tmp_path / "in")
    wording = {"chat_template": "{{ 'theirs' }}", "pad_token": "<unk>", "tokenizer_class": "LlamaTokenizer"}
    wording |= {"padding_side": "left", "model_max_length": 2048}
    (tmp_path / "in" / "tokenizer_config.json").write_text(json.dumps(wording))
    load_tokenizer(tmp_path / "in").save(tmp_path / "built")  # as a data set or a converted model keeps it
    save_hf_tokenizer(load_tokenizer(tmp_path / "built"), tmp_path / "out")
    result = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (result.chat_template, result.pad_token, result.eos_token) == ("{{ 'theirs' }}", "<unk>", "</s>")
    assert (result.padding_side, result.model_max_length) == ("left", 2048)
    assert result("a b").input_ids == [1, *embedded.encode("a b")]


def test_no_template_is_made_up(embedded, tmp_path):
    from transformers import AutoTokenizer

    save_hf_tokenizer(embedded, tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template is None


def test_tokens_that_the_sentencepiece_model_does_not_know_are_refused(embedded, tmp_path):
    embedded.save(tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<unk>": 0, "<|im_start|>": 32000}')
    with pytest.raises(DataError, match=r"adds .*im_start.*, which tokenizer.model does not know"):
        load_tokenizer(tmp_path)


def test_tokenizer_json_wins_over_tokenizer_model_when_tokens_were_added(exported, tmp_path):
    import tokenizers

    grown = tokenizers.Tokenizer.from_file(str(exported / "tokenizer.json"))
    grown.add_special_tokens(["<|im_end|>"])
    save_hf_tokenizer(load_tokenizer(), tmp_path)
    grown.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).vocab_size == 32001


def bad_directories(root: Path):
    (root / "empty").mkdir()
    yield root / "missing", "no such directory"
    yield root / "empty", "neither tokenizer.json nor tokenizer.model"
    (root / "text").mkdir()
    (root / "text" / "tokenizer.model").write_text("this is no model")
    yield root / "text", "tokenizer.model: not a sentencepiece model"
    (root / "json").mkdir()
    (root / "json" / "tokenizer.json").write_text('{"model": ')
    yield root / "json", "tokenizer.json: not a tokenizers file"
    yield byte_level_directory(root / "no_eos"), "no end-of-sequence token"
    wrong = byte_level_directory(root / "wrong_eos")
    (wrong / "tokenizer_config.json").write_text('{"eos_token": "<eos>"}')
    yield wrong, "eos_token '<eos>' is not in tokenizer.json"


def test_bad_directories_are_refused_in_one_clear_line(tmp_path):
    for directory, message in bad_directories(tmp_path):
        with pytest.raises(DataError) as caught:
            load_tokenizer(directory)
        assert message in str(caught.value) and str(directory) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_importing_and_encoding_needs_neither_transformers_nor_tensorflow():
    code = (
        "import sys; from janus_jax.text.tokenizer import load_tokenizer;"
        "load_tokenizer().encode('a'); print([m for m in ('transformers', 'tensorflow', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
