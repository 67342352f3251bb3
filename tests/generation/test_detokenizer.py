"""Text that comes token by token is in the end the text of all tokens, and never shows half a character."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_jax.generation.detokenizer import Detokenizer
from janus_jax.text.tokenizer import load_tokenizer, save_hf_tokenizer
from tests.support import sentencepieces, tokenizers

TEXT = "Hello there, naïve café!  世界 안녕 👩‍👩‍👧 e\u0301\n\n\tdef f(x):\n    return x � done"


def _trained(directory, **options):
    directory.mkdir()
    (directory / "tokenizer.model").write_bytes(sentencepieces.trained(**options))
    return load_tokenizer(directory)


def _byte_fallback(directory):
    """The embedded tokenizer as other programs read it."""
    save_hf_tokenizer(load_tokenizer(), directory)
    (directory / "tokenizer.model").unlink()
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("tokenizers")
    return {
        "sentencepiece": load_tokenizer(),
        "trained": _trained(place / "trained"),
        "no prefix": _trained(place / "no_prefix", add_dummy_prefix=False, remove_extra_whitespaces=False),
        "byte fallback": _byte_fallback(place / "byte_fallback"),
        "byte level": load_tokenizer(tokenizers.byte_level(place / "byte_level", ["<|im_end|>"])),
        "metaspace": load_tokenizer(tokenizers.metaspace(place / "metaspace", "first")),
    }


@pytest.fixture(scope="module")
def detokenizers(made):
    return {name: Detokenizer(tokenizer) for name, tokenizer in made.items()}


NAMES = ["sentencepiece", "trained", "no prefix", "byte fallback", "byte level", "metaspace"]
WHOLE = ["sentencepiece", "byte fallback", "byte level"]
"""Those whose vocabulary has any text."""


def streamed(detokenizer, ids):
    stream = detokenizer.stream()
    return [*(stream.push([number]) for number in ids), stream.finish()]


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_random_ids_give_the_text_of_all_of_them(made, detokenizers, name, data):
    tokenizer, detokenizer = made[name], detokenizers[name]
    whole = tokenizer.decode
    some = st.integers(0, tokenizer.vocab_size - 1) | st.integers(0, min(300, tokenizer.vocab_size - 1))
    ids = []
    for part in data.draw(st.lists(some | st.sampled_from(["世", "👩", "é", " a", "  ", "\n", "�", "x"]), max_size=24)):
        ids += tokenizer.encode(part)[: data.draw(st.integers(1, 4))] if isinstance(part, str) else [part]
    assert "".join(streamed(detokenizer, ids)) == whole(ids)
    cut = data.draw(st.integers(0, len(ids)))
    stream = detokenizer.stream()
    assert whole(ids).startswith(stream.push(ids[:cut]))
    assert whole([*ids[:cut], *ids[:5]]).startswith(streamed(detokenizer, ids[:cut])[0])


@pytest.mark.parametrize("name", WHOLE)
def test_characters_come_whole(made, detokenizers, name):
    detokenizer = detokenizers[name]
    pieces = streamed(detokenizer, made[name].encode(TEXT))
    assert "".join(pieces) == TEXT
    assert "".join(pieces).count("�") == 1
    assert len([piece for piece in pieces if piece]) > 15


@pytest.mark.parametrize("name", WHOLE)
def test_a_word_is_shown_as_soon_as_it_is_there(made, detokenizers, name):
    detokenizer = detokenizers[name]
    ids = made[name].encode("the quick brown fox")
    *pieces, rest = streamed(detokenizer, ids)
    assert all(pieces) and rest == ""


def test_characters_of_several_bytes_do_not_wait_for_the_next_word(detokenizers):
    """Unless the tokenizer makes text of whole runs of bytes: then one more byte may turn all of it to nothing."""
    numbers = [3 + byte for byte in "中é".encode()]
    pieces = {name: streamed(detokenizers[name], numbers) for name in ("sentencepiece", "byte fallback")}
    assert pieces["sentencepiece"] == ["", "", "中", "", "é", ""]
    assert pieces["byte fallback"] == ["", "", "", "", "", "中é"]
    assert streamed(detokenizers["byte fallback"], [*numbers, 3 + 0xFF])[-1] == "�" * 6


def test_a_control_token_takes_no_blank_from_the_next_word(made, detokenizers):
    tokenizer = made["sentencepiece"]
    hello, world = tokenizer.encode("hello"), tokenizer.encode("world")
    assert "".join(streamed(detokenizers["sentencepiece"], [*hello, 2, *world])) == "hello world"


@pytest.mark.parametrize("name", NAMES)
def test_ids_that_the_tokenizer_does_not_have_are_no_text(made, detokenizers, name):
    """A model's vocabulary may be padded."""
    tokenizer = made[name]
    ids = tokenizer.encode("ab")
    assert "".join(streamed(detokenizers[name], [tokenizer.vocab_size + 7, *ids, 10**6])) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", WHOLE)
def test_a_stop_string_lies_across_tokens_and_inside_one(made, detokenizers, name):
    tokenizer = made[name]
    detokenizer, ids = detokenizers[name], tokenizer.encode("One line.\nUser: and more text")
    for stop, left in (("ne.\nUs", "One li"), ("ser:", "One line.\nU"), ("text", "One line.\nUser: and more ")):
        stream = detokenizer.stream([stop, "nowhere"])
        assert stream.push(ids) + stream.finish() == left
        assert stream.stopped == stop
        assert stop in tokenizer.decode(ids[: stream.count]) and stop not in tokenizer.decode(ids[: stream.count - 1])
        assert stream.push(ids) == "" and stream.count < 2 * len(ids)


def test_what_was_held_back_may_complete_a_stop_string_at_the_end(detokenizers):
    stream = detokenizers["byte fallback"].stream(["é"])
    assert stream.push([3 + byte for byte in "中é".encode()]) == ""
    assert (stream.finish(), stream.stopped) == ("中", "é")
