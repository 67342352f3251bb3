"""The training step run and timed on whatever devices are here, on made-up rows."""

import contextlib
import dataclasses
import os
import statistics
import time

import jax
import numpy as np

from janus_jax.batch import Batch
from janus_jax.config import RunConfig
from janus_jax.data.example import Example
from janus_jax.data.rows import RowFormat, pack
from janus_jax.model.mistral import init_params
from janus_jax.parallel import mesh as meshes
from janus_jax.parallel.plan.compiling import program_of
from janus_jax.parallel.plan.inputs import SHARED_SHARE, Inputs, find_inputs


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of steps, after those that compile and warm up."""

    device: str
    devices: int
    mesh: dict[str, int]
    attention: str
    seconds: tuple[float, ...]
    compile_s: float
    tokens_per_step: float
    peak_bytes: int | None  # that a device reports; None: it reports nothing

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens_per_step / self.median_s


def time_step(config: RunConfig, *, steps: int = 5, trace: str | os.PathLike[str] | None = None) -> Timing:
    """Times the step of `config` with random weights on all devices of this process.

    Args:
        steps: that are timed, each until its results are there.
        trace: directory for an xprof trace of them.
    Raises:
        ConfigError, DataError, ConversionError: as training would.
    """
    devices = jax.devices()
    found = find_inputs(config, len(devices))
    mesh = meshes.build_mesh(meshes.MeshShape(**config.mesh.model_dump()))
    program = program_of(config, found, mesh)
    shardings = program.state_shardings.params
    make = jax.jit(lambda key: init_params(found.model, key, program.params_dtype), out_shardings=shardings)
    state = program.init(make(jax.random.key(config.run.seed)))
    batch, tokens = made_up_batch(found, config.batch.share_prompts)
    batch = jax.tree.map(jax.device_put, batch, program.batch_shardings)
    begun = time.perf_counter()
    step = program.train.lower(state, batch).compile()
    compile_s = time.perf_counter() - begun
    state = jax.block_until_ready(step(state, batch))[0]
    seconds = []
    with contextlib.nullcontext() if trace is None else jax.profiler.trace(os.fspath(trace)):
        for _ in range(steps):
            begun = time.perf_counter()
            state, *_ = jax.block_until_ready(step(state, batch))
            seconds.append(time.perf_counter() - begun)
    statistics_of = devices[0].memory_stats() or {}
    return Timing(
        device=devices[0].device_kind,
        devices=len(devices),
        mesh=dict(mesh.shape),
        attention=program.attention,
        seconds=tuple(seconds),
        compile_s=compile_s,
        tokens_per_step=float(tokens),
        peak_bytes=statistics_of.get("peak_bytes_in_use"),
    )


def made_up_batch(found: Inputs, share_prompts: bool) -> tuple[Batch, int]:
    """Rows of random ids, as full as examples of the usual length make them, and how many slots hold a token.

    Returns:
        numpy batch [M, B, L], tokens.
    """
    shape, rng = found.shape, np.random.default_rng(0)
    form = RowFormat(found.objective.head, found.objective.branches, share_prompts)
    slots = int(min(found.segment, shape.row_length))
    prompt = max(1, int(SHARED_SHARE * slots))
    response = max(1, (slots - prompt) // form.branches - 1)

    def ids(count: int) -> np.ndarray:
        return rng.integers(3, found.model.vocab_size, count).astype(np.int32)

    def example() -> Example:
        rejected = ids(response) if form.branches == 2 else None
        return Example(prompt=ids(prompt), chosen=ids(response), rejected=rejected, margin=0.0)

    lengths = np.asarray([[prompt, response, response if form.branches == 2 else 0]], np.int32)
    each = max(1, min(shape.max_segments, shape.row_length // int(form.slots(lengths)[0])))
    rows = [[example() for _ in range(each)] for _ in range(shape.rows * shape.microbatches)]
    packed = pack(rows, row_length=shape.row_length, max_segments=shape.max_segments, form=form)
    tokens = int((packed.segment > 0).sum())
    return jax.tree.map(lambda x: x.reshape(shape.microbatches, shape.rows, *x.shape[1:]), packed), tokens
