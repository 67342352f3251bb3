import itertools
import random
from functools import cache

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from janus_jax.errors import DataError
from janus_jax.text import sentencepiece_normalizer
from janus_jax.text.sentencepiece_corpus import EXOTIC, corpus
from janus_jax.text.sentencepiece_json import first_difference, require_equal, tokenizer_json
from janus_jax.text.tokenizer import EMBEDDED
from tests.support.sentencepieces import trained

SYMBOLS = ["<|im_start|>", "<|im_end|>", "<|im", "ab", "[INST]", "é"]
PARTS = [*SYMBOLS, " ", "  ", "▁", "\n", "\t", "\r\n", "\x01", "\u200b", "\0", "\ufeff", "\u00a0", "\u0301"]
PARTS += ["<s>", "</s>", "<unk>", "<0x0A>", "<0xE2>", "[/INST]", "hello", "world", "The", "aaaa", "don't"]
PARTS += [
    "\ufb01",
    "\u212b",
    "e\u0301",
    "e\u0302\u0323",
    "\uac01",
    "\u1100\u1161\u11a8",
    "\uac00\u11a8",
    "\u314b\u314b",
]
PARTS += [
    "\uff76\uff9e",
    "\uff21",
    "\uff5e",
    "\u0130",
    "I\u0307",
    "\u1fb3",
    "\u03b1\u0345",
    "\u0958",
    "\u0e19\u0e49\u0e33",
]
PARTS += ["漢字", "\U0001d54f", "👩\u200d👩", "🇩🇪", "\u334d", "\u00bd", "\U000f0000", "\uffff", "\u0600a"]


@cache
def read(model: bytes, content: str) -> tuple[sentencepiece.SentencePieceProcessor, tokenizers.Tokenizer]:
    rust = tokenizers.Tokenizer.from_str(content)
    rust.encode_special_tokens = True
    return sentencepiece.SentencePieceProcessor(model_proto=model), rust


def ids(model: bytes, content: str, texts: list[str]) -> tuple[list[list[int]], list[list[int]]]:
    """Ids from sentencepiece and from the tokenizers library, which both read alone."""
    processor, rust = read(model, content)
    return processor.encode(texts), [e.ids for e in rust.encode_batch(texts, add_special_tokens=False)]


def mixed(model: bytes, count: int = 400) -> list[str]:
    rng = random.Random(count)
    pieces = sentencepiece_model_pb2.ModelProto.FromString(model).pieces
    parts = (PARTS, [piece.piece.replace("▁", " ") for piece in pieces])
    texts = ["".join(rng.choice(rng.choice(parts)) for _ in range(rng.randint(0, 7))) for _ in range(count)]
    return [*PARTS, *(piece.piece for piece in pieces), *texts]


OPTIONS = {
    "model_type": ["bpe", "unigram"],
    "normalization_rule_name": ["identity", "nmt_nfkc", "nmt_nfkc_cf"],
    "add_dummy_prefix": [True, False],
    "remove_extra_whitespaces": [True, False],
    "byte_fallback": [True, False],
    "user_defined_symbols": [[], SYMBOLS],
    "control_symbols": [[], ["[/INST]", "<tool>"]],
    "treat_whitespace_as_suffix": [False, True],
}
ALL = [dict(zip(OPTIONS, values, strict=True)) for values in itertools.product(*OPTIONS.values())]


@pytest.mark.parametrize("options", random.Random(0).sample(ALL, 48), ids=lambda o: "-".join(map(str, o.values())))
def test_ids_are_those_of_sentencepiece(options):
    model = trained(**options)
    texts = mixed(model)
    expected, got = ids(model, tokenizer_json(model, name="m"), texts)
    different = [text for text, a, b in zip(texts, expected, got, strict=True) if a != b and not tie(model, a, b)]
    assert not different


def tie(model: bytes, expected: list[int], got: list[int]) -> bool:
    """Whether a unigram model finds both as good: the same pieces in another order."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    return proto.trainer_spec.model_type == 1 and sorted(expected) == sorted(got)


def replaced(rules: dict[str, str], tmp_path) -> dict[str, str]:
    path = tmp_path / "rules.tsv"
    sides = [[" ".join(f"{ord(c):X}" for c in side) for side in rule] for rule in rules.items()]
    path.write_text("".join(f"{source}\t{target}\n" for source, target in sides))
    return {"normalization_rule_tsv": str(path)}


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_rules_of_ones_own_apply_longest_first(kind, tmp_path):
    rules = {"The": "x", "hello": "hi", "hello w": "yo", "a": "b", "ab": "ba", "é": "e", "\n": " ", "d": "", "ﬁ": "fi"}
    model = trained(model_type=kind, **replaced(rules, tmp_path))
    content = tokenizer_json(model, name="m")
    expected, got = ids(model, content, [*mixed(model), "".join(rules) * 2, "hello wThe aab abaé", "dd", " d "])
    assert [a for a, b in zip(expected, got, strict=True) if a != b and not tie(model, a, b)] == []


def test_too_many_rules_of_ones_own_are_refused(tmp_path):
    rules = {f"{a}{b}": f"{b}{a}" for a, b in itertools.permutations("abcdefghijk", 2)}
    with pytest.raises(DataError, match=r"^here: cannot become a tokenizer.json: 110 normalizer rules need"):
        tokenizer_json(trained(**replaced(rules, tmp_path)), name="here")


@pytest.mark.parametrize("normalization", ["identity", "nmt_nfkc"])
def test_symbols_of_spaces_and_line_ends(normalization):
    symbols = ["\n", "<\uff5cUser\uff5c>", "new york", "▁foo", *(["    "] if normalization == "identity" else [])]
    options = {"normalization_rule_name": normalization, "remove_extra_whitespaces": normalization != "identity"}
    model = trained(user_defined_symbols=symbols, **options)
    texts = ["".join(p) for p in itertools.product(["", " ", "a", *symbols, " foo", "     "], repeat=3)]
    expected, got = ids(model, tokenizer_json(model, name="m"), texts)
    assert expected == got


def test_spaces_that_stay_spaces():
    proto = sentencepiece_model_pb2.ModelProto.FromString(trained())
    proto.normalizer_spec.escape_whitespaces = False
    model = proto.SerializeToString()
    expected, got = ids(model, tokenizer_json(model, name="m"), mixed(model))
    assert expected == got


@cache
def standard() -> tuple[bytes, str]:
    model = trained(normalization_rule_name="nmt_nfkc", user_defined_symbols=SYMBOLS)
    return model, tokenizer_json(model, name="m")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.text(), st.sampled_from(PARTS)), max_size=6).map("".join))
def test_any_text(text):
    kinds = {c for examples in EXOTIC.values() for example in examples for c in example if c > "\uffff"}
    expected, got = ids(*standard(), [text])
    assert expected == got or set(text) & kinds


def test_text_returns():
    model, content = standard()
    processor, rust = sentencepiece.SentencePieceProcessor(model_proto=model), tokenizers.Tokenizer.from_str(content)
    for text in ["hello world", "  hello  ", "<|im_start|>The fox 世界\n", "née 漢字"]:
        assert rust.decode(processor.encode(text)) == processor.decode(processor.encode(text))


def test_the_embedded_model_is_equal_everywhere():
    model = EMBEDDED.read_bytes()
    assert require_equal(model, tokenizer_json(model, name="m"), name="m") == []


def test_a_standard_model_differs_in_exotic_texts_alone():
    model, content = standard()
    notes = require_equal(model, content, name="made/tokenizer.json")
    assert len(notes) == len(EXOTIC)
    assert all(note.startswith("made/tokenizer.json gives other ids") for note in notes)


def test_the_first_difference_is_the_first():
    model, other = trained(), tokenizer_json(trained(add_dummy_prefix=False), name="m")
    assert first_difference(model, other, ["", "  ", "hello", "world"]) == (
        "hello",
        *(rows[0] for rows in ids(model, other, ["hello"])),
    )
    assert first_difference(model, tokenizer_json(model, name="m"), ["", "  ", "hello"]) is None


def test_another_tokenizer_is_refused_with_a_short_text():
    model = trained(user_defined_symbols=["<|im_start|>"])
    other = tokenizers.Tokenizer.from_str(tokenizer_json(model, name="m"))
    other.pre_tokenizer = None  # what converters make of symbols
    with pytest.raises(DataError) as refused:
        require_equal(
            model, other.to_str(), name="dir/tokenizer.json", texts=["hello", "say <|im_start|> to the world"]
        )
    message = str(refused.value)
    assert message.startswith("dir/tokenizer.json: gives other tokens than tokenizer.model: '<|im_start|>' becomes")
    assert "▁ <|im_start|>" in message
    assert "put it beside tokenizer.model" in message


@pytest.mark.parametrize("kind", ["word", "char"])
def test_kinds_that_no_tokenizer_json_can_hold(kind):
    with pytest.raises(DataError, match=rf"^here: a model of {kind} pieces.*BPE and unigram only; bring the tokenizer"):
        tokenizer_json(trained(model_type=kind, byte_fallback=False), name="here")


@pytest.mark.parametrize("content", [b"", b"no model"])
def test_no_model(content):
    with pytest.raises(DataError, match=r"^here: not a sentencepiece model$"):
        tokenizer_json(content, name="here")


def test_a_model_that_cannot_be_imitated_is_refused():
    proto = sentencepiece_model_pb2.ModelProto.FromString(trained())
    for piece in proto.pieces:
        piece.score = -1.0  # the order of merges is then that of the text
    model = proto.SerializeToString()
    with pytest.raises(DataError, match=r"gives other tokens than tokenizer.model"):
        require_equal(model, tokenizer_json(model, name="m"), name="m")


def test_the_corpus_is_the_same_each_time():
    pieces, symbols = ["▁a", "b", "<x>"], ["<x>"]
    texts = list(corpus(pieces, symbols))
    assert texts == list(corpus(pieces, symbols))
    assert {"", " a", "b", "<x>", "a<x>b", "\0", "▁"} <= set(texts)


def test_sentencepiece_logs_nothing_where_its_rules_are_compiled(capfd):
    sentencepiece.SetMinLogLevel(0)  # as in a new process
    assert sentencepiece_normalizer._compile({"a": "b"})
    assert capfd.readouterr() == ("", "")
