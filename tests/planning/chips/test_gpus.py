"""GPUs to plan for: names, memory that a run gets, and what is missing to compile for them. No plugin is needed."""

import importlib.util
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from janus_jax.errors import ConfigError
from janus_jax.parallel import environment
from janus_jax.planning.chips import gpus, roofline
from janus_jax.planning.chips.slices import check_count, detect_slice, devices, find_slice, load_chips
from janus_jax.training.speed import PEAK_BF16_FLOPS
from tests.support.repository import ROOT

SHARES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    for name in SHARES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", ["h100:1", "h200-8", "H100:2"])
def test_a_name_says_how_many_gpus_of_one_machine(name):
    result, count = find_slice(name), int(name[-1])
    assert (result.name, result.devices, result.hosts) == (name.lower().replace("-", ":"), count, 1)
    assert result.is_gpu and result.network == "NVLink"
    assert not find_slice("v5e-8").is_gpu and not find_slice("cpu:8").is_gpu


@pytest.mark.parametrize(
    ("name", "wording"),
    [
        ("h100:0", "h100:1 to h100:8, the GPUs of one machine"),
        ("h200:16", "h200:1 to h200:8, the GPUs of one machine"),
        ("a100:8", "h100:1 to h100:8; h200:1 to h200:8; cpu:DEVICES"),
    ],
)
def test_other_gpus_and_counts_are_refused_with_those_that_are_known(name, wording):
    with pytest.raises(ConfigError) as refused:
        find_slice(name)
    assert wording in str(refused.value)


def test_several_machines_are_refused():
    with pytest.raises(ConfigError, match="2 x h100:8: h100 supports a single slice only"):
        check_count(find_slice("h100:8"), 2, load_chips())


def test_running_gpus_have_figures_where_their_kind_is_known():
    for kind, family in gpus.KINDS.items():
        card = SimpleNamespace(device_kind=kind, platform="gpu", process_index=0)
        assert detect_slice([card] * 4) == (find_slice(f"{family}:4"), 1)
        elsewhere = SimpleNamespace(device_kind=kind, platform="gpu", process_index=1)
        assert detect_slice([card, elsewhere])[0].name == "gpu:2"
        assert load_chips().chips[family].peak_bf16_flops == PEAK_BF16_FLOPS[kind]


def test_the_share_of_memory_that_a_run_takes_is_what_a_plan_counts_on(monkeypatch):
    target, gib = find_slice("h100:8"), 79.1 * 2**30
    usable = lambda: load_chips().chip(target).usable_hbm_bytes_per_device  # noqa: E731
    assert usable() == pytest.approx(0.9 * gib)
    environment.use_most_of_gpu_memory()
    assert float(os.environ[SHARES[0]]) == environment.gpu_memory_share()
    monkeypatch.setenv(SHARES[0], "0.5")
    environment.use_most_of_gpu_memory()
    assert os.environ[SHARES[0]] == "0.5" and usable() == pytest.approx(0.5 * gib)
    monkeypatch.delenv(SHARES[0])
    monkeypatch.setenv(SHARES[1], "0.75")  # JAX refuses to start with both names
    environment.use_most_of_gpu_memory()
    assert SHARES[0] not in os.environ and usable() == pytest.approx(0.75 * gib)
    for wrong in ("75", "most", "0"):
        monkeypatch.setenv(SHARES[1], wrong)
        with pytest.raises(ConfigError, match=f"{SHARES[1]}={wrong}: allowed: a number above 0, at most 1"):
            usable()


def test_jax_itself_reads_the_share_that_is_set():
    code = (
        "from janus_jax.parallel import processes; processes.start(processes.RuntimeOptions())\n"
        "from jaxlib import xla_client; print(xla_client.generate_pjrt_gpu_plugin_options()['memory_fraction'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "0.9\n"


def test_a_gpu_sends_at_the_same_speed_to_one_and_to_all_others():
    chip = load_chips().chips["h100"]
    speeds = [roofline.ici_bytes_per_s(find_slice(f"h100:{count}"), chip) for count in (1, 2, 8)]
    assert speeds == [0, 450e9, 450e9]


def test_without_a_plugin_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs JAX's CUDA plugin, but no GPU: pip install 'janus_jax\[cuda13\]'"):
        devices(find_slice("h100:8"))


@pytest.mark.parametrize(
    "message", ["UNAVAILABLE: No PTX compilation provider: ptxas_path: Couldn't find", "libdevice not found at ./lib"]
)
def test_a_missing_part_of_the_toolkit_is_named_with_its_package(message):
    assert "pip install 'janus_jax[cuda13]'" in gpus.what_is_missing(message)
    assert gpus.what_is_missing("RESOURCE_EXHAUSTED: too much") is None


@pytest.mark.parametrize("share", ["0.9", "0.5"])
def test_xla_is_told_of_the_memory_that_a_run_gets(share, monkeypatch):
    """It counts on 80 % of what it is told."""
    monkeypatch.setenv(SHARES[0], share)
    for family in gpus.KINDS.values():
        text, chip = gpus.target_config(family), load_chips().chip(find_slice(f"{family}:1"))
        memory, bandwidth = (re.search(rf"{name}: (\d+)", text) for name in ("device_memory_size", "memory_bandwidth"))
        assert 0.8 * int(memory[1]) == pytest.approx(chip.usable_hbm_bytes_per_device, rel=1e-3)
        assert int(bandwidth[1]) == pytest.approx(chip.hbm_bytes_per_s, rel=1e-3)
        assert text.count("{") == text.count("}")
