"""Lines that begin with a slash."""

import json

import pytest

from janus_jax.chat.commands import SETTINGS, Commands, both, settings
from janus_jax.errors import DataError, JanusError


@pytest.fixture
def run(chat):
    commands = Commands(chat, "runs/sft")
    return lambda line: commands.run(line).text


def test_options_change_as_typed(run, chat):
    for line, name, value in (
        ("/set temperature 0.7", "temperature", 0.7),
        ("/set top-k=40", "top_k", 40),
        ("/set --top-p = .9", "top_p", 0.9),
        ("/set max_new_tokens 30", "max_new_tokens", 30),
        ("/set stop END", "stop", ["END"]),
        (r'/set stop "\n\n"', "stop", ["\n\n"]),
        ('/set stop ["a", "b"]', "stop", ["a", "b"]),
        ("/set stop_ids 5 6", "stop_ids", [5, 6]),
        ("/set stop []", "stop", []),
        ("/seed 12", "seed", 12),
    ):
        assert run(line) == f"{name} = {json.dumps(value)}"
        assert settings(chat)[name] == value
    assert run("/set").splitlines() == [f"{name} = {json.dumps(settings(chat)[name])}" for name in SETTINGS]
    assert run("/seed") == "seed = 12"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/set temperature hot", "temperature = 'hot': allowed: 0 (greedy)"),
        ("/set top_k 1.5", "top_k = 1.5: allowed: a whole number"),
        ("/set min_new_tokens 9", "min_new_tokens = 9: allowed"),
        ("/set stop_ids 400", "stop_ids has 400: allowed"),
        ("/set stop_ids five", "stop_ids has 'five'"),
        ("/set temprature 1", "did you mean temperature?"),
        ("/set colour blue", "allowed: seed, temperature"),
        ("/seed x", "seed = 'x': allowed: a whole number"),
        ("/sed 1", "did you mean /seed?"),
        ("/etc/passwd", "/help shows"),
        ("/", "/: no such command"),
        ("/undo it", "/undo: takes nothing"),
        ("/both brief", "/both: has no ' | '"),
        ("/both a | b | c", "/both: has 2 times ' | '"),
        ("/both", "/both: name two"),
        ("/one", "/one: only one"),
        ("/save", "/save: name a file"),
        ("/retry", "/retry: no question"),
    ],
)
def test_mistakes_are_named_in_one_line_and_change_nothing(chat, line, message):
    before = settings(chat)
    with pytest.raises(JanusError) as caught:
        list(Commands(chat, "m").run(line).pieces or ())
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert settings(chat) == before and len(chat.sides) == 1


def test_system_messages_are_set_shown_and_removed(run, chat):
    assert run("/system") == "system: (none)"
    assert run("/system  Be | brief. ") == "system: Be | brief."
    assert run('/system ""') == "system: (none)"
    assert run("/both Be brief. | ").splitlines() == ["system, left: Be brief.", "system, right: (none)"]
    assert run("/both") == run("/system")
    list(chat.ask("Why?"))
    assert "> Why?" in run("/history") and run("/history").count(chat.sides[0].exchanges[0].answer) >= 1
    assert run("/one right") == "The right conversation goes on. system: (none)"
    assert "it counts from the next answer on" in run("/system Be brief.")


def test_both_takes_a_bar_that_stands_alone():
    assert both("a|b | c|d") == ["a|b", "c|d"]
    assert both("| long") == ["", "long"] and both('"" | long') == ["", "long"]
    with pytest.raises(DataError):
        both("a|b")


def test_a_saved_conversation_has_what_was_said_and_how(run, chat, tmp_path):
    run("/both Be brief. | Be long.")
    list(chat.ask("Why, 世界?"))
    file = tmp_path / "talk.jsonl"
    assert run(f"/save {file}") == f"wrote {file}"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["messages"] for row in rows] == [side.messages() for side in chat.sides]
    assert rows[0]["answers"] == [{"finish_reason": "length", "tokens": 8, "seed": 0}]
    assert (rows[0]["model"], rows[0]["settings"]) == ("runs/sft", settings(chat))
    for name, reason in ((file, "exists"), (tmp_path / "no" / "x", "is not a directory"), ("/proc/x", "cannot be")):
        with pytest.raises(DataError, match=reason):
            run(f"/save {name}")


def test_everything_is_explained_and_shown(run, chat):
    lines = run("/help")
    assert all(name in lines for name in Commands(chat, "m").names)
    assert all(name in lines for name in SETTINGS)
    list(chat.ask("Why?"))
    shown = run("/show")
    used = chat.sides[0].exchanges[0].prompt_tokens + 8
    assert shown.startswith("model: runs/sft\nsystem: (none)\nseed = 0\ntemperature = 1.0\n")
    assert shown.endswith(f"conversation: 1 exchange, {used} of 128 tokens")
