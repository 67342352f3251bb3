"""The jitted steps of a run and the shapes that go in. No data and no weights are needed to lower them."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from janus_jax.batch import Batch, empty_batch
from janus_jax.config.run import RunConfig
from janus_jax.data.loader import batch_shardings
from janus_jax.errors import ConfigError, counted
from janus_jax.model.config import ModelConfig
from janus_jax.model.kernels import Need
from janus_jax.model.kernels.choice import choose
from janus_jax.model.mistral import ACTIVATION_AXES, Compute, init_params, param_specs
from janus_jax.objectives import Objective
from janus_jax.parallel import mesh as meshes
from janus_jax.training.optimizer import AdamW, Rates, Schedule
from janus_jax.training.step import StepFunctions, TrainState


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """Sizes of a batch: [microbatches, rows, row_length] and [microbatches, rows, max_segments]."""

    microbatches: int
    rows: int
    row_length: int
    max_segments: int


@dataclasses.dataclass(frozen=True)
class Program:
    """What runs on the devices of a mesh, and where its state lies."""

    functions: StepFunctions
    mesh: Mesh
    rules: meshes.Rules
    params_dtype: Any
    state_shardings: TrainState
    attention: str
    """How it is computed and why, for a user to read."""

    @functools.cached_property
    def batch_shardings(self) -> Batch:
        """Of each field of a batch."""
        return batch_shardings(self.mesh, self.rules)

    @property
    def replicated(self) -> NamedSharding:
        """On every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @functools.cached_property
    def random_params(self) -> Any:
        """Jitted: random parameters of a key, rounded to the dtype of the run and then to the dtype that is given."""

        def made(key: jax.Array, dtype: Any) -> Any:
            params = init_params(self.functions.model, key, dtype=self.params_dtype)
            return jax.tree.map(lambda leaf: leaf.astype(dtype), params)

        return jax.jit(made, static_argnums=1, out_shardings=self.state_shardings.params)

    @functools.cached_property
    def init(self) -> Any:
        """Jitted `StepFunctions.init`; takes the parameters' memory over."""
        return jax.jit(self.functions.init, out_shardings=self.state_shardings, donate_argnums=0)

    @functools.cached_property
    def train(self) -> Any:
        """Jitted `StepFunctions.train`; takes the state's memory over."""
        return jax.jit(
            self.functions.train,
            in_shardings=(self.state_shardings, self.batch_shardings),
            out_shardings=(self.state_shardings, self.replicated, self.replicated),
            donate_argnums=0,
        )

    @functools.cached_property
    def evaluate(self) -> Any:
        """Jitted `StepFunctions.evaluate`."""
        ins = (self.state_shardings.params, self.batch_shardings)
        return jax.jit(self.functions.evaluate, in_shardings=ins, out_shardings=self.replicated)

    @functools.cached_property
    def reference(self) -> Any:
        """Jitted `StepFunctions.reference`."""
        ins = (self.state_shardings.params, self.batch_shardings)
        return jax.jit(self.functions.reference, in_shardings=ins, out_shardings=self.batch_shardings.reference_logps)

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the training state, as a checkpoint restores it."""
        return _with_shardings(_state_shapes(self.functions, self.params_dtype), self.state_shardings)

    def abstract_params(self, dtype: Any) -> Any:
        """Those of parameters in another dtype, such as a reference's."""
        shapes = _param_shapes(self.functions, dtype)
        return _with_shardings(shapes, self.state_shardings.params)

    def abstract_batch(self, shape: BatchShape) -> Batch:
        """Shapes, dtypes and shardings of a batch."""
        rows = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, empty_batch(0, shape.row_length, shape.max_segments)))
        lead = (shape.microbatches, shape.rows)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*lead, *leaf.shape[1:]), leaf.dtype), rows)
        return _with_shardings(shapes, self.batch_shardings)


def build_schedule(config: RunConfig, total_steps: int) -> Schedule:
    """The learning rates of `schedule:` in a configuration.

    Raises:
        ConfigError: warm-up and decay together take more than `total_steps`.
    """
    section = config.schedule
    warmup, decay = section.warmup(total_steps), section.decay(total_steps)
    if decay and warmup + decay > total_steps:
        raise ConfigError(
            f"schedule: {counted(warmup, 'step')} of warm-up and {decay} of decay do not fit into "
            f"{counted(total_steps, 'step')}; lower "
            "schedule.decay_steps or decay_ratio, or warmup_steps or warmup_ratio"
        )
    return Schedule(
        section.learning_rate,
        total_steps,
        warmup,
        section.name,
        min_rate_ratio=section.min_rate_ratio or 0.0,
        decay_steps=decay,
        decay_shape=section.decay_shape or "cosine",
    )


def build_program(
    config: RunConfig,
    model: ModelConfig,
    objective: Objective,
    mesh: Mesh,
    rules: meshes.Rules,
    schedule: Rates,
    *,
    shared_slots: int,
    max_segments: int,
    longest: int | None = None,
) -> Program:
    """The program of a run.

    Args:
        model: with the objective's head.
        shared_slots: the most slots of shared prompts that a row has; only asked for where `choice.counts`.
        max_segments: the most segments that a row has, or may have.
        longest: the most tokens of a prompt with one of its branches; None: batch.max_sequence_length.
    Raises:
        ConfigError: mesh or rules do not suit the model, or precision.attention asks for what cannot be.
    """
    dtype = jnp.dtype(config.params_dtype)
    specs = param_specs(model, dtype)
    shardings = meshes.param_shardings(specs, mesh, rules)
    for axes in ACTIVATION_AXES:
        meshes.partition_spec(axes, rules)
    _check_length(config, mesh, rules)
    place = meshes.Placement(mesh, rules)
    need = Need(
        heads=model.num_heads,
        kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        window=model.sliding_window,
        dtype=jnp.dtype(config.precision.compute),
        row_length=config.batch.row_length,
        longest=longest or config.batch.max_sequence_length,
        copies=shared_slots,
        segments=max_segments,
        branches=objective.branches,
        place=place,
    )
    padding = config.compat.orpo_padding
    if padding == "trl":  # no kernel knows slots that see and are not seen
        if need.window is not None and need.window < config.batch.max_sequence_length:
            raise ConfigError(
                f"compat.orpo_padding = trl: the model has a sliding window of {need.window}; allowed: "
                f"batch.max_sequence_length of at most {need.window}"
            )
        kernel, attention = None, "plain JAX (compat.orpo_padding = trl)"
    else:
        kernel, attention = choose(config.precision.attention, need)
    compute = Compute(need.dtype, config.remat, place, kernel, padding_sees_nothing=padding == "axolotl")
    adamw = AdamW.of(config)
    functions = StepFunctions(
        model=model,
        objective=objective,
        compute=compute,
        transformation=adamw.transformation(schedule, specs),
        clip_norm=adamw.clip_norm,
        skip_nonfinite=config.optimizer.on_nonfinite == "skip",
    )
    optimizer = adamw.state_shardings(_state_shapes(functions, dtype).optimizer, specs, shardings)
    return Program(functions, mesh, rules, dtype, TrainState(shardings, optimizer), attention)


def _param_shapes(functions: StepFunctions, dtype: Any) -> Any:
    return jax.tree.map(lambda spec: jax.ShapeDtypeStruct(spec.shape, dtype), param_specs(functions.model, dtype))


def _state_shapes(functions: StepFunctions, dtype: Any) -> TrainState:
    return jax.eval_shape(functions.init, _param_shapes(functions, dtype))


def local_bytes(tree: Any) -> int:
    """Bytes of arrays, or of abstract ones, on each device."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def _with_shardings(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )


def _check_length(config: RunConfig, mesh: Mesh, rules: meshes.Rules) -> None:
    shards = meshes.shards(mesh, rules, "length")
    if config.batch.row_length % shards:
        raise ConfigError(f"batch.row_length={config.batch.row_length} does not divide over {shards} length shards")
