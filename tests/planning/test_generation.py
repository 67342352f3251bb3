"""Plans of generation: arithmetic that can be checked by hand, the compiled programs, and the command."""

import json

import jax
import jax.numpy as jnp
import pytest

from janus_jax.errors import ConfigError
from janus_jax.generation import placement
from janus_jax.generation.memory import needed
from janus_jax.model.config import PRESETS
from janus_jax.planning import generation
from janus_jax.planning.chips.slices import families
from janus_jax.planning.report.generation import text
from tests.support.models import SMALL

SEVEN = PRESETS["mistral-7b"]
SIZES = {"rows": 256, "prompt": 512, "new": 1024}


@pytest.fixture
def arithmetic(monkeypatch):
    """No compiler is here."""

    def none(*_):
        raise ConfigError("no compiler here")

    monkeypatch.setattr(generation, "devices", none)


def test_the_bound_is_bytes_over_bandwidth(arithmetic):
    plan = generation.plan(SEVEN, "v5litepod-8", **SIZES)
    assert (plan.mesh, plan.length, plan.notes) == ({"data": 1, "tensor": 8}, 1536, ())
    weights = 2 * (7_241_732_096 - 32000 * 4096) / 8  # all but the embedding; norms lie whole on each device
    slot = 2 * 2 * 32 * 8 * 128 / 8
    calls = [512 + 16 * call - 1 for call in range(64)]
    slots = sum(next(n for n in (512, 768, 1024, 1536) if n >= length) for length in calls) / 64
    assert plan.speed.read_bytes == pytest.approx(weights + 256 * slots * slot, rel=1e-3)
    assert plan.speed.decode["hbm"] == pytest.approx(plan.speed.read_bytes / 819e9)
    assert plan.speed.tokens_per_s == pytest.approx(256 / plan.speed.decode["hbm"])
    products = 2 * (7_241_732_096 - 32000 * 4096) * 256 / 8 / 197e12
    assert products < plan.speed.decode["compute"] < 1.2 * products
    assert plan.speed.prefill["compute"] == pytest.approx(2 * 6.98e9 * 512 / 8 / 197e12, rel=0.05)
    assert plan.speed.with_prompts_per_s < plan.speed.tokens_per_s
    assert plan.fits and plan.not_compiled == "no compiler here" and "All figures are arithmetic" in text(plan)
    half = generation.plan(SEVEN, "v5litepod-8", cache_dtype="int8", **SIZES)
    assert half.cache * 128 * 2 == plan.cache * (128 + 4)


def test_what_does_not_fit_says_what_does(arithmetic):
    plan = generation.plan(SEVEN, "v5litepod-8", **SIZES | {"rows": 900})
    assert not plan.fits and text(plan).startswith("DOES NOT FIT: ")
    assert generation.plan(SEVEN, "v5litepod-8", **SIZES | {"rows": plan.most_rows}).fits
    assert not generation.plan(SEVEN, "v5litepod-8", **SIZES | {"rows": plan.most_rows + 1}).fits
    with pytest.raises(ConfigError, match="--prompt-tokens 32000 and --max-new-tokens 1024: allowed: at most 32768"):
        generation.plan(SEVEN, "v5litepod-8", **SIZES | {"prompt": 32000})


@pytest.mark.parametrize("name", [*(f"{family.type}-8" for family in families().values()), "h100:2", "h200:8", "cpu:8"])
def test_every_kind_of_slice_has_a_plan(arithmetic, name):
    plan = generation.plan(SEVEN, name, rows=3, prompt=2000, new=100)
    assert plan.rows % plan.mesh["data"] == 0 and plan.needed > plan.weights
    assert (plan.speed is None) == name.startswith("cpu")
    json.dumps(plan.to_json())
    assert text(plan, prices_of="then")


def test_slices_beside_each_other_share_the_rows(arithmetic):
    one, two = (generation.plan(SEVEN, "v6e-8", num_slices=n, **SIZES | {"rows": 256 * n}) for n in (1, 2))
    assert (two.mesh, two.cache) == ({"data": 2, "tensor": 8}, one.cache)
    assert two.speed.tokens_per_s == pytest.approx(2 * one.speed.tokens_per_s)


def test_the_mesh_is_that_of_an_engine():
    for devices in (1, 3, 8):
        place, notes = placement.generation_place(SMALL, jax.devices()[:devices])
        data, tensor, rules, message = placement.split(SMALL, devices, 1, whole=False)
        assert (data, tensor, rules, message) == (
            *(place.mesh.shape[axis] for axis in ("data", "tensor")),
            place.rules,
            notes,
        )


def test_simulated_devices_are_compiled_for(janus, tmp_path):
    options = "--generate --devices cpu:2 --rows 4 --prompt-tokens 20 --max-new-tokens 30 --json"
    code, out, err = janus("plan", "tiny", *options.split(), tmp_path / "plan.json")
    assert (code, err) == (0, "") and "compiled:  decode" in out and out.endswith("plan.json\n")
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["not_compiled"] is None and written["peaks"].keys() == {"decode", "prefill", "fill"}
    place, _ = placement.generation_place(PRESETS["tiny"], jax.devices()[:2])
    ours = needed(PRESETS["tiny"], place, rows=4, length=64, prompt=20, dtype=jnp.float32)
    assert (written["weights"], written["cache"]) == (ours.weights, ours.cache)


def test_sources_and_bad_input(janus, small, tmp_path, arithmetic):
    assert janus("plan", small, "--generate", "--topology", "v4-8")[0] == 0  # what a configuration trains
    assert janus("plan", "mistral-7b", "--generate", "--topology", "v2-8", "--rows", 4096)[0] == 3
    (broken := tmp_path / "broken").mkdir()
    (broken / "config.json").write_text("?")
    for arguments, message in (
        ((broken,), f"{broken}/config.json:1: not valid JSON: Expecting value\n"),
        (("no-model",), "no-model: no such directory; named sizes: mistral-7b, tiny"),
        (("tiny", "--png", "x.png"), "--png x.png: not allowed with --generate"),
        (("tiny", "batch.rows=4"), "batch.rows=4: a change to a configuration, but tiny is a model"),
        (
            ("tiny", "--prompt-tokens", 4096),
            "--prompt-tokens 4096 and --max-new-tokens 1024: allowed: at most 4096 together",
        ),
    ):
        code, _, err = janus("plan", *arguments, "--generate", "--topology", "v4-8")
        assert code == 2 and message in err, err
    code, _, err = janus("plan", small, "--topology", "v4-8", "--rows", 4)
    assert code == 2 and "--rows 4: only allowed with --generate" in err
    code, _, err = janus("plan", broken, "--topology", "v4-8")
    assert code == 2 and "is a directory; allowed: a YAML file, or with --generate a model" in err
