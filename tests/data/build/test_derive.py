"""Pairs from SFT records: by the published rule, the same for every order of the records, in little memory."""

import itertools
import json
import random
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from janus_jax.data.build.derive import Derivation, derive_pairs
from janus_jax.data.build.pipeline import build
from janus_jax.data.build.readers import read_records
from janus_jax.data.dataset import Manifest, TokenizedDataset
from janus_jax.data.sample import ordered_pairs, sample_path, sample_records
from janus_jax.data.schema import Record
from janus_jax.errors import DataError

PREFERENCE = {"dimension": "style", "subdimension": "Tone", "preference": "Warm", "description": "It is warm."}
VOICES = ("Pirate", "Poet", "Expert")


def collection(instructions: int) -> list[Record]:
    return [
        Record(f"{voice} on {i}", f"Why {i}?", f"{voice}: so {i}.", None, f"main {voice}", f"{i}", (PREFERENCE,))
        for i in range(instructions)
        for voice in VOICES
    ]


def derived(records, scratch: Path, kind="dpo", *, seed=0, all_pairs=False) -> tuple[list[Record], Counter[str]]:
    dropped: Counter[str] = Counter()
    pairs = list(derive_pairs(records, kind, seed=seed, all_pairs=all_pairs, scratch=scratch, dropped=dropped))
    assert list(scratch.iterdir()) == []
    return pairs, dropped


def test_one_pair_an_instruction_chosen_with_its_system_rejected_from_another(tmp_path):
    records = collection(50)
    pairs, dropped = derived(records, tmp_path)
    by_response = {record.chosen: record for record in records}
    assert [pair.prompt for pair in pairs] == [f"Why {i}?" for i in range(50)]
    assert not dropped
    for pair in pairs:
        chosen, rejected = by_response[pair.chosen], by_response[pair.rejected or ""]
        assert chosen.prompt == rejected.prompt == pair.prompt
        assert chosen.system == pair.system != rejected.system
        assert (pair.main_source, pair.original_source, pair.preference_set) == (
            chosen.main_source,
            chosen.original_source,
            (PREFERENCE,),
        )


def test_each_ordered_pair_is_drawn_about_as_often(tmp_path):
    def counts(pairs):
        return Counter((pair.chosen.split(":")[0], (pair.rejected or "").split(":")[0]) for pair in pairs)

    of_instructions = counts(derived(collection(300), tmp_path)[0])
    of_seeds = counts(derived(collection(1), tmp_path, seed=seed)[0][0] for seed in range(300))
    for drawn in (of_instructions, of_seeds):
        assert set(drawn) == set(itertools.permutations(VOICES, 2))
        # 50 expected of each; chance exceeds 20.5 once in a thousand times (5 degrees of freedom), and this is one draw
        assert sum((count - 50) ** 2 / 50 for count in drawn.values()) < 20.5


@pytest.mark.parametrize("all_pairs", [False, True])
def test_pairs_depend_on_seed_and_content_and_not_on_the_order_of_records(tmp_path, all_pairs):
    records = collection(40)
    repeated = Record(records[0].system, records[0].prompt, records[0].chosen + " ", None, "another source")
    shuffled = random.Random(1).sample([*records, repeated], len(records) + 1)
    pairs, dropped = derived([*records, repeated], tmp_path, all_pairs=all_pairs)
    assert dropped == {"repeated_record": 1}
    for order in (shuffled, [repeated, *records][::-1], [repeated, *records]):
        place = {prompt: i for i, prompt in enumerate(dict.fromkeys(record.prompt for record in order))}
        others, _ = derived(order, tmp_path, all_pairs=all_pairs)
        assert others == sorted(pairs, key=lambda pair: place[pair.prompt])  # stable: neighbours keep their order
    assert derived([*records, repeated], tmp_path, all_pairs=all_pairs)[0] == pairs
    if not all_pairs:
        # the draw of one instruction does not move when others come or go
        assert derived([record for record in records if record.prompt != "Why 7?"], tmp_path)[0] == [
            pair for pair in derived(records, tmp_path)[0] if pair.prompt != "Why 7?"
        ]
        assert derived(records, tmp_path, seed=1)[0] != derived(records, tmp_path)[0]


def test_all_pairs_of_the_sample_are_its_ordered_pairs(tmp_path):
    records = list(read_records(sample_path("train"), "sft"))
    pairs, _ = derived(records, tmp_path, all_pairs=True)
    expected = {(p["system"], p["prompt"], p["chosen"], p["rejected"]) for p in ordered_pairs(sample_records("train"))}
    assert len(pairs) == len(expected) == 384
    assert {(p.system, p.prompt, p.chosen, p.rejected) for p in pairs} == expected
    assert all(len({p.prompt for p in pairs[start : start + 6]}) == 1 for start in range(0, 384, 6))


def test_reward_model_prompts_are_system_and_instruction_in_one(tmp_path):
    records = [Record("Be brief.", "Why?", "So."), Record("", "Why?", "Because of that.")]
    pairs, _ = derived(records, tmp_path, "rm", all_pairs=True)
    assert {(pair.system, pair.prompt, pair.chosen, pair.rejected) for pair in pairs} == {
        ("", "Be brief.\nWhy?", "So.", "Because of that."),
        ("", "Why?", "Because of that.", "So."),
    }


def test_what_gives_no_pair_is_dropped_by_reason(tmp_path):
    records = [
        *collection(1),
        Record("a", "single?", "one"),
        Record("a", "repeated?", "one"),
        Record("a", "repeated?", "one"),
        Record("a", "equal?", "same"),
        Record("b", "equal?", "same "),
        Record("a", "one system?", "this"),
        Record("a", "one system?", "that"),
        Record("a", "two of one system?", "this"),
        Record("a", "two of one system?", "that"),
        Record("b", "two of one system?", "other"),
        Record("a", "two of three equal?", "same"),
        Record("b", "two of three equal?", "same"),
        Record("c", "two of three equal?", "other"),
    ]
    pairs, dropped = derived(records, tmp_path, all_pairs=True)
    assert dropped == {
        "repeated_record": 1,
        "instruction_with_one_response": 2,
        "instruction_with_equal_responses": 1,
        "instruction_with_one_system": 1,
    }
    assert Counter(pair.prompt for pair in pairs) == {"Why 0?": 6, "two of one system?": 4, "two of three equal?": 4}
    with pytest.raises(
        DataError, match="no pair can be derived: 1 instruction_with_one_response; an instruction needs"
    ):
        derived(records[3:4], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_single_responses_cannot_be_derived(tmp_path):
    with pytest.raises(DataError, match="kind 'sft': cannot be derived; allowed: dpo, orpo, rm"):
        derive_pairs([], "sft", seed=0, all_pairs=False, scratch=tmp_path, dropped=Counter())


def test_memory_does_not_grow_with_the_text(tmp_path):
    def records():
        for i in range(3000):
            yield Record(f"{i % 3} {i}", f"Why {i % 1000}?", f"{i} " + "x" * 8000)  # those of an instruction lie apart

    list(
        derive_pairs(
            itertools.islice(records(), 1001), "dpo", seed=0, all_pairs=False, scratch=tmp_path, dropped=Counter()
        )
    )
    tracemalloc.start()
    try:
        pairs = derive_pairs(records(), "dpo", seed=0, all_pairs=False, scratch=tmp_path, dropped=Counter())
        assert sum(1 for _ in pairs) == 1000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3000 * 8000 / 12


def test_a_build_derives_each_split_and_says_so(tmp_path):
    source = tmp_path / "rows.jsonl"
    with source.open("w") as lines:
        for record in collection(8):
            lines.write(json.dumps({"system": record.system, "prompt": record.prompt, "output": record.chosen}) + "\n")
        lines.write(json.dumps({"system": "", "prompt": "Alone?", "output": "Yes."}) + "\n")
    manifest = build(source, tmp_path / "data", kind="rm", derive=Derivation(seed=3))
    assert manifest == Manifest.load(tmp_path / "data")
    assert manifest.derived == {"seed": 3, "all_pairs": False}
    assert manifest.splits["train"].dropped == {"instruction_with_one_response": 1}
    data = TokenizedDataset(tmp_path / "data")
    decode = data.tokenizer().decode
    (tmp_path / "scratch").mkdir()
    pairs, _ = derived(read_records(source, "sft"), tmp_path / "scratch", "rm", seed=3)
    for pair, example in zip(pairs, data.read(range(len(data))), strict=True):
        texts = [decode(ids) for ids in (example.prompt[1:], example.chosen[:-1], example.rejected[:-1])]
        assert texts == [f"[INST] {pair.prompt} [/INST]", pair.chosen, pair.rejected]
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "manifest.json",
        "tfds",
        "tokenizer",
        "train",
    ]
