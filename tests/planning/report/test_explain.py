"""How a parameter is split, said without compiling anything."""

import math

import jax
import jax.numpy as jnp
import pytest

from janus_jax.config.run import load_config
from janus_jax.errors import ConfigError
from janus_jax.model.mistral import param_specs
from janus_jax.planning.chips.slices import find_slice
from janus_jax.planning.inputs import find_model
from janus_jax.planning.report.explain import explain_parameters
from janus_jax.planning.search.estimate import estimate
from janus_jax.training.optimizer import AdamW


def test_explain_says_axes_rules_pieces_and_copies():
    config = load_config("configs/sft_65k.yaml", ["mesh.data=2", "mesh.tensor=4"])
    text = explain_parameters(config, "v5litepod-16", "layers.mlp")
    head, down, gate, up = text.split("\n\n")
    assert head == "mesh data 2 x fsdp 2 x tensor 4 x context 1, 16 devices"
    assert [part.split()[0] for part in (down, gate, up)] == [f"layers.mlp.{name}" for name in ("down", "gate", "up")]
    lines = [" ".join(line.split()) for line in gate.splitlines()]
    assert lines == [
        "layers.mlp.gate float32 32 x 4,096 x 14,336",
        "logical axis size sharding rule per device",
        "layers 32 none 32",
        "embed 4,096 fsdp (2) 2,048",
        "mlp 14,336 tensor (4) 3,584",
        "per device: 32 x 2,048 x 3,584, 0.88 GiB of 7.00 GiB",
        "two moments in float32: 1.75 GiB per device",
        "replicated: each of 8 shards lies on 2 devices, along data (2)",
    ]


def test_explain_knows_what_is_whole_everywhere_and_what_is_nowhere_twice():
    config = load_config("configs/sft_65k.yaml", ["sharding.embed=null"])
    assert "replicated: the whole parameter lies on 16 devices, along fsdp (16)" in explain_parameters(
        config, "v5litepod-16", "final_norm"
    )
    config = load_config("configs/sft_65k.yaml", [])
    assert "not replicated: 16 shards, each on one device" in explain_parameters(config, "v5litepod-16", "embedding")


@pytest.mark.parametrize(
    ("name", "near"),
    [("layers.mlp.gat", "layers.mlp.gate"), ("gate", "layers.mlp.gate"), ("layer", "layers"), ("%", "allowed: ")],
)
def test_explain_names_the_nearest_of_an_unknown_parameter(name, near):
    with pytest.raises(ConfigError, match=f"--explain {name}: unknown parameter; .*{near}"):
        explain_parameters(load_config("configs/sft_65k.yaml", []), "v5litepod-16", name)


def test_explain_refuses_what_training_would():
    with pytest.raises(ConfigError, match=r"mesh.data=1: allowed with 2 slices: a multiple of 2"):
        explain_parameters(load_config("configs/sft_65k.yaml", []), "v5litepod-16", "embedding", num_slices=2)
    with pytest.raises(ConfigError, match=r"tensor=16 does not divide kv_heads=8 of parameter layers\.attention\.k"):
        explain_parameters(load_config("configs/sft_65k.yaml", ["mesh.tensor=16"]), "v5litepod-16", "embedding")


@pytest.mark.parametrize("block", [256, 2048])
def test_moments_in_8_bits_take_a_byte_a_number_and_four_a_block(block):
    """Of the 7B on 16 chips, by formula, beside the shapes of the optimizer's state and the planner's estimate."""
    config = load_config("configs/sft_65k.yaml", [f"compat.adamw_8bit={block}"])
    specs = param_specs(find_model(config)[0], jnp.float32)
    numbers = [math.prod(spec.shape) for spec in jax.tree.leaves(specs)]
    norms = 32 * 2 * 4096 + 4096  # of 4096 numbers each: not fewer than bitsandbytes' least
    assert sum(numbers) == 7_241_732_096 and sum(count for count in numbers if count <= 32 * 4096) == norms
    whole = 2 * sum(count + 4 * count // block for count in numbers)
    chain = AdamW.of(config).transformation(lambda _: jnp.float32(1), specs)
    shapes = jax.eval_shape(chain.init, specs)[0]
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((shapes.mu, shapes.nu))) == whole
    target = find_slice("v5litepod-16")
    wide = estimate(load_config("configs/sft_65k.yaml", []), target)
    saved = wide.arguments - estimate(config, target).arguments
    # Scales of blocks that shards cut are on every chip: a row of 4096 in 16 shards has none of 2048 whole.
    assert saved == pytest.approx((8 * sum(numbers) - whole) / 16, rel=2e-3 if block == 256 else 1e-2)
    text = explain_parameters(config, "v5litepod-16", "embedding")
    shards = 16 if block == 256 else 1  # of the 4096 / block scales of a row: two do not go into 16 parts
    moments = 2 * 32000 * 4096 / 16 + 8 * 32000 * 4096 / block / shards
    assert f"two moments in {config.moments}: {moments / 2**20:.2f} MiB per device" in text
