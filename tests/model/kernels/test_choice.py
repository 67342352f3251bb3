"""Which kernel a run gets, and what its user reads."""

import contextlib

import jax.numpy as jnp
import pytest

from janus_jax.errors import ConfigError
from janus_jax.model.attention import attention
from janus_jax.model.kernels import choice, cudnn, proof
from janus_jax.model.kernels.choice import choose, counts
from janus_jax.model.kernels.splash import Splash
from janus_jax.model.kernels.triton import Triton
from janus_jax.parallel import processes
from janus_jax.parallel.mesh import DEFAULT_RULES, MeshShape, Placement, build_mesh
from tests.support.kernels import need as kernels_need


def need(**changes):
    place = Placement(build_mesh(MeshShape(1, 8, 1, 1)), DEFAULT_RULES)
    sizes = {"heads": 2, "kv_heads": 1, "head_dim": 64, "row_length": 128, "longest": 100, "copies": 40}
    return kernels_need(**{"place": place, **sizes, **changes})


@pytest.fixture
def platform(monkeypatch):
    """Says that the devices, which are CPUs, are of another platform."""

    def pretend(name):
        monkeypatch.setattr(Placement, "platform", property(lambda _: name))
        monkeypatch.setattr(cudnn, "_device_reason", lambda _: None)

    return pretend


@pytest.fixture
def kernels(monkeypatch):
    """Puts functions in the place of kernels."""

    def put(**functions):
        for name, function in functions.items():
            monkeypatch.setitem(choice._KERNELS, name, lambda _, f=function, name=name: (f, f"{name} kernel"))

    return put


def right(q, k, v, slots, *, window, place=None):
    return attention(q, k, v, slots, window=window)


def wrong(q, k, v, slots, *, window, place=None):
    return right(q, k, v, slots, window=40)


def raising(q, k, v, slots, *, window, place=None):
    raise RuntimeError("no engine of that shape")


WRONG = "outputs differ from those of plain JAX on cpu, by "


def test_on_the_cpu_attention_is_plain_jax_and_kernels_can_be_named():
    assert choose("auto", need()) == (None, "plain JAX (devices are cpu)")
    assert choose("reference", need()) == (None, "plain JAX (precision.attention)")
    assert choose("splash", need(copies=0)) == (Splash(0, interpret=True), "splash kernel, interpreted")
    assert choose("triton", need()) == (Triton(interpret=True), "Triton kernel, interpreted")
    with pytest.raises(ConfigError, match=r"attention=cudnn: cannot be: devices are cpu; allowed: auto, ref"):
        choose("cudnn", need())


@pytest.mark.parametrize("name", ["gpu", "cuda"])
def test_on_gpus_cudnn_is_taken_if_it_gives_the_right_numbers(name, platform, kernels):
    platform(name)
    kernels(cudnn=right, triton=raising)
    assert choose("auto", need()) == (right, "cudnn kernel")
    assert choose("cudnn", need()) == (right, "cudnn kernel")


def test_on_gpus_triton_is_next_and_plain_jax_last_with_the_reasons(platform, kernels):
    platform("gpu")
    kernels(cudnn=wrong, triton=right)
    kernel, line = choose("auto", need())
    assert kernel is right and line.startswith(f"triton kernel (cudnn: {WRONG}")
    kernels(triton=raising)
    kernel, line = choose("auto", need())
    assert kernel is None and line.startswith(f"plain JAX (cudnn: {WRONG}")
    assert line.endswith("; triton: does not run on cpu: no engine of that shape)")


def test_a_named_kernel_with_other_numbers_stops_the_run(platform, kernels):
    platform("gpu")
    kernels(cudnn=wrong, triton=raising)
    for name, words in (("cudnn", WRONG), ("triton", "does not run on cpu: no engine")):
        with pytest.raises(ConfigError, match=f"precision.attention={name}: cannot be: {words}") as caught:
            choose(name, need())
        assert caught.value.exit_code == 2


def test_a_kernel_that_fails_on_another_process_is_taken_by_none(platform, kernels, monkeypatch):
    @contextlib.contextmanager
    def agreement(name):
        yield
        if name == "attention/cudnn":
            raise ConfigError("process 1: gradients of keys differ")

    monkeypatch.setattr(processes, "agreement", agreement)
    platform("gpu")
    kernels(cudnn=right, triton=right)
    assert choose("auto", need()) == (right, "triton kernel (cudnn: process 1: gradients of keys differ)")


def test_on_tpus_splash_is_compared_too(platform, kernels):
    platform("tpu")
    assert choose("auto", need(head_dim=96))[1] == ("plain JAX (head_dim 96 is no multiple of 64)")
    kernels(splash=wrong)
    assert choose("auto", need())[1].startswith(f"plain JAX ({WRONG}")


def test_the_limits_of_the_rows_go_into_the_kernel(platform, monkeypatch):
    platform("gpu")
    monkeypatch.setattr(choice, "_proven", lambda name, need: choice._KERNELS[name](need))
    assert choose("auto", need())[0] == cudnn.Cudnn(copies=40, sequences=10, longest=100)
    assert choose("auto", need(copies=0, branches=1))[0] == cudnn.Cudnn(copies=0, sequences=5, longest=100)
    kernel, line = choose("auto", need(dtype=jnp.float32))
    assert kernel == Triton()
    assert line == "Triton kernel (cudnn: activations are float32, and the kernel takes bfloat16)"


def test_rows_are_measured_only_for_kernels_that_use_it(platform):
    expected = {
        ("tpu", "auto"): {"copies"},
        ("gpu", "auto"): {"copies", "segments"},
        ("gpu", "triton"): set(),
        ("gpu", "reference"): set(),
        ("cpu", "auto"): set(),
        ("cpu", "splash"): {"copies"},
    }
    for (name, wanted), limits in expected.items():
        platform(name)
        assert {limit for limit in ("copies", "segments") if counts(limit, wanted, need().place)} == limits


def test_a_device_is_compared_with_its_own_heads():
    for shape, overrides, heads in (
        (MeshShape(1, 8, 1, 1), {}, (8, 2)),
        (MeshShape(1, 4, 2, 1), {}, (4, 1)),
        (MeshShape(1, 1, 8, 1), {"kv_heads": ()}, (1, 1)),
        (MeshShape(1, 4, 2, 1), {"kv_heads": ()}, (4, 1)),
    ):
        place = Placement(build_mesh(shape), {**DEFAULT_RULES, **overrides})
        on_a_device = proof.on_a_device(need(heads=8, kv_heads=2, place=place))
        assert (on_a_device.heads, on_a_device.kv_heads) == heads


def test_long_rows_are_compared_in_part():
    on_a_device = proof.on_a_device(need(row_length=65536, longest=32768))
    assert (on_a_device.row_length, on_a_device.longest) == (8192, 8192)
