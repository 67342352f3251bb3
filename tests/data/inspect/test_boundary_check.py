"""Rows are read without TensorFlow; where a text would be cut otherwise, it is told."""

import json

import numpy as np
import pytest

from janus_jax.data.build.pipeline import build
from janus_jax.data.dataset import TokenizedDataset
from janus_jax.data.inspect.boundary_check import check_boundary
from janus_jax.data.texts import read_texts
from janus_jax.errors import DataError
from tests.support.records import pair_records, write_records


@pytest.mark.parametrize("name", ["sft_build", "dpo_build"])
def test_the_rows_read_are_the_rows_written(request, name):
    built = request.getfixturevalue(name)
    numbers = [4, 0, 2, 1, 3]
    rows = read_texts(TokenizedDataset(built.directory), numbers)
    for row, number in zip(rows, numbers, strict=True):
        system, prompt, chosen, rejected = built.texts[number]
        assert (row.system, row.prompt, row.chosen) == (system, prompt, chosen)
        assert row.rejected == (None if name == "sft_build" else rejected)


def test_rows_that_are_not_there_are_told(write):
    dataset = TokenizedDataset(write("sft", train=[("What?", "So.")]))
    with pytest.raises(DataError, match="0 records of split train for 1 examples"):
        read_texts(dataset, [0])
    check = check_boundary(dataset, np.arange(1))
    assert check.checked == 0 and "0 records of split train" in check.skipped_because


def test_damaged_rows_are_told(tmp_path, write):
    from array_record.python.array_record_module import ArrayRecordWriter

    directory = write("sft", train=[("What?", "So.")])
    folder = directory / "tfds" / "janus_rows" / "1.0.0"
    folder.mkdir(parents=True)
    for record in (b"\x0a\xff\x01", b"\x0b", b"", b"\x0a\x80"):
        writer = ArrayRecordWriter(str(folder / "janus_rows-train.array_record-00000-of-00001"), "group_size:1")
        writer.write(record)
        writer.close()
        with pytest.raises(DataError, match="cannot be read"):
            read_texts(TokenizedDataset(directory), [0])


def test_separate_texts_are_cut_as_stored_with_a_space_and_not_without(dpo_build, tokenizer):
    dataset = TokenizedDataset(dpo_build.directory)
    check = check_boundary(dataset, np.arange(5))
    assert (check.checked, check.examples, check.not_reproduced, check.prompt_alone) == (5, 5, 0, 0)
    form = dataset.chat_format().template
    differ = {" ": 0, "": 0}
    for example, (system, prompt, *responses) in zip(dataset.read(range(5)), dpo_build.texts, strict=True):
        for between in differ:
            wholes = [tokenizer.encode(form.prompt_text(system, prompt) + between + text) for text in responses]
            stored = [
                np.concatenate([example.prompt[1:], ids[:-1]]).tolist() for ids in (example.chosen, example.rejected)
            ]
            differ[between] += wholes != stored
    assert (check.with_space, check.without_space) == (differ[" "], differ[""])
    assert check.without_space == 5 > check.with_space
    first = next(one for one in check.differences if one.tokenization == "without space")
    assert first.example == 0 and "]|·Y" in first.stored and "]|Y" in first.other


def test_joint_texts_are_cut_as_stored_and_a_server_would_cut_some_prompts_otherwise(tmp_path, tokenizer):
    """`]` and `(` are one piece of the vocabulary: the prompt of such a pair ends before them."""
    records = pair_records()
    records[1] |= {"chosen": "(first)", "rejected": "(second)"}
    assert tokenizer.processor.id_to_piece(tokenizer.encode("a](")[-1]) == "]("
    source = write_records(tmp_path / "rows.jsonl", records)
    build(source, tmp_path / "data", kind="dpo", boundary="joint")
    check = check_boundary(TokenizedDataset(tmp_path / "data"), np.arange(5))
    assert (check.checked, check.without_space, check.prompt_alone) == (5, 0, 1)
    assert [one.example for one in check.differences if one.tokenization == "prompt alone"] == [1]


def test_rows_that_do_not_give_the_stored_ids_are_not_judged(dpo_build, tmp_path):
    """A manifest that names another template: then nothing can be said of borders."""
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(dpo_build.directory, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"template": "chatml"}))
    check = check_boundary(TokenizedDataset(copy), np.arange(5))
    assert (check.not_reproduced, check.with_space, check.without_space, check.prompt_alone) == (5, 0, 0, 0)


def test_a_sample_is_spread_over_the_examples_given(dpo_build):
    check = check_boundary(TokenizedDataset(dpo_build.directory), np.array([0, 2, 4]), sample=2)
    assert (check.checked, check.examples) == (2, 3)
    assert {one.example for one in check.differences} == {0, 4}
