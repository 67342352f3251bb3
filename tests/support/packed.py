"""Packed batches of random examples, and the compiled functions of a step that reads them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.batch import Batch
from janus_jax.model.mistral import Compute, init_params, param_specs
from janus_jax.training.optimizer import AdamW, Schedule
from janus_jax.training.step import StepFunctions
from tests.support.training_examples import TINY

FLOAT32 = Compute(dtype=jnp.float32)
ROW_LENGTH = 128

initial_params = jax.jit(init_params, static_argnums=0)
"""One program, which processes share; operation by operation it would be dozens."""


def step_functions(objective, config=TINY, compute=FLOAT32) -> StepFunctions:
    """With an optimizer whose settings no test reads."""
    transformation = AdamW().transformation(Schedule(1e-3, 10), param_specs(config))
    return StepFunctions(config, objective, compute, transformation, clip_norm=None)


def rows_of(examples, rows: int) -> list:
    """Deals the examples out to `rows` rows, always in the same order within a row."""
    return [examples[i::rows] for i in range(rows)]


def with_reference(batch: Batch) -> Batch:
    """Adds reference log-probs that depend on the example alone, so that packing cannot change them."""
    ids = batch.example_id.astype(np.float32)
    reference = np.stack([np.sin(ids), np.cos(ids)], -1) * batch.valid[..., None]
    return dataclasses.replace(batch, reference_logps=reference.astype(np.float32))


def in_microbatches(batch: Batch, microbatches: int = 1) -> Batch:
    """[rows, ...] -> [microbatches, rows / microbatches, ...]"""
    return jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), batch)
