"""Answers on a screen: columns that stand, text that is whole, plain text where there is no terminal."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from janus_jax.chat.screen import Screen
from tests.support.terminals import seen

LEFT = "Brief: 世界 😀 안녕.\n\n    code = 1\nend"
RIGHT = "A much longer answer, with 👨‍👩‍👧 and naïve wörds, e\u0301 and 世界世界世界世界世界. " * 3 + "\x1b[2Jevil\r"


def screen(width, plain=False):
    out, err = io.StringIO(), io.StringIO()
    consoles = [Console(file=file, width=width, force_terminal=not plain, color_system=None) for file in (out, err)]
    return Screen(*consoles, plain=plain), out, err


def answer(view, *texts, size=3):
    for start in range(0, max(map(len, texts)), size):
        for side, text in enumerate(texts):
            if start < len(text):
                view.push(side, text[start : start + size])
                if start + size >= len(text):
                    view.end(side)
    view.close()


def words(text):
    return "".join(text.split())


@pytest.mark.parametrize("width", [40, 120])
@pytest.mark.parametrize("swapped", [False, True])
def test_two_answers_stand_side_by_side(width, swapped):
    shown, out, _ = screen(width)
    texts = (RIGHT, LEFT) if swapped else (LEFT, RIGHT)
    answer(shown.view(["Be brief. 世界", ""]), *texts)
    *rows, last = seen(out.getvalue())
    assert last == "" and all(cell_len(row) < width for row in rows)
    line = next(place for place, row in enumerate(rows) if "┼" in row)
    bar = cell_len(rows[line].partition("┼")[0])
    cells = [row.split("│") for row in rows[:line] + rows[line + 1 :]]
    assert all(len(row) == 2 and cell_len(row[0]) == bar for row in cells)
    assert words("".join(left for left, _ in cells[:line])) == words("Be brief. 世界")
    assert words("".join(right for _, right in cells[:line])) == words("(no system message)")
    escaped = [words(text.replace("\x1b", r"\x1b").replace("\r", r"\r")) for text in texts]
    assert [words("".join(row[side] for row in cells[line:])) for side in (0, 1)] == escaped
    assert "    code = 1" in "\n".join(rows)
    assert out.getvalue().count("\x1b") == out.getvalue().count("\x1b[K")


def test_the_row_that_grows_is_shown_at_once():
    shown, out, _ = screen(60)
    view = shown.view(["a", "b"])
    view.push(0, "some words of ")
    assert seen(out.getvalue())[-1].startswith("some words of")
    view.push(1, "on the right ")
    assert seen(out.getvalue())[-1].split("│")[1].strip() == "on the right"
    view.push(0, "the left\nnext line ")
    assert seen(out.getvalue())[-1].startswith("some words of the left")  # the right one is not as far
    view.close()
    assert [row.split("│")[0].strip() for row in seen(out.getvalue())[-3:-1]] == ["some words of the left", "next line"]


@pytest.mark.parametrize("plain", [False, True])
def test_two_answers_stand_one_below_the_other_where_columns_would_be_narrow(plain):
    shown, out, _ = screen(120 if plain else 30, plain)
    answer(shown.view(["Be brief.", ""]), "short", "the other answer is longer")
    whole = ["[left: Be brief.]", "short", "", "[right: no system message]"]
    assert out.getvalue().splitlines() == [*whole, "the other answer is longer"]


def test_one_answer_is_wrapped_on_a_terminal_alone():
    text = "the quick brown fox " * 9 + "\x1b[31m\ttail"
    for plain in (False, True):
        shown, out, _ = screen(40, plain)
        answer(shown.view([""]), text)
        lines = out.getvalue().splitlines()
        assert ("\x1b" in out.getvalue(), r"\x1b[31m    tail" in lines[-1]) == (False, True)
        assert len(lines) == 1 if plain else max(map(len, lines)) <= 39
    shown, out, _ = screen(200)
    answer(shown.view([""]), text)
    assert max(map(len, out.getvalue().splitlines())) <= 100


def test_why_nothing_comes_yet_is_shown_until_something_does():
    shown, out, err = screen(40)
    shown.waiting("working")
    shown.waiting("working")
    assert seen(out.getvalue()) == ["working"]
    shown.come()
    assert seen(out.getvalue()) == [""]
    shown.tell("system: \x1b[2J")
    shown.error("no\x1b")
    assert seen(out.getvalue())[0] == r"system: \x1b[2J" and err.getvalue() == "error: no\\x1b\n"
    shown, out, err = screen(40, plain=True)
    shown.waiting("working")
    shown.tell("told")
    shown.note("known")
    assert (out.getvalue(), err.getvalue()) == ("", "told\nnote: known\n")
