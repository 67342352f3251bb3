"""Which records are taken and what is said about the others."""

import math

import pytest

from janus_jax.data.columns import Columns, RecordError
from janus_jax.data.schema import Record, parse_record

SFT = {"system": "Be brief.", "prompt": "Why?", "output": "So."}
PAIR = {"system": "Be brief.", "prompt": "Why?", "chosen": "So.", "rejected": "Never mind."}
RM = {"input": "Be brief.\nWhy?", "chosen": "So.", "rejected": "Never mind."}


def messages(text: str, *, user: str | None = None, system: str | None = None) -> list[dict[str, str]]:
    turns = [("system", system), ("user", user), ("assistant", text)]
    return [{"content": content, "role": role} for role, content in turns if content is not None]


def share_gpt(text: str, *, user: str | None = None, system: str | None = None) -> list[dict[str, str]]:
    turns = [("system", system), ("human", user), ("gpt", text)]
    return [{"from": role, "value": content} for role, content in turns if content is not None]


@pytest.mark.parametrize(
    "raw",
    [
        SFT,
        {"system": "Be brief.", "instruction": "Why?", "output": "So."},
        {"id": 468, "system_prompt": "Be brief.", "user_prompt": "Why?", "reference_answer": "So."},
        SFT | {"instruction": None, "unknown_column": [1, 2]},
        SFT | {"instruction": "Why?"},
        SFT | {"input": None, "history": []},
        SFT | {"input": " ", "history": None},
        {"system": "Be brief.", "input": "Why?", "output": "So."},
        {"system": "Be brief.", "instruction": "", "input": "Why?", "output": "So."},
        SFT | {"input": "Be brief.\nWhy?"},
        {"messages": messages("So.", user="Why?", system="Be brief.")},
        {"system": "Be brief.", "messages": messages("So.", user="Why?")},
        {"system": "Be brief.", "prompt": "Why?", "messages": messages("So.", user="Why?")},
        {"system": "", "conversations": share_gpt("So.", user="Why?", system="Be brief.")},
        {"system": "Be brief.", "conversations": share_gpt("So.", user="Why?")},
        {"conversation": [*messages("", system="Be brief.", user="Why?")[:2], *share_gpt("So.")]},
        {"prompt": messages("", system="Be brief.", user="Why?")[:2], "output": "So."},
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
        PAIR | {"prompt": messages("", user="Why?")[:1]},
        PAIR | {"system": None, "prompt": messages("", system="Be brief.", user="Why?")[:2]},
        PAIR | {"prompt": None, "messages": messages("", user="Why?")[:1]},
        PAIR | {"prompt": None, "input": "Why?"},
        PAIR | {"chosen": {"from": "gpt", "value": "So."}, "rejected": {"role": "assistant", "content": "Never mind."}},
        PAIR | {"prompt": None, "conversations": share_gpt("", user="Why?")[:1]},
    ],
)
def test_pairs_of_all_releases_read_the_same(kind, raw):
    assert parse_record(raw, kind) == Record("Be brief.", "Why?", "So.", "Never mind.")


def test_reward_model_records_keep_the_joined_input_as_prompt():
    assert parse_record(RM, "rm") == Record("", "Be brief.\nWhy?", "So.", "Never mind.")


ULTRAFEEDBACK = {
    "prompt": "Why?",
    "prompt_id": "a1",
    "chosen": messages("So.", user="Why?"),
    "rejected": messages("Never mind.", user="Why?"),
    "messages": messages("So.", user="Why?"),
    "score_chosen": 8.5,
    "score_rejected": 0.0,
}


@pytest.mark.parametrize(
    ("kind", "record", "unread"),
    [
        ("sft", Record("", "Why?", "So."), {"chosen", "rejected", "prompt_id", "score_chosen", "score_rejected"}),
        ("dpo", Record("", "Why?", "So.", "Never mind."), {"messages", "prompt_id", "score_chosen", "score_rejected"}),
        ("rm", Record("", "Why?", "So.", "Never mind."), {"messages", "prompt_id", "score_chosen", "score_rejected"}),
    ],
)
def test_ultrafeedback_reads_as_any_kind_and_names_what_is_not_read(kind, record, unread):
    columns = Columns(ULTRAFEEDBACK)
    assert (parse_record(columns, kind), columns.unread()) == (record, unread)


FLAT = {"prompt": "Why?", "output": "So.", "chosen": "So.", "rejected": "No."}


@pytest.mark.parametrize("name", ["messages", "conversations"])
@pytest.mark.parametrize("kind", ["sft", "dpo", "rm"])
@pytest.mark.parametrize(
    ("beside", "role"),
    [
        (messages("So.", user="When?"), "user"),
        (messages("", user="When?")[:-1], "user"),
        (messages("Never.", user="Why?"), "assistant"),
        (messages("So.", system="Be long.", user="Why?"), "system"),
    ],
)
def test_messages_that_contradict_the_columns_are_refused(beside, role, kind, name):
    with pytest.raises(RecordError, match=f"the {role} message of '{name}' differs from column .*; they must agree"):
        parse_record(FLAT | {"system": "Be brief.", name: beside}, kind)


@pytest.mark.parametrize("kind", ["sft", "dpo", "rm"])
@pytest.mark.parametrize(
    "beside",
    [
        messages("So.", user="Why?"),
        messages(" So.\n", system="Be brief.", user="Why?"),
        messages("", user="Why?")[:-1],
        messages("So.", user="Why?") + messages("No.", user="When?"),
        "no messages",
    ],
)
def test_messages_that_agree_or_are_no_exchange_are_a_column_that_is_not_read(beside, kind):
    columns = Columns(FLAT | {"system": "Be brief.", "messages": beside})
    record = parse_record(columns, kind)
    assert record == parse_record(FLAT | {"system": "Be brief."}, kind) and "messages" in columns.unread()


def test_messages_beside_a_whole_input_of_a_reward_model_may_lack_its_system_message():
    whole = {"input": "Be brief.\nWhy?", "chosen": "So.", "rejected": "No."}
    assert parse_record(whole | {"messages": messages("So.", user="Why?")}, "rm") == parse_record(whole, "rm")


@pytest.mark.parametrize(
    ("raw", "prompt"),
    [
        ({"instruction": "Translate.", "input": "good morning"}, "Translate.\ngood morning"),
        ({"instruction": "Translate.", "input": "Translate."}, "Translate."),
        ({"prompt": "Translate.", "input": "good morning\n"}, "Translate.\ngood morning\n"),
    ],
)
def test_the_input_of_alpaca_follows_the_instruction(raw, prompt):
    """As in LLaMA-Factory: both, joined by a newline."""
    assert parse_record(raw | {"output": "So."}, "sft") == Record("", prompt, "So.")
    pair = {"chosen": "So.", "rejected": "No."}
    assert parse_record(raw | pair, "dpo") == Record("", prompt, "So.", "No.")
    assert parse_record(raw | pair, "rm") == Record("", prompt, "So.", "No.")


@pytest.mark.parametrize(
    "raw",
    [
        {"system": "Be brief.", "prompt": "Why?"},
        {"system": "Be brief.", "prompt": "Why?", "input": "Be brief.\nWhy?"},
        {"system": "Be brief.", "input": "Why?"},
        {"prompt": "Why?", "input": "Be brief.\nWhy?"},
        {"prompt": messages("", system="Be brief.", user="Why?")[:2]},
        {"chosen": messages("So.", system="Be brief.", user="Why?")},
        {"input": "Be brief.\nWhy?", "chosen": messages("So.", system="Be brief.", user="Why?")},
    ],
)
def test_reward_models_get_system_message_and_prompt_as_one_text(raw):
    raw = {"chosen": "So.", "rejected": "No."} | raw
    assert parse_record(raw, "rm") == Record("", "Be brief.\nWhy?", "So.", "No.")


def test_a_system_message_is_in_a_text_only_as_whole_words():
    responses = {"chosen": "So.", "rejected": "No."}
    assert parse_record(responses | {"system": "I", "prompt": "Is it?"}, "rm").prompt == "I\nIs it?"
    assert parse_record(responses | {"system": "Sum", "input": "Summarise."}, "rm").prompt == "Sum\nSummarise."


def test_an_input_that_wraps_system_message_and_prompt_is_taken_as_it_is():
    raw = {"system": "Be brief.", "prompt": "Why?", "input": "System: Be brief. User: Why? Answer:"}
    record = parse_record(raw | {"chosen": "So.", "rejected": "No."}, "rm")
    assert record == Record("", raw["input"], "So.", "No.")


def test_keys_of_messages_and_preferences_that_are_not_read_are_named():
    spoken = [message | {"weight": 0, "name": ""} for message in messages("So.", user="Why?")]
    columns = Columns({"messages": spoken, "preference_set": [{"dimension": "style", "level": 3}], "id": 7, "note": ""})
    parse_record(columns, "sft")
    assert columns.unread() == {"messages.weight", "preference_set.level", "id"}


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


@pytest.mark.parametrize("raw", [SFT | {"system": ""}, SFT | {"system": None}, {"prompt": "Why?", "output": "So."}])
def test_a_system_message_may_be_absent_null_or_empty(raw):
    assert parse_record(raw, "sft") == Record("", "Why?", "So.")


TWO = messages("So.", user="Why?") * 2
INVISIBLE = ["\u200b", "\ufeff", "\u2060 \u00ad", "\t\x07", "\u3164", "\ufe0f\u200d", "\u2800", "\xa0\u3000"]

SHARE_GPT = "allowed: one system (optional), one human and one gpt message in this order, each {from, value}"
BAD = [
    # kind, record, reason, words of the message
    (
        "sft",
        {"system": "s", "prompt": "p"},
        "missing_field",
        "'output' (or reference_answer, response, answer, completion) is missing",
    ),
    (
        "sft",
        SFT | {"output": None},
        "missing_field",
        "'output' (or reference_answer, response, answer, completion) is null",
    ),
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
    ("dpo", PAIR | {"chosen": messages("  ")}, "empty_field", "'chosen', content of message 1 is empty"),
    ("dpo", PAIR | {"chosen": messages("So.", user="When?")}, "bad_messages", "differs from column 'prompt'"),
    (
        "orpo",
        PAIR | {"prompt": None},
        "missing_field",
        "'prompt' (or instruction, user_prompt, question, query) is null",
    ),
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
    ("rm", RM | {"input": ""}, "empty_field", "'input' is empty"),
    ("sft", SFT | {"history": [["Hi", "Hello"]]}, "several_exchanges", "column 'history' holds earlier turns"),
    ("sft", {"messages": TWO}, "several_exchanges", "column 'messages' is a conversation of 4 messages"),
    ("sft", {"messages": messages("", system="s")[:1] + TWO}, "several_exchanges", "a conversation of 4 messages"),
    ("sft", {"conversations": share_gpt("So.", user="Why?") * 3}, "several_exchanges", "of 6 messages"),
    ("dpo", PAIR | {"prompt": TWO[:3]}, "several_exchanges", "column 'prompt' is a conversation of 3 messages"),
    ("dpo", PAIR | {"chosen": TWO}, "several_exchanges", "column 'chosen' is a conversation of 4 messages"),
    ("sft", {"messages": messages("", user="Why?")[:1]}, "bad_messages", "'messages' has the roles user; allowed"),
    (
        "sft",
        {"messages": messages("So.")},
        "missing_field",
        "'prompt' (or instruction, user_prompt, question, query) is missing",
    ),
    ("sft", {"prompt": "When?", "messages": TWO[:2]}, "bad_messages", "column 'prompt' from character 3 on"),
    ("sft", {"system": "s", "messages": messages("a", user="u", system="t")}, "bad_messages", "from column 'sys"),
    ("dpo", PAIR | {"prompt": TWO[:2]}, "bad_messages", "'prompt' has the roles user, assistant"),
    ("dpo", ULTRAFEEDBACK | {"prompt": "When?"}, "bad_messages", "column 'prompt' from character 3 on"),
    ("rm", ULTRAFEEDBACK | {"prompt": "When?"}, "bad_messages", "column 'prompt' from character 3 on"),
    ("dpo", PAIR | {"chosen": "caf\u00e9", "rejected": "cafe\u0301 "}, "identical_responses", "are equal"),
    *[("sft", SFT | {"output": text}, "empty_field", "text is needed") for text in INVISIBLE],
    *[("dpo", PAIR | {"prompt": text}, "empty_field", "column 'prompt'") for text in INVISIBLE],
    ("dpo", PAIR | {"rejected": messages("\u200b")}, "empty_field", "message 1 holds only invisible characters"),
    # the words of a message are those of the record
    ("sft", {"conversations": share_gpt("", user="Why?")[:1]}, "bad_messages", f"roles human; {SHARE_GPT}"),
    ("sft", {"conversations": share_gpt("a") * 2}, "bad_messages", f"message 2 is a second gpt message; {SHARE_GPT}"),
    ("sft", {"conversations": [{"from": "tool", "value": "x"}]}, "bad_messages", "message 1 has from str 'tool'"),
    ("sft", {"conversations": [{"from": "human", "text": "x"}]}, "bad_messages", SHARE_GPT),
    ("sft", {"conversations": share_gpt("a", user="u") * 2}, "several_exchanges", f"one exchange: {SHARE_GPT[9:]}"),
    ("dpo", PAIR | {"prompt": share_gpt("x")}, "bad_messages", "one human message in this order, each {from, value}"),
    ("sft", {"user_prompt": "Why?", "reference_answer": 7}, "wrong_type", "column 'reference_answer' must be a string"),
    ("sft", {"instruction": 7, "output": "a"}, "wrong_type", "column 'instruction' must be a string"),
    ("sft", {"system_prompt": 7, "prompt": "p", "output": "a"}, "wrong_type", "column 'system_prompt' must be"),
    ("dpo", {"prompt": "p", "chosen_response": 7}, "wrong_type", "column 'chosen_response' must be a string or a list"),
    ("sft", {"instruction": "p", "messages": TWO[:2]}, "bad_messages", "column 'instruction' from character 1 on"),
    ("rm", {"system": "s", "prompt": "p", "chosen": "c"}, "missing_field", "input (or prompt, with or without system)"),
]


@pytest.mark.parametrize("text", ["中", "😀", "❤\ufe0f", "é", "∑", "\u200bx", "0", "."])
def test_text_with_anything_to_see_is_text(text):
    assert parse_record(SFT | {"output": text}, "sft").chosen == text


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


@pytest.mark.parametrize(
    ("kind", "raw", "kinds"),
    [
        ("sft", {"system": "s", "prompt": "p", "chosen": "c", "rejected": "r"}, "dpo or orpo or rm"),
        ("sft", {"input": "p", "chosen": "c", "rejected": "r"}, "dpo or orpo or rm"),
        ("rm", {"instruction": "p", "output": "r"}, "sft"),
    ],
)
def test_a_missing_column_names_the_kinds_that_a_record_has_columns_for(kind, raw, kinds):
    with pytest.raises(RecordError, match=rf"; these are the columns of kind {kinds}$"):
        parse_record(raw, kind)


def test_a_long_value_is_shortened():
    with pytest.raises(RecordError) as caught:
        parse_record(PAIR | {"chosen": "x" * 5000, "rejected": "x" * 5000}, "dpo")
    assert len(str(caught.value)) < 200
