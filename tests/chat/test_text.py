"""Model text on a terminal: nothing but text, and lines no wider than they may be."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from janus_jax.chat.text import Flow, harmless, one_line, wrapped

DANGEROUS = ["\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\r", "\b", "\x7f", "\u202e", "\u2066", "\u200f", "\u2028", "\0"]
ORDINARY = ["naïve 世界 안녕 مرحبا नमस्ते 😀", "👨‍👩‍👧", "می‌خواهم", "❤️", "a\xa0b\u3000c", "e\u0301", "x\ny"]


@pytest.mark.parametrize("text", DANGEROUS, ids=ascii)
def test_control_characters_are_shown_escaped(text):
    shown = harmless(f"a{text}b")
    assert shown.startswith("a\\") and shown.endswith("b") and shown.isprintable()


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_texts_stay(text):
    assert harmless(text) == text


def test_every_character_is_text_after_that():
    numbers = [*range(0x3100), *range(0xD7F0, 0xE010), *range(0xFB00, 0x10000), *range(0xE0000, 0xE0200)]
    shown = harmless("".join(map(chr, numbers)))
    kinds = {unicodedata.category(character) for character in shown if character not in "\n\u200c\u200d"}
    assert not kinds & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


texts = st.lists(
    st.sampled_from(
        ["word", " ", "  ", "\n", "世", "界", "😀", "👨‍👩‍👧", "e\u0301", "a" * 50, "नमस्ते", "-", "❤️", "안녕"]
    )
)


@given(texts, st.integers(4, 40), st.data())
def test_lines_fit_and_nothing_but_blanks_is_lost(parts, width, data):
    text = "".join(parts)
    flow, pieces = Flow(width), []
    rest = text
    while rest:
        count = data.draw(st.integers(1, len(rest)))
        pieces.append(flow.push(rest[:count]))
        rest = rest[count:]
    shown = "".join(pieces) + flow.finish()
    assert shown.split("\n") == wrapped(text, width)
    assert all(cell_len(line) <= width for line in shown.split("\n"))
    assert "".join(shown.split()) == "".join(text.split())
    assert shown.count("\n") >= text.count("\n")


def test_words_stay_whole_and_code_keeps_its_indentation():
    assert wrapped("the quick brown fox", 10) == ["the quick", "brown fox"]
    assert wrapped("def f():\n    return 1", 20) == ["def f():", "    return 1"]
    assert wrapped("世界世界世界", 5) == ["世界", "世界", "世界"]


def test_a_title_is_one_line():
    assert one_line("be\n brief", 20) == "be brief"
    assert one_line("世界世界世界", 8) == "世界世…"
    assert cell_len(one_line("x" * 50, 10)) == 10
