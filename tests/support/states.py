"""A training state with every kind of leaf that an optimizer may have."""

import shutil
from pathlib import Path

import jax
import optax

from janus_jax.model.config import ModelConfig
from janus_jax.model.mistral import param_specs
from janus_jax.parallel.mesh import merge_rules, param_shardings
from tests.support.models import random_params

STATE_MODEL = ModelConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    initializer_range=0.3,
)
STATE_META = {"model": {**STATE_MODEL.__dict__}, "config": {"run": {"seed": 3}}}


def transformation():
    """Its state has everything odd: empty states, masks, counters, a moment for each parameter."""
    mask = jax.tree.map(lambda spec: len(spec.shape) > 2, param_specs(STATE_MODEL))
    return optax.chain(
        optax.clip(1.0),
        optax.scale_by_adam(),
        optax.masked(optax.trace(0.9), mask),
        optax.add_decayed_weights(0.1, mask=mask),
        optax.scale_by_schedule(optax.constant_schedule(0.5)),
    )


def placed_state(mesh, params=None):
    """Parameters on a mesh and an optimizer state after one update, with moments sharded as their parameters.

    Every value is made element by element, so that it is the same on any mesh.
    """
    shardings = param_shardings(param_specs(STATE_MODEL), mesh, merge_rules({}))
    params = jax.device_put(params or random_params(STATE_MODEL), shardings)
    tx = transformation()
    with jax.set_mesh(mesh):
        optimizer = jax.jit(lambda p: tx.update(jax.tree.map(lambda x: x / 2, p), tx.init(p), p)[1])(params)
    return params, optimizer


def without_checksums(step: Path) -> None:
    """Makes of a step what versions before checksums wrote; its values can then be edited."""
    shutil.rmtree(step / "checksums")
    listing = step / "_CHECKPOINT_METADATA"
    listing.write_text(listing.read_text().replace('"checksums"', '"other"'))


def abstract(tree):
    """Shapes, dtypes and shardings, without values."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)
