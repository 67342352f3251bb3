"""Which files of a source are read, and as which split; what is said about the others."""

import os
from collections import Counter

import pytest

from janus_jax.data.build.readers import read_records
from janus_jax.data.build.sources import HUB_ALIASES, find_splits, listed, named_sources, refuse_shared_files
from janus_jax.errors import DataError
from tests.support.records import QUESTIONS, READ_QUESTIONS, write_json_lines, write_records


def touch(directory, *names):
    """Files of one record each, all different."""
    for number, name in enumerate(names):
        write_json_lines(directory / name, [QUESTIONS[0] | {"prompt": f"{number}?"}])


def found(directory) -> dict[str, list[str]]:
    splits = find_splits(directory)
    return {split: [str(path.relative_to(directory)) for path in paths] for split, paths in splits.items()}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("rows.jsonl", "train"),
        ("rows_train.jsonl", "train"),
        ("test/rows_train.jsonl", "train"),
        ("contest.jsonl", "train"),
        ("test_cases/rows.jsonl", "train"),
        ("rows_test.jsonl", "test"),
        ("validation.jsonl.gz", "validation"),
        ("HeldOut.jsonl.zst", "validation"),
        ("data/test-00000-of-00001.parquet", "test"),
        ("data/train-00000-of-00001.parquet", "train"),
        ("test/0.jsonl", "test"),
        ("split=dev/0.jsonl", "validation"),
    ],
)
def test_a_name_says_the_split_of_a_single_file_and_a_mapping_overrules_it(tmp_path, name, split):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    write_records(path, QUESTIONS)
    assert find_splits(path) == {split: [path]}
    assert find_splits(path, split="train") == {"train": [path]}


@pytest.mark.parametrize(
    ("folder", "name", "split"),
    [
        ("test", "0.jsonl", "test"),
        ("split=dev", "en/0.jsonl", "validation"),
        ("test", "train.jsonl", "train"),
        ("train", "0.jsonl", "train"),
        ("rows", "rows_test.jsonl", "test"),
    ],
)
def test_a_folder_of_one_file_says_its_split(tmp_path, folder, name, split):
    path = write_json_lines(tmp_path / folder / name, QUESTIONS)
    assert find_splits(tmp_path / folder) == {split: [path]}


def test_other_files_of_the_numbered_set_of_a_single_file_are_counted(tmp_path):
    touch(tmp_path, "train-00000-of-00003.jsonl")
    unread = Counter()
    assert list(find_splits(tmp_path / "train-00000-of-00003.jsonl", unread)) == ["train"]
    assert unread == {"of the numbered set of train-00000-of-00003.jsonl": 2}


@pytest.mark.parametrize(
    ("source", "validation", "named"),
    [
        ("rows_test.jsonl", None, "rows_test.jsonl"),
        ("train=rows_test.jsonl", None, {"train": "rows_test.jsonl"}),
        ("test=rows.jsonl", "held.jsonl", {"test": "rows.jsonl", "validation": "held.jsonl"}),
        ("train=rows_test.jsonl", "validation=held.jsonl", {"train": "rows_test.jsonl", "validation": "held.jsonl"}),
        ("rows.jsonl", "rows_test.jsonl", {"train": "rows.jsonl", "validation": "rows_test.jsonl"}),
        ("split=train/0.jsonl", "held.jsonl", {"train": "split=train/0.jsonl", "validation": "held.jsonl"}),
    ],
)
def test_a_command_line_names_sources(tmp_path, monkeypatch, source, validation, named):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "rows.jsonl", "rows_test.jsonl", "held.jsonl", "split=train/0.jsonl")
    assert named_sources(source, validation) == named


@pytest.mark.parametrize("source", ["rows_test.jsonl", "test", "dev/rows.jsonl", "only"])
def test_a_held_out_name_beside_a_validation_source_is_refused(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "rows_test.jsonl", "test/0.jsonl", "dev/rows.jsonl", "only/validation.jsonl", "held.jsonl")
    with pytest.raises(DataError, match=rf"{source}: its name says split .*; .* --source train=FILE$"):
        named_sources(source, "held.jsonl")


def test_two_sources_of_one_split_are_refused():
    with pytest.raises(DataError, match=r"split validation has two sources, a and b; allowed: one"):
        named_sources("validation=a", "b")


def test_directory_splits_follow_file_names(tmp_path):
    names = [
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
        "data/test-00000-of-00001.parquet",
    ]
    for name in ["dataset_info.json", ".cache/train.jsonl", "README.md", *names]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert find_splits(str(tmp_path)) == {
        "test": [tmp_path / names[2]],
        "train": [tmp_path / names[0], tmp_path / names[1]],
    }


def test_directory_without_split_names_is_all_train(tmp_path):
    paths = [write_records(tmp_path / name, QUESTIONS) for name in ("part1.jsonl", "part2.parquet")]
    splits = find_splits(tmp_path)
    assert splits == {"train": paths}
    assert list(read_records(splits["train"], "sft")) == READ_QUESTIONS * 2


def test_split_folders_and_names_of_validation(tmp_path):
    paths = [write_json_lines(tmp_path / name, QUESTIONS) for name in ("dev/a.jsonl", "train/a.jsonl")]
    assert find_splits(tmp_path) == {"validation": [paths[0]], "train": [paths[1]]}


def test_output_of_a_synthesis_names_the_folder_of_its_records(tmp_path):
    for name in ("collection/train.jsonl", "bench/train.jsonl", "provenance/bench.jsonl"):
        write_json_lines(tmp_path / name, QUESTIONS)
    with pytest.raises(DataError, match=f"is the output of a synthesis, .*; give {tmp_path}/collection$"):
        find_splits(tmp_path)
    assert find_splits(tmp_path / "collection") == {"train": [tmp_path / "collection/train.jsonl"]}


def test_directory_with_a_stray_file_is_refused(tmp_path):
    for name in ("train.jsonl", "extra.jsonl"):
        write_records(tmp_path / name, QUESTIONS)
    with pytest.raises(DataError, match=r"extra\.jsonl: names no split"):
        find_splits(tmp_path)


@pytest.mark.parametrize("source", ["absent.jsonl", "./absent", "absent/rows.jsonl", "/absent/rows", "a/b/c"])
def test_missing_paths_are_not_taken_for_hub_ids(source, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    with pytest.raises(DataError, match=f"^{source}: no such file or directory$"):
        find_splits(source)


def test_empty_directory_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no file of records; allowed: \.jsonl, \.ndjson or \.json"):
        find_splits(tmp_path)


def test_hub_id_is_fetched_under_its_present_name(tmp_path, monkeypatch):
    write_records(tmp_path / "train-00000-of-00001.parquet", QUESTIONS)
    asked = []

    def snapshot(name, *, repo_type, allow_patterns, ignore_patterns):
        assert "*.parquet" in allow_patterns and ignore_patterns is None
        asked.append((name, repo_type))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    splits = find_splits("kaist-ai/Multifaceted-Collection-SFT-65k")
    assert asked == [("kaist-ai/Multifaceted-Collection-small", "dataset")]
    assert list(read_records(splits["train"], "sft")) == READ_QUESTIONS
    assert set(HUB_ALIASES.values()) == {"kaist-ai/Multifaceted-Collection", "kaist-ai/Multifaceted-Collection-small"}


def test_hub_id_offline_says_what_to_do(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError) as caught:
        find_splits("janus-test-owner/no-such-data")
    assert "could not be downloaded from the Hugging Face hub" in str(caught.value)
    assert "without network, give the path of a copy" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("rows_train.jsonl", "rows_test.jsonl", "test"),
        ("Train.jsonl", "Test.jsonl", "test"),
        ("TRAIN.JSONL", "DEV.JSONL", "validation"),
        ("rowsTrain.jsonl", "rowsTest.jsonl", "test"),
        ("trainset.jsonl", "devset.jsonl", "validation"),
        ("train1.jsonl", "test1.jsonl", "test"),
        ("training.jsonl", "held_out.jsonl", "validation"),
        ("a-train.jsonl", "a-held-out.jsonl", "validation"),
        ("train.en.jsonl", "heldout.en.jsonl", "validation"),
        ("train_data.json", "eval_data.json", "validation"),
        ("train.jsonl", "evaluation.jsonl", "validation"),
        ("train/en/0.jsonl", "test/en/0.jsonl", "test"),
        ("split=train/0.jsonl", "split=test/0.jsonl", "test"),
        ("en/train.jsonl", "en/validation.jsonl.gz", "validation"),
        ("00-train.ndjson", "01-val.ndjson", "validation"),
    ],
)
def test_names_say_their_split_in_ways_of_their_own(tmp_path, train, other, split):
    touch(tmp_path, train, other)
    assert found(tmp_path) == {"train": [train], split: [other]}


@pytest.mark.parametrize("name", ["contest", "latest", "attested", "devices", "evaluator", "strained", "valley"])
def test_words_that_only_hold_the_name_of_a_split_say_none(tmp_path, name):
    touch(tmp_path, f"{name}.jsonl", "other.jsonl")
    assert set(found(tmp_path)) == {"train"}


@pytest.mark.parametrize("name", ["train_dev.jsonl", "train/test.jsonl", "test/train.jsonl"])
def test_a_name_of_two_splits_is_refused(tmp_path, name):
    touch(tmp_path, name)
    with pytest.raises(DataError, match=rf"{name}: names two splits, "):
        find_splits(tmp_path)


SETS = [
    (["train-00000-of-00003", "train-00002-of-00003"], "train-00001-of-00003 is missing; 2 of 3 files are here"),
    (["data_0001_of_0003", "data_0003_of_0003"], "data_0002_of_0003 is missing"),
    (["00001-of-00003", "00002-of-00003"], "00000-of-00003 is missing"),
    (["a-00000-of-00003"], "a-00001-of-00003, a-00002-of-00003 are missing; 1 of 3 files are here"),
    (["a-00000-of-00002", "a-00001-of-00002", "b-00001-of-00002"], "b-00000-of-00002 is missing"),
    (["a-00000-of-00002", "a-0-of-2", "a-1-of-2"], "has the same number as"),
    (["a-00000-of-00001-0123456789abcdef", "a-00000-of-00001-fedcba9876543210"], "has the same number as"),
    (["a-00000-of-00001", "a-00000-of-00002", "a-00001-of-00002"], "is one of 2 files, but a-00000-of-00001.jsonl is"),
    (["a-00000-of-00002", "a-00001-of-00002", "a-00002-of-00002"], "has number 2 of a set of 2"),
    (["en/a-00000-of-00002", "en/a-00001-of-00002", "de/a-00000-of-00002"], "de: a-00001-of-00002 is missing"),
]


@pytest.mark.parametrize(("names", "words"), SETS)
def test_a_numbered_set_must_be_whole(tmp_path, names, words):
    touch(tmp_path, *(f"{name}.jsonl" for name in names))
    with pytest.raises(DataError) as caught:
        find_splits(tmp_path)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "names",
    [
        ["a-00000-of-00002-0123456789abcdef.jsonl", "a-00001-of-00002-fedcba9876543210.jsonl"],
        ["a_1_of_2.jsonl", "a_2_of_2.jsonl"],
        ["a-00000-of-00002.jsonl", "a-00001-of-00002.jsonl.gz"],
        ["en/0-of-1.jsonl", "de/0-of-1.jsonl", "best_of_4.jsonl"],
    ],
)
def test_whole_sets_are_read(tmp_path, names):
    touch(tmp_path, *names)
    assert found(tmp_path) == {"train": sorted(names)}


def test_what_is_not_read_is_counted_by_reason(tmp_path):
    touch(tmp_path, "rows.jsonl", "more.NDJSON", "license_questions.jsonl", ".old.jsonl", "._rows.jsonl")
    (tmp_path / ".#rows.jsonl").symlink_to(tmp_path / "gone")  # an editor's lock
    for name in ["a.csv", "b.CSV", "c.feather", "d.tar.gz", "e.jsonl.bz2", "f.txt", "notes", "README.md", ".hidden"]:
        (tmp_path / name).write_text("")
    unread = Counter()
    assert len(find_splits(tmp_path, unread)["train"]) == 3
    assert unread == {
        **{"of type .csv": 2, "of type .feather": 1, "of type .tar.gz": 1, "of type .bz2": 1, "of type .txt": 1},
        "without a suffix": 1,
        "hidden": 1,
    }
    assert listed(unread).startswith("1 hidden, 1 of type .bz2, 2 of type .csv, 1 of type .feather")


def test_a_directory_of_other_files_alone_is_refused_with_their_types(tmp_path):
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(DataError, match=r"holds no file of records; .*; files not read: 1 of type \.csv$"):
        find_splits(tmp_path)


def test_linked_folders_and_files_are_read_once(tmp_path):
    touch(tmp_path, "elsewhere/a.jsonl", "elsewhere/b.jsonl")
    source = tmp_path / "source"
    source.mkdir()
    (source / "folder").symlink_to(tmp_path / "elsewhere")
    (source / "again").symlink_to(tmp_path / "elsewhere" / "a.jsonl")
    (source / "latest.jsonl").symlink_to(tmp_path / "elsewhere" / "b.jsonl")
    (source / "loop").symlink_to(source)
    unread = Counter()
    files = find_splits(source, unread)["train"]
    assert sorted(os.path.realpath(file) for file in files) == [
        str(tmp_path / "elsewhere" / name) for name in ("a.jsonl", "b.jsonl")
    ]
    assert unread.total() >= 1 and set(unread) <= {"linked to what is read already", "without a suffix"}


def test_a_file_that_is_copied_within_its_split_is_refused(tmp_path):
    touch(tmp_path, "a.jsonl", "b.jsonl")
    (tmp_path / "c.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes())
    with pytest.raises(DataError, match=r"c\.jsonl: has the same content as .*a\.jsonl, a file of split .*; keep one"):
        refuse_shared_files(find_splits(tmp_path))
    refuse_shared_files({"validation": [tmp_path / "a.jsonl"], "test": [tmp_path / "a.jsonl"]})


def test_a_pipe_is_no_source(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"pipe: is neither a file nor a directory"):
        find_splits(tmp_path / "pipe")


def test_links_to_nothing_and_from_another_split_are_refused(tmp_path):
    touch(tmp_path, "train.jsonl")
    (tmp_path / "test.jsonl").symlink_to(tmp_path / "train.jsonl")
    with pytest.raises(DataError, match=r"test\.jsonl: is a link to .*train\.jsonl, but names another split"):
        find_splits(tmp_path)
    (tmp_path / "test.jsonl").unlink()
    (tmp_path / "test.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match=r"test\.jsonl: is a link to .*gone\.jsonl, which does not exist"):
        find_splits(tmp_path)


@pytest.mark.parametrize("how", ["same", "link", "copy"])
def test_a_training_file_is_no_file_of_another_split(tmp_path, how):
    touch(tmp_path, "a.jsonl", "b.jsonl")
    train, other = tmp_path / "a.jsonl", tmp_path / "other.jsonl"
    if how == "link":
        other.symlink_to(train)
    elif how == "copy":
        other.write_bytes(train.read_bytes())
    else:
        other = train
    refuse_shared_files({"train": [train], "validation": [tmp_path / "b.jsonl"]})
    with pytest.raises(DataError, match=r"a file of split train; split validation needs records of its own$"):
        refuse_shared_files({"train": [tmp_path / "b.jsonl", train], "validation": [other]})
