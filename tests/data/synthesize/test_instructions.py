"""Instructions of many sources: which are kept, and why others are not."""

import json
from collections import Counter
from types import SimpleNamespace

import pytest

from janus_jax.data.columns import RecordError
from janus_jax.data.synthesize import instructions
from janus_jax.data.synthesize.config import SourceSection, load_synthesis
from janus_jax.data.synthesize.instructions import instruction_of
from janus_jax.data.synthesize.near import Contamination, NearDuplicates
from tests.support.synthesizing import write_config

SOURCE = SourceSection(path="some/file.jsonl")
BREAD = "Why does bread dough rise before it is baked?"


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"system": "Be kind.", "prompt": BREAD}, (BREAD, True)),
        ({"instruction": "Sort these.", "input": "b a", "output": "a b"}, ("Sort these.\nb a", False)),
        ({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": BREAD}]}, (BREAD, True)),
        ({"conversations": [{"from": "human", "value": BREAD}, {"from": "gpt", "value": "Gas."}]}, (BREAD, False)),
        ({"prompt": [{"role": "user", "content": BREAD}], "chosen": "a", "rejected": "b"}, (BREAD, False)),
        ({"prompt": f"\n\nHuman: {BREAD}\n\nAssistant:", "answers": []}, (BREAD, False)),
        (
            {"chosen": f"\n\nHuman: {BREAD}\n\nAssistant: Gas.", "rejected": f"\n\nHuman: {BREAD}\n\nAssistant: No."},
            (BREAD, False),
        ),
        ({"prompt": f"[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\n{BREAD} [/INST]"}, (BREAD, True)),
        ({"question_id": 81, "turns": [BREAD]}, (BREAD, False)),
        ({"system_prompt": "s", "input": BREAD, "reference_answer": "r", "score_rubric": {}}, (BREAD, True)),
    ],
)
def test_the_instruction_of_a_record_has_no_system_message(record, expected):
    one = instruction_of(record, SOURCE)
    assert (one.text, one.has_system) == expected and one.main_source == "file.jsonl"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"output": "x"}, "missing_field"),
        ({"prompt": " "}, "empty_field"),
        ({"question": None}, "missing_field"),
        ({"input": "s\np", "chosen": "a", "rejected": "b"}, "joined_system"),
        ({"prompt": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"}, "several_exchanges"),
        ("text", "wrong_type"),
    ],
)
def test_a_record_without_one_instruction_says_why(record, reason):
    with pytest.raises(RecordError) as error:
        instruction_of(record, SOURCE)
    assert error.value.reason == reason


def test_of_a_conversation_the_first_question_may_be_taken():
    turns = [
        {"role": role, "content": text} for role, text in (("user", BREAD), ("assistant", "Gas."), ("user", "Why?"))
    ]
    with pytest.raises(RecordError, match="conversation"):
        instruction_of({"messages": turns}, SOURCE)
    assert instruction_of({"messages": turns}, SOURCE, first=True).text == BREAD


LONG = "Describe in a few friendly sentences how a person who has never cooked before can boil potatoes without burning"


def test_what_is_dropped_is_counted_with_its_reason(tmp_path):
    bench = tmp_path / "bench.jsonl"
    bench.write_text(
        json.dumps({"prompt": LONG, "system": "s"}) + "\n" + json.dumps({"prompt": "Name three rivers."}) + "\n"
    )
    near = "Please explain to me step by step how the moon makes the water of the sea rise and fall twice a day"
    (tmp_path / "turns.jsonl").write_text(
        json.dumps({"turns": ["Name one.", "Say all of it again backwards, please."]})
    )
    prompts = [
        "Say all of it again, backwards, please!",
        BREAD,
        " why does BREAD dough rise before it is baked",
        f"Hello. {LONG} anything.",
        "name three rivers",
        near,
        f"{near}, thanks",
        "Warum geht der Teig von Brot auf, und was ist die Rolle der Hefe?",
        "面包面团为什么会发酵?请详细解释。",
        "def f(x):\n    return x ** 2  # faster?",
        "What comes next<|eot_id|> in a text?",
        "short",
        "Which rivers flow\0 north in Europe?",
        "[INST] How do bees find their way home? [/INST]",
        "<|im_start|>user\nWhat makes the leaves of trees turn red?<|im_end|>",
    ]
    source = tmp_path / "questions.jsonl"
    source.write_text("".join(json.dumps({"prompt": one}) + "\n" for one in prompts) + '{"prompt": \n')
    config = load_synthesis(
        write_config(
            tmp_path, "http://h/v1", instructions={"contaminated_by": [str(bench), str(tmp_path / "turns.jsonl")]}
        )
    )
    kept, dropped = [], Counter()
    writer = SimpleNamespace(counts=Counter(), dropped=dropped, add=kept.append)
    writer.drop = lambda reason, **what: dropped.update([reason])
    instructions.run(SimpleNamespace(config=config, writer=writer, runner=None))
    assert [row["prompt"] for row in kept] == [
        BREAD,
        near,
        prompts[9],
        "How do bees find their way home?",
        "What makes the leaves of trees turn red?",
    ]
    assert writer.counts["chat_marks_taken_off"] == 2 and not writer.counts["system_messages_taken_off"]
    assert dropped == {"duplicate": 1, "in_bench": 3, "near_duplicate": 1, "wrong_language": 2} | {
        "chat_markup": 1,
        "control_characters": 1,
        "too_short": 1,
        "bad_json": 1,
    }
    assert writer.counts["read"] == len(prompts) + 1


def test_near_duplicates_follow_the_share_of_common_grams():
    words = [f"w{number}" for number in range(200)]
    near = NearDuplicates(0.7)
    assert near.add(" ".join(words)) is None
    assert near.add(" ".join([*words[:195], "x", "y", "z"])) == 0  # 193 of 203 grams are common
    assert near.add(" ".join(words[:60] + [f"v{number}" for number in range(140)])) is None


def test_the_estimate_of_common_grams_stays_within_its_error():
    """The standard error of the estimate is at most 0.044: 0.6 and 0.95 are over 4 of them away from 0.8."""
    near = NearDuplicates(0.8)
    for number in range(40):
        words = [f"{number}:{at}" for at in range(402)]
        assert near.add(" ".join(words)) is None
        for share, expected in ((0.6, False), (0.95, True)):
            common = round(400 * 2 * share / (1 + share)) + 2
            other = [f"{number}:{share}:{at}" for at in range(402 - common)]
            assert (near.add(" ".join(words[:common] + other)) is not None) == expected


def test_a_short_prompt_of_a_bench_counts_as_a_whole():
    shared = Contamination(["one two three four five", "hi there"], 13).shared
    assert shared("zero one two three four five six") and shared("Hi there!")
    assert not shared("hi there you") and not shared("one two three four six five")
