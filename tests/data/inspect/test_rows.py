"""What is shown of a row: texts, roles and slots, against the examples that went in."""

import itertools

import numpy as np
import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers

from janus_jax.data.dataset import TokenizedDataset
from janus_jax.data.epoch import BatchSettings, PackedEpochs
from janus_jax.data.inspect.opened import DirectoryOptions, OpenedSplit, open_splits
from janus_jax.data.inspect.rows import CHOSEN, EOS, PADDING, PROMPT, REJECTED, annotate_rows
from janus_jax.data.inspect.token_text import MORE_BYTES, TokenDecoder, beginning, visible
from janus_jax.errors import ConfigError
from janus_jax.text.chat_format import ChatFormat
from janus_jax.text.template import MISTRAL_INST
from janus_jax.text.tokenizer import HFTokenizer, load_tokenizer
from tests.support.sentencepieces import trained
from tests.support.tokenizers import byte_level as control_directory

TEXTS = [("What is rain?", "Water  that\n falls 🐇.", "Sun."), ("Why?", "So.", "No, not so.")]


def row_of(directory, decoder, **options):
    opened = open_splits(str(directory), options=DirectoryOptions(row_length=64, **options))[0]
    return annotate_rows(opened, 0, [0], decoder)[0]


def text_of(row, segment, role, branch) -> str:
    parts = [part for part in segment.spans if part.role == role and part.branch == branch]
    return "".join(text for part in parts for text in row.texts[part.start : part.end] if text != MORE_BYTES)


@pytest.mark.parametrize("kind", ["dpo", "rm"])
def test_each_part_reads_as_the_text_that_went_in(write, tokenizer, kind):
    row = row_of(write(kind, train=TEXTS), TokenDecoder(tokenizer))
    assert {segment.example for segment in row.segments} == {0, 1}
    for segment in row.segments:
        prompt, chosen, rejected = TEXTS[segment.example]
        shared, last = text_of(row, segment, PROMPT, 0), text_of(row, segment, PROMPT, 1)
        assert shared + last == "<s> " + prompt and last == text_of(row, segment, PROMPT, 2) == "?"
        assert text_of(row, segment, CHOSEN, 1) == " " + chosen
        assert text_of(row, segment, REJECTED, 2) == " " + rejected
        ends = [part for part in segment.spans if part.role == EOS]
        if kind == "dpo":  # the end is predicted, on the last slot of each branch
            assert not ends and [int(row.targets[at]) for at in segment.eos_targets] == [2, 2]
            assert all(row.weights[at] == 1 for at in segment.eos_targets)
        else:  # it is fed, and the reward is read there
            assert [row.texts[part.start] for part in ends] == ["</s>", "</s>"] and segment.eos_targets == []
            assert all(row.weights[part.start] == 1 for part in ends)


def test_parts_cover_every_slot_once(write, tokenizer):
    row = row_of(write("dpo", train=TEXTS), TokenDecoder(tokenizer))
    slots = [at for segment in row.segments for part in segment.spans for at in range(part.start, part.end)]
    assert slots == list(range(row.used)) and row.used == int((row.segment > 0).sum()) < 64
    assert (row.roles[row.used :] == PADDING).all() and set(row.texts[row.used :]) == {""}
    for before, after in itertools.pairwise(row.segments):
        assert before.end == after.start


def test_whole_copies_of_a_prompt_are_prompt_in_each_branch(write, tokenizer):
    dataset = TokenizedDataset(write("dpo", train=TEXTS[:1]))
    settings = BatchSettings(64, 64, rows=1, share_prompts=False)
    opened = OpenedSplit("split", PackedEpochs(dataset, settings, branches=2), "dpo", None)
    row = annotate_rows(opened, 0, [0], TokenDecoder(tokenizer))[0]
    for branch in (1, 2):
        assert text_of(row, row.segments[0], PROMPT, branch) == "<s> What is rain?"
    assert text_of(row, row.segments[0], PROMPT, 0) == ""


def test_a_single_response_is_no_chosen_one(write, tokenizer):
    row = row_of(write("sft", train=[texts[:2] for texts in TEXTS]), TokenDecoder(tokenizer))
    assert row.role_names[CHOSEN] == "response" and not (row.roles == REJECTED).any()


def test_a_row_that_is_not_there_is_refused(write, tokenizer):
    opened = open_splits(str(write("dpo", train=TEXTS)))[0]
    with pytest.raises(ConfigError, match=r"--row 1: .* has rows 0 to 0 in epoch 4"):
        annotate_rows(opened, 4, [1], TokenDecoder(tokenizer))


def byte_level(directory) -> HFTokenizer:
    """A byte-level tokenizer, as GPT-2's, of 256 bytes and EOS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    rust = RustTokenizer(models.BPE({**{piece: id for id, piece in enumerate(alphabet)}, "<end>": 256}, []))
    rust.pre_tokenizer, rust.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    rust.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    return HFTokenizer(directory)


@pytest.mark.parametrize("text", [" a  b\n", "🐇🐇x", "中é", "\t<s>", "x" * 40, "\0"])
@pytest.mark.parametrize("kind", ["sentencepiece", "bytes"])
def test_pieces_join_to_the_text(tokenizer, tmp_path, text, kind):
    chosen = tokenizer if kind == "sentencepiece" else byte_level(tmp_path)
    ids = chosen.encode(text)
    result = TokenDecoder(chosen).tokens(ids)
    assert len(result) == len(ids)
    assert "".join(piece for piece in result if piece != MORE_BYTES) == (" " if kind == "sentencepiece" else "") + text


def test_bytes_that_are_no_character_are_shown_by_their_ids(tmp_path):
    tokenizer = byte_level(tmp_path)
    rabbit = tokenizer.encode("🐇")
    result = TokenDecoder(tokenizer).tokens([*rabbit[:2], *rabbit, *tokenizer.encode("a")])
    assert result == [f"<{rabbit[0]}>", f"<{rabbit[1]}>", "🐇", *[MORE_BYTES] * 3, "a"]


def test_ids_without_text_have_names(tokenizer):
    assert TokenDecoder(tokenizer).tokens([1, 0, 2, 40000]) == ["<s>", "<unk>", "</s>", "<40000>"]


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_control_tokens_have_their_own_names(tmp_path, kind):
    if kind == "bytes":
        control_directory(tmp_path / "tokenizer", ("[INST]", "[/INST]"), bos="<|begin|>")
    else:
        (tmp_path / "tokenizer").mkdir()
        options = {"bos_piece": "<|begin|>", "control_symbols": ["[INST]", "[/INST]"]}
        (tmp_path / "tokenizer" / "tokenizer.model").write_bytes(trained(**options))
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    decoder, chat = TokenDecoder(tokenizer), ChatFormat(MISTRAL_INST, tokenizer)
    ids = [*chat.encode_prompt("", "Why é?"), *chat.encode_response("So.")]
    texts = decoder.tokens(ids)
    assert [texts[ids.index(tokenizer.control_id(mark))] for mark in chat.marks] == ["[INST]", "[/INST]"]
    assert (texts[0], texts[-1]) == ("<|begin|>", "</s>") and len(texts) == len(ids)
    assert "".join(texts).replace(MORE_BYTES, "").replace(" ", "") == "<|begin|>[INST]Whyé?[/INST]So.</s>"
    assert decoder.text(ids).replace(" ", "") == "[INST]Whyé?[/INST]So."


def test_bytes_on_either_side_of_a_control_token_are_no_character(tmp_path):
    tokenizer = load_tokenizer(control_directory(tmp_path / "tokenizer", ("[INST]",)))
    first, *others = tokenizer.encode("🐇")
    mark = tokenizer.control_id("[INST]")
    assert TokenDecoder(tokenizer).tokens([first, mark, *others])[:2] == [f"<{first}>", "[INST]"]
    assert TokenDecoder(tokenizer).tokens([40000, *tokenizer.encode("x")]) == ["<40000>", "x"]


def test_what_would_steer_a_terminal_is_shown_by_its_number():
    assert visible("a b\tc\nd") == "a·b→c↵d"
    hostile = "\x1b[2J\x07\u202e\u200b\r\x9b"
    assert visible(hostile) == "\\x1b[2J\\x07\\u202e\\u200b\\r\\x9b" and visible(hostile).isprintable()
    assert visible("日本語 é 🐇", " ") == "日本語 é 🐇"


def test_beginnings_say_that_they_go_on():
    assert beginning("short") == '"short"' and beginning("x" * 70) == f'"{"x" * 60}..."'


def test_fields_are_those_of_the_packed_row(write, tokenizer):
    opened = open_splits(str(write("dpo", train=TEXTS)))[0]
    row = annotate_rows(opened, 0, [0], TokenDecoder(tokenizer))[0]
    batch = opened.packed.read(opened.rows(0))
    for name in ("tokens", "targets", "weights", "segment", "branch", "position"):
        np.testing.assert_array_equal(getattr(row, name), getattr(batch, name)[0])
