"""Answers side by side."""

import pytest

from janus_jax.evaluation.report.samples import QUESTIONS, SYSTEMS, questions, sample_of, spread
from tests.support.reported import answer_line


def samples(*lines, source="a"):
    return [sample_of(line, source) for line in lines]


def test_one_question_under_several_system_messages_is_one_grid():
    first = samples(*(answer_line("Q?", system, f"{system}{step}", step=step) for step in (0, 9) for system in "xy"))
    second = samples(answer_line("Q?", "y", "other"), source="b")
    (grid,), more = questions(first + second)
    assert grid.systems == ("x", "y") and more == 0 and grid.left_out == 0
    assert [(row.source, row.step) for row in grid.rows] == [("a", 0), ("a", 9), ("b", None)]
    assert [[text for text, _ in cell] for cell in grid.rows[1].cells] == [["x9"], ["y9"]]
    assert grid.rows[2].cells[0] == ()  # no answer under this system message


def test_questions_with_several_system_messages_come_first():
    lines = [answer_line("alone", "x", "1"), answer_line("both", "x", "1"), answer_line("both", "", "2")]
    assert [grid.text for grid in questions(samples(*lines))[0]] == ["both", "alone"]


def test_what_is_not_shown_is_counted():
    many = samples(*(answer_line("Q?", f"system {number}", "1", "2", "3") for number in range(6)))
    (grid,), _ = questions(many)
    assert len(grid.systems) == SYSTEMS and grid.left_out == 18 - 2 * SYSTEMS
    grids, more = questions(samples(*(answer_line(f"Q{number}?", "", "1") for number in range(QUESTIONS + 3))))
    assert (len(grids), more) == (QUESTIONS, 3)


def test_a_conversation_shows_its_turns():
    line = answer_line("Hi", "s", "A.") | {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Yes?"},
            {"role": "user", "content": "Why?"},
        ]
    }
    assert sample_of(line, "a").question == "user: Hi\n\nassistant: Yes?\n\nuser: Why?"
    assert sample_of(answer_line("Q?", "", "A."), "a").answers == (("A.", "3 tokens, ended by itself"),)


@pytest.mark.parametrize(
    "bad", [[], {}, {"answers": []}, {"answers": [], "messages": "x"}, {"answers": 1, "messages": []}]
)
def test_other_lines_are_refused(bad):
    with pytest.raises(ValueError):
        sample_of(bad, "a")


def test_the_first_and_the_last_are_always_among_those_shown():
    assert spread([1, 2], 5) == [1, 2]
    assert spread(list(range(100)), 5) == [0, 25, 50, 74, 99]
