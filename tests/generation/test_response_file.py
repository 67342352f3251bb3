"""Responses come from every form of file that holds some, and scores go beside them."""

import json

import pytest

from janus_jax.data.tally import Tally
from janus_jax.errors import DataError
from janus_jax.generation.prompts import conversation
from janus_jax.generation.response_file import read_responses

WHY = conversation("Why?")
PAIR = {"chosen": [{"role": "assistant", "content": "So."}], "rejected": "No."}
TURNS = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]

FORMS = {
    "generate": ({"messages": WHY, "answers": [{"text": "So.", "tokens": 2}, {"text": "No."}]}, ["So.", "No."]),
    "texts": ({"prompt": "Why?", "responses": ["So.", "No."]}, ["So.", "No."]),
    "one text": ({"instruction": "Why?", "response": "So."}, ["So."]),
    "a pair": ({"prompt": "Why?", **PAIR}, ["So.", "No."]),
    "a pair of conversations": (
        {
            side: [*WHY, {"role": "assistant", "content": text}]
            for side, text in (("chosen", "So."), ("rejected", "So."))
        },
        ["So.", "So."],
    ),
    "sft": ({"prompt": "Why?", "reference_answer": "So."}, ["So."]),
    "a conversation": ({"conversations": TURNS}, ["So."]),
}
SCORED = {
    "generate": lambda row: row["answers"] == [{"text": "So.", "tokens": 2, "x": 0}, {"text": "No.", "x": 1}],
    "texts": lambda row: row["x"] == [0, 1],
    "a pair": lambda row: row["x"] == {"chosen": 0, "rejected": 1},
    "a pair of conversations": lambda row: row["x"] == {"chosen": 0, "rejected": 1},
}


def read(tmp_path, *rows, key="x", **options):
    file = tmp_path / "r.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_responses(file, key=key, **options)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_read_and_scored(name, tmp_path):
    raw, texts = FORMS[name]
    (row,) = read(tmp_path, {**raw, "id": 7, "source": {"a": None}})
    assert list(row.messages) == WHY and [one.text for one in row.responses] == texts
    scored = row.with_scores(list(range(len(texts))), "x")
    assert SCORED.get(name, lambda row: row["x"] == 0)(scored)
    assert {"id": 7, "source": {"a": None}}.items() <= scored.items() and raw.keys() <= scored.keys()


def test_longer_conversations_and_system_messages(tmp_path):
    turns = [*WHY, {"role": "assistant", "content": "So."}, {"role": "user", "content": "And?"}]
    rows = read(
        tmp_path,
        {"messages": [*turns, {"role": "assistant", "content": "End."}]},
        {"messages": turns, "system": "be brief", "response": "End."},
        system="be long",
    )
    assert [row.messages[0]["content"] for row in rows] == ["be long", "be brief"]
    assert all(list(row.messages[1:]) == turns and row.responses[0].text == "End." for row in rows)


def test_what_a_model_wrote_may_be_empty_or_cut(tmp_path):
    ends = [{"text": "", "finish_reason": "stop"}, {"text": "So", "finish_reason": "length"}]
    (row,) = read(tmp_path, {"prompt": "Why?", "answers": ends})
    assert [one.is_cut for one in row.responses] == [False, True]


def test_responses_that_are_not_scored_are_counted(tmp_path):
    unscored = Tally()
    read(
        tmp_path,
        {"prompt": "Why?", "answers": ["So."], "output": "No.", **PAIR},
        {"prompt": "Why?", **PAIR},
        unscored=unscored,
    )
    assert unscored == {"output": 1, "chosen": 1}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Why?"}, "a row needs answers, responses"),
        ({"prompt": "Why?", "response": " "}, "column 'response'.* is empty"),
        ({"prompt": "Why?", "answers": ["So.", ""]}, "column 'answers', item 2.* is empty"),
        ({"prompt": "Why?", "answers": [{"text": ""}]}, "item 1.* is empty"),
        ({"prompt": "Why?", "answers": "So."}, "column 'answers' must be a list"),
        ({"prompt": "Why?", "answers": []}, "column 'answers' must be a list of at least one"),
        ({"prompt": "Why?", "answers": ["So.", {"text": "x"}]}, "item 2 is dict"),
        ({"prompt": "Why?", "answers": [{"no": "x"}]}, "item 1 is dict"),
        ({"answers": ["So."]}, "a row needs prompt"),
        ({"prompt": "Why?", "chosen": "So."}, "'rejected'.* is missing"),
        ({"prompt": "Why?", "response": "So.", "x": 1}, "has 'x' already; choose another name with --key"),
        ({"prompt": "Why?", "answers": [{"text": "So.", "x": 1}]}, "has 'x' in 'answers' already"),
        (["So."], "a row must be an object"),
    ],
)
def test_bad_rows_are_named(row, message, tmp_path):
    with pytest.raises(DataError, match=r"r\.jsonl:2: .*" + message):
        read(tmp_path, {"prompt": "Why?", "response": "So."}, row)
    with pytest.raises(DataError, match=r"r\.jsonl: is empty"):
        read(tmp_path)
