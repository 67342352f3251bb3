"""What lies on a device while a compiled step runs, and while held-out rows are evaluated."""

import math
from typing import Any

import jax

from janus_jax.config.run import RunConfig
from janus_jax.planning.hlo.memory import peak
from janus_jax.planning.inputs import Inputs, online_reference
from janus_jax.planning.result import Memory
from janus_jax.training.program import Program


def memory_of(
    config: RunConfig,
    program: Program,
    found: Inputs,
    compiled: Any,
    hlo: str,
    usable: int | None,
    evaluation: Any = None,
    *,
    scores: bool = True,
) -> Memory:
    """Bytes on one device.

    Args:
        compiled: the training step, None if the compiler ran out of memory; `hlo` is its text.
        usable: what the device has; None: it is simulated.
        evaluation: the compiled evaluation step, where it might need more.
        scores: whether the weights of an online reference are kept besides.
    """
    state, batch = program.abstract_state(), program.abstract_batch(found.shape)
    arguments = {
        "parameters": _local_bytes(state.params),
        "moments": _local_bytes(state.optimizer),
        "batch": _local_bytes(batch),
    }
    kept = 0
    if scores and online_reference(config, found):
        kept = _local_bytes(program.abstract_params(program.functions.compute.dtype))
    if compiled is None:
        return Memory(usable, arguments, None, (), 0, kept)
    at_peak = peak(hlo)
    analysis = compiled.memory_analysis()
    told, ours = _peak(analysis, usable), analysis.argument_size_in_bytes + at_peak.bytes
    is_ours = config.remat == "offload" and ours < told
    held_out = None if evaluation is None else _peak(evaluation.memory_analysis(), usable) + arguments["moments"]
    programs = [] if usable is None else filter(None, (compiled, evaluation))
    return Memory(
        usable,
        arguments,
        peak=ours if is_ours else told,
        temporaries=at_peak.buffers,
        estimated_temporaries=at_peak.bytes,
        reference=kept,
        evaluation=held_out,
        code=sum(each.memory_analysis().generated_code_size_in_bytes for each in programs),
        peak_is_estimate=is_ours,
    )


def _local_bytes(tree: Any) -> int:
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def _peak(analysis: Any, usable: int | None) -> int:
    """Of a TPU's compiler its own figure: arguments and temp do not add up to it, because memory is used twice. XLA's
    for CPUs leaves temporaries out of its."""
    if usable is not None:
        return analysis.peak_memory_in_bytes
    outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + outputs
