"""The assignment of examples to rows, and the packer against the batch contract."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_jax.data.example import Example
from janus_jax.data.rows import assign_rows, assign_steps, default_max_segments, fit, pack, rows_per_step
from janus_jax.errors import DataError
from tests.benchmarks.tokens_per_pair import PADDED, count, stated_lengths
from tests.support.real_rows import real_rows
from tests.support.training_examples import random_examples


def test_a_pair_is_laid_out_as_the_contract_draws_it():
    example = Example(
        prompt=np.array([1, 10, 11, 12]), chosen=np.array([20, 21, 2]), rejected=np.array([30, 2]), example_id=7
    )
    batch = pack([[example]], row_length=10, max_segments=2)
    assert batch.tokens[0].tolist() == [1, 10, 11, 12, 20, 21, 12, 30, 0, 0]
    assert batch.targets[0].tolist() == [10, 11, 12, 20, 21, 2, 30, 2, 0, 0]
    assert batch.weights[0].tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 0, 0]
    assert batch.segment[0].tolist() == [1] * 8 + [0, 0]
    assert batch.branch[0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 0, 0]
    assert batch.position[0].tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 0, 0]
    assert batch.example_id[0].tolist() == [7, -1]
    assert batch.valid[0].tolist() == [True, False]


def test_an_empty_branch_takes_no_slot_and_still_counts():
    example = Example(prompt=np.array([1, 5]), chosen=np.array([], np.int32), rejected=np.array([6, 2]))
    batch = pack([[example]], row_length=4, max_segments=1)
    assert batch.tokens[0].tolist() == [1, 5, 6, 0]
    assert batch.branch[0].tolist() == [0, 2, 2, 0]
    assert batch.valid.sum() == 1 and batch.weights.sum() == 2


def test_a_row_that_is_too_full_is_refused():
    example = Example(prompt=np.arange(4), chosen=np.arange(5))
    with pytest.raises(DataError, match="row_length is 7"):
        pack([[example]], row_length=7, max_segments=1)


sizes = st.lists(st.integers(1, 64), min_size=1, max_size=300)


def test_an_example_that_is_dropped_takes_those_it_belongs_with():
    lengths = np.full((14, 3), 4)
    lengths[7, 1] = 30
    common = {"row_length": 32, "max_sequence_length": 16, "overlong": "drop"}
    fitted = fit(lengths, keep_together=3, **common)
    assert fitted.index.tolist() == [0, 1, 2, 3, 4, 5, 9, 10, 11, 12, 13]
    assert fitted.counts == {"truncated": 0, "zeroed": 0, "dropped": 1, "equal_pairs": 0, "keep_together": 2}
    rows = {"examples": 6, "row_length": 32, "max_segments": 8, "seed": 0, "keep_together": 3}
    for epoch in range(4):
        steps = assign_steps(fitted.slots, epoch=epoch, rows=6, **rows)
        result = [fitted.index[np.concatenate(step).astype(int)] // 3 for step in steps]
        assert all(set(a.tolist()).isdisjoint(b.tolist()) for a, b in itertools.combinations(result, 2))
    needed = "the shortest block needs max_sequence_length 34 and row_length 37"
    with pytest.raises(DataError, match=f"keep_together=14 .*; {needed}$"):
        fit(lengths, keep_together=14, **common)
    assert len(fit(lengths, row_length=37, max_sequence_length=34, overlong="drop", keep_together=14).index) == 14
    lengths[13, 1] = 30  # the last block is shorter
    assert fit(lengths, keep_together=3, **common).index.tolist() == [0, 1, 2, 3, 4, 5, 9, 10, 11]


@settings(max_examples=25)
@given(sizes, st.integers(0, 5), st.integers(0, 5), st.integers(1, 9))
def test_an_epoch_reads_each_example_once_and_overfills_no_row(slots, seed, epoch, cap):
    slots = np.asarray(slots)
    rows = assign_rows(slots, row_length=64, max_segments=cap, seed=seed, epoch=epoch)
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(slots)))
    assert all(slots[row].sum() <= 64 and 0 < len(row) <= cap for row in rows)
    again = assign_rows(slots, row_length=64, max_segments=cap, seed=seed, epoch=epoch)
    assert all(np.array_equal(a, b) for a, b in zip(rows, again, strict=True))


@settings(max_examples=25)
@given(sizes, st.integers(1, 20), st.integers(1, 4))
def test_example_batches_hold_exactly_that_many(slots, examples, multiple):
    slots = np.asarray(slots)
    settings_ = {"examples": examples, "row_length": 64, "max_segments": 8, "seed": 3}
    rows = rows_per_step([slots] * 2, multiple=multiple, **settings_)
    assert rows % multiple == 0
    for epoch in range(2):
        steps = assign_steps(slots, epoch=epoch, rows=rows, **settings_)
        counts = [sum(map(len, step)) for step in steps]
        assert counts[:-1] == [examples] * (len(steps) - 1) and 0 < counts[-1] <= examples
        assert all(len(step) == rows for step in steps)
        assert sorted(np.concatenate([row for step in steps for row in step]).tolist()) == list(range(len(slots)))
        assert all(slots[row].sum() <= 64 for step in steps for row in step)


def test_neighbours_that_are_kept_together_meet_in_one_step():
    slots = np.full(33, 5)
    common = {"examples": 12, "row_length": 20, "max_segments": 8, "seed": 1, "keep_together": 6}
    rows = rows_per_step([slots] * 3, multiple=1, **common)
    orders = []
    for epoch in range(3):
        steps = [np.concatenate(step) for step in assign_steps(slots, epoch=epoch, rows=rows, **common)]
        assert sorted(np.concatenate(steps).tolist()) == list(range(33))
        for step in steps[:-1]:
            assert all(set(range(6 * b, 6 * b + 6)) & set(range(33)) <= set(step.tolist()) for b in set(step // 6))
        orders.append([step.tolist() for step in steps])
    assert orders[0] != orders[1]


def fill_and_rows(lengths, *, row_length, longest):
    """The share of row slots that hold a token, and the rows of an epoch as lists of slots."""
    fitted = fit(lengths, row_length=row_length, max_sequence_length=longest, overlong="drop")
    cap = default_max_segments(fitted, row_length)
    rows = assign_rows(fitted.slots, row_length=row_length, max_segments=cap, seed=0, epoch=0)
    return fitted.slots.sum() / (row_length * len(rows)), [fitted.slots[row] for row in rows]


def test_lengths_like_the_real_ones_pack_tightly():
    lengths = stated_lengths(20_000)
    assert fill_and_rows(lengths, row_length=4096, longest=2048)[0] > 0.96
    single = lengths * [1, 1, 0]
    assert fill_and_rows(single, row_length=8192, longest=8192)[0] > 0.98


def test_real_rows_pack_tightly(tmp_path):
    """BiGGen Bench prompts and answers: as SFT, and as pairs."""
    from tests.benchmarks.tokens_per_pair import built_lengths

    result = real_rows(tmp_path)
    if result is None:
        pytest.skip("JANUS_REAL_DATA names no directory of real rows")
    pairs = np.tile(built_lengths(result.dpo, tmp_path / "dpo"), (8, 1))  # 319 rows fill few rows: of them several
    assert fill_and_rows(pairs, row_length=4096, longest=2048)[0] > 0.96
    assert fill_and_rows(pairs * [1, 1, 0], row_length=8192, longest=8192)[0] > 0.98


@pytest.mark.parametrize(("row_length", "columns"), [(8192, [1, 1, 0]), (4096, [1, 1, 1])], ids=["sft", "pairs"])
def test_rows_make_no_curriculum_of_lengths(row_length, columns):
    """Rows do not get shorter, fuller or emptier along an epoch. What chance does to n rows is within 3 / sqrt(n)."""
    _, rows = fill_and_rows(stated_lengths(60_000) * columns, row_length=row_length, longest=row_length // 2)
    number = np.arange(len(rows))
    for measure in (np.mean, np.max, np.min, np.sum, len):
        correlation = np.corrcoef(number, [measure(row) for row in rows])[0, 1]
        assert abs(correlation) < 3 / np.sqrt(len(rows)), measure
    thirds = [np.mean([row.mean() for row in part]) for part in np.array_split(np.array(rows, object), 3)]
    np.testing.assert_allclose(thirds, np.mean(thirds), rtol=0.02)


def test_each_overlong_policy_does_what_it_says():
    lengths = np.array([[4, 4, 0], [4, 20, 0], [15, 4, 0]])
    dropped = fit(lengths, row_length=16, max_sequence_length=16, overlong="drop")
    assert dropped.index.tolist() == [0] and (dropped.counts["dropped"], dropped.counts["truncated"]) == (2, 0)
    cut = fit(lengths, row_length=16, max_sequence_length=16, overlong="truncate")
    assert cut.lengths.tolist() == [[4, 4, 0], [4, 12, 0], [15, 1, 0]]
    assert (cut.counts["dropped"], cut.counts["truncated"]) == (0, 2)
    with pytest.raises(DataError, match="the first is example 1"):
        fit(lengths, row_length=16, max_sequence_length=16, overlong="error")
    with pytest.raises(DataError, match="none of 1"):
        fit(lengths[1:2], row_length=16, max_sequence_length=16, overlong="drop")


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=20))
def test_truncated_pairs_fit_and_keep_both_responses(lengths):
    lengths = np.asarray([(2, 1, 1), *lengths])
    fitted = fit(lengths, row_length=32, max_sequence_length=24, overlong="truncate")
    assert (fitted.slots <= 32).all()
    assert (fitted.lengths[:, 0] + fitted.lengths[:, 1:].max(1) <= 24).all()
    assert (fitted.lengths[:, 1:] > 0).all()
    assert (fitted.lengths <= lengths[fitted.index]).all()
    assert len(fitted.index) + fitted.counts["dropped"] == len(lengths)


def asked_about(answers):
    """An `equal` that knows these pairs, and the list of the pairs that it was asked about."""
    asked = []

    def equal(index, lengths):
        asked.extend(zip(index.tolist(), lengths.tolist(), strict=True))
        return np.isin(index, answers)

    return equal, asked


def test_pairs_of_equal_responses_are_left_out_and_only_equally_long_ones_are_read():
    lengths = np.array([[4, 3, 3], [4, 3, 2], [4, 9, 20], [4, 5, 5], [4, 20, 20], [15, 1, 1]])
    limits = {"row_length": 20, "max_sequence_length": 10}
    equal, asked = asked_about([2, 3])
    cut = fit(lengths, overlong="truncate", equal=equal, **limits)
    assert asked == [(0, [4, 3, 3]), (2, [4, 6, 6]), (3, [4, 5, 5]), (4, [4, 6, 6])]
    assert cut.index.tolist() == [0, 1, 4]
    assert cut.counts == {"truncated": 1, "zeroed": 0, "dropped": 1, "equal_pairs": 2, "keep_together": 0}
    equal, asked = asked_about([3])
    zeroed = fit(lengths, overlong="zero_grad", keep_together=2, equal=equal, **limits)
    assert [example for example, _ in asked] == [0, 3]  # not those that are left without responses on purpose
    assert zeroed.index.tolist() == [0, 1, 4, 5]
    assert zeroed.counts == {"truncated": 0, "zeroed": 2, "dropped": 0, "equal_pairs": 1, "keep_together": 1}


@pytest.mark.parametrize(
    ("answers", "together", "message"),
    [
        ([0, 1], 1, "in 2 of 3 pairs chosen and rejected have the same tokens, and the others are over-long"),
        ([0], 3, "keep_together=3 .* with any limits, each has a pair in which chosen and rejected have the same"),
    ],
)
def test_nothing_is_left_beside_pairs_of_equal_responses(answers, together, message):
    lengths = np.array([[4, 3, 3], [4, 3, 3], [4, 30, 3]])
    with pytest.raises(DataError, match=message):
        fit(
            lengths,
            row_length=20,
            max_sequence_length=10,
            overlong="drop",
            keep_together=together,
            equal=asked_about(answers)[0],
        )


def test_random_examples_have_both_kinds_of_length():
    examples = random_examples(50, pairs=True)
    assert {len(e.prompt) for e in examples} >= {1, 12}


def test_shared_prompts_compute_less_than_half_of_two_padded_rows():
    lengths = stated_lengths(20_000)
    shared, apart = count(lengths, share_prompts=True), count(lengths, share_prompts=False)
    assert shared.pairs == apart.pairs and shared.dropped < 0.05 * len(lengths)  # prompt and response over 2048
    assert shared.fill > 0.97
    assert PADDED / shared.per_pair > 2.3
    assert apart.per_pair > 1.2 * shared.per_pair
