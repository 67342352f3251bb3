"""Random access to a build, and refusal of what is not a whole one."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from janus_jax.data.dataset import TokenizedDataset
from janus_jax.errors import DataError


@pytest.fixture
def copy(dpo_build, tmp_path):
    """A copy of the pair build, to be spoiled."""
    return shutil.copytree(dpo_build.directory, tmp_path / "data", ignore=shutil.ignore_patterns("tfds"))


def refusal(directory, split: str = "train") -> str:
    with pytest.raises(DataError) as caught:
        TokenizedDataset(directory, split).read(range(5))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_reads_any_order_and_repeats(dpo_build):
    data = TokenizedDataset(dpo_build.directory)
    assert (data.kind, len(data), data.split) == ("dpo", 5, "train")
    assert data.fingerprint == dpo_build.manifest.fingerprint
    in_order = data.read(range(5))
    for example in data.read(np.array([3, 0, 3, 4])):
        np.testing.assert_array_equal(example.prompt, in_order[example.example_id].prompt)
        np.testing.assert_array_equal(example.chosen, in_order[example.example_id].chosen)
        np.testing.assert_array_equal(example.rejected, in_order[example.example_id].rejected)
    assert [example.example_id for example in data.read([3, 0, 3, 4])] == [3, 0, 3, 4]
    assert data.read([]) == []


def test_lengths_are_those_of_the_examples(dpo_build):
    data = TokenizedDataset(dpo_build.directory)
    assert data.lengths.tolist() == [[len(e.prompt), len(e.chosen), len(e.rejected)] for e in data.read(range(5))]
    assert {e.prompt.dtype for e in data.read(range(5))} == {np.dtype(np.int32)}


def test_sft_has_no_rejected_and_length_zero_for_it(sft_build):
    data = TokenizedDataset(sft_build.directory)
    assert data.lengths[:, 2].tolist() == [0] * 5
    assert [example.rejected for example in data.read(range(5))] == [None] * 5


def test_margins_are_zero_unless_the_build_has_them(copy):
    assert TokenizedDataset(copy).margins.tolist() == [0.0] * 5
    margins = np.array([0.5, 1, -2, 0, 3], np.float32)
    np.save(copy / "train" / "margins.npy", margins)
    data = TokenizedDataset(copy)
    assert data.margins.tolist() == margins.tolist()
    assert [example.margin for example in data.read([4, 2])] == [3.0, -2.0]


def test_threads_read_what_one_thread_reads(dpo_build):
    data = TokenizedDataset(dpo_build.directory)
    orders = [np.random.default_rng(seed).integers(0, 5, 20).tolist() for seed in range(30)]
    with ThreadPoolExecutor(4) as pool:
        parallel = list(pool.map(data.read, orders))
    chosen = [example.chosen.tolist() for example in data.read(range(5))]
    for order, examples in zip(orders, parallel, strict=True):
        assert [example.chosen.tolist() for example in examples] == [chosen[index] for index in order]


@pytest.mark.parametrize("index", [-1, 5])
def test_numbers_outside_are_refused(dpo_build, index):
    with pytest.raises(IndexError, match=f"example {index} of 5"):
        TokenizedDataset(dpo_build.directory).read([0, index])


def test_saved_tokenizer_must_be_that_of_the_build(copy, dpo_build):
    tokenizer = TokenizedDataset(copy).tokenizer()
    assert tokenizer.fingerprint == dpo_build.manifest.tokenizer["fingerprint"]
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["tokenizer"]["fingerprint"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="is not the tokenizer of the build"):
        TokenizedDataset(copy).tokenizer()


def test_not_a_build(tmp_path):
    assert refusal(tmp_path / "absent").startswith(f"{tmp_path / 'absent'}: no such directory")
    assert "is not a built data set: it has no manifest.json" in refusal(tmp_path)
    (tmp_path / "manifest.json").write_text('{"kind": ')
    assert "manifest.json: not a data set manifest" in refusal(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    assert "manifest.json: not a data set manifest" in refusal(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format_version": 99}')
    assert "format_version 99; allowed: 1" in refusal(tmp_path)


def test_a_build_that_does_not_name_its_boundary_is_separate(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    assert manifest.pop("boundary") == "separate"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert TokenizedDataset(copy).manifest.boundary == "separate"


def test_unknown_split_names_those_there(sft_build):
    message = refusal(sft_build.directory, "test")
    assert "has no split 'test'; there are: train, validation (" in message and "eval.every_steps=null" in message


def test_missing_or_foreign_lengths(copy):
    np.save(copy / "train" / "lengths.npy", np.zeros((5, 2), np.int32))
    assert "lengths.npy: is int32 [5, 2], must be int32 [examples, 3]" in refusal(copy)
    (copy / "train" / "lengths.npy").write_bytes(b"")
    assert "lengths.npy: cannot be read" in refusal(copy)
    (copy / "train" / "lengths.npy").unlink()
    assert "lengths.npy: cannot be read" in refusal(copy)


def test_counts_that_disagree(copy):
    lengths = np.load(copy / "train" / "lengths.npy")
    np.save(copy / "train" / "lengths.npy", lengths[:-1])
    assert "disagree: 5, 4, 4, 5 examples" in refusal(copy)


def test_missing_token_file(copy):
    next((copy / "train").glob("tokens*")).unlink()
    assert "disagree: 5, 5, 5, 0 examples" in refusal(copy)


def test_cut_token_file(copy):
    path = next((copy / "train").glob("tokens*"))
    path.write_bytes(path.read_bytes()[:-200])
    assert "build again" in refusal(copy)


def test_records_that_do_not_fit_their_lengths(copy):
    lengths = np.load(copy / "train" / "lengths.npy")
    np.save(copy / "train" / "lengths.npy", lengths[::-1].copy())
    assert "but lengths.npy has" in refusal(copy)


def test_reading_needs_no_tensorflow(dpo_build):
    code = (
        "import sys; from janus_jax.data.dataset import TokenizedDataset;"
        "TokenizedDataset(sys.argv[1]).read([1]);"
        "print([m for m in ('tensorflow', 'seqio', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(dpo_build.directory)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kind", "ppo"),
        ("ids", "words"),
        ("boundary", "none"),
        ("tokenizer", {}),
        ("splits", {"../../evil": {"examples": 1, "tokens": 1, "dropped": {}}}),
        ("splits", {"train": {"examples": 1, "tokens": 1, "dropped": {}, "files": 3}}),
    ],
)
def test_a_manifest_of_somebody_else_is_not_trusted(dpo_build, tmp_path, key, value):
    manifest = json.loads((dpo_build.directory / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {key: value}))
    with pytest.raises(DataError, match=r"manifest.json: not a data set manifest: "):
        TokenizedDataset(tmp_path)


def test_a_prompt_without_a_token_is_refused(dpo_build, tmp_path):
    copy = shutil.copytree(dpo_build.directory, tmp_path / "copy")
    lengths = np.load(copy / "train" / "lengths.npy")
    lengths[2] = [0, lengths[2, 0] + lengths[2, 1], lengths[2, 2]]
    np.save(copy / "train" / "lengths.npy", lengths)
    with pytest.raises(DataError, match="example 2 has a prompt without tokens"):
        TokenizedDataset(copy)
