"""The arithmetic of memory beside XLA's own figures, and refusals of what does not fit."""

import types

import jax
import jax.numpy as jnp
import pytest

from janus_jax.errors import ConfigError
from janus_jax.generation import memory, placement, scoring
from janus_jax.generation.engine import Engine
from janus_jax.generation.requests import Request
from janus_jax.generation.sizes import bucket, slots
from janus_jax.generation.stopping import StoppingOptions
from janus_jax.model.attention import Slots
from janus_jax.model.config import PRESETS, ModelConfig
from janus_jax.model.mistral import Compute, param_specs
from janus_jax.planning.generation import lowered
from tests.support.models import SMALL, random_params

CONFIG = ModelConfig(
    vocab_size=4000, hidden_size=256, intermediate_size=768, num_layers=4, num_heads=8, num_kv_heads=2, head_dim=32
)
F32 = {"dtype": jnp.float32}


@pytest.mark.parametrize(
    ("devices", "rows", "length", "prompt", "cache_dtype"),
    [
        (1, 16, 1024, 1024, jnp.float32),
        (4, 16, 1024, 1024, jnp.float32),
        pytest.param(8, 64, 768, 16, jnp.float32, marks=pytest.mark.slow),
        (2, 64, 1024, 64, jnp.int8),
    ],
)
def test_the_arithmetic_is_just_above_what_xla_reports(devices, rows, length, prompt, cache_dtype):
    """A prefill of prompts half as long as the longest takes most in one case, decoding in another."""
    place, _ = placement.generation_place(CONFIG, jax.devices()[:devices])
    sizes = {"rows": rows, "length": length, "cache_dtype": cache_dtype}
    ours = memory.needed(CONFIG, place, prompt=prompt, **sizes, **F32)
    reported = []
    for longest in {bucket(prompt), bucket(prompt // 2)}:
        for name, program in lowered(CONFIG, Compute(place=place, **F32), prompt=longest, **sizes).items():
            lines = program.compile().memory_analysis()
            reported.append(lines.argument_size_in_bytes + lines.temp_size_in_bytes + ours.beside[name])
            reported[-1] += lines.output_size_in_bytes - lines.alias_size_in_bytes
    assert max(reported) <= ours.total <= 1.3 * max(reported)


@pytest.mark.parametrize(("devices", "long"), [(4, 1024), pytest.param(2, 4096, marks=pytest.mark.slow), (1, 16384)])
def test_scoring_takes_at_most_what_the_arithmetic_says(devices, long):
    """Long rows go block by block, so shorter ones take more."""
    place, _ = placement.generation_place(CONFIG, jax.devices()[:devices])
    params = jax.tree.map(
        lambda spec, sharding: jax.ShapeDtypeStruct(spec.shape, jnp.float32, sharding=sharding),
        param_specs(CONFIG),
        placement.shardings(CONFIG, place),
    )
    options = {"config": CONFIG, "compute": Compute(place=place, **F32), "top": 0}

    def reported(length):
        rows = place.shards("batch") * (scoring.SLOTS_PER_CALL // length)
        ids = jax.ShapeDtypeStruct((rows, length), jnp.int32)
        lines = scoring.scored.lower(params, ids, ids, Slots(ids, ids, ids), **options).compile().memory_analysis()
        return lines.argument_size_in_bytes + lines.temp_size_in_bytes

    ours = memory.needed(CONFIG, place, rows=1, length=1, **F32).scoring
    short = reported(512)
    assert reported(long) <= short <= ours <= 1.7 * short


def test_a_model_that_is_too_large_to_score_is_refused_before_it_is_read(monkeypatch):
    ours = memory.needed(SMALL, placement.generation_place(SMALL)[0], rows=1, length=1, **F32).scoring
    for free in (None, ours):
        monkeypatch.setattr(memory, "free_bytes", lambda devices, free=free: free)
        memory.require_to_score(SMALL, "runs/big")
    monkeypatch.setattr(memory, "free_bytes", lambda devices: ours - 1)
    with pytest.raises(ConfigError, match=r"^runs/big: scoring needs .* is free; allowed: more devices"):
        memory.require_to_score(SMALL, "runs/big")


@pytest.fixture(scope="module")
def place():
    return placement.generation_place(SMALL, jax.devices()[:8])[0]


def test_weights_and_cache_are_those_of_an_engine(place):
    engine = Engine.live(SMALL, random_params(SMALL), rows=2, steps_per_call=4)
    session = engine.session()
    session.submit(0, Request([1] * 20, stopping=StoppingOptions(max_new_tokens=30)))
    session.step()
    ours = memory.needed(SMALL, engine.compute.place, rows=2, length=slots(20, 30, 4, 64), steps=4, **F32)

    def bytes_of(tree):
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))

    assert (ours.weights, ours.cache) == (bytes_of(engine.params), bytes_of(session._cache))
    assert ours.total == ours.weights + ours.cache + ours.temporaries


def test_the_fullest_device_decides_and_cpus_tell_nothing():
    lines = [None, {"bytes_limit": 90, "bytes_in_use": 30}, {"bytes_limit": 80}]
    assert memory.free_bytes([types.SimpleNamespace(memory_stats=lambda one=one: one) for one in lines]) == 60
    assert memory.free_bytes(jax.devices()) is None


def test_what_does_not_fit_is_refused_with_the_rows_that_do(place, monkeypatch):
    asked, fewer = (memory.needed(SMALL, place, rows=rows, length=60, **F32) for rows in (39, 24))
    assert (asked.rows, asked.length) == (40, 64)

    def require(free, *places, held=0):
        monkeypatch.setattr(memory, "free_bytes", lambda devices: free)
        memory.require(asked, place, *places, held=held)

    require(None)
    require(asked.total)
    require(asked.cache + asked.temporaries, held=asked.weights)
    for held in (0, fewer.weights):
        with pytest.raises(ConfigError, match=r"--rows 39: .*40 rows of 64 slots.*at most 24 rows of this length$"):
            require(fewer.total - held, "--rows 39", held=held)
    with pytest.raises(ConfigError, match="not one row fits"):
        require(asked.weights)
    assert "copy beside those of training" in memory.needed(SMALL, place, rows=4, length=9, live=True, **F32).text()


def test_an_engine_refuses_before_it_makes_or_grows_its_cache(monkeypatch):
    engine = Engine.live(SMALL, random_params(SMALL), rows=2, steps_per_call=4)
    sizes = {"rows": 2, "prompt": 64, "steps": 4} | F32
    small = memory.needed(SMALL, engine.compute.place, length=64, **sizes)
    monkeypatch.setattr(memory, "free_bytes", lambda devices: small.total - small.weights)
    list(engine.generate([Request([1] * 20, stopping=StoppingOptions(max_new_tokens=30))]))
    monkeypatch.setattr(memory, "free_bytes", lambda devices: small.cache)
    with pytest.raises(ConfigError, match=r"2 rows of 64 slots.*; allowed:"):
        list(engine.generate([Request([1] * 20, stopping=StoppingOptions(max_new_tokens=30))]))


def test_requests_are_checked_before_weights_are_read(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda devices: 30 * 2**30)
    model, request = PRESETS["mistral-7b"], Request([1] * 300, stopping=StoppingOptions(max_new_tokens=1024))
    memory.require_for(model, [request], 32)
    with pytest.raises(ConfigError, match=r"--rows 900: .*900 rows of 1,536 slots.*at most \d+ rows"):
        memory.require_for(model, [request], 900, "--rows 900")


def test_int8_takes_little_more_than_a_quarter_of_float32():
    model = PRESETS["mistral-7b"]
    place, _ = placement.generation_place(model, jax.devices()[:1])
    sizes = {"rows": 8, "length": 1024} | F32
    full, small = (memory.needed(model, place, cache_dtype=dtype, **sizes) for dtype in (None, jnp.int8))
    assert small.cache * 4 == full.cache * (1 + 4 / model.head_dim)
