"""Lengths by hand; which reference belongs to which answer; what is cut off or runs in circles."""

import pytest

from janus_jax.errors import ConfigError, DataError
from janus_jax.evaluation.measure.answers import Answer, AnswerRow
from janus_jax.evaluation.measure.verbosity import (
    COLUMNS,
    distinct_pairs,
    in_tokens,
    loops,
    of_references,
    table,
    verbosity,
)
from janus_jax.text.tokenizer import EMBEDDED, load_tokenizer


def row(*texts, prompt="p", system="", id=None, reference=None, cut=None):
    return AnswerRow(tuple(Answer(text, cut) for text in texts), prompt, system, id, reference=reference, place="f:1")


def cells(made):
    return dict(zip(COLUMNS, made.row("m").values, strict=True))


def test_lengths_and_ratios_are_right_by_hand():
    rows = [
        row("a b", "a b c d", id="1", reference="one two", cut=True),
        row("a", id="2", reference="w x y z", cut=False),
        row("", id="3", prompt="q"),
    ]
    made = verbosity(rows)
    shown = cells(made)
    assert (shown["answers"], shown["mean"], shown["median"]) == (4, pytest.approx(4 / 3), 1.5)
    assert shown["of reference"] == shown["its median"] == pytest.approx((1.5 + 0.25) / 2)
    assert shown["cut"] == 0.5 and shown["distinct 2-grams"] == 1 and shown["looping"] == 0
    assert made.notes == (
        "1 answer without text, counted with length 0 (f:1)",
        "1 row without a reference; it counts in no ratio",
    )
    beside = of_references([made, made])
    assert beside is not None and sorted(beside.lengths) == [2, 4] and cells(beside)["cut"] is None
    assert table({"m": made}, beside, "words", {}).rows[0].name == "reference"


def test_references_belong_by_id_then_by_messages_then_by_a_prompt_of_their_own():
    references = [
        row("1", prompt="p", system="s", id="x"),
        row("1 2", prompt="p", system="t", id="y"),
        row("1 2 3 4", prompt="q", system="s", id="z"),
    ]
    rows = [
        row("w w", prompt="p", system="none", id="y"),
        row("w w", prompt="p", system="s"),
        row("w w", prompt="q", system="none"),
        row("w w", prompt="p", system="none"),
    ]
    made = verbosity(rows, references)
    assert made.ratios.tolist() == [1, 2, 0.5]
    assert made.notes == ("1 row without a reference; it counts in no ratio",)
    with pytest.raises(DataError, match="f:1: has the id 'z' of f:1, which has another prompt"):
        verbosity([row("w", prompt="p", id="z")], references)
    with pytest.raises(ConfigError, match="1 row and 3 references share no id and no prompt"):
        verbosity([row("w", prompt="other", id="n")], references)


def test_loops_and_repeated_pairs():
    assert not loops("a b c d e f g h ".split() * 5) and loops("a b c d e f g h".split() * 6)
    assert not loops(["a"] * 12) and loops(["a"] * 13)
    assert distinct_pairs("a b a b".split()) == pytest.approx(2 / 3) and distinct_pairs(["a"]) is None


def test_tokens_are_those_of_the_tokenizer_without_special_ones():
    length = in_tokens(str(EMBEDDED.parent))
    text = "A longer word: antidisestablishmentarianism."
    assert length(text) == len(load_tokenizer().encode(text)) > len(text.split()) and length("") == 0
    assert "no blanks" in verbosity([row("日本語の文章には空白がありません日本語")]).notes[0]
    assert verbosity([row("日本語の文章には空白がありません日本語")], length=length).notes == ()
