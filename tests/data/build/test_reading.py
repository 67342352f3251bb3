"""Held-out shares, repeats, and what is said about the splits of a build."""

import dataclasses
import json
import random
from pathlib import Path

import pytest

from janus_jax.data.build.derive import Derivation
from janus_jax.data.build.reading import Choice, Reading
from janus_jax.data.schema import Record
from janus_jax.errors import DataError
from tests.support.records import QUESTIONS, write_json_lines, write_records

ROWS = [{"prompt": f"Why {i % 40}?", "output": f"Because {i}.", "id": i} for i in range(100)]


def reading(
    path: Path, choice: Choice | None = None, kind: str = "sft", derive: Derivation | None = None, **more: Path
):
    files = {"train": [path]} | {name: [file] for name, file in more.items()}
    return Reading(files, kind, choice or Choice(), derive=derive, skip_bad=True, scratch=path.parent)


def read(one: Reading) -> dict[str, list[Record]]:
    splits = {split: list(one.records(split)) for split in one.splits}
    one.compare()
    return splits


def prompts(records: list[Record]) -> set[str]:
    return {record.prompt for record in records}


def test_a_share_of_the_prompts_is_held_out_with_all_their_records(tmp_path):
    path = write_json_lines(tmp_path / "rows.jsonl", ROWS)
    splits = read(reading(path, Choice(validation_fraction=0.25)))
    assert len(prompts(splits["validation"])) == 10 and not prompts(splits["train"]) & prompts(splits["validation"])
    assert sorted(record.chosen for records in splits.values() for record in records) == sorted(
        row["output"] for row in ROWS
    )


def test_the_draw_depends_on_the_seed_and_not_on_the_order(tmp_path):
    shuffled = random.Random(0).sample(ROWS, len(ROWS))
    held = {
        name: prompts(read(reading(write_json_lines(tmp_path / f"{name}.jsonl", rows), choice))["validation"])
        for name, rows, choice in [
            ("one", ROWS, Choice(validation_fraction=0.25)),
            ("shuffled", shuffled, Choice(validation_fraction=0.25)),
            ("other", ROWS, Choice(validation_fraction=0.25, validation_seed=1)),
        ]
    }
    assert held["one"] == held["shuffled"] != held["other"]


@pytest.mark.parametrize(("fraction", "held"), [(0.001, 1), (0.5, 20), (0.999, 39)])
def test_both_sides_have_at_least_one_prompt(tmp_path, fraction, held):
    path = write_json_lines(tmp_path / "rows.jsonl", ROWS)
    assert len(prompts(read(reading(path, Choice(validation_fraction=fraction)))["validation"])) == held


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_other_fractions_are_refused(tmp_path, fraction):
    with pytest.raises(DataError, match=r"^validation_fraction=.*: allowed: more than 0 and less than 1$"):
        reading(tmp_path / "rows.jsonl", Choice(validation_fraction=fraction))


def test_a_fraction_needs_two_prompts_and_no_other_validation(tmp_path):
    path = write_json_lines(tmp_path / "rows.jsonl", QUESTIONS[:1] * 3)
    choice = Choice(validation_fraction=0.5)
    with pytest.raises(DataError, match="the records have one prompt only; two are needed"):
        read(reading(path, choice))
    with pytest.raises(DataError, match="the source has a split validation already"):
        reading(path, choice, validation=path)
    with pytest.raises(DataError, match=r"say split test, and there is no split train .* train=FILE$"):
        Reading({"test": [path]}, "sft", choice, derive=None, skip_bad=False, scratch=tmp_path)


def test_what_is_dropped_while_drawing_counts_once(tmp_path):
    path = write_json_lines(tmp_path / "rows.jsonl", [*ROWS, {"prompt": "p"}, *ROWS[:10]])
    one = reading(path, Choice(dedupe=True, validation_fraction=0.5))
    splits = read(one)
    assert sum(map(len, splits.values())) == 100
    counts = {split: one.facts(split) for split in splits}
    assert counts["train"]["dropped"].pop("missing_field") == 1
    assert sum(facts["dropped"].pop("repeated_record") for facts in counts.values()) == 10
    assert counts["train"]["unread"] == {"id": 110} and not counts["validation"]["unread"]


def test_repeats_are_dropped_whatever_stands_in_other_columns(tmp_path):
    first = {"prompt": "Why caf\u00e9?", "output": "So."}
    alike = [{"id": 1}, {"output": "So. "}, {"prompt": "Why cafe\u0301?\n"}]
    rows = [*QUESTIONS, first, *(first | change for change in alike), first | {"output": "Else."}]
    one = reading(write_json_lines(tmp_path / "rows.jsonl", rows), Choice(dedupe=True))
    assert len(read(one)["train"]) == 7 and one.facts("train")["dropped"] == {"repeated_record": 3}


def test_margins_that_some_records_lack_or_that_are_negative_are_noted(tmp_path):
    pairs = [{"prompt": f"{i}?", "chosen": "a", "rejected": "b"} for i in range(5)]
    some = [pair | ({"margin": margin} if margin else {}) for pair, margin in zip(pairs, (1, 2, -1, 0, 0), strict=True)]
    for rows, notes in [(pairs, {}), (some, {"no_margin": 2, "negative_margin": 1})]:
        one = reading(write_json_lines(tmp_path / "rows.jsonl", rows), kind="rm")
        read(one)
        assert one.facts("train")["notes"] == notes


@pytest.mark.parametrize("kind", ["dpo", "rm"])
def test_drawn_pairs_of_an_instruction_stay_on_one_side(tmp_path, kind):
    rows = [{"system": f"s{j}", "prompt": f"Why {i}?", "output": f"{i}{j}"} for i in range(10) for j in range(3)]
    path = write_json_lines(tmp_path / "rows.jsonl", rows)
    one = reading(path, Choice(validation_fraction=0.3), kind, Derivation(all_pairs=True))
    splits = read(one)
    sides = [{record.prompt.rpartition("\n")[2] for record in splits[split]} for split in ("train", "validation")]
    assert [len(side) for side in sides] == [7, 3] and not sides[0] & sides[1]
    assert len(splits["validation"]) == 3 * 6


def test_pairs_given_to_derive_are_told_what_it_reads(tmp_path):
    path = write_json_lines(tmp_path / "rows.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    one = reading(path, kind="dpo", derive=Derivation())
    words = "--derive draws pairs from records of kind sft; if these are pairs already, use --kind instead"
    with pytest.raises(DataError, match=words):
        read(one)


def test_what_derive_cannot_help_has_no_advice_about_it(tmp_path):
    path = write_json_lines(tmp_path / "missing_field.jsonl", [{"prompt": "p", "output": ["o"]}])
    with pytest.raises(DataError, match=r"no usable record; dropped: 1 wrong_type \(.*missing_field.jsonl:1\)$"):
        read(reading(path, kind="dpo", derive=Derivation()))


def test_what_is_counted_is_also_located(tmp_path):
    """Dropped records, notes and columns that are not read, by the first places of each."""
    (tmp_path / "held").mkdir()
    rows = [
        *({"prompt": f"{i}?", "output": ""} for i in range(4)),
        {"prompt": "a\0", "output": "b", "sytem": "c"},
        *ROWS,
    ]
    train, held = (
        write_json_lines(tmp_path / "rows.jsonl", [*rows, *ROWS]),
        write_json_lines(tmp_path / "h.jsonl", ROWS[:1]),
    )
    one = reading(train, Choice(dedupe=True), validation=held)
    read(one)
    facts = one.facts("train")
    assert facts["dropped"] == {"empty_field": 4, "repeated_record": 100}
    assert facts["places"]["dropped"] == {
        "empty_field": [f"{train}:{number}" for number in (1, 2, 3)],
        "repeated_record": [f"{train}:{number}" for number in (106, 107, 108)],
    }
    assert facts["places"]["notes"] == {"control_characters": [f"{train}:5"]}
    assert facts["places"]["unread"]["sytem"] == [f"{train}:5"]
    assert one.facts("validation")["places"]["notes"] == {"prompt_in_train": [f"{held}:1"]}


def test_pairs_without_a_margin_and_drawn_pairs_are_located(tmp_path):
    pairs = [{"prompt": f"{i}?", "chosen": "a", "rejected": "b", "margin": None if i % 2 else 1.0} for i in range(4)]
    path = write_json_lines(tmp_path / "pairs.jsonl", pairs)
    one = reading(path, kind="dpo")
    read(one)
    assert one.facts("train")["places"]["notes"] == {"no_margin": [f"{path}:2", f"{path}:4"]}
    rows = [{"system": system, "prompt": "p", "output": system} for system in "abb"] + [{"prompt": "q", "output": "r"}]
    path = write_json_lines(tmp_path / "sft.jsonl", rows)
    one = reading(path, kind="dpo", derive=Derivation())
    read(one)
    expected = {"repeated_record": [f"{path}:2"], "instruction_with_one_response": [f"{path}:4"]}
    assert one.facts("train")["places"]["dropped"] == expected


def test_prompts_in_two_splits_are_counted(tmp_path):
    train = write_json_lines(tmp_path / "train.jsonl", QUESTIONS)
    changes = [{"output": "Else."}, {"prompt": "Why \t1? "}, {"prompt": "When?"}]
    held = [row | change for row, change in zip(QUESTIONS, changes, strict=False)]
    one = reading(train, validation=write_json_lines(tmp_path / "held.jsonl", held))
    read(one)
    assert one.facts("validation")["notes"] == {"prompt_in_train": 2} and one.facts("train")["notes"] == {}


def test_splits_of_the_same_records_are_refused(tmp_path):
    train = write_json_lines(tmp_path / "train.jsonl", QUESTIONS)
    other = write_json_lines(tmp_path / "other.jsonl", [row | {"id": 1} for row in QUESTIONS[::-1]])
    with pytest.raises(DataError, match=r"^split test: holds the same records as split train"):
        read(reading(train, test=other))


def test_marks_are_noted(tmp_path):
    rows = [*QUESTIONS, *(row | {"prompt": f"[INST] {row['prompt']} [/INST]"} for row in QUESTIONS[:2])]
    one = reading(write_json_lines(tmp_path / "rows.jsonl", rows))
    read(one)
    assert one.facts("train")["notes"] == {"template_marks": 2}
    assert dataclasses.asdict(Choice()) == {"dedupe": False, "validation_fraction": None, "validation_seed": 0}


def test_a_split_of_several_sets_of_files_names_them(tmp_path):
    """As UltraFeedback-binarized is published: three sets of training files, whose prompts are the same."""
    from janus_jax.cli.data import _left_out
    from janus_jax.data.build.pipeline import build

    (tmp_path / "source/data").mkdir(parents=True)
    for at, name in enumerate(("train_prefs", "train_sft", "test_prefs")):
        rows = [row | {"prompt": f"{name} {row['prompt']}"} for row in QUESTIONS[: 3 + at]]
        for shard in range(2):
            write_records(tmp_path / f"source/data/{name}-0000{shard}-of-00002.parquet", rows[shard::2])
    manifest = build(tmp_path / "source", tmp_path / "out", kind="sft")
    assert manifest.file_sets == {"train": ["train_prefs", "train_sft"]} and manifest.splits["train"].examples == 7
    (note,) = _left_out(manifest)
    assert note.startswith(
        "note: split train joins 2 sets of files: train_prefs, train_sft; if they repeat each other, move one set"
    )


@pytest.mark.parametrize(
    ("names", "sets"),
    [
        (["part-0-of-2-train", "part-1-of-2-train", "part-0-of-1-extra"], ["part-extra", "part-train"]),
        (["0000-of-0002", "0001-of-0002", "a-0-of-1"], ["0000-of-0002.jsonl", "a"]),
        (["x/a-0-of-1", "y/a-0-of-1", "rows"], ["x/a", "y/a"]),
    ],
)
def test_sets_of_files_are_those_whose_numbers_are_checked(names, sets, tmp_path):
    from janus_jax.data.build.sources import file_sets

    assert file_sets([tmp_path / f"{name}.jsonl" for name in names]) == sets


def test_a_build_says_what_it_did_and_an_older_manifest_still_loads(tmp_path):
    from janus_jax.data.build.pipeline import build
    from janus_jax.data.dataset import Manifest

    write_json_lines(tmp_path / "source" / "rows.jsonl", [*ROWS, *ROWS[:3]])
    (tmp_path / "source" / "notes.csv").write_text("a,b")
    options = {"validation_fraction": 0.25, "validation_seed": 4, "dedupe": True}
    manifest = build(tmp_path / "source", tmp_path / "out", kind="sft", **options)
    assert Manifest.load(tmp_path / "out") == manifest
    assert {name: getattr(manifest, name) for name in options} == options
    assert manifest.unread_files == {"of type .csv": 1} and manifest.splits["train"].unread == {"id": 103}
    assert {name: split.examples for name, split in manifest.splits.items()}.keys() == {"train", "validation"}
    assert sum(split.examples for split in manifest.splits.values()) == 100
    assert sum(split.dropped["repeated_record"] for split in manifest.splits.values() if split.dropped) == 3

    stored = json.loads((tmp_path / "out" / "manifest.json").read_text())
    for name in ("unread_files", "file_sets", *options):
        del stored[name]
    for split in stored["splits"].values():
        del split["notes"], split["unread"]
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(stored))
    assert Manifest.load(tmp_path / "out").validation_fraction is None


def test_held_out_files_of_a_source_are_not_trained_on(tmp_path):
    """`--validation-source` leaves --source the split train."""
    from janus_jax.data.build.pipeline import build

    held, tests = (write_json_lines(tmp_path / name, QUESTIONS) for name in ("held.jsonl", "only/test.jsonl"))
    with pytest.raises(DataError, match=r"^split 'train': not in .*only, which has test; to train on a file of it, "):
        build({"train": tests.parent, "validation": held}, tmp_path / "out", kind="sft")
    assert not (tmp_path / "out").exists()
