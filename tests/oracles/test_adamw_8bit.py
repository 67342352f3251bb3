"""Moments in 8 bits against recordings of bitsandbytes (record_bitsandbytes.py)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from janus_jax.model.mistral import ParamSpec
from janus_jax.training import quantized
from janus_jax.training.optimizer import AdamW
from tests.oracles import moment_runs as runs


@pytest.fixture(scope="module")
def recorded():
    return load_file(Path(__file__).parent / "goldens" / "adamw_8bit" / "runs.safetensors")


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_numbers_of_codes_are_those_of_bitsandbytes(recorded, signed):
    name = "signed" if signed else "unsigned"
    np.testing.assert_array_equal(quantized.dynamic_map(signed=signed), recorded[f"map.{name}"])
    codes = jnp.arange(256, dtype=jnp.uint8)
    np.testing.assert_array_equal(quantized.decode(codes, signed=signed), recorded[f"map.{name}"])


@pytest.mark.parametrize("version", [256, 2048])
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("form", ["search", "count"])
def test_codes_are_those_of_the_cuda_kernel(recorded, signed, version, form, monkeypatch):
    """Numbers, midpoints and their neighbours in float32, and numbers of all sizes: to the last one."""
    if form == "count":  # as on TPUs and GPUs
        monkeypatch.setattr(jax.lax, "platform_dependent", lambda *x, default, **other: default(*x))
    name = "signed" if signed else "unsigned"
    codes = quantized.encode(jnp.asarray(recorded[f"numbers.{name}"]), signed=signed)
    np.testing.assert_array_equal(codes, recorded[f"codes.{version}.{name}"])
    decoded = quantized.decode(codes, signed=signed)
    np.testing.assert_array_equal(decoded, recorded[f"map.{name}"][np.asarray(codes)])


def trained(block: int):
    """Moments and weights after each step that was recorded."""
    weights = {name: jnp.asarray(value) for name, value in runs.weights().items()}
    specs = {name: ParamSpec(w.shape, w.dtype, ("embed", "mlp")) for name, w in weights.items()}
    adamw = AdamW(b1=runs.B1, b2=runs.B2, eps=runs.EPS, weight_decay=runs.WEIGHT_DECAY, block=block)
    chain = adamw.transformation(lambda _: jnp.float32(runs.RATE), specs)
    update, state, kept = jax.jit(chain.update), chain.init(weights), {}
    for step in range(1, runs.STEPS + 1):
        gradients = {name: jnp.asarray(value) for name, value in runs.gradients(step).items()}
        updates, state = update(gradients, state, weights)
        weights = {name: weights[name] + updates[name] for name in weights}
        if step in runs.KEPT:
            kept[step] = state[0], weights
    return kept


def differing(recorded, run: str, name: str, kept, block: int) -> np.ndarray:
    """Codes of first moments that differ from the recorded ones; the scales and all second moments must be equal."""
    for step, (state, _) in kept.items():
        for number, moment in ((1, state.mu[name]), (2, state.nu[name])):
            place = f"{run}.{step}.{name}"
            scales = recorded[f"{place}.absmax{number}"]
            np.testing.assert_allclose(moment.scales.reshape(-1), scales, rtol=1.3e-7, atol=0)  # an ulp
            codes, mine = recorded[f"{place}.state{number}"].reshape(-1), np.asarray(moment.codes).reshape(-1)
            used = np.repeat(scales, block)[: codes.size] > 0  # in a block of zeros any code stands for 0
            if number == 2:
                np.testing.assert_array_equal(mine[used], codes[used])
            elif step == runs.STEPS:
                different = used & (mine != codes)
                return np.stack([mine, codes])[:, different]
    raise AssertionError(run)


@pytest.mark.parametrize("block", [256, 2048])
def test_a_run_is_that_of_the_cuda_kernel(recorded, block):
    """All codes are equal, weights to 1e-6 of the largest, also where updates are huge."""
    kept = trained(block)
    for name in ("rows", "odd"):
        assert differing(recorded, f"kernel.{block}", name, kept, block).size == 0, name
        weights = recorded[f"kernel.{block}.{runs.STEPS}.{name}.weights"]
        mine = np.asarray(kept[runs.STEPS][1][name]).reshape(-1)
        np.testing.assert_allclose(mine, weights, rtol=1e-6, atol=1e-6 * np.abs(weights).max())


def test_a_run_is_that_of_the_class_adamw8bit(recorded):
    """Its kernels in torch turn small negative numbers into 0, where the CUDA kernel and ours keep the sign."""
    kept, zero = trained(256), 127
    for name in ("rows", "odd"):
        mine, codes = differing(recorded, "package", name, kept, 256)
        follow = (codes != zero) | (mine != zero - 1)
        assert follow.sum() <= (0 if name == "rows" else 2), name  # what the others moved beyond a midpoint
    for name in ("rows", "small"):
        mine = kept[runs.STEPS][1][name]
        np.testing.assert_allclose(mine, recorded[f"package.{runs.STEPS}.{name}.weights"], rtol=1e-6, atol=1e-6)
    mu, nu = (np.asarray(tree["small"]) for tree in (kept[runs.STEPS][0].mu, kept[runs.STEPS][0].nu))
    for moment, number in ((mu, 1), (nu, 2)):  # fewer than 4096 elements: float32
        expected = recorded[f"package.{runs.STEPS}.small.state{number}"]
        np.testing.assert_allclose(moment, expected, rtol=1e-6, atol=1e-7 * np.abs(expected).max())
