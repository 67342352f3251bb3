"""The three sets of the published reward model's second stage: which record becomes which pair, and with which ids."""

import gzip
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from janus_jax.data.boundary import encode_example
from janus_jax.data.build.published import published_record
from janus_jax.data.build.readers import read_records
from janus_jax.data.build.sources import find_splits
from janus_jax.data.columns import NoPreferenceError, RecordError
from janus_jax.data.schema import Record
from janus_jax.errors import DataError
from janus_jax.text.chat_format import ChatFormat
from janus_jax.text.template import MISTRAL_INST, PLAIN
from janus_jax.text.tokenizer import load_tokenizer

PAIR_KINDS = ("dpo", "orpo", "rm")
ASKED = "\n\nHuman: Why rain?\n\nAssistant: Clouds.\n\nHuman: Why clouds?\n\nAssistant:"
HH = {"chosen": f"{ASKED} Vapour rises.", "rejected": f"{ASKED} No idea."}
OASST = {
    "lang": "en",
    "parent_id": "9d0b",
    "prompt": "prompter:Why rain?assistant:Clouds.prompter:Why clouds?",
    "chosen": "Vapour rises.",
    "rejected": "No idea.",
}
WEBGPT = {
    "question": {"dataset": "eli5", "id": "x", "full_text": "Why clouds?"},
    "quotes_0": {"title": [], "extract": []},
    "answer_0": "No idea.",
    "tokens_0": {"prefix": [1], "completion": [2]},
    "score_0": -0.5,
    "answer_1": "Vapour rises [1].",
    "score_1": 0.5,
}
NECTAR = {
    "prompt": f"{ASKED} ",
    "answers": [
        {"answer": "It is wet.", "model": "b", "rank": 2.0},
        {"answer": " Vapour rises.", "model": "a", "rank": 1.0},
        {"answer": "No idea.", "model": "c", "rank": 3.0},
    ],
    "turns": 2,
    "num_responses": 3,
    "source": ["x"],
    "good_natured": True,
}
ULTRAFEEDBACK = {
    "source": "x",
    "instruction": "Why clouds?",
    "models": ["a", "b", "c"],
    "completions": [
        {"response": "It is wet.", "overall_score": 6.0, "annotations": {}, "model": "a"},
        {"response": "No idea.", "overall_score": 2.5, "model": "b"},
        {"response": "Vapour rises.", "overall_score": 8.0, "critique": "good", "model": "c"},
    ],
}
HELPSTEER2 = {
    "prompt": "Why clouds?",
    "response_1": "Vapour rises.",
    "response_2": "No idea.",
    "preference_strength": -2,
    "preference_statement": "1 is better",
}
HELPSTEER3 = {
    "domain": "general",
    "context": [{"role": "user", "content": "Why clouds?"}],
    "response1": "No idea.",
    "response2": "Vapour rises.",
    "overall_preference": 1,
}
RECORDS = {"hh": HH, "oasst": OASST, "webgpt": WEBGPT}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


@pytest.mark.parametrize("kind", PAIR_KINDS)
def test_each_set_is_known_by_its_columns(kind):
    assert published_record(HH, kind) == Record("", ASKED, "Vapour rises.", "No idea.")
    assert published_record(OASST, kind) == Record(
        "", "\nHuman: Why rain?\nAssistant: Clouds.\nHuman: Why clouds?\nAssistant:", "Vapour rises.", "No idea."
    )
    assert published_record(WEBGPT, kind) == Record("", "Why clouds?", "Vapour rises [1].", "No idea.")
    assert published_record(NECTAR, kind) == Record("", ASKED, "Vapour rises.", "No idea.")
    for raw in (ULTRAFEEDBACK, HELPSTEER2, HELPSTEER3):
        assert published_record(raw, kind) == Record("", "Why clouds?", "Vapour rises.", "No idea.")
    asked = [{"role": "system", "content": "Be brief."}, *HELPSTEER3["context"]]
    assert published_record(HELPSTEER3 | {"context": asked}, kind) == Record(
        "Be brief.", "Why clouds?", "Vapour rises.", "No idea."
    )
    swapped = WEBGPT | {"score_0": 1, "score_1": -1}
    assert published_record(swapped, kind) == Record("", "Why clouds?", "No idea.", "Vapour rises [1].")


@pytest.mark.parametrize(
    "raw",
    [
        {"system": "", "prompt": "Why?", **HH},
        {"input": "Why?", **HH},
        {"instruction": "Why?", **HH},
        {"chosen": "Vapour rises.", "rejected": "No idea."},
        {"chosen": [{"role": "assistant", "content": HH["chosen"]}], "rejected": HH["rejected"]},
        OASST | {"system": "Be brief."},
        {name: value for name, value in OASST.items() if name != "parent_id"},
        {name: value for name, value in WEBGPT.items() if name != "score_1"},
        ["Why?"],
    ],
)
def test_records_of_our_own_columns_are_left_alone(raw):
    assert [published_record(raw, kind) for kind in PAIR_KINDS] == [None] * 3


def test_single_responses_are_not_made_of_pairs():
    assert [published_record(raw, "sft") for raw in RECORDS.values()] == [None] * 3


def test_transcripts_that_part_early_share_the_prompt_up_to_their_last_common_turn():
    early = "\n\nHuman: Why rain?\n\nAssistant:"
    chosen, rejected = (
        f"{early} Clouds.\n\nHuman: Why?\n\nAssistant: Heat.",
        f"{early} Clear.\n\nHuman: ?\n\nAssistant: Er.",
    )
    record = published_record({"chosen": chosen, "rejected": rejected}, "rm")
    assert record == Record(
        "", early, "Clouds.\n\nHuman: Why?\n\nAssistant: Heat.", "Clear.\n\nHuman: ?\n\nAssistant: Er."
    )
    # one side goes on where the other ends
    record = published_record(
        {"chosen": f"{ASKED} Heat.", "rejected": f"{ASKED} Heat.\n\nHuman: So?\n\nAssistant: Yes."}, "rm"
    )
    assert record is not None
    assert (record.prompt, record.chosen, record.rejected) == (ASKED, "Heat.", "Heat.\n\nHuman: So?\n\nAssistant: Yes.")


def test_one_space_alone_is_taken_from_a_transcript():
    record = published_record({"chosen": f"{ASKED}   - so \n", "rejected": f"{ASKED}No."}, "dpo")
    assert record is not None
    assert (record.chosen, record.rejected) == ("  - so \n", "No.")


BAD = [
    (
        HH | {"rejected": "\n\nHuman: Else?\n\nAssistant: No."},
        "no_shared_prompt",
        "have no common prefix up to '\\n\\nAss",
    ),
    (
        HH | {"chosen": f"{ASKED}  \n"},
        "empty_field",
        "column 'chosen' after its last shared '\\n\\nAssistant:' is empty",
    ),
    (HH | {"rejected": HH["chosen"] + " "}, "identical_responses", "chosen and rejected are equal"),
    (HH | {"chosen": HH["chosen"] + "\ud800"}, "bad_encoding", "not valid Unicode"),
    (OASST | {"prompt": "Why?"}, "bad_prompt", "column 'prompt' must begin with 'prompter:'"),
    (OASST | {"chosen": None}, "wrong_type", "column 'chosen' must be a string, found null"),
    (OASST | {"chosen": " \0"}, "empty_field", "column 'chosen' is empty"),
    (WEBGPT | {"answer_1": ""}, "empty_field", "column 'answer_1' is empty"),
    (
        WEBGPT | {"question": "Why?"},
        "wrong_type",
        "column 'question' must be an object with full_text, found str 'Why?'",
    ),
    (WEBGPT | {"score_0": None}, "wrong_type", "column 'score_0' must be a finite number (float32), found null"),
    (WEBGPT | {"score_0": float("nan")}, "wrong_type", "column 'score_0' must be a finite number"),
    (WEBGPT | {"answer_0": WEBGPT["answer_1"]}, "identical_responses", "chosen and rejected are equal"),
    (NECTAR | {"answers": NECTAR["answers"][:1]}, "wrong_type", "'answers' must be a list of two answers or more"),
    (NECTAR | {"answers": [{"answer": "x"}, {}]}, "wrong_type", "answers[0] must be an object with answer and rank"),
    (NECTAR | {"prompt": "Why?"}, "bad_prompt", "column 'prompt' must be a transcript"),
    (
        ULTRAFEEDBACK | {"completions": [{"response": "x", "overall_score": "high"}, *ULTRAFEEDBACK["completions"]]},
        "wrong_type",
        "column 'completions[0].overall_score' must be a finite number",
    ),
    (HELPSTEER2 | {"prompt": "Hi<extra_id_1>Assistant\nYes"}, "several_exchanges", "is a conversation"),
    (HELPSTEER2 | {"preference_strength": "strong"}, "wrong_type", "'preference_strength' must be a finite number"),
    (HELPSTEER2 | {"preference_strength": 5}, "wrong_type", "'preference_strength' = 5: allowed: -3 to 3"),
    (
        HELPSTEER3 | {"context": [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]},
        "several_exchanges",
        "column 'context' is a conversation of 3 messages",
    ),
]


@pytest.mark.parametrize(("raw", "reason", "words"), BAD)
def test_bad_records_are_refused_with_reason_and_value(raw, reason, words):
    with pytest.raises(RecordError) as caught:
        published_record(raw, "rm")
    assert not isinstance(caught.value, NoPreferenceError)
    assert caught.value.reason == reason
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("raw", [NECTAR, ULTRAFEEDBACK, HELPSTEER2, HELPSTEER3])
def test_answers_that_are_all_alike_are_ties(raw):
    equal = {
        "answers": [one | {"rank": 1} for one in NECTAR["answers"]],
        "completions": [one | {"overall_score": 3} for one in ULTRAFEEDBACK["completions"]],
        "preference_strength": 0,
        "overall_preference": 0,
    }
    with pytest.raises(NoPreferenceError):
        published_record({name: equal.get(name, value) for name, value in raw.items()}, "dpo")


# Ids


def test_ids_are_those_of_the_whole_text_as_openrlhf_tokenizes_it(tokenizer):
    """Its text is prompt + response, here with the marks that it writes; the trailing space of its prompt and the first
    word of the response are one token."""
    oasst = OASST["prompt"].replace("prompter:", "\nHuman: ").replace("assistant:", "\nAssistant: ") + "\nAssistant: "
    texts = {
        "hh": [HH["chosen"], HH["rejected"]],
        "oasst": [oasst + OASST["chosen"], oasst + OASST["rejected"]],
        "webgpt": [f"[INST] Why clouds? [/INST] {answer}" for answer in (WEBGPT["answer_1"], WEBGPT["answer_0"])],
    }
    for name, wholes in texts.items():
        record = published_record(RECORDS[name], "rm")
        assert record is not None
        template = MISTRAL_INST if name == "webgpt" else PLAIN
        prompt, *responses = encode_example(ChatFormat(template, tokenizer), record, "rm")
        assert [[*prompt, *response] for response in responses] == [[1, *tokenizer.encode(w), 2] for w in wholes], name


# Files


def test_ties_are_counted_and_do_not_stop_a_build(tmp_path):
    path = tmp_path / "rows.jsonl"
    tie = WEBGPT | {"score_0": 0.0, "score_1": 0.0, "answer_0": ""}
    path.write_text("".join(json.dumps(record) + "\n" for record in (tie, WEBGPT, tie)))
    dropped: Counter[str] = Counter()
    assert [record.prompt for record in read_records(path, "rm", dropped=dropped)] == ["Why clouds?"]
    assert dropped == {"tie": 2}
    path.write_text(json.dumps(tie) + "\n")
    with pytest.raises(DataError, match=r"no usable record; dropped: 1 tie \(.*rows.jsonl:1\)$"):
        list(read_records(path, "rm"))


def hub_copy(root: Path) -> Path:
    """Files as they lie in Anthropic/hh-rlhf."""
    attempt = {"min_harmlessness_score_transcript": -0.1, "transcript": HH["chosen"], "tags": []}
    for name, record in {
        "harmless-base/train": HH,
        "harmless-base/test": HH,
        "helpful-base/train": HH,
        "red-team-attempts/red_team_attempts": attempt,
    }.items():
        path = root / f"{name}.jsonl.gz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress((json.dumps(record) + "\n").encode()))
    return root


def test_the_hub_id_of_transcripts_leaves_out_what_are_no_pairs(tmp_path, monkeypatch):
    asked = {}

    def snapshot(name, **options):
        asked[name] = options
        return str(hub_copy(tmp_path))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    splits = find_splits("Anthropic/hh-rlhf")
    assert asked["Anthropic/hh-rlhf"]["ignore_patterns"] == ["red-team-attempts/*"]
    assert "*.jsonl.gz" in asked["Anthropic/hh-rlhf"]["allow_patterns"]
    names = {name: [str(path.relative_to(tmp_path)) for path in paths] for name, paths in splits.items()}
    assert names == {
        "test": ["harmless-base/test.jsonl.gz"],
        "train": ["harmless-base/train.jsonl.gz", "helpful-base/train.jsonl.gz"],
    }
    assert list(read_records(splits["train"], "rm")) == [Record("", ASKED, "Vapour rises.", "No idea.")] * 2


@pytest.mark.skipif("JANUS_REAL_DATA" not in os.environ, reason="JANUS_REAL_DATA names no folder of published records")
def test_real_conversations_part_where_their_last_responses_begin(tmp_path, tokenizer):
    """The file holds turns, prompt and responses apart; the published form is written from them."""
    file = Path(os.environ["JANUS_REAL_DATA"]) / "hh_harmless_part.jsonl"
    given = [json.loads(line) for line in file.read_text().splitlines()]
    roles = {"user": "Human", "assistant": "Assistant"}
    turns = [
        "".join(f"\n\n{roles[turn['role']]}: {turn['content']}" for turn in record["messages"]) + "\n\nAssistant:"
        for record in given
    ]
    wholes = [
        [f"{turn} {record[side]}" for side in ("chosen", "rejected")] for turn, record in zip(turns, given, strict=True)
    ]
    path = tmp_path / "train.jsonl.gz"
    with gzip.open(path, "wt") as lines:
        lines.writelines(json.dumps({"chosen": a, "rejected": b}) + "\n" for a, b in wholes)
    records = list(read_records(path, "rm"))
    assert records == [
        Record("", turn, record["chosen"], record["rejected"]) for turn, record in zip(turns, given, strict=True)
    ]
    assert len(records) == 400
    for record, texts in zip(records[::8], wholes[::8], strict=True):
        prompt, *responses = encode_example(ChatFormat(PLAIN, tokenizer), record, "rm")
        assert [[*prompt, *response] for response in responses] == [[1, *tokenizer.encode(t), 2] for t in texts]


def test_scored_responses_of_helpsteer2_name_its_preference_files(tmp_path):
    row = {"prompt": "Why?", "response": "So.", "helpfulness": 3, "correctness": 4, "coherence": 4}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(
        DataError, match=r"train.jsonl:1: .*single responses with scores.* pairs come from the preference"
    ):
        list(read_records(tmp_path / "train.jsonl", "dpo"))
    assert [one.chosen for one in read_records(tmp_path / "train.jsonl", "sft")] == ["So."]
