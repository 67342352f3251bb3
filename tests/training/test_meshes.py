"""Losses and gradients of wide models do not depend on the mesh: every way to use eight devices, beside one device.

XLA chooses by its sizes how it splits a product, so the smallest models alone show little. All meshes:
`pytest -n 0 -m slow tests/training/test_meshes.py`; pairs over all axes are in tests/parallel/test_mesh.py.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from janus_jax.data.loader import batch_shardings
from janus_jax.data.rows import RowFormat, pack
from janus_jax.model import attention as attention_module
from janus_jax.model import head as head_module
from janus_jax.model.config import ModelConfig
from janus_jax.model.mistral import Compute, init_params, param_specs
from janus_jax.objectives.dpo import DPO
from janus_jax.objectives.orpo import ORPO
from janus_jax.objectives.reward import RewardModel
from janus_jax.objectives.sft import SFT
from janus_jax.parallel.mesh import MeshShape, Placement, build_mesh, merge_rules, param_shardings
from tests.support.packed import in_microbatches, rows_of, step_functions, with_reference
from tests.support.tolerances import assert_within, float32_bound
from tests.support.training_examples import random_examples

ROWS, ROW_LENGTH = 8, 64
MESHES = [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=4) if math.prod(sizes) == 8]
WIDE = ModelConfig(
    vocab_size=96,
    hidden_size=256,
    intermediate_size=512,
    num_layers=2,
    num_heads=16,
    num_kv_heads=8,
    head_dim=32,
    rope_theta=1e4,
    initializer_range=0.1,  # logits far from uniform, so that errors show
)
TOLERANCE = float32_bound(terms=WIDE.hidden_size, condition=50)
"""3.8e-4: as `GRADIENTS`, for sums over a width of 256."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A step: what differs from `WIDE`, sharding rules, tensors that are kept, microbatches."""

    objective: Any
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rules: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    remat: Any = "none"
    microbatches: int = 1
    blocks: int | None = None  # slots of a chunk of the head, and queries of a block of attention


CASES = {
    "responses": Case(SFT()),
    "few wide heads": Case(SFT(), {"num_layers": 1, "intermediate_size": 48, "num_heads": 8, "head_dim": 64}),
    "pairs": Case(DPO(), {"sliding_window": 7, "vocab_size": 101}, {"vocab": None}, "full", blocks=24),
    "microbatches": Case(SFT(), {"intermediate_size": 1024}, remat=("attention", "gate"), microbatches=2),
    "tied": Case(ORPO(), {"tie_embeddings": True, "hidden_size": 512}, remat="dots", blocks=8),
    "values": Case(RewardModel(), {"head": "value", "num_heads": 8}, remat="full"),
}


def model_of(case: Case) -> ModelConfig:
    return dataclasses.replace(WIDE, **case.model)


@functools.cache
def numbers_of(name: str, sizes: tuple[int, ...] | None) -> Any:
    """Loss and gradients on a mesh, or on one device."""
    case = CASES[name]
    model, objective = model_of(case), case.objective
    examples = random_examples(4 * ROWS * case.microbatches, pairs=objective.branches == 2, seed=1, longest=5)
    rows, form = rows_of(examples, ROWS * case.microbatches), RowFormat(objective.head, objective.branches)
    packed = with_reference(pack(rows, row_length=ROW_LENGTH, max_segments=4, form=form))
    batch, params = in_microbatches(packed, case.microbatches), init_params(model, jax.random.key(0))
    place, shardings = {}, {}
    if sizes is not None:
        mesh, rules = build_mesh(MeshShape(*sizes)), merge_rules(case.rules)
        of_params = param_shardings(param_specs(model), mesh, rules)
        place = {"place": Placement(mesh, rules)}
        shardings = {
            "in_shardings": (of_params, batch_shardings(mesh, rules)),
            "out_shardings": (None, of_params, None),
        }
    step = step_functions(objective, model, Compute(dtype="float32", remat=case.remat, **place))
    with pytest.MonkeyPatch.context() as patch:
        if case.blocks is not None:
            patch.setattr(head_module, "_chunk", lambda *_: case.blocks)
            patch.setattr(attention_module, "queries_per_block", lambda *_: case.blocks)
        loss, gradients, _ = jax.jit(step.gradients, **shardings)(params, batch)
    return jax.device_get((loss, gradients))


QUICK = {("few wide heads", (2, 2, 2, 1))}


def _tried(name, sizes):
    marks = [] if (name, sizes) in QUICK else [pytest.mark.slow]
    return pytest.param(name, sizes, marks=marks, id=f"{name}-{'x'.join(map(str, sizes))}")


@pytest.mark.parametrize(("name", "sizes"), [_tried(*pair) for pair in itertools.product(CASES, MESHES)])
def test_every_mesh_of_eight_devices_gives_the_numbers_of_one_device(name, sizes):
    assert_within(numbers_of(name, sizes), numbers_of(name, None), TOLERANCE)


EXCHANGED = "XLA's partitioner exchanges the rows of two pairs of devices; if it no longer does, split at once"


@pytest.mark.parametrize(
    "whole_first", [True, pytest.param(False, marks=pytest.mark.xfail(strict=True, reason=EXCHANGED))]
)
def test_a_product_that_is_whole_before_it_is_split_keeps_its_rows(whole_first):
    """The last product of a block, in plain JAX. XLA sends rows to other devices to multiply them, and not back, where
    an axis of the rows also splits the weights' columns, and a third axis the result's."""
    mesh, rows = build_mesh(MeshShape(2, 2, 2, 1)), ("data", "fsdp")

    def at(*axes):
        return NamedSharding(mesh, PartitionSpec(*axes))

    def product(x, weights):
        out = x @ weights
        return jax.lax.with_sharding_constraint(out, at(rows, None)) if whole_first else out

    x, weights = np.arange(8 * 4, dtype=np.float32).reshape(8, 4), np.ones((4, 8), np.float32)
    ins = at(rows, "tensor"), at("tensor", "fsdp")
    result = jax.jit(product, in_shardings=ins, out_shardings=at(rows, "tensor"))(x, weights)
    np.testing.assert_array_equal(result, x @ weights)
