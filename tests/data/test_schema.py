"""Which records are taken and what is said about the others."""

import math

import pytest

from janus_jax.data.schema import Record, RecordError, parse_record

SFT = {"system": "Be brief.", "prompt": "Why?", "output": "So."}
PAIR = {"system": "Be brief.", "prompt": "Why?", "chosen": "So.", "rejected": "Never mind."}
RM = {"input": "Be brief.\nWhy?", "chosen": "So.", "rejected": "Never mind."}


def messages(text: str, *, user: str | None = None, system: str | None = None) -> list[dict[str, str]]:
    turns = [("system", system), ("user", user), ("assistant", text)]
    return [{"content": content, "role": role} for role, content in turns if content is not None]


@pytest.mark.parametrize(
    "raw",
    [
        SFT,
        {"system": "Be brief.", "instruction": "Why?", "output": "So."},
        {"id": 468, "system_prompt": "Be brief.", "user_prompt": "Why?", "reference_answer": "So."},
        SFT | {"instruction": None, "unknown_column": [1, 2]},
        SFT | {"instruction": "Why?"},
    ],
)
def test_sft_records_of_all_releases_read_the_same(raw):
    assert parse_record(raw, "sft") == Record("Be brief.", "Why?", "So.")


@pytest.mark.parametrize("kind", ["dpo", "orpo"])
@pytest.mark.parametrize(
    "raw",
    [
        PAIR,
        {"system": "Be brief.", "instruction": "Why?", "chosen_response": "So.", "rejected_response": "Never mind."},
        PAIR | {"chosen": messages("So."), "rejected": messages("Never mind.")},
        PAIR | {"chosen": messages("So.", user="Why?"), "rejected": messages("Never mind.", user="Why?")},
        PAIR | {"prompt": None, "chosen": messages("So.", user="Why?")},
        {"chosen": messages("So.", user="Why?", system="Be brief."), "rejected": messages("Never mind.", user="Why?")},
        PAIR | {"chosen": messages("So.", user="Why?\n")},
    ],
)
def test_pairs_of_all_releases_read_the_same(kind, raw):
    assert parse_record(raw, kind) == Record("Be brief.", "Why?", "So.", "Never mind.")


def test_reward_model_records_keep_the_joined_input_as_prompt():
    assert parse_record(RM, "rm") == Record("", "Be brief.\nWhy?", "So.", "Never mind.")


def test_sources_and_preference_set_are_kept():
    preference = {"dimension": "style", "subdimension": "Tone", "preference": "Warm", "description": "It is warm."}
    raw = SFT | {"main_source": "nectar", "original_source": "sharegpt", "preference_set": [preference] * 4}
    record = parse_record(raw, "sft")
    assert (record.main_source, record.original_source, record.preference_set) == (
        "nectar",
        "sharegpt",
        (preference,) * 4,
    )


@pytest.mark.parametrize(("raw", "kind"), [(PAIR, "dpo"), (PAIR, "orpo"), (RM, "rm")])
def test_pairs_may_have_a_margin(raw, kind):
    assert [parse_record(raw | {"margin": m}, kind).margin for m in (2, -0.5, 0, None)] == [2.0, -0.5, 0.0, None]
    assert parse_record(raw, kind).margin is None


def test_single_responses_have_no_margin_to_read():
    assert parse_record(SFT | {"margin": "wide"}, "sft").margin is None


def test_empty_system_is_a_system():
    assert parse_record(SFT | {"system": ""}, "sft").system == ""


BAD = [
    # kind, record, reason, words of the message
    ("sft", {"system": "s", "prompt": "p"}, "missing_field", "'output' (or reference_answer) is missing"),
    ("sft", SFT | {"output": None}, "missing_field", "'output' (or reference_answer) is null"),
    ("sft", {"prompt": "p", "output": "o"}, "missing_field", "'system' (or system_prompt) is missing"),
    ("sft", {"prompt": "p", "output": "o"}, "missing_field", "(system may be empty)"),
    ("sft", SFT | {"prompt": " \n"}, "empty_field", "'prompt' is empty (' \\n')"),
    ("sft", SFT | {"output": ""}, "empty_field", "'output' is empty"),
    ("sft", SFT | {"output": 42}, "wrong_type", "'output' must be a string, found int 42"),
    ("sft", SFT | {"system": ["s"]}, "wrong_type", "'system' must be a string, found list ['s']"),
    ("sft", SFT | {"output": "a\ud800"}, "bad_encoding", "'\\ud800' at character 2, which is not valid Unicode"),
    ("sft", SFT | {"instruction": "When?"}, "ambiguous_columns", "prompt and instruction mean the same but differ"),
    ("sft", SFT | {"preference_set": "style"}, "wrong_type", "'preference_set' must be a list of objects"),
    ("sft", ["Why?"], "wrong_type", "a record must be an object with columns, found list ['Why?']"),
    ("dpo", PAIR | {"rejected": "So. "}, "identical_responses", "chosen and rejected are equal"),
    ("dpo", PAIR | {"chosen": {"role": "assistant"}}, "wrong_type", "must be a string or a list of messages"),
    ("dpo", PAIR | {"chosen": []}, "bad_messages", "has the roles none"),
    ("dpo", PAIR | {"chosen": ["So."]}, "bad_messages", "'chosen', message 1 is str 'So.'"),
    ("dpo", PAIR | {"chosen": [{"role": "assistant"}]}, "bad_messages", "message 1 is dict {'role': 'assistant'}"),
    ("dpo", PAIR | {"rejected": [{"role": "bot", "content": "x"}]}, "bad_messages", "has role str 'bot'"),
    ("dpo", PAIR | {"chosen": messages("So.", user="Why?")[:1]}, "bad_messages", "has the roles user"),
    ("dpo", PAIR | {"chosen": messages("So.", user="Why?")[::-1]}, "bad_messages", "roles assistant, user"),
    ("dpo", PAIR | {"chosen": messages("So.") * 2}, "bad_messages", "message 2 is a second assistant message"),
    ("dpo", PAIR | {"chosen": messages("  ")}, "empty_field", "'chosen', message 1 is empty"),
    ("dpo", PAIR | {"chosen": messages("So.", user="When?")}, "bad_messages", "differs from column 'prompt'"),
    ("orpo", PAIR | {"prompt": None}, "missing_field", "'prompt' (or instruction, user_prompt) is null"),
    *[
        ("rm", RM | {"margin": value}, "wrong_type", f"'margin' must be a finite number (float32), found {shown}")
        for value, shown in [
            ("1", "str '1'"),
            (True, "bool True"),
            ([1.0], "list [1.0]"),
            (math.nan, "float nan"),
            (-math.inf, "float -inf"),
            (1e39, "float 1e+39"),
            (10**400, "int 1000"),
        ]
    ],
    ("rm", RM | {"input": None}, "missing_field", "'input' is null"),
]


@pytest.mark.parametrize(("kind", "raw", "reason", "words"), BAD)
def test_bad_records_are_refused_with_reason_and_value(kind, raw, reason, words):
    with pytest.raises(RecordError) as caught:
        parse_record(raw, kind)
    assert words in str(caught.value)
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)


def test_sft_records_given_as_pairs_are_told_apart():
    with pytest.raises(RecordError) as caught:
        parse_record(SFT, "dpo")
    message = str(caught.value)
    assert "column 'chosen' (or chosen_response) is missing" in message
    assert "found: system, prompt, output; these are the columns of kind sft" in message


def test_a_long_value_is_shortened():
    with pytest.raises(RecordError) as caught:
        parse_record(PAIR | {"chosen": "x" * 5000, "rejected": "x" * 5000}, "dpo")
    assert len(str(caught.value)) < 200
