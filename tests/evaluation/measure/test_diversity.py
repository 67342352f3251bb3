"""Diversity by hand, with all that is left out of it said."""

import pytest

from janus_jax.errors import ConfigError
from janus_jax.evaluation.measure.answers import Answer, AnswerRow
from janus_jax.evaluation.measure.diversity import diversity, table


def row(prompt, system, *texts, key=""):
    return AnswerRow(tuple(map(Answer, texts)), prompt, system, key=key)


def test_average_and_maximum_of_pairs_then_the_mean_over_instructions():
    rows = [row("p", "1", "a b"), row("q", "1", "x"), row("p", "2", "a c"), row("q", "2", "X!"), row("p", "3", "d d")]
    made = diversity(rows)
    assert made.averages == pytest.approx([0.5 / 3, 1]) and made.maxima == pytest.approx([0.5, 1])
    few = "1 instruction with more or fewer than the poster's 3 answers; the maximum grows with their number"
    assert made.pairs == 4 and made.notes == (few,)
    shown = made.row("m")
    assert shown.values == [pytest.approx(0.5 / 6 + 0.5), 0.75, 2, 4]
    assert shown.low is not None and shown.low[0] < shown.values[0] < shown.high[0] and shown.low[2:] == [None, None]
    assert table({"m": made}, {}).lines()[-1].split()[:2] == ["Janus", "7B"]
    other = diversity(rows[:1] + rows[2:3])
    assert "note: the files have different instructions, so their numbers do not compare" in (
        table({"m": made, "o": other}, {}).notes
    )


def test_what_is_not_compared_is_said():
    rows = [
        *(row("p", system, "a b") for system in ("1", "2", "2")),
        row("p", "3", "", "more"),
        row("p", "4", "日本"),
        row("q", "1", "alone"),
        row("日", "1", "a 日本語日本語"),
        row("日", "2", "a 日本語日本語"),
    ]
    made = diversity(rows)
    assert made.averages.tolist() == [1, 1]
    assert made.notes == (
        "left out: 1 row with the prompt and system message of an earlier one",
        "left out: 1 answer after the first of its row",
        "left out: 1 answer without text",
        "left out: 1 answer without a letter a to z or a digit",
        "left out: 1 instruction with fewer than two answers to compare",
        "2 instructions with more or fewer than the poster's 3 answers; the maximum grows with their number",
        "ROUGE-L does not see 67% of the letters: it reads a to z and digits alone",
    )


def test_rows_belong_together_by_a_column_or_are_measured_alone():
    rows = [row("p", "", "a b", key="1"), row("q", "", "a c", "a b", key="1"), row("q", "", "a", key="2")]
    with pytest.raises(ConfigError, match="no instruction has two rows with different system messages with text"):
        diversity(rows)
    assert diversity(rows, by_key=True).averages == pytest.approx([0.5])
    assert diversity(rows, samples=True).averages == pytest.approx([0.5])
    with pytest.raises(ConfigError, match=r"no row has two answers with text; found: 1 row and 1 answer$"):
        diversity(rows[:1], samples=True)
