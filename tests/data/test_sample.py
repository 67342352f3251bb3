"""The embedded sample is what it promises, and its pairs give nothing away to who sees only the response."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from fractions import Fraction

import pytest

from janus_jax.data.build.readers import read_records
from janus_jax.data.sample import SPLITS, ordered_pairs, sample_path, sample_records, write_sample
from janus_jax.data.schema import KINDS, PREFERENCE_KEYS
from janus_jax.errors import DataError

DIMENSIONS = ["style", "background_knowledge", "informativeness", "harmlessness"]
EMBEDDED = {split: sample_records(split) for split in SPLITS}
FIXTURE = [
    {"system": f"{voice} on {prompt}", "prompt": prompt, "output": f"{voice}: {prompt} {'so ' * length}"}
    for prompt, lengths in (("Why rain?", (3, 9, 1)), ("Why snow?", (4, 4, 2)))
    for voice, length in zip(("Pirate", "Poet", "Expert"), lengths, strict=True)
]
SCORERS: dict[str, Callable[[str], float]] = {
    "longer": len,
    "shorter": lambda text: -len(text),
    "more lines": lambda text: text.count("\n"),
    "more digits": lambda text: sum(c.isdigit() for c in text),
    "first letter": lambda text: ord(text[0]),
    "arbitrary": lambda text: int.from_bytes(text.encode()) % 1009,
}


def accuracy(pairs: list[dict], score: Callable[[str], float]) -> Fraction:
    """Share of pairs with the chosen response scored higher; a tie counts half."""
    signs = [score(pair["chosen"]) - score(pair["rejected"]) for pair in pairs]
    return Fraction(sum(2 if sign > 0 else 1 if sign == 0 else 0 for sign in signs), 2 * len(signs))


def preferences(record: dict) -> set[tuple[str, str]]:
    return {(item["dimension"], item["preference"]) for item in record["preference_set"]}


def instructions_of_preferences(split: str) -> dict[tuple[str, str], set[str]]:
    result: dict[tuple[str, str], set[str]] = defaultdict(set)
    for record in EMBEDDED[split]:
        for preference in preferences(record):
            result[preference].add(record["prompt"])
    return result


def test_all_ordered_pairs_of_three_responses():
    pairs = ordered_pairs(FIXTURE)
    assert len(pairs) == 12
    outputs = {record["output"]: record for record in FIXTURE}
    for pair in pairs:
        chosen, rejected = outputs[pair["chosen"]], outputs[pair["rejected"]]
        assert pair["system"] == chosen["system"] and chosen is not rejected
        assert pair["prompt"] == chosen["prompt"] == rejected["prompt"]
    assert len({(pair["chosen"], pair["rejected"]) for pair in pairs}) == 12
    assert "output" not in pairs[0]


@pytest.mark.parametrize("name", SCORERS)
def test_response_only_scorer_is_right_on_exactly_half(name):
    assert accuracy(ordered_pairs(FIXTURE), SCORERS[name]) == Fraction(1, 2)
    for split in SPLITS:
        assert accuracy(ordered_pairs(EMBEDDED[split]), SCORERS[name]) == Fraction(1, 2)


def test_fewer_than_all_pairs_would_give_the_response_away():
    some = ordered_pairs(FIXTURE)[:4]
    assert accuracy(some, len) != Fraction(1, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_written_sample_reads_back_as_its_kind(kind, tmp_path):
    files = write_sample(kind, tmp_path / kind)
    assert list(files) == list(SPLITS)
    for split, path in files.items():
        records, source = list(read_records(path, kind)), EMBEDDED[split]
        assert len(records) == len(source) * (1 if kind == "sft" else 2)
        by_output = {record["output"]: record for record in source}
        for record in records:
            chosen = by_output[record.chosen]
            prompt = f"{chosen['system']}\n{chosen['prompt']}" if kind == "rm" else chosen["prompt"]
            assert record.prompt == prompt
            assert record.system == ("" if kind == "rm" else chosen["system"])


def test_unknown_split_is_refused():
    with pytest.raises(DataError, match="the sample has train, validation"):
        sample_path("test")


@pytest.mark.parametrize(("split", "least"), [("train", 60), ("validation", 12)])
def test_three_different_records_for_each_of_enough_instructions(split, least):
    records = EMBEDDED[split]
    counts = Counter(record["prompt"] for record in records)
    assert len(counts) >= least
    assert set(counts.values()) == {3}
    assert (
        len({record["output"] for record in records}) == len({record["system"] for record in records}) == len(records)
    )


def test_validation_instructions_are_unseen_in_train():
    train, validation = ({record["prompt"] for record in EMBEDDED[split]} for split in SPLITS)
    assert not train & validation


@pytest.mark.parametrize("split", SPLITS)
def test_records_have_the_published_columns_and_one_preference_per_dimension(split):
    columns = ["main_source", "original_source", "preference_set", "system", "prompt", "output"]
    for line in sample_path(split).read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        assert list(record) == columns
        assert [item["dimension"] for item in record["preference_set"]] == DIMENSIONS
        for item in record["preference_set"]:
            assert tuple(item) == PREFERENCE_KEYS
            assert all(value.strip() for value in item.values())


@pytest.mark.parametrize("split", SPLITS)
def test_responses_have_60_to_200_words(split):
    lengths = [len(record["output"].split()) for record in EMBEDDED[split]]
    assert 60 <= min(lengths) and max(lengths) <= 200


def test_no_eight_words_of_a_response_stand_under_another_instruction():
    seen: dict[tuple[str, ...], str] = {}
    shared = []
    for record in EMBEDDED["train"] + EMBEDDED["validation"]:
        words = re.findall(r"[a-z0-9']+", record["output"].lower())
        for start in range(len(words) - 7):
            gram = tuple(words[start : start + 8])
            if seen.setdefault(gram, record["prompt"]) != record["prompt"]:
                shared.append((" ".join(gram), record["prompt"], seen[gram]))
    assert len(seen) > 10_000
    assert shared == []


def test_about_twenty_preferences_recur_across_instructions():
    recurring = [name for name, prompts in instructions_of_preferences("train").items() if len(prompts) >= 5]
    assert 18 <= len(recurring) <= 24


def test_validation_has_recurring_and_unseen_preferences():
    train = instructions_of_preferences("train")
    often = {name for name, prompts in train.items() if len(prompts) >= 5}
    per_prompt: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for record in EMBEDDED["validation"]:
        per_prompt[record["prompt"]] |= preferences(record)
    assert sum(result <= often for result in per_prompt.values()) >= 4
    assert sum(not result & set(train) for result in per_prompt.values()) >= 4
