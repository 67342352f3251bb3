"""What an engine says is what transformers says with the same weights, in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.checkpoint.hf.read import load_hf
from janus_jax.errors import ConfigError
from janus_jax.generation import programs
from janus_jax.generation.engine import Engine
from janus_jax.generation.requests import Request
from janus_jax.generation.sampling import SamplingOptions
from janus_jax.generation.stopping import StoppingOptions
from janus_jax.model.mistral import param_specs
from janus_jax.parallel.axes import DEFAULT_RULES, MeshShape
from janus_jax.parallel.mesh import build_mesh, param_shardings
from tests.support import torch_models

WINDOW, NEW, STOP = 7, 40, (5, 17)
LENGTHS = (3, 30, 1, 12, 21, 2, 9)
PROMPTS = [np.random.default_rng(n).integers(1, 96, n).tolist() for n in LENGTHS]


def loaded(directory, window):
    """A torch model, and its config and parameters here."""
    model = torch_models.mistral(sliding_window=window)
    model.save_pretrained(directory)
    return model, *load_hf(directory)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """With a window that is shorter than the texts."""
    return loaded(tmp_path_factory.mktemp("hf"), WINDOW)


def on(both, devices):
    """The parameters on so many devices."""
    mesh = build_mesh(MeshShape(devices, 1, 1), jax.devices()[:devices])
    return jax.device_put(both[2], param_shardings(param_specs(both[1]), mesh, DEFAULT_RULES))


def texts(engine, requests):
    """(request, sample) -> (ids, log-probs, reason)."""
    made = {}
    for event in engine.generate(requests):
        ids, logps, reason = made.get(event[:2], ([], [], None))
        assert reason is None, "events after the end"
        made[event[:2]] = ([*ids, *event.ids], [*logps, *event.logps], event.reason)
    return made


@pytest.fixture(scope="module")
def batched(both):
    """Seven prompts in three rows: finished rows are refilled while others go on."""
    engine = Engine.live(both[1], both[2], rows=3, steps_per_call=4, stop_ids=STOP)
    return texts(engine, [Request(ids, stopping=StoppingOptions(max_new_tokens=NEW)) for ids in PROMPTS])


def test_greedy_tokens_equal_transformers(both, batched):
    compare(both[0], batched)
    assert {reason for _, _, reason in batched.values()} == {"stop", "length"}  # or refills were not tried


def test_greedy_tokens_without_a_window_equal_transformers(tmp_path):
    model, config, params = loaded(tmp_path, None)
    engine = Engine.live(config, params, rows=3, steps_per_call=4, stop_ids=STOP)
    compare(model, texts(engine, [Request(ids, stopping=StoppingOptions(max_new_tokens=NEW)) for ids in PROMPTS]))


def compare(model, made):
    """Asserts that texts of `PROMPTS` are those of a torch model."""
    assert len(made) == len(PROMPTS)
    compared = 0
    for number, prompt in enumerate(PROMPTS):
        expected, sure = torch_models.greedy(model, prompt, NEW, STOP)
        ids, logps, reason = made[number, 0]
        assert ids[:sure] == expected[:sure]
        if sure == len(expected):
            assert ids == expected and reason == ("stop" if ids[-1] in STOP else "length")
        compared += sure
        np.testing.assert_allclose(logps, torch_models.log_probs(model, prompt, ids)[0], atol=1e-4)
    assert compared > 0.8 * sum(len(ids) for ids, _, _ in made.values())


def test_a_batch_with_refills_equals_one_at_a_time(both, batched):
    engine = Engine.live(both[1], both[2], rows=1, steps_per_call=16, stop_ids=STOP)
    for number, prompt in enumerate(PROMPTS[:3]):
        ids, logps, reason = texts(engine, [Request(prompt, stopping=StoppingOptions(max_new_tokens=NEW))])[0, 0]
        assert (ids, reason) == (batched[number, 0][0], batched[number, 0][2])
        np.testing.assert_allclose(logps, batched[number, 0][1], atol=1e-4)


@pytest.mark.parametrize("sizes", [(2, 4, 1), (2, 2, 2)])
def test_tokens_do_not_depend_on_the_mesh_of_the_weights(both, batched, sizes):
    data, fsdp, tensor = sizes
    mesh = build_mesh(MeshShape(data, fsdp, tensor), jax.devices()[: data * fsdp * tensor])
    wanted = param_shardings(param_specs(both[1]), mesh, DEFAULT_RULES)
    engine = Engine.live(both[1], jax.device_put(both[2], wanted), rows=3, steps_per_call=4, stop_ids=STOP)
    assert engine.compute.place.mesh.shape["tensor"] == min(2, mesh.size)
    assert engine.notes == []
    made = texts(engine, [Request(ids, stopping=StoppingOptions(max_new_tokens=NEW)) for ids in PROMPTS])
    for key, (ids, logps, reason) in batched.items():
        assert made[key][0] == ids and made[key][2] == reason
        np.testing.assert_allclose(made[key][1], logps, atol=1e-4)


def test_log_probs_equal_transformers(both, batched):
    pairs = [(prompt, batched[number, 0][0]) for number, prompt in enumerate(PROMPTS)]
    pairs += [(prompt, PROMPTS[1][:11]) for prompt in PROMPTS] + [(PROMPTS[1], [])]
    engine = Engine.live(both[1], both[2], rows=4)
    flags = set()
    for (context, continuation), scores in zip(pairs, engine.log_probs(pairs), strict=True):
        if continuation:
            expected, greedy = torch_models.log_probs(both[0], context, continuation)
        else:
            expected, greedy = np.zeros(0), True
        np.testing.assert_allclose(scores.tokens, expected, atol=1e-4)
        assert scores.total == pytest.approx(expected.sum(), abs=1e-3)
        assert scores.is_greedy == greedy
        flags.add(greedy)
    assert flags == {True, False}


def test_samples_are_the_same_whatever_else_is_in_the_batch(both):
    """Bit for bit, as the compiled shapes are the same."""
    engine = Engine.live(both[1], both[2], rows=4, steps_per_call=4, dtype=jnp.float32)
    options = {"sampling": SamplingOptions(temperature=1.3, top_p=0.9), "name": "p", "stopping": StoppingOptions(20)}
    one = Request(PROMPTS[3], samples=5, seed=7, **options)
    others = [
        [Request(PROMPTS[i], stopping=StoppingOptions(n)) for n in ends] for i, ends in ((4, (3, 20)), (1, (7, 2)))
    ]
    alone, *among = (texts(engine, [one, *rest]) for rest in ([one], *([*some, *some] for some in others)))
    for sample in range(5):
        assert alone[0, sample] == alone[1, sample]
        assert [made[0, sample] for made in among] == [alone[0, sample]] * 2
    alone = {key: text for key, text in alone.items() if key[0] == 0}
    assert len({tuple(ids) for ids, _, _ in alone.values()}) == 5
    assert texts(engine, [Request(PROMPTS[3], seed=8, **options)])[0, 0] != alone[0, 0]


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_most_probable_ids_equal_transformers(both, devices):
    """Requests of one batch ask for different numbers; of four devices, two have a part of the vocabulary each."""
    engine = Engine.live(both[1], on(both, devices), rows=4, steps_per_call=4)
    # What is told is the model's own, whatever the sampling.
    options = {"sampling": SamplingOptions(2.0, top_p=0.9, repetition_penalty=1.5), "stopping": StoppingOptions(6)}
    tops = (3, 0, 20, 1)
    requests = [Request(ids, top=top, **options) for ids, top in zip(PROMPTS, tops, strict=False)]
    drawn: dict[int, tuple[list, list]] = {}
    for event in engine.generate(requests):
        ids, best = drawn.setdefault(event.request, ([], []))
        ids += event.ids
        best += event.top
    for number, count in enumerate(tops):
        ids, best = drawn[number]
        assert len(ids) == 6 and len(best) == (6 if count else 0)
        expected, logps = torch_models.most_probable(both[0], PROMPTS[number], ids, count)
        for place, pairs in enumerate(best):
            clear = np.flatnonzero(-np.diff(logps[place]) < 1e-3)
            sure = int(clear[0]) if len(clear) else count
            assert [i for i, _ in pairs][:sure] == expected[place][:sure].tolist()
            np.testing.assert_allclose([logp for _, logp in pairs], logps[place, :count], atol=1e-4)


def test_nothing_looks_for_most_probable_ids_that_nobody_asks_for(both, monkeypatch):
    monkeypatch.setattr(programs, "largest", None)
    engine = Engine.live(both[1], both[2], rows=1, steps_per_call=2)  # compiled here alone
    asked = Request([3, 4], stopping=StoppingOptions(2))
    list(engine.generate([asked]))
    with pytest.raises(TypeError):
        list(engine.generate([dataclasses.replace(asked, top=1)]))


def narrow(both, dtype):
    """On a mesh if it has scales beside its numbers."""
    params = on(both, 4 if dtype == "int8" else 1)
    return Engine.live(both[1], params, rows=4, steps_per_call=4, cache_dtype=dtype, dtype=jnp.float32)


@pytest.mark.parametrize(("dtype", "least", "most"), [("int8", 1e-3, 0.06), ("bfloat16", 1e-3, 0.05)])
def test_a_narrow_cache_changes_log_probs_a_little(both, dtype, least, most):
    """Beside transformers' log-probs of the same tokens, in float32; these weights are spread widely on purpose."""
    engine = narrow(both, dtype)
    requests = [Request(ids, stopping=StoppingOptions(max_new_tokens=NEW)) for ids in PROMPTS[:4]]
    worst = 0.0
    for (number, _), (ids, logps, _) in texts(engine, requests).items():
        expected, _ = torch_models.log_probs(both[0], PROMPTS[number], ids)
        worst = max(worst, float(np.abs(expected - logps).max()))
    assert least < worst < most


@pytest.mark.parametrize(("dtype", "size"), [(None, 8 * 4), ("bfloat16", 8 * 2), ("int8", 8 + 4)])
def test_the_cache_is_as_small_as_its_dtype(both, dtype, size):
    """Heads have 8 numbers; in int8 a scale comes to each."""
    session = narrow(both, dtype).session()
    for number, ids in enumerate(PROMPTS[:4]):
        session.submit(number, Request(ids, stopping=StoppingOptions(max_new_tokens=NEW)))
    session.step()
    slots = both[1].num_layers * 2 * both[1].num_kv_heads * session._cache.length
    assert sum(part.nbytes for part in jax.tree.leaves(session._cache)) == 4 * slots * size


def test_other_dtypes_of_the_cache_are_refused(both):
    with pytest.raises(ConfigError, match="cache_dtype=int4: allowed: bfloat16, float32, int8"):
        Engine.live(both[1], both[2], cache_dtype="int4")
