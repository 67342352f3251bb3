"""Log-probs of continuations are those of transformers with the same weights, in float32."""

import dataclasses

import jax
import numpy as np
import pytest

from janus_jax.checkpoint.hf.read import load_hf
from janus_jax.errors import DataError
from janus_jax.generation import scoring
from janus_jax.generation.engine import Engine
from tests.support import torch_models


@pytest.fixture(scope="module", params=["window"])
def both(request, tmp_path_factory):
    """A torch model, and its config and parameters here."""
    directory = tmp_path_factory.mktemp("hf")
    model = torch_models.mistral(sliding_window={"whole": None, "window": 7}[request.param])
    model.save_pretrained(directory)
    return model, *load_hf(directory)


def ids(seed, length):
    return np.random.default_rng(seed).integers(1, 96, length).tolist()


@pytest.mark.parametrize(
    ("both", "devices", "top"),
    [
        ("window", 1, 1),
        ("whole", 8, 20),
        *(pytest.param(both, count, 20, marks=pytest.mark.slow) for both in ("whole", "window") for count in (1, 2)),
    ],
    indirect=["both"],
)
def test_the_most_probable_ids_are_those_of_transformers(both, devices, top):
    """On one device, with the vocabulary split, and with rows split too."""
    model, config, params = both
    engine = Engine.live(config, jax.device_put(params, jax.devices()[0]), rows=2)
    if devices > 1:
        mesh = jax.make_mesh((devices,), ("all",), devices=jax.devices()[:devices])
        params = jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
        engine = Engine.live(config, params, rows=2)
        assert engine.compute.place.shards("vocab") == 2
    pairs = [(ids(0, 9), ids(1, 12)), (ids(2, 1), ids(3, 5)), (ids(4, 3), [])]
    for pair, scores in zip(pairs, engine.log_probs(pairs, top=top), strict=True):
        if not pair[1]:
            assert scores.top == ()
            continue
        expected = zip(*torch_models.most_probable(model, *pair, top), strict=True)
        for ours, (numbers, logps) in zip(scores.top, expected, strict=True):
            assert [number for number, _ in ours] == numbers[:-1].tolist()
            np.testing.assert_allclose([logp for _, logp in ours], logps[:-1], atol=1e-4)


@pytest.mark.parametrize("top", [-1, 21])
def test_a_wrong_number_of_ids_is_refused(both, top):
    with pytest.raises(DataError, match=f"top={top}: allowed: 0 to 20"):
        Engine.live(*both[1:], rows=1).log_probs([([1], [2])], top=top)


def test_a_pair_may_have_one_token_more_than_is_read(both):
    config = both[1]
    longest = config.max_position_embeddings
    scoring.require_pairs(config, [([1], [2] * longest)])
    with pytest.raises(DataError, match=f"at most {longest + 1}"):
        scoring.require_pairs(config, [([1], [2] * (longest + 1))])
    with pytest.raises(DataError, match=f"at most {longest} "):  # a reward is read at the last token
        scoring.require_pairs(dataclasses.replace(config, head="value"), [([1], [2] * longest)])


def lengths_of(seed, *bounds):
    return np.random.default_rng(seed).integers(*bounds, 64)


def taken(pairs, kind="lm"):
    return sum(int((call.rows.segment > 0).sum()) for call in scoring.packed(pairs, kind))


def test_responses_of_a_prompt_share_a_row():
    """64 responses of 5 to 29 tokens to a prompt of 40."""
    prompt, lengths = ids(0, 40), lengths_of(0, 5, 30)
    pairs = [(prompt, ids(number, length)) for number, length in enumerate(lengths)]
    apart = sum(40 + length for length in lengths)
    (call,) = scoring.packed(pairs, "value")
    assert taken(pairs, "value") == 39 + 64 + sum(lengths) < 0.34 * apart
    assert call.rows.tokens.shape == (1, 1536) and len(call.continuations) == 64
    assert taken(pairs) == 39 + sum(lengths)  # no number is read at the last token


@pytest.mark.parametrize("both", ["window", pytest.param("whole", marks=pytest.mark.slow)], indirect=True)
def test_shared_rows_say_what_separate_rows_say(both):
    """Groups of all sizes: a row of one, rows of several, several rows of one."""
    prompts = [ids(0, 40), ids(1, 1), ids(2, 90), ids(3, 7), ids(4, 20)]
    counts = [64, 40, 30, 1, 2]
    pairs = [
        (prompt, ids(number, length))
        for prompt, count in zip(prompts, counts, strict=True)
        for number, length in enumerate(lengths_of(count, 0, 30)[:count])
    ]
    order = np.random.default_rng(0).permutation(len(pairs))
    pairs = [pairs[i] for i in order]
    engine = Engine.live(*both[1:], rows=2)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(scoring, "_SHORT", 128)
        patched.setattr(scoring, "_LONG", 256)
        calls = list(scoring.packed(pairs, "lm"))
        assert max(call.rows.segment.max() for call in calls) > 1
        assert max(call.rows.tokens.shape[1] for call in calls) == 256
        shared = engine.log_probs(pairs)
    sample = range(0, len(pairs), 5)
    for i in sample:
        (apart,) = engine.log_probs([pairs[i]])
        np.testing.assert_allclose(shared[i].tokens, apart.tokens, atol=1e-5)
        assert shared[i].is_greedy == apart.is_greedy and shared[i].top == ()
        if pairs[i][1]:
            np.testing.assert_allclose(shared[i].tokens, torch_models.log_probs(both[0], *pairs[i])[0], atol=1e-4)


def test_rows_have_few_sizes_and_bounded_lengths():
    rng = np.random.default_rng(0)
    pairs = [
        (ids(number, rng.integers(1, 700)), ids(sample, rng.integers(1, 600)))
        for number in range(60)
        for sample in range(rng.integers(1, 9))
    ]
    pairs += [(pairs[0][0], ids(number, 500)) for number in range(30)] + [(ids(0, 3000), [5] * 400)] * 9
    calls = list(scoring.packed(pairs, "lm", 2))
    shapes = [call.rows.tokens.shape for call in calls]
    numbers = sorted(number for call in calls for number, _, _ in call.continuations)
    assert numbers == list(range(len(pairs)))
    assert {rows % 2 for rows, _ in shapes} == {0}
    assert max(length for _, length in shapes) == 8192  # two contexts of 3,000 tokens would not fit into less
    assert all(rows * length <= 2 * max(1 << 14, length) for rows, length in shapes)
    assert len(set(shapes)) <= 12
    assert taken(pairs) > 0.7 * sum(rows * length for rows, length in shapes)
