"""Memory of one device during a compiled training step and during evaluation."""

from typing import Any

from janus_jax.config.run import RunConfig
from janus_jax.data.loader import batch_shardings, host_bytes
from janus_jax.model.remat import kept
from janus_jax.parallel.host_memory import host_memory
from janus_jax.planning.hlo.memory import peak
from janus_jax.planning.inputs import Inputs, online_reference
from janus_jax.planning.result import Memory
from janus_jax.training.program import Program, local_bytes
from janus_jax.training.sample_memory import sample_memory
from janus_jax.training.setup import host_bytes_of_step


def memory_of(
    config: RunConfig,
    program: Program,
    inputs: Inputs,
    compiled: Any,
    hlo: str,
    usable: int | None,
    evaluation: Any = None,
    *,
    scores: bool = True,
) -> Memory:
    """Bytes on one device.

    Args:
        compiled: the training step, None if the compiler ran out of memory.
        hlo: its text.
        usable: bytes that a program can use; None: simulated device.
        evaluation: the compiled evaluation step, if it might need more than the training step.
        scores: whether the weights of an online reference stay on the device.
    """
    state, batch = program.abstract_state(), program.abstract_batch(inputs.shape)
    host, present = _host_bytes(config, program, inputs), host_memory() if usable is None else None
    arguments = {
        "parameters": local_bytes(state.params),
        "moments": local_bytes(state.optimizer),
        "batch": local_bytes(batch),
    }
    reference = 0
    if scores and online_reference(config, inputs):
        reference = local_bytes(program.abstract_params(program.functions.compute.dtype))
    shared: dict[str, Any] = {"host": host, "host_present": present}
    if inputs.samples is not None:
        sampling = sample_memory(inputs.model, list(program.mesh.devices.flat), **inputs.samples)
        shared["samples"] = {name: getattr(sampling, name) for name in ("weights", "cache", "temporaries")}
        free = None if usable is None else usable - arguments["parameters"] - arguments["moments"] - reference
        shared["samples_rows"] = 0 if free is None else sampling.most_rows(free)
    if compiled is None:
        return Memory(usable, arguments, None, (), 0, reference, **shared)
    at_peak = peak(hlo)
    analysis = compiled.memory_analysis()
    on_tpu = usable is not None and program.mesh.devices.flat[0].platform == "tpu"
    reported, estimated = peak_of(analysis, on_tpu), analysis.argument_size_in_bytes + at_peak.bytes
    is_estimate = bool(kept(config.remat).host) and estimated < reported
    held_out = None if evaluation is None else peak_of(evaluation.memory_analysis(), on_tpu) + arguments["moments"]
    executables = [] if usable is None else filter(None, (compiled, evaluation))
    return Memory(
        usable,
        arguments,
        peak=estimated if is_estimate else reported,
        temporaries=at_peak.buffers,
        estimated_temporaries=at_peak.bytes,
        reference=reference,
        evaluation=held_out,
        code=sum(executable.memory_analysis().generated_code_size_in_bytes for executable in executables),
        **shared,
        peak_is_estimate=is_estimate,
    )


def _host_bytes(config: RunConfig, program: Program, inputs: Inputs) -> int:
    """Bytes that a run surely takes in the memory of the host with the most rows."""
    shape = inputs.shape
    rows: dict[int, set[int]] = {}
    sharding = batch_shardings(program.mesh, program.rules).tokens
    full = (shape.microbatches, shape.rows, shape.row_length)
    for device, index in sharding.devices_indices_map(full).items():
        rows.setdefault(device.process_index, set()).update(range(*index[1].indices(shape.rows)))
    most = shape.microbatches * max(map(len, rows.values()))
    step = host_bytes_of_step(config, inputs.model, program, shape.rows * shape.row_length)
    return host_bytes(most, shape.row_length, shape.max_segments) + step // len(rows)


def peak_of(analysis: Any, on_tpu: bool) -> int:
    """Peak bytes. The TPU compiler reports a peak, which is less than arguments plus temp because buffers share memory.
    The CPU compiler's peak leaves temporaries out, and a program on a GPU allocates all of them as one block."""
    if on_tpu:
        return analysis.peak_memory_in_bytes
    outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + outputs
