"""Names of TPU slices, figures of their chips, and what libtpu makes of both.

The tests that compile need libtpu, `pip install 'janus_jax[tpu]'`, and are skipped without it:
`python -m pytest tests/planning/chips/test_slices.py`.
"""

import importlib.util
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from janus_jax.errors import ConfigError
from janus_jax.parallel.mesh import MeshShape, build_mesh
from janus_jax.planning.chips import slices
from janus_jax.planning.chips.slices import devices, find_slice, load_chips
from tests.support.compilers import needs_libtpu

FAMILIES = ("v2", "v3", "v4", "v5e", "v5p", "v6e", "tpu7x")


@pytest.mark.parametrize(
    ("name", "family", "chips", "jax_devices", "hosts", "shape"),
    [
        ("v2-8", "v2", 4, 8, 1, "v2:2x2"),
        ("v3-32", "v3", 16, 32, 4, "v3:4x4"),
        ("v4-8", "v4", 4, 4, 1, "v4:2x2x1"),
        ("v4-32", "v4", 16, 16, 4, "v4:2x2x4"),
        ("v5litepod-1", "v5e", 1, 1, 1, "v5e:1x1"),
        ("v5litepod-8", "v5e", 8, 8, 1, "v5e:2x4"),
        ("v5litepod-16", "v5e", 16, 16, 4, "v5e:4x4"),
        ("v5e-16", "v5e", 16, 16, 4, "v5e:4x4"),
        ("V5E-256", "v5e", 256, 256, 64, "v5e:16x16"),
        ("v5p-128", "v5p", 64, 64, 16, "v5p:4x4x4"),
        ("v5p:4x4x12", "v5p", 192, 192, 48, "v5p:4x4x12"),
        ("v6e-64", "v6e", 64, 64, 16, "v6e:8x8"),
        ("v6e-8", "v6e", 8, 8, 1, "v6e:2x4"),
        ("v2:2x4", "v2", 8, 16, 2, "v2:2x4"),
        ("tpu7x-8", "tpu7x", 4, 8, 1, "tpu7x:2x2x1"),
        ("tpu7x-128", "tpu7x", 64, 128, 16, "tpu7x:4x4x4"),
        ("cpu:8", "cpu", 8, 8, 1, None),
    ],
)
def test_a_name_says_chips_devices_and_hosts(name, family, chips, jax_devices, hosts, shape):
    result = find_slice(name)
    assert (result.family, result.chips, result.devices, result.hosts) == (family, chips, jax_devices, hosts)
    assert result.topology == shape


def test_both_names_of_v5e_are_the_same_slice():
    assert find_slice("v5e-16") == find_slice("v5litepod-16")


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("v5e-128", (False, True, False)),
        ("v6e-256", (True, True, False)),
        ("v6e-64", None),
        ("v4-64", None),
        ("v4-128", (True, True, True)),
        ("v3-2048", (True, True, False)),
    ],
)
def test_sides_of_whole_pods_and_cubes_close_to_rings(name, wrap):
    assert find_slice(name).wrap == wrap


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e-12", ["'v5e-12'", "v5litepod-8, v5litepod-16", "count chips", "v5litepod-1, -4, -8"]),
        ("v4-12", ["v4-8, v4-16", "TensorCores"]),
        ("v4-0", ["v4-8"]),
        ("v9-8", ["unknown", "v2-8, -32", "tpu7x-2, -8", "cpu:DEVICES"]),
        ("v5elitepod-16", ["nearest: v5litepod-16"]),
        ("v5p:3x4x4", ["3x4x4", "whole hosts"]),
        ("v5e:4x4x4", ["2 sides"]),
        ("cpu:0", ["allowed: cpu:DEVICES"]),
        ("", ["unknown"]),
    ],
)
def test_a_name_that_is_none_is_refused_with_what_is_near(name, message):
    with pytest.raises(ConfigError) as refused:
        find_slice(name)
    assert [part for part in message if part not in str(refused.value)] == []


@needs_libtpu
@pytest.mark.parametrize("family", FAMILIES)
def test_libtpu_knows_every_name(family):
    for name in slices.accelerator_types(family):
        target = find_slice(name)
        result = devices(target)
        assert len(result) == target.devices, name
        assert len({device.process_index for device in result}) == target.hosts, name


@needs_libtpu
@pytest.mark.parametrize("family", FAMILIES)
def test_devices_say_what_slice_they_are(family):
    for name in slices.accelerator_types(family):
        assert slices.detect_slice(devices(find_slice(name))) == (find_slice(name), 1)
    several = find_slice(slices.accelerator_types(family)[1])
    assert slices.detect_slice(devices(several, 3)) == (several, 3)


def test_other_devices_are_a_slice_without_figures():
    assert slices.detect_slice(jax.devices()) == (find_slice("cpu:8"), 1)
    device = SimpleNamespace(device_kind="NVIDIA H100 PCIe", platform="gpu", process_index=0)
    result, count = slices.detect_slice([device, device])
    assert (result.name, result.devices, result.topology, count) == ("gpu:2", 2, None, 1)
    part = SimpleNamespace(device_kind="TPU v4", platform="tpu", process_index=0, coords=(1, 0, 0))  # one chip of four
    assert slices.detect_slice([part])[0].name == "v4:1x1x1"


@needs_libtpu
def test_slices_come_one_after_the_other():
    result = devices(find_slice("v5e-16"), num_slices=3)
    assert [device.slice_index for device in result] == [0] * 16 + [1] * 16 + [2] * 16


@needs_libtpu
@pytest.mark.parametrize("family", FAMILIES)
def test_usable_memory_is_what_the_compiler_says(family):
    target = find_slice(next(name for name in slices.accelerator_types(family) if find_slice(name).chips == 4))
    where = jax.sharding.SingleDeviceSharding(devices(target)[0])
    too_large = jax.ShapeDtypeStruct((400_000, 400_000), jnp.float32, sharding=where)
    with pytest.raises(jax.errors.JaxRuntimeError) as refused:
        jax.jit(lambda x: x + 1).lower(too_large).compile()
    message = re.search(r"exceeds available HBM \(([\d.]+)G\)", str(refused.value))
    chip = load_chips().chips[family]
    # Versions of libtpu differ in the last digit, and the table has the lower.
    assert message and round(float(message.group(1)) - chip.usable_hbm_gib_per_device, 2) in (0, 0.01)
    assert chip.usable_hbm_gib_per_device * target.devices_per_chip <= chip.hbm_gib
    assert target.devices_per_chip == chip.devices


def test_names_and_figures_need_neither_jax_nor_numpy():
    code = (
        "import sys; from janus_jax.planning.chips.slices import find_slice; find_slice('v5e-16')\n"
        "print(*{'jax', 'jaxlib', 'numpy', 'tensorflow', 'flax'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "\n"


@needs_libtpu
def test_several_processes_compile_at_once_in_silence():
    code = (
        "from janus_jax.planning.chips.slices import *; import os\n"
        "found = devices(find_slice('v4-8'))\n"
        "import jax, jax.numpy as jnp\n"
        "x = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(found[0]))\n"
        "print(jax.jit(lambda x: x @ x).lower(x).compile().memory_analysis().argument_size_in_bytes)\n"
        "print(os.environ['TPU_WORKER_HOSTNAMES'], flush=True); input()\n"
    )
    ours = ("TPU_", "ALLOW_MULTIPLE", "JAX_", "XLA_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    environment["TPU_WORKER_HOSTNAMES"] = "mine"
    pipe = subprocess.PIPE
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        for _ in range(2)
    ]
    message = [[process.stdout.readline() for _ in range(2)] for process in running]  # both are alive, libtpu loaded
    errors = [process.communicate("\n")[1] for process in running]
    assert (message, errors) == ([["4096\n", "mine\n"]] * 2, ["", ""])


def test_without_libtpu_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'janus_jax\[tpu\]'"):
        devices(find_slice("v4-8"))


def test_simulated_devices_are_those_of_this_process():
    assert devices(find_slice("cpu:8")) == jax.devices("cpu")
    with pytest.raises(ConfigError, match="already started with 8"):
        devices(find_slice("cpu:9"))
    with pytest.raises(ConfigError, match="single slice"):
        devices(find_slice("cpu:4"), num_slices=2)


def test_a_users_table_lies_on_top_of_the_packages(tmp_path):
    (tmp_path / "prices.yaml").write_text("as_of: '2026-11-01'\nchips:\n  v5e: {usd_on_demand: 0.5}\n")
    table, packaged = load_chips(tmp_path / "prices.yaml"), load_chips()
    assert (table.as_of, table.chips["v5e"].usd_on_demand) == ("2026-11-01", 0.5)
    assert table.chips["v5e"].hbm_gib == packaged.chips["v5e"].hbm_gib
    assert table.chips["v6e"] == packaged.chips["v6e"]
    assert set(packaged.chips) == {*FAMILIES, "h100", "h200"}


def test_bandwidths_add_up_to_the_documented_sums():
    chips = load_chips().chips
    both_ways = {family: 2 * chips[family].ici_bytes_per_s for family in ("v5e", "v6e", "v5p", "tpu7x")}
    assert both_ways == {"v5e": 400e9, "v6e": 800e9, "v5p": 1200e9, "tpu7x": 1200e9}
    assert chips["v5p"].dcn_bytes_per_s == 50e9 / 8  # documented per chip, in bits
    assert chips["v2"].dcn_bytes_per_s is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chips: {v5e: {usd_on_demand: -1}}", ":1: chips.v5e.usd_on_demand = -1"),
        ("chips:\n  v5e:\n    hbm_gib: much", ":3: chips.v5e.hbm_gib = much"),
        ("chips: {v5e: {usd_on_demnd: 1}}", "chips.v5e.usd_on_demnd"),
        ("chips: {v9: {hbm_gib: 1}}", "chips.v9: unknown family; allowed: v2, v3"),
        ("families: {v5e: {ring: 8}}", ":1: families: cannot be overridden; allowed: as_of, chips"),
        ("chips: 3", "chips = 3"),
        ("chips: {v5e: {hbm_gib: null}}", "chips.v5e.hbm_gib"),
        ("[1]", "allowed: `key: value` lines"),
    ],
)
def test_mistakes_in_a_users_table_name_file_key_and_value(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_chips(tmp_path / "mine.yaml")
    assert message in str(refused.value) and "mine.yaml" in str(refused.value)


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "slices", "shape"),
    [
        ("v5p-128", 1, (1, 8, 8, 1)),
        ("v6e-16", 1, (1, 8, 2, 1)),
        ("v4-32", 1, (2, 2, 2, 2)),
        ("v5e-16", 2, (2, 8, 2, 1)),
    ],
)
def test_meshes_may_split_the_axes_of_the_network(name, slices, shape):
    """And `data` alone goes from slice to slice."""
    result = devices(find_slice(name), slices)
    mesh = build_mesh(MeshShape(*shape), result)
    assert mesh.devices.shape == shape and set(mesh.devices.flat) == set(result)
    for replica in mesh.devices:
        assert len({getattr(device, "slice_index", 0) for device in replica.flat}) == 1
