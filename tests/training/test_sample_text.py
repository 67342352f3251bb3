"""Samples for people: whole in their file, short on the console, harmless in a terminal and on a page."""

import html
import json
import sys
import types

import pytest

from janus_jax.generation.answers import Answer
from janus_jax.generation.requests import Event, Request
from janus_jax.training import sample_text
from janus_jax.training.metrics import MetricsLog, Wandb
from janus_jax.training.sample_prompts import Asked
from janus_jax.training.sample_text import Answered

EVIL = "\x1b[31m<script>a</script> | *b*\n[x](http://y) \u202e\ud800"


def answered(prompt=0, system="Be kind.", text="So it is.", question="Why?", answers=1):
    turns = ({"role": "user", "content": question},)
    messages = ({"role": "system", "content": system}, *turns) if system else turns
    asked = Asked(prompt, system, messages, {"id": "x"}, Request([1, 2]))
    return Answered(asked, tuple(Answer(text, [5] * 4, [-0.5] * 4, "stop") for _ in range(answers)))


def test_an_answer_is_the_sum_of_its_events():
    answer = Answer()
    answer.add(Event(0, 0, (5, 6), (-1.0, -2.0), "a", None))
    answer.add(Event(0, 0, (2,), (-0.5,), "b", "stop"))
    assert answer == Answer("ab", [5, 6, 2], [-1.0, -2.0, -0.5], "stop") and answer.log_prob == -3.5


def test_the_file_has_every_character():
    [line] = sample_text.lines([answered(text=EVIL)], 200).decode().splitlines()
    record = json.loads(line)
    assert record["answers"] == [{"text": EVIL, "finish_reason": "stop", "tokens": 4, "log_prob": -2.0}]
    assert (record["step"], record["id"], record["system"], record["prompt_tokens"]) == (200, "x", "Be kind.", 2)


def test_two_system_messages_stand_side_by_side():
    samples = [answered(text="Yes, " * 60), answered(system="", text="天气 " * 80), answered(1)]
    lines = sample_text.digest(samples, "run/samples/200.jsonl")
    assert lines[0] == "  prompt 1 of 2: Why?" and lines[-1] == "  all in run/samples/200.jsonl"
    assert lines[1].split("   ")[0].strip() == "system: Be kind." and lines[1].endswith("no system message")
    assert lines[-2].count("(stop, 4 tokens)") == 2
    from rich.cells import cell_len

    assert max(map(cell_len, lines)) <= sample_text.WIDTH and len(lines) < 16
    starts = {line.index("天") for line in lines if "天" in line}
    assert "Yes, Yes" in lines[2] and starts == {lines[1].index("no system")}


@pytest.mark.parametrize("systems", [["a"], ["a", "b", "c", "d", "e"]])
def test_other_numbers_stand_below_each_other(systems):
    lines = sample_text.digest([answered(system=system) for system in systems], "f")
    assert [line for line in lines if "system: " in line and line.endswith("So it is. (stop, 4 tokens)")] == lines[1:-1]
    assert len(lines[1:-1]) == min(3, len(systems))
    assert lines[-1] == ("  all in f" if len(systems) == 1 else "  and 2 more system messages, all in f")


def test_what_a_model_says_harms_no_terminal():
    text = "\n".join(sample_text.digest([answered(text=EVIL, system=EVIL, question=EVIL)], "f"))
    assert all(character.isprintable() or character == "\n" for character in text) and "\\x1b[31m" in text


def test_tensorboard_shows_it_as_it_is():
    plugin_util = pytest.importorskip("tensorboard.plugin_util")
    pages = sample_text.markdown([answered(text=EVIL), answered(system="", text="1. a\n# b"), answered(3, EVIL)])
    assert [*pages] == ["samples/prompt 1", "samples/prompt 4"]
    page = plugin_util.markdown_to_safe_html(pages["samples/prompt 1"])
    assert page.count("<table>") == 1 and page.count("<th>") == 2 and page.count("<td>") == 2
    shown = html.unescape(page)
    assert "\\x1b[31m<script>a</script> | *b*<br>[x](http://y) \\u202e\\ud800<br>" in shown
    assert "1. a<br># b<br><br><em>(stop, 4 tokens)</em>" in shown and "<a " not in page and "<script>" not in page
    [many] = sample_text.markdown([answered(system=str(number)) for number in range(5)]).values()
    many = plugin_util.markdown_to_safe_html(many)
    assert many.count("<tr>") == 6 and "<th>system message</th>" in many


def test_wandb_gets_a_row_for_each_answer(monkeypatch, tmp_path):
    columns, rows = sample_text.table([answered(answers=2), answered(1)])
    assert columns == ["number", "prompt", "system", "answer", "finish_reason"]
    assert rows == [[number, "Why?", "Be kind.", "So it is.", "stop"] for number in (1, 1, 2)]
    logged = []
    made = types.SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: None)
    fake = types.SimpleNamespace(init=lambda **_: made, Table=lambda columns, data: (columns, data))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    MetricsLog([Wandb(tmp_path, {}, "run")]).texts(200, {"samples/prompt 1": "text"}, columns, rows)
    assert logged == [(200, {"samples": (columns, rows)})]


def test_numbers_are_means():
    cut = Answer("", [5] * 7, [-2.0] * 4 + [0.0] * 3, "length")
    values = sample_text.values([answered(answers=2), Answered(answered(1).asked, (cut,))])
    assert values == {"answers": 3, "ended": 2 / 3, "tokens": 5.0, "log_prob": pytest.approx(-12 / 15)}
