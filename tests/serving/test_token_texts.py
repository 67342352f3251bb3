"""Single tokens of real kinds of tokenizers: their bytes together are the text, and each stands at its place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_jax.generation.detokenizer import Detokenizer
from janus_jax.serving.token_texts import Offsets, TokenTexts
from janus_jax.text.tokenizer import load_tokenizer, save_hf_tokenizer
from tests.support import tokenizers


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("tokenizers")
    save_hf_tokenizer(load_tokenizer(), place / "fallback")
    (place / "fallback" / "tokenizer.model").unlink()
    directories = {
        "byte fallback": place / "fallback",
        "byte level": tokenizers.byte_level(place / "byte_level", ["<|im_end|>"]),
    }
    result = {"sentencepiece": load_tokenizer()} | {name: load_tokenizer(path) for name, path in directories.items()}
    return {name: (tokenizer, Detokenizer(tokenizer)) for name, tokenizer in result.items()}


NAMES = ["sentencepiece", "byte fallback", "byte level"]


@pytest.mark.parametrize("name", NAMES)
@given(text=st.text("aé世😀👩‍ \n=", min_size=1, max_size=12))
def test_bytes_and_places_of_tokens_give_the_text(made, name, text):
    tokenizer, detokenizer = made[name]
    texts, ids = TokenTexts(tokenizer, detokenizer), tokenizer.encode(text)
    assert detokenizer.decode(ids) == text
    parts = [texts.bytes(number, begins=place == 0) for place, number in enumerate(ids)]
    assert b"".join(parts).decode() == text
    places = Offsets(texts, detokenizer).push(ids)
    before, whole = 0, text.encode()
    for part, place in zip(parts, places, strict=True):
        assert place == len(whole[:before].decode(errors="ignore")), (parts, places)
        before += len(part)


@pytest.mark.parametrize("name", NAMES)
def test_a_token_is_spelled(made, name):
    tokenizer, detokenizer = made[name]
    texts = TokenTexts(tokenizer, detokenizer)
    assert texts.bytes(tokenizer.eos_id) is None and texts.text(tokenizer.eos_id) == tokenizer.token(tokenizer.eos_id)
    assert (texts.bytes(10**6), texts.text(10**6)) == (None, "token_id:1000000")
    (number,) = [one for token, one in tokenizer.vocabulary().items() if token in ("<0xE4>", "ä")][:1]
    assert texts.bytes(number) in (b"\xe4", "ä".encode())
    unfinished = [i for i in range(300) if texts.bytes(i) == b"\xe4"]
    assert [texts.text(i) for i in unfinished] == ["bytes:\\xe4"] * len(unfinished) and unfinished


def test_an_answer_begins_without_the_blank_of_sentencepiece(made):
    tokenizer, detokenizer = made["sentencepiece"]
    texts, (number,) = TokenTexts(tokenizer, detokenizer), tokenizer.encode("Paris")
    assert (texts.text(number), texts.text(number, begins=True)) == (" Paris", "Paris")
    assert detokenizer.stream().push([number]) == "Paris"
    assert detokenizer.stream(inside=True).push([number]) == " Paris"
