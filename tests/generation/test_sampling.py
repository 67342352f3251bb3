"""Filters leave what the logits processors of transformers leave; draws follow their distribution, row by row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from transformers.generation import logits_process

from janus_jax.errors import ConfigError
from janus_jax.generation import sampling
from janus_jax.generation.sampling import SamplingOptions, Settings, row_keys, words

ROWS, VOCAB = 8, 61
filtered = jax.jit(sampling.filter_logits)
sampled = jax.jit(sampling.sample)


def by_transformers(logits, options, seen):
    """Scores of one row after the processors that `generate` would apply, in its order."""
    scores = torch.tensor(np.array(logits, np.float32))[None]
    ids = torch.tensor(np.flatnonzero(seen))[None]
    processors = [logits_process.RepetitionPenaltyLogitsProcessor(float(options.repetition_penalty))]
    if options.temperature:
        processors.append(logits_process.TemperatureLogitsWarper(float(options.temperature)))
        processors += [logits_process.TopKLogitsWarper(options.top_k)] if options.top_k else []
        processors += [logits_process.TopPLogitsWarper(options.top_p)] if options.top_p < 1 else []
        processors += [logits_process.MinPLogitsWarper(options.min_p)]
    for processor in processors:
        scores = processor(ids, scores)
    return scores[0].numpy()


def require_same(ours, theirs):
    """Equal scores; where transformers leaves out some of several equal ones, as many of them."""
    assert np.isneginf(ours).sum() == np.isneginf(theirs).sum()
    np.testing.assert_allclose(np.sort(ours), np.sort(theirs), rtol=1e-6)
    differ = np.flatnonzero(np.isneginf(ours) != np.isneginf(theirs))
    scores = np.where(np.isneginf(ours), theirs, ours)[differ]
    assert differ.size == 0 or np.ptp(scores) <= 1e-6 * np.abs(scores).max()


def several(*shares):
    """0 or 1, the ends of a range, or between."""
    return st.sampled_from([0.0, 1.0, *shares]) | st.floats(0, 1).map(lambda x: round(x, 3))


OPTIONS = st.builds(
    SamplingOptions,
    temperature=st.sampled_from([0, 0.05, 0.7, 1.0, 3, 50.0]),
    top_k=st.sampled_from([0, 1, 2, 7, VOCAB - 1, VOCAB, VOCAB + 1, 10**9]),
    top_p=several(1e-12, 0.999999),
    min_p=several(1e-12, 0.05),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.5, 20]),
)


@given(
    options=st.lists(OPTIONS, min_size=ROWS, max_size=ROWS),
    seed=st.integers(0, 2**32 - 1),
    steps=st.sampled_from([None, 0.5, 1.0, 8.0]),
    scale=st.sampled_from([0.0, 0.1, 3.0, 100.0]),
    absent=st.sampled_from([0.0, 0.5, 0.95]),
)
def test_sets_are_those_of_transformers(options, seed, steps, scale, absent):
    """With ties (multiples of `steps`), tokens of probability 0, and a different choice of options in every row."""
    draw = np.random.default_rng(seed)
    logits = (draw.standard_normal((ROWS, VOCAB)) * scale).astype(np.float32)
    if steps:
        logits = np.round(logits / steps) * np.float32(steps)
    logits[:, 1:][draw.random((ROWS, VOCAB - 1)) < absent] = -np.inf
    seen = draw.random((ROWS, VOCAB)) < 0.3
    ours = np.asarray(filtered(logits, Settings.of(options), seen))
    for row in range(ROWS):
        require_same(ours[row], by_transformers(logits[row], options[row], seen[row]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sets_of_a_whole_vocabulary_are_those_of_transformers(dtype):
    logits = jax.random.normal(jax.random.key(1), (6, 32000)).astype(dtype) * 3
    seen = np.zeros(logits.shape, bool)
    options = [SamplingOptions(top_p=p, top_k=k) for p in (0.5, 0.95, 0.9999) for k in (0, 4000)]
    ours = np.asarray(filtered(logits, Settings.of(options), seen))
    for row, option in enumerate(options):
        require_same(ours[row], by_transformers(logits[row].astype(jnp.float32), option, seen[row]))


def test_a_tail_of_exactly_the_rest_is_left_out():
    logits = np.log(np.array([[4, 2, 1, 1]], np.float32))  # probabilities 1/2, 1/4, 1/8, 1/8
    for top_p, kept in ((0.5, 1), (0.75, 2), (0.875, 3), (0.876, 4)):
        options = SamplingOptions(top_p=top_p)
        ours = np.asarray(filtered(logits, Settings.of([options]), np.zeros((1, 4), bool)))[0]
        require_same(ours, by_transformers(logits[0], options, np.zeros(4, bool)))
        assert np.isfinite(ours).sum() == kept


def test_of_tokens_that_are_equally_good_top_p_keeps_the_first():
    logits = np.zeros((1, 10), np.float32)
    for top_p, kept in ((0.0, 1), (0.05, 1), (0.5, 5), (0.71, 8), (1.0, 10)):
        ours = filtered(logits, Settings.of([SamplingOptions(top_p=top_p)]), np.zeros((1, 10), bool))
        assert np.isfinite(ours[0]).tolist() == [True] * kept + [False] * (10 - kept)


def test_zeros_of_both_signs_are_equal():
    logits = np.array([[0.0, -0.0, 0.0, -1.0]], np.float32)
    ours = filtered(logits, Settings.of([SamplingOptions(top_k=1)]), np.zeros((1, 4), bool))
    assert np.isfinite(ours[0]).tolist() == [True, True, True, False]


def test_ids_masked_before_the_filters_are_masked_as_transformers_does():
    """`MinNewTokensLength` comes after the repetition penalty there; -inf stays what it is."""
    logits, seen = np.array([[2.0, 5, 1, -1, 0]], np.float32), np.array([[True, True, False, True, False]])
    options, stops = SamplingOptions(0.7, 3, 0.9, 0.01, 1.5), [1, 3]
    early = logits.copy()
    early[:, stops] = -np.inf
    processors = [
        logits_process.RepetitionPenaltyLogitsProcessor(1.5),
        logits_process.MinNewTokensLengthLogitsProcessor(3, 1, stops),
        logits_process.TemperatureLogitsWarper(0.7),
        logits_process.TopKLogitsWarper(3),
        logits_process.TopPLogitsWarper(0.9),
        logits_process.MinPLogitsWarper(0.01),
    ]
    scores = torch.tensor(logits)
    for processor in processors:
        scores = processor(torch.tensor([[0, 1, 3]]), scores)
    require_same(np.asarray(filtered(early, Settings.of([options]), seen))[0], scores[0].numpy())


CHOICES = {
    "plain": SamplingOptions(),
    "temperature": SamplingOptions(temperature=1.7),
    "top-k": SamplingOptions(top_k=5),
    "top-p": SamplingOptions(top_p=0.8),
    "min-p": SamplingOptions(min_p=0.1),
    "penalty": SamplingOptions(repetition_penalty=1.4),
    "all": SamplingOptions(temperature=0.8, top_k=9, top_p=0.95, min_p=0.02, repetition_penalty=1.2),
}


@pytest.mark.parametrize("options", CHOICES.values(), ids=CHOICES)
def test_draws_follow_the_distribution_of_transformers(options):
    """20,000 draws, chi-square; the seed is fixed, so the outcome is too."""
    draws = 20_000
    logits = np.random.default_rng(5).standard_normal(16).astype(np.float32) * 2
    seen = np.arange(16) % 3 == 0
    zeros = np.zeros(draws, np.int32)
    keys = row_keys(np.tile(words(11), (draws, 1)), zeros, zeros, np.arange(draws))
    batch = [jnp.broadcast_to(x, (draws, 16)) for x in (logits, seen)]
    ids = np.asarray(sampled(batch[0], Settings.of([options] * draws), keys, batch[1]))
    expected = draws * torch.tensor(by_transformers(logits, options, seen)).softmax(-1).double().numpy()
    counts = np.bincount(ids, minlength=16)
    assert counts[expected == 0].sum() == 0
    rare = expected < 5
    bins = [np.append(x[~rare], x[rare].sum()) if rare.any() else x for x in (counts, expected)]
    bins = [x[bins[1] > 0] for x in bins]
    assert scipy.stats.chisquare(*bins, sum_check=False).pvalue > 0.01
    assert scipy.stats.chisquare(bins[0], np.roll(bins[1], 1), sum_check=False).pvalue < 1e-9  # it can fail


def test_rare_tokens_have_their_share():
    """Noise of 23 random bits has no number above 16."""
    assert sampling._noise(jnp.uint32(0)) > 22
    assert -3 < sampling._noise(jnp.uint32(2**32 - 1)) < -2.5
    quantiles = np.linspace(0.01, 0.99, 99)
    ours = sampling._noise(jnp.asarray((1 - quantiles) * 2**32, jnp.uint32))
    np.testing.assert_allclose(ours, scipy.stats.gumbel_r.ppf(quantiles), atol=1e-5)


# Rows of a batch


def a_batch(seed=0, size=6):
    draw = np.random.default_rng(seed)
    logits = draw.standard_normal((size, VOCAB)).astype(np.float32)
    seen = draw.random((size, VOCAB)) < 0.2
    origins = [np.stack([words(int(x)) for x in draw.integers(2**60, size=size)]) for _ in range(2)]
    return logits, seen, [*origins, draw.integers(9, size=size), draw.integers(99, size=size)]


ROWS_OPTIONS = [*[*CHOICES.values()][1:6], SamplingOptions(temperature=0)]


@pytest.mark.parametrize("rows", [[3], [5], [5, 4, 3, 2, 1, 0], [0, 1, 5, 5, 5, 5, 2, 2]])
def test_a_token_depends_on_its_row_alone(rows):
    logits, seen, origins = a_batch()
    whole = np.asarray(sampled(logits, Settings.of(ROWS_OPTIONS), row_keys(*origins), seen))
    keys = row_keys(*(origin[rows] for origin in origins))
    some = sampled(logits[rows], Settings.of([ROWS_OPTIONS[row] for row in rows]), keys, seen[rows])
    assert some.tolist() == whole[rows].tolist()


def test_seed_prompt_sample_and_position_each_change_the_numbers():
    *_, origins = a_batch()
    data = [jax.random.key_data(row_keys(*origins))]
    for which in range(4):
        changed = [np.array(origin) for origin in origins]
        changed[which][...] += 1
        data.append(jax.random.key_data(row_keys(*changed)))
    assert len({tuple(row) for keys in data for row in np.asarray(keys).tolist()}) == 5 * 6


def test_words_stand_for_numbers_texts_and_ids_of_any_size():
    values = [0, 1, 2**32, 2**64 + 1, -1, "1", b"1", [1], [1, 2], [12]]
    assert len({tuple(words(value)) for value in values}) == len(values)
    assert words(np.int64(7)).tolist() == words(7).tolist()
    assert words(np.array([1, 2])).tolist() == words((1, 2)).tolist()


@pytest.mark.parametrize("spec", [("rows", None), ("rows", "vocab"), (None, ("rows", "vocab"))])
def test_devices_and_flags_of_jax_change_no_token(spec):
    logits, seen, origins = a_batch(size=8)
    logits, seen = (np.tile(x, (1, 8))[:, :64] for x in (logits, seen))
    settings = Settings.of([*CHOICES.values(), SamplingOptions(top_p=0.5)])
    plain = sampled(logits, settings, row_keys(*origins), seen)
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("rows", "vocab"))
    place = NamedSharding(mesh, PartitionSpec(*spec))
    with jax.threefry_partitionable(False), jax.default_prng_impl("rbg"):
        keys = row_keys(*origins)
        other = jax.jit(sampling.sample)(jax.device_put(logits, place), settings, keys, jax.device_put(seen, place))
    assert other.tolist() == plain.tolist()


def test_other_values_need_no_other_program():
    logits, seen, origins = a_batch()
    count = jax.jit(lambda *arguments: sampling.sample(*arguments))
    for options in (SamplingOptions(), SamplingOptions(temperature=0), SamplingOptions(0.5, 3, 0.9, 0.1, 1.1)):
        count(logits, Settings.of([options] * 6), row_keys(*origins), seen)
    assert count._cache_size() == 1


def test_greedy_rows_take_the_best_token_after_the_penalty():
    logits = np.array([[1.0, 3, 3, 2], [1, -3, -1, 1]], np.float32)
    seen = np.array([[False, True, True, False], [True, False, False, True]])
    keys = row_keys(*np.zeros((4, 2), np.uint32))
    for penalty, best in ((1.0, [1, 0]), (2.0, [3, 0]), (0.1, [1, 0])):
        options = SamplingOptions(temperature=0, top_k=1, top_p=0.1, min_p=1, repetition_penalty=penalty)
        assert sampled(logits, Settings.of([options] * 2), keys, seen).tolist() == best


def test_log_probs_are_those_of_torch_before_and_after_the_filters():
    logits, seen, origins = a_batch()
    settings = Settings.of(ROWS_OPTIONS)
    ids = sampled(logits, settings, row_keys(*origins), seen)
    scores = filtered(logits, settings, seen)
    theirs = [by_transformers(logits[row], ROWS_OPTIONS[row], seen[row]) for row in range(6)]
    for ours, expected in ((logits, logits), (scores, np.stack(theirs))):
        gathered = torch.tensor(expected).log_softmax(-1).gather(1, torch.tensor(np.asarray(ids))[:, None].long())
        np.testing.assert_allclose(sampling.log_probs(jnp.asarray(ours), ids), gathered[:, 0], rtol=1e-5, atol=1e-6)


def test_what_a_row_has_seen_grows():
    seen = jnp.zeros((2, 5), bool).at[0, 4].set(True)
    ids, valid = jnp.array([[1, 2, 2], [0, 3, 3]]), jnp.array([[True, True, False], [False, True, True]])
    assert [np.flatnonzero(row).tolist() for row in jax.jit(sampling.mark_seen)(seen, ids, valid)] == [[1, 2, 4], [3]]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (-1, 1e-9, float("nan"), float("inf"), "1", None, True, 1e40)),
        *(("top_k", value) for value in (-1, 2.0, 2**31, None, True)),
        *(("top_p", value) for value in (-0.1, 1.1, float("nan"), "x")),
        *(("min_p", value) for value in (-0.1, 1.1, float("nan"), [])),
        *(("repetition_penalty", value) for value in (0, -1, float("inf"), 1e-40, False)),
    ],
)
def test_an_option_that_is_not_allowed_is_named(name, value):
    with pytest.raises(ConfigError) as error:
        SamplingOptions(**{name: value})
    assert str(error.value).startswith(f"{name} = {value!r}: allowed: ")


def test_every_option_that_is_not_allowed_has_a_line():
    with pytest.raises(ConfigError, match=r"^sampling: 2 errors\n  temperature = -1: .*\n  top_k = -2: "):
        SamplingOptions(temperature=-1, top_k=-2)
