"""Runs and times the training step on this machine's devices, with made-up rows, beside its plan."""

import contextlib
import os
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from janus_jax.batch import Batch
from janus_jax.config.run import RunConfig
from janus_jax.data.example import Example
from janus_jax.data.rows import RowFormat, pack
from janus_jax.errors import ConfigError, OutOfMemoryError
from janus_jax.model.mistral import init_params
from janus_jax.parallel import preflight, processes
from janus_jax.planning.chips.slices import detect_slice, load_chips
from janus_jax.planning.compile import compile_step, describe, program_of, resolve_mesh
from janus_jax.planning.inputs import SHARED_SHARE, Inputs, find_inputs
from janus_jax.planning.result import Timing


def time_step(
    config: RunConfig,
    *,
    mesh: Mesh | None = None,
    steps: int = 5,
    trace: str | os.PathLike[str] | None = None,
    chips: str | os.PathLike[str] | None = None,
) -> Timing:
    """Times the training step of `config`, with random weights, on all devices of all processes.

    Args:
        mesh: as for `plan`.
        steps: number of timed steps. Each ends when its results are ready.
        trace: directory for an xprof trace of these steps.
        chips: as for `plan`.
    Raises:
        ConfigError, DataError, ConversionError: as training would.
        OutOfMemoryError: the step or its arguments do not fit into memory.
    """
    with processes.agreement("time-step"):  # later code would wait for ever for a process with bad input
        devices, table = preflight.devices(), load_chips(chips)
        target, num_slices = detect_slice(devices)
        config, mesh = resolve_mesh(config, devices, mesh)
        inputs = find_inputs(config, len(devices))
        program = program_of(config, inputs, mesh)
        batch, tokens = made_up_batch(inputs, config.batch.share_prompts)
    with processes.agreement("time-step/inputs"):  # processes must not compile different shapes
        shapes = repr((inputs.model, inputs.shape, inputs.shared_slots, inputs.total_steps, inputs.tokens_per_step))
        if (main := processes.broadcast("time-step/shapes", shapes)) != shapes:
            raise ConfigError(
                f"data or weights on this host differ from those of process 0: {shapes} here, {main} there"
            )
    with processes.memory_for(f"weights and moments on {target.name}"):
        shardings = program.state_shardings.params
        make = jax.jit(lambda key: init_params(inputs.model, key, program.params_dtype), out_shardings=shardings)
        state = program.init(make(jax.random.key(config.run.seed)))
        batch = jax.tree.map(_placed, batch, program.batch_shardings)
    step = compile_step(program.train, (state, batch), target.name, on_tpu=devices[0].platform == "tpu")
    if step.executable is None:
        raise OutOfMemoryError(f"{target.name}: {step.reason}")
    planned = describe(config, inputs, program, step, target, table, num_slices, scores=False)
    run, seconds = step.executable, []
    with processes.memory_for(f"a step on {target.name}"):
        state = jax.block_until_ready(run(state, batch))[0]
        with contextlib.nullcontext() if trace is None else jax.profiler.trace(os.fspath(trace)):
            for number in range(steps):
                start = time.perf_counter()
                with jax.profiler.StepTraceAnnotation("train", step_num=number):
                    state, *_ = jax.block_until_ready(run(state, batch))
                seconds.append(time.perf_counter() - start)
    reported = [stats["peak_bytes_in_use"] for device in mesh.local_devices if (stats := device.memory_stats())]
    return Timing(
        plan=planned,
        device=devices[0].device_kind,
        devices=len(devices),
        tokens_per_step=tokens,
        seconds=tuple(seconds),
        held_bytes=max(reported, default=None),
    )


def _placed(x: np.ndarray, sharding: Any) -> jax.Array:
    """`device_put` would send every array to all processes to compare them."""
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def made_up_batch(inputs: Inputs, share_prompts: bool) -> tuple[Batch, int]:
    """Rows of random ids that are as full as those of training.

    Returns:
        A numpy batch [M, B, L] and the number of its slots that hold a token.
    """
    shape, rng = inputs.shape, np.random.default_rng(0)
    form = RowFormat(inputs.objective.head, inputs.objective.branches, share_prompts)
    slots = int(min(inputs.segment, shape.row_length))
    most = max(1, min(shape.max_segments, shape.row_length // slots))
    prompt = max(1, int(SHARED_SHARE * slots) // (1 if share_prompts else form.branches))
    if share_prompts and form.branches == 2:  # more than the program has copies for makes attention NaN
        prompt = min(prompt, 1 + inputs.shared_slots // most)
    without = int(form.slots(np.asarray([[prompt, 0, 0]], np.int32))[0])
    response = max(1, (slots - without) // form.branches)

    def ids(count: int) -> np.ndarray:
        return rng.integers(3, inputs.model.vocab_size, count).astype(np.int32)

    def example() -> Example:
        rejected = ids(response) if form.branches == 2 else None
        return Example(prompt=ids(prompt), chosen=ids(response), rejected=rejected, margin=0.0)

    # As many examples as a training step has; with `batch.examples` some rows may stay empty.
    share, more = divmod(max(1, round(inputs.tokens_per_step / slots)), shape.rows * shape.microbatches)
    counts = [min(most, share + (row < more)) for row in range(shape.rows * shape.microbatches)]
    rows = [[example() for _ in range(count)] for count in counts]
    packed = pack(rows, row_length=shape.row_length, max_segments=shape.max_segments, form=form)
    tokens = int((packed.segment > 0).sum())
    return jax.tree.map(lambda x: x.reshape(shape.microbatches, shape.rows, *x.shape[1:]), packed), tokens
