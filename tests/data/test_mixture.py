"""Mixtures: exact shares, every example before any comes again, one sequence on all hosts, exact resume."""

import collections
import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_jax.data.dataset import TokenizedDataset
from janus_jax.data.epoch import START, BatchSettings, PackedEpochs, Position
from janus_jax.data.loader import Loader
from janus_jax.data.mixture import Mixture, stream
from janus_jax.errors import ConfigError, DataError
from janus_jax.parallel.mesh import DEFAULT_RULES, MeshShape, build_mesh
from janus_jax.text.tokenizer import load_tokenizer, save_hf_tokenizer
from tests.support.tokenizers import byte_level, byte_level_directory
from tests.support.training_examples import random_examples, write_dataset

SIZES = (41, 17, 23)
WEIGHTS = (0.72, 0.14, 0.14)
ROWS = BatchSettings(row_length=48, max_sequence_length=40, rows=8, microbatches=2)
GROUPS = dataclasses.replace(ROWS, rows=None, examples=10)
UNITS = pytest.mark.parametrize("unit", [ROWS, GROUPS], ids=["rows", "examples"])


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> list[TokenizedDataset]:
    root = tmp_path_factory.mktemp("parts")
    for number, size in enumerate(SIZES):
        examples = random_examples(size, pairs=True, seed=number)
        write_dataset(root / str(number), {"train": examples, "validation": examples[:3]}, kind="rm")
    return [TokenizedDataset(root / str(number)) for number in range(len(SIZES))]


def packed_of(examples, unit=ROWS, **options) -> PackedEpochs:
    return PackedEpochs(examples, unit, branches=2, **{"seed": 7, "epochs": 6, **options})


def epoch_ids(packed: PackedEpochs, epoch: int) -> list[int]:
    positions = [Position(epoch, step * packed.unit) for step in range(packed.steps(epoch))]
    return [int(i) for position in positions for i in packed.example_ids(position)]


# --- What is drawn


@given(st.integers(1, 30), st.integers(0, 200), st.integers(0, 90), st.integers(0, 3))
@settings(max_examples=25)
def test_a_stream_is_one_sequence_of_permutations_wherever_it_is_begun(size, start, count, part):
    whole = stream(size, 0, size * 12, seed=5, part=part)
    assert whole.reshape(12, size).shape == (12, size)
    assert (np.sort(whole.reshape(12, size)) == np.arange(size)).all()
    result = stream(size, start, count, seed=5, part=part)
    beyond = stream(size, 0, start + count, seed=5, part=part)
    np.testing.assert_array_equal(result, beyond[start:])


@UNITS
def test_every_epoch_has_the_stated_shares_exactly(parts, unit):
    packed = packed_of(Mixture(parts, WEIGHTS, 100), unit)
    for epoch in range(3):
        result = epoch_ids(packed, epoch)
        of = np.searchsorted(np.cumsum(SIZES), result, side="right")
        assert np.bincount(of).tolist() == [72, 14, 14]
    assert epoch_ids(packed, 0) != epoch_ids(packed, 1)


def test_no_example_comes_again_before_all_others_of_its_part(parts):
    packed = packed_of(Mixture(parts, WEIGHTS, 100))
    counts = collections.Counter()
    for epoch in range(6):
        counts.update(epoch_ids(packed, epoch))
        ends = np.cumsum((0, *SIZES))
        for start, end in itertools.pairwise(ends.tolist()):
            seen = [counts[i] for i in range(start, end)]
            assert max(seen) - min(seen) <= 1


@given(st.lists(st.floats(0.25, 10), min_size=3, max_size=3), st.integers(100, 1000))
@settings(max_examples=25)
def test_shares_are_within_one_example_of_the_weights(parts, weights, examples):
    counts = Mixture(parts, weights, examples).counts(np.array(SIZES))
    assert sum(counts) == examples
    exact = np.array(weights) / sum(weights) * examples
    assert (np.abs(counts - exact) < 1).all()


def test_without_a_size_an_epoch_repeats_nothing_and_is_as_long_as_that_allows(parts):
    packed = packed_of(Mixture(parts, [2, 1, 1]))
    result = epoch_ids(packed, 0)
    assert len(result) == len(set(result)) == 34 + 17 + 17
    assert len(epoch_ids(packed_of(Mixture(parts, SIZES)), 0)) == sum(SIZES)


def test_without_weights_every_epoch_reads_every_example_once(parts):
    packed = packed_of(Mixture(parts))
    for epoch in (0, 1):
        assert sorted(epoch_ids(packed, epoch)) == list(range(sum(SIZES)))


def test_examples_are_those_of_the_parts(parts):
    mixture = Mixture(parts, WEIGHTS, 50)
    wanted = [60, 0, 41, 40, 58, 80]
    stored = [example for part in parts for example in part.read(range(len(part)))]
    for example, number in zip(mixture.read(wanted), wanted, strict=True):
        assert example.example_id == number
        np.testing.assert_array_equal(example.rejected, stored[number].rejected)
        assert len(example.prompt) == mixture.lengths[number, 0]
    with pytest.raises(IndexError):
        mixture.read([81])


def test_dropped_examples_change_no_share(parts):
    """Shares are of what is read: over-long examples leave a part smaller, and it is repeated sooner."""
    packed = packed_of(Mixture(parts, WEIGHTS, 100), dataclasses.replace(ROWS, max_sequence_length=18))
    assert packed.fitted.counts["dropped"] > 10
    of = np.searchsorted(np.cumsum(SIZES), epoch_ids(packed, 1), side="right")
    assert np.bincount(of).tolist() == [72, 14, 14]


def test_a_run_of_a_part_of_the_mixture_says_what_it_reads(parts):
    packed = packed_of(Mixture(parts, [2, 1, 1], 20), epochs=2)
    read = set(epoch_ids(packed, 0)) | set(epoch_ids(packed, 1))
    assert packed.examples_read().tolist() == sorted(read)
    assert len(read) < sum(SIZES)


@UNITS
def test_a_run_that_ends_inside_an_epoch_reads_what_its_batches_hold(parts, unit):
    mixture = Mixture(parts, WEIGHTS, 60)
    per_epoch = packed_of(mixture, unit).steps(0)
    for steps in (1, per_epoch, per_epoch + 2):
        packed = packed_of(mixture, unit, epochs=0, steps=steps)
        positions = itertools.islice(packed.positions(), steps)
        expected = sorted({int(i) for position in positions for i in packed.example_ids(position)})
        assert packed.examples_read().tolist() == expected
        assert packed.epochs == -(-steps // per_epoch)


# --- One sequence, resumed anywhere


@UNITS
@given(data=st.data())
@settings(max_examples=10)
def test_any_hosts_resume_anywhere_with_the_rows_that_one_host_reads(parts, unit, data):
    """Random (epoch, batch, hosts): the hosts' rows together are the single host's, from a new `PackedEpochs` each."""
    whole = packed_of(Mixture(parts, WEIGHTS, 60), unit)
    epoch = data.draw(st.integers(0, 5))
    position = Position(epoch, data.draw(st.integers(0, whole.steps(epoch) - 1)) * whole.unit)
    hosts = data.draw(st.sampled_from([1, 2, 4, 8]))
    expected = whole.read(whole.members(position))
    for host in range(hosts):
        alone = packed_of(Mixture(parts, WEIGHTS, 60), unit)
        mine = alone.read(alone.members(position)[host::hosts])
        for field in dataclasses.fields(mine):
            np.testing.assert_array_equal(getattr(mine, field.name), getattr(expected, field.name)[host::hosts])


@UNITS
def test_batches_on_a_mesh_go_on_from_any_position_over_epochs(parts, unit):
    def loader(*mesh):
        options = {"mesh": build_mesh(MeshShape(*mesh)), "rules": DEFAULT_RULES, "branches": 2, "epochs": 3}
        return Loader(Mixture(parts, WEIGHTS, 60), unit, **options)

    expected = list(loader(2, 2, 2, 1).batches(START, 12))
    assert expected[-1].position.epoch >= 1
    for start in (3, 7):
        result = list(loader(1, 4, 2, 1).batches(expected[start].position, 12 - start))
        assert [b.position for b in result] == [b.position for b in expected[start:]]
        for ours, theirs in zip(result, expected[start:], strict=True):
            ids = [np.asarray(b.batch.example_id) for b in (ours, theirs)]
            assert sorted(ids[0][ids[0] >= 0]) == sorted(ids[1][ids[1] >= 0])


# --- What goes wrong


def test_parts_that_do_not_go_together_are_refused(parts, tmp_path):
    write_dataset(tmp_path / "sft", {"train": random_examples(5, pairs=False)}, kind="sft")
    with pytest.raises(DataError, match=r"sft: holds kind sft, .* kind rm; a mixture holds pairs or single"):
        Mixture([parts[0], TokenizedDataset(tmp_path / "sft")])
    other = write_dataset(tmp_path / "other", {"train": random_examples(5, pairs=True)}, kind="rm")
    manifest = (other / "manifest.json").read_text()
    shutil.rmtree(other / "tokenizer")
    directory = byte_level_directory(other / "tokenizer")
    (directory / "tokenizer_config.json").write_text('{"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}')
    fingerprint = load_tokenizer(directory).fingerprint
    (other / "manifest.json").write_text(manifest.replace(parts[0].tokenizer_fingerprint, fingerprint))
    with pytest.raises(DataError, match=r"other: was built with another tokenizer than .*: id 1 is '<s>' in "):
        Mixture([parts[0], TokenizedDataset(other)])


def test_parts_whose_tokenizers_give_the_same_ids_go_together(parts, tmp_path):
    """A tokenizer.model, and the tokenizer.json that an export has of it."""
    other = write_dataset(tmp_path / "other", {"train": random_examples(5, pairs=True)}, kind="rm")
    manifest = (other / "manifest.json").read_text()
    save_hf_tokenizer(load_tokenizer(), other / "tokenizer")
    (other / "tokenizer" / "tokenizer.model").unlink()
    fingerprint = load_tokenizer(other / "tokenizer").fingerprint
    assert fingerprint != parts[0].tokenizer_fingerprint
    (other / "manifest.json").write_text(manifest.replace(parts[0].tokenizer_fingerprint, fingerprint))
    assert len(Mixture([parts[0], TokenizedDataset(other)])) == SIZES[0] + 5


def with_tokenizer(directory, special, *, marks, template="chatml", edit=None) -> TokenizedDataset:
    """A data set said to be built with a byte-level tokenizer that has these special tokens, in this order."""
    write_dataset(directory, {"train": random_examples(5, pairs=True)}, kind="rm")
    shutil.rmtree(directory / "tokenizer")
    made = byte_level(directory / "tokenizer", special, bos="<s>")
    if edit is not None:
        content = json.loads((made / "tokenizer.json").read_text())
        edit(content)
        (made / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(made)
    manifest = json.loads((directory / "manifest.json").read_text())
    ids = {"fingerprint": tokenizer.fingerprint, "bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    manifest |= {"tokenizer": manifest["tokenizer"] | ids, "marks": marks, "template": template}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return TokenizedDataset(directory)


INST = ["[INST]", "[/INST]"]


def test_marks_of_one_template_that_are_text_in_one_part_and_tokens_in_another_are_refused(tmp_path):
    first, older = (
        with_tokenizer(tmp_path / name, INST, marks=marks, template="mistral-inst")
        for name, marks in (("first", INST), ("older", []))
    )
    assert first.tokenizer_fingerprint == older.tokenizer_fingerprint
    for parts in ([first, older], [older, first]):
        with pytest.raises(
            DataError, match=r"INST\] of template mistral-inst are text in \S*older and control tokens in"
        ):
            Mixture(parts)
    assert len(Mixture([first, first])) == 10


def test_marks_with_other_ids_or_another_reading_are_refused(tmp_path):
    def strip(content):
        for token in content["added_tokens"]:
            token["rstrip"] = token["content"] == "[INST]"

    first = with_tokenizer(tmp_path / "first", INST, marks=INST, template="mistral-inst")
    swapped = with_tokenizer(tmp_path / "swapped", INST[::-1], marks=INST, template="mistral-inst")
    stripped = with_tokenizer(tmp_path / "stripped", INST, marks=INST, template="mistral-inst", edit=strip)
    with pytest.raises(DataError, match=r"swapped: was built with another tokenizer than .*: id \d is '\[INST\]'"):
        Mixture([first, swapped])
    with pytest.raises(DataError, match=r"stripped: was built with another tokenizer than .*: the prompt '\[INST\] "):
        Mixture([first, stripped])


def test_a_mark_that_only_the_other_part_uses_has_one_id_too(tmp_path):
    special = ["<|im_start|>", "<|im_stop|>"]
    plain = with_tokenizer(tmp_path / "plain", special, marks=[], template="plain")
    marked = with_tokenizer(tmp_path / "marked", special[::-1], marks=special[:1], template="chatml")
    with pytest.raises(DataError, match=r"marked: was built with another tokenizer than .*: id \d is"):
        Mixture([plain, marked])


def test_a_part_of_which_nothing_would_be_read_is_refused(parts):
    with pytest.raises(ConfigError, match=r"an epoch of 20 examples reads none of .*/1; raise its weight"):
        packed_of(Mixture(parts, [1, 0.001, 1], 20)).steps(0)
