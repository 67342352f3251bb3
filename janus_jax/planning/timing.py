"""The training step run and timed on whatever devices are here, on made-up rows, beside its plan."""

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
from janus_jax.parallel import processes
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
    """Times the step of `config` with random weights on all devices of all processes.

    Args:
        mesh: as for `plan`.
        steps: that are timed, each until its results are there.
        trace: directory for an xprof trace of them.
        chips: as for `plan`.
    Raises:
        ConfigError, DataError, ConversionError: as training would.
        OutOfMemoryError: the step, or what it is given, takes more memory than there is.
    """
    with processes.agreement("time-step"):  # what follows would wait for ever for a process that found bad input
        devices, table = jax.devices(), load_chips(chips)
        target, num_slices = detect_slice(devices)
        config, mesh = resolve_mesh(config, devices, mesh)
        found = find_inputs(config, len(devices))
        program = program_of(config, found, mesh)
        batch, tokens = made_up_batch(found, config.batch.share_prompts)
    with processes.agreement("time-step/inputs"):  # or programs would be of different shapes
        here = repr((found.model, found.shape, found.shared_slots, found.total_steps, found.tokens_per_step))
        if (of_main := processes.broadcast("time-step/found", here)) != here:
            raise ConfigError(f"data or weights on this host are not those of process 0: {here}; there {of_main}")
    with processes.memory_for(f"weights and moments on {target.name}"):
        shardings = program.state_shardings.params
        make = jax.jit(lambda key: init_params(found.model, key, program.params_dtype), out_shardings=shardings)
        state = program.init(make(jax.random.key(config.run.seed)))
        batch = jax.tree.map(_placed, batch, program.batch_shardings)
    step = compile_step(program.train, (state, batch), target.name, on_tpu=devices[0].platform == "tpu")
    if step.executable is None:
        raise OutOfMemoryError(f"{target.name}: {step.reason}")
    planned = describe(config, found, program, step, target, table, num_slices, scores=False)
    run, seconds = step.executable, []
    with processes.memory_for(f"a step on {target.name}"):
        state = jax.block_until_ready(run(state, batch))[0]
        with contextlib.nullcontext() if trace is None else jax.profiler.trace(os.fspath(trace)):
            for number in range(steps):
                begun = time.perf_counter()
                with jax.profiler.StepTraceAnnotation("train", step_num=number):
                    state, *_ = jax.block_until_ready(run(state, batch))
                seconds.append(time.perf_counter() - begun)
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
    """Without `device_put`, which sends every array around to compare what processes have."""
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def made_up_batch(found: Inputs, share_prompts: bool) -> tuple[Batch, int]:
    """Rows of random ids, together as full as those of training, and how many slots hold a token.

    Returns:
        numpy batch [M, B, L], tokens.
    """
    shape, rng = found.shape, np.random.default_rng(0)
    form = RowFormat(found.objective.head, found.objective.branches, share_prompts)
    slots = int(min(found.segment, shape.row_length))
    most = max(1, min(shape.max_segments, shape.row_length // slots))
    prompt = max(1, int(SHARED_SHARE * slots) // (1 if share_prompts else form.branches))
    if share_prompts and form.branches == 2:  # with more than the program has copies for, attention is NaN
        prompt = min(prompt, 1 + found.shared_slots // most)
    without = int(form.slots(np.asarray([[prompt, 0, 0]], np.int32))[0])
    response = max(1, (slots - without) // form.branches)

    def ids(count: int) -> np.ndarray:
        return rng.integers(3, found.model.vocab_size, count).astype(np.int32)

    def example() -> Example:
        rejected = ids(response) if form.branches == 2 else None
        return Example(prompt=ids(prompt), chosen=ids(response), rejected=rejected, margin=0.0)

    # As many as a step of training has: of a number of examples some rows may stay empty.
    share, more = divmod(max(1, round(found.tokens_per_step / slots)), shape.rows * shape.microbatches)
    counts = [min(most, share + (row < more)) for row in range(shape.rows * shape.microbatches)]
    rows = [[example() for _ in range(count)] for count in counts]
    packed = pack(rows, row_length=shape.row_length, max_segments=shape.max_segments, form=form)
    tokens = int((packed.segment > 0).sum())
    return jax.tree.map(lambda x: x.reshape(shape.microbatches, shape.rows, *x.shape[1:]), packed), tokens
