"""What an accelerator type is: cloud.google.com/tpu/docs, and messages about quotas that users have reported."""

import subprocess
import sys

import pytest

from janus_jax.errors import ConfigError
from launch.cloud import capacity
from tests.support.fake_machines import settings
from tests.support.repository import ROOT


@pytest.mark.parametrize(
    ("type", "name", "chips", "hosts", "runtime"),
    [
        ("v3-32", "v3-32", 16, 4, "tpu-ubuntu2204-base"),
        ("v4-8", "v4-8", 4, 1, "tpu-ubuntu2204-base"),
        ("v4:2x2x4", "v4-32", 16, 4, "tpu-ubuntu2204-base"),
        ("v5e-8", "v5litepod-8", 8, 1, "v2-alpha-tpuv5-lite"),
        ("V5litepod-16", "v5litepod-16", 16, 4, "v2-alpha-tpuv5-lite"),
        ("v5p-16", "v5p-16", 8, 2, "v2-alpha-tpuv5"),
        ("v6e-8", "v6e-8", 8, 1, "v2-alpha-tpuv6e"),
        ("v6e-256", "v6e-256", 256, 64, "v2-alpha-tpuv6e"),
    ],
)
def test_a_type_has_chips_hosts_and_software(type, name, chips, hosts, runtime):
    result = capacity.of(settings(type=type, slices=1))
    assert (result.name, result.chips, result.hosts, result.runtime) == (name, chips, hosts, runtime)


def test_prices_are_those_of_all_slices_and_unknown_is_unknown():
    result = capacity.of(settings(type="v4-32", slices=2))
    assert (result.usd_per_hour, result.workers) == (pytest.approx(2 * 16 * 3.22), 8)
    assert capacity.of(settings(type="v4-32", provisioning="spot")).usd_per_hour is None
    assert capacity.of(settings(type="v2-8", provisioning="spot")).usd_per_hour == pytest.approx(4 * 0.3375)


@pytest.mark.parametrize(
    ("type", "provisioning", "zone_quota"),
    [
        ("v2-32", "spot", "TPUV2sPreemptiblePodPerProjectPerZoneForTPUAPI"),
        ("v4-8", "spot", "TPUV4sPreemptiblePodPerProjectPerZoneForTPUAPI"),
        ("v5e-16", "on-demand", "TPUV5sLitepodPerProjectPerZoneForTPUAPI"),
        ("v5e-8", "spot", "TPUV5sPreemptibleLitepodServingPerProjectPerZoneForTPUAPI"),
        ("v5p-8", "on-demand", "TPUV5PPerProjectPerZoneForTPUAPI"),
        ("v6e-8", "spot", "TPUV6EPreemptiblePerProjectPerZoneForTPUAPI"),
    ],
)
def test_quotas_are_named_as_messages_name_them(type, provisioning, zone_quota):
    result = capacity.of(settings(type=type, provisioning=provisioning))
    assert result.quotas == (zone_quota, zone_quota.replace("Zone", "Region"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "v4-12"}, "type: slice 'v4-12'"),
        ({"type": "h100:8"}, "type: 'h100:8': allowed: an accelerator type of TPUs"),
        ({"type": "v4:2x2x8"}, "type: 'v4:2x2x8': is planned but not offered; allowed: v4-8, v4-16"),
        ({"type": "v3-32", "slices": 2}, "slices: 2 x v3-32: v3 supports a single slice only"),
    ],
)
def test_other_types_are_refused(changes, message):
    with pytest.raises(ConfigError) as refused:
        capacity.of(settings(**changes))
    assert str(refused.value).startswith(message)


def test_looking_at_machines_needs_no_jax():
    code = (
        "import sys, launch.commands.up, launch.commands.down, launch.cloud.capacity\n"
        "from launch.settings import Settings\n"
        "launch.cloud.capacity.of(Settings(name='a', project='p', zone='us-central2-b', type='v4-8'))\n"
        "print(*{'jax', 'jaxlib', 'numpy', 'tensorflow', 'flax'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT) == "\n"


def test_a_family_that_google_documents_for_gke_alone_is_noted():
    assert "GKE" in capacity.of(settings(type="tpu7x-8")).note
