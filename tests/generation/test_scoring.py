"""Log-probs of continuations are those of transformers with the same weights, in float32."""

import jax
import numpy as np
import pytest

from janus_jax.checkpoint.hf.read import load_hf
from janus_jax.errors import ConfigError
from janus_jax.generation.engine import Engine
from tests.support import torch_models


@pytest.fixture(scope="module", params=[None, 7], ids=["whole", "window"])
def both(request, tmp_path_factory):
    """A torch model, and its config and parameters here."""
    directory = tmp_path_factory.mktemp("hf")
    model = torch_models.mistral(sliding_window=request.param)
    model.save_pretrained(directory)
    return model, *load_hf(directory)


def ids(seed, length):
    return np.random.default_rng(seed).integers(1, 96, length).tolist()


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_the_most_probable_ids_are_those_of_transformers(both, devices):
    """On one device, with the vocabulary split, and with rows split too."""
    model, config, params = both
    engine = Engine.live(config, jax.device_put(params, jax.devices()[0]), rows=2)
    if devices > 1:
        mesh = jax.make_mesh((devices,), ("all",), devices=jax.devices()[:devices])
        params = jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
        engine = Engine.live(config, params, rows=2)
        assert engine.compute.place.shards("vocab") == 2
    pairs = [(ids(0, 9), ids(1, 12)), (ids(2, 1), ids(3, 5)), (ids(4, 3), [])]
    for top in (1, 20):
        for pair, scores in zip(pairs, engine.log_probs(pairs, top=top), strict=True):
            expected = torch_models.most_probable(model, *pair, top)
            assert len(scores.top) == len(pair[1])
            for ours, theirs in zip(scores.top, expected, strict=True):
                assert [number for number, _ in ours] == [number for number, _ in theirs]
                np.testing.assert_allclose([logp for _, logp in ours], [logp for _, logp in theirs], atol=1e-4)
    assert engine.log_probs(pairs)[0].top == ()


@pytest.mark.parametrize("top", [-1, 21])
def test_a_wrong_number_of_ids_is_refused(both, top):
    with pytest.raises(ConfigError, match=f"top={top}: allowed: 0 to 20"):
        Engine.live(*both[1:], rows=1).log_probs([([1], [2])], top=top)
