"""What a run that has met the end of memory is told to change."""

from types import SimpleNamespace
from unittest import mock

import pytest

from janus_jax.errors import OutOfMemoryError
from janus_jax.planning.chips.slices import find_slice, load_chips
from janus_jax.planning.search.estimate import estimate
from janus_jax.planning.search.remedies import remedies
from tests.support.run_configs import recipe

V5E_16 = [
    SimpleNamespace(device_kind="TPU v5 lite", platform="tpu", process_index=i // 4, coords=(i % 4, i // 4, 0))
    for i in range(16)
]


def test_changes_that_fit_on_known_chips():
    config = ("sft_65k", "remat=none", "batch.rows=128", "batch.microbatches=1")
    headline, *lines = remedies(recipe(*config), V5E_16)
    assert headline == "should fit on v5litepod-16, by estimate, cheapest first:" and 1 <= len(lines) <= 3
    usable = load_chips().chips["v5e"].usable_hbm_bytes_per_device
    for line in lines:
        changes = line.split(":")[0].split()
        assert estimate(recipe(*config, *changes), find_slice("v5litepod-16")).bytes < usable
    assert lines[0].startswith("  remat=full batch.microbatches=4: the backward pass recomputes each block")


def test_a_run_that_should_have_fitted_is_told_to_use_clearly_less():
    _, *lines = remedies(recipe("sft_65k"), V5E_16)
    before = estimate(recipe("sft_65k"), find_slice("v5litepod-16")).bytes
    for line in lines:
        changes = line.split(":")[0].split()
        assert estimate(recipe("sft_65k", *changes), find_slice("v5litepod-16")).bytes < 0.85 * before


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_other_devices_get_the_largest_effect_first(platform):
    devices = [SimpleNamespace(device_kind=platform, platform=platform, process_index=0)] * 8
    [line] = remedies(recipe("sft_65k", "remat=none"), devices)
    assert line.startswith("less memory, by estimate: remat=")
    shares = [int(part.rpartition("(")[2].split("%")[0]) for part in line.split("; ")]
    assert shares == sorted(shares, reverse=True) and min(shares) > 1
    assert ("remat=offload" in line) == (platform == "gpu")  # simulated devices have the host's memory


def test_a_run_without_enough_memory_says_what_needs_less(janus, small):
    error = OutOfMemoryError("training on 8 devices: RESOURCE_EXHAUSTED: Out of memory; change something")
    with mock.patch("janus_jax.training.run.train", autospec=True, side_effect=error):
        code, out, err = janus("train", small, "remat=none", "run.dir=out")
    first, advice = err.splitlines()
    assert (code, out, first) == (11, "", f"error: {error}")
    assert advice.startswith("less memory, by estimate: mesh.") and advice.endswith("% less)")
