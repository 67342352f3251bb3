"""Lowers and compiles the trainer's step for a mesh on any slice and reads the result."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import math
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from janus_jax.config.changes import changed
from janus_jax.config.run import RunConfig
from janus_jax.errors import ConfigError, first_line
from janus_jax.model.remat import as_text
from janus_jax.parallel import mesh as meshes
from janus_jax.planning.bounds import shards_by_axis, step_bound, step_flops
from janus_jax.planning.chips import gpus
from janus_jax.planning.chips.slices import ChipTable, Slice, check_count, devices, find_slice, load_chips
from janus_jax.planning.compiler_log import compiler_log
from janus_jax.planning.hlo.collectives import MeshPositions, collectives
from janus_jax.planning.hlo.findings import warnings
from janus_jax.planning.inputs import Inputs, check_rows, find_inputs
from janus_jax.planning.memory import memory_of
from janus_jax.planning.result import Parameter, Plan
from janus_jax.training.program import Program, build_program, build_schedule

_OUT_OF_MEMORY, _CACHE = "RESOURCE_EXHAUSTED", "jax_enable_compilation_cache"
_KERNEL_TOO_LARGE = "Shared memory size limit exceeded"
"""XLA gives the shared memory of a GPU's core the same code as its HBM."""


def plan(
    config: RunConfig,
    topology: str,
    *,
    num_slices: int = 1,
    mesh: Mesh | None = None,
    chips: str | os.PathLike[str] | None = None,
    dump_hlo: str | os.PathLike[str] | None = None,
) -> Plan:
    """Compiles one training step of `config` for a slice that this machine need not have.

    Args:
        topology: Google Cloud's name (`v5litepod-16`, `v4-32`), a shape (`v5e:4x4`), GPUs of one machine (`h100:8`), or
            `cpu:8` for simulated devices.
        num_slices: number of identical slices, connected by the data centre's network.
        mesh: the caller's own mesh of all their devices (`slices.devices`) over axes of `mesh.AXES`. It replaces the
            sizes in `config.mesh` and the default device order.
        chips: YAML file whose figures and prices override the package's (`load_chips`).
        dump_hlo: directory that gets the program before and after compilation.
    Raises:
        ConfigError: unknown slice, its compiler is missing, or training would refuse mesh, rows or rules.
        DataError, ConversionError: as training would.

    The evaluation step is compiled too if it takes more rows at a time than the training step.
    """
    target, table = find_slice(topology), load_chips(chips)
    check_count(target, num_slices, table)
    if mesh is None:
        meshes.check_slices(config.mesh.shape.resolve(target.devices * num_slices), num_slices)
    config, mesh = resolve_mesh(config, devices(target, num_slices), mesh)
    inputs = find_inputs(config, target.devices * num_slices)
    program = program_of(config, inputs, mesh)
    on_tpu, evaluation = target.topology is not None and not target.is_gpu, None
    with gpus.lowering_for(mesh.devices.flat[0]):
        step = compile_step(program.train, _arguments(program, inputs), topology, on_tpu=on_tpu)
        if step.executable is not None and (larger := _evaluation(config, inputs, program)) is not None:
            evaluation = compile_step(program.evaluate, larger, topology, on_tpu=on_tpu)
    if dump_hlo is not None:
        _dump(Path(dump_hlo), step.lowered, step.hlo)
    return describe(config, inputs, program, step, target, table, num_slices, evaluation)


def resolve_mesh(config: RunConfig, devices: list[Any], own: Mesh | None) -> tuple[RunConfig, Mesh]:
    """The configured mesh, or the caller's own mesh and the configuration with its sizes.

    Raises:
        ConfigError: sizes do not multiply to the devices, or the caller's mesh has other devices or an unknown axis.
    """
    if own is None:
        return config, meshes.build_mesh(config.mesh.shape, devices)
    mesh = meshes.adopt(own)
    if set(mesh.devices.flat) != set(devices):
        raise ConfigError(f"mesh: its {mesh.devices.size} devices are not the {len(devices)} devices of the slices")
    return changed(config, {f"mesh.{axis}": size for axis, size in mesh.shape.items()}), mesh


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A training or evaluation step, before and after compilation."""

    lowered: str
    executable: Any | None  # None: the compiler ran out of memory
    reason: str | None  # its message in that case
    seconds: float  # spent compiling
    log: str  # what the compiler wrote

    @functools.cached_property
    def hlo(self) -> str:
        return "" if self.executable is None else self.executable.as_text()


class ProgramRefused(ConfigError):
    """XLA does not compile a program, for a reason other than memory. Trying again does not help."""


def compile_step(jitted: Any, arguments: Any, target_name: str, *, on_tpu: bool) -> CompiledStep:
    """Lowers and compiles a step for arrays or abstract arrays.

    Args:
        target_name: what errors call the devices.
        on_tpu: whether libtpu compiles, which does not write its warnings to stderr.
    Raises:
        ProgramRefused: the compiler refuses the program, for a reason other than memory.
    """
    return compile_lowered(jitted.lower(*arguments), target_name, on_tpu=on_tpu)


def compile_lowered(lowered: Any, target_name: str, *, on_tpu: bool) -> CompiledStep:
    """As `compile_step`, for what is lowered already."""
    text, start = lowered.as_text(), time.perf_counter()
    with compiler_log(capture_stderr=not on_tpu) as log, _no_cache():
        try:
            executable, reason = lowered.compile(), None
        except jax.errors.JaxRuntimeError as error:
            if (missing := gpus.what_is_missing(str(error))) is not None:
                raise ConfigError(f"{target_name}: {missing}") from error
            if _OUT_OF_MEMORY not in str(error) or _KERNEL_TOO_LARGE in str(error):
                raise ProgramRefused(f"{target_name}: XLA refuses the program: {first_line(error)}") from error
            executable, reason = None, _memory_message(str(error))
    return CompiledStep(text, executable, reason, time.perf_counter() - start, log())


def describe(
    config: RunConfig,
    inputs: Inputs,
    program: Program,
    step: CompiledStep,
    target: Slice,
    table: ChipTable,
    num_slices: int,
    evaluation: CompiledStep | None = None,
    *,
    scores: bool = True,
) -> Plan:
    """The plan of a compiled step on `num_slices` slices. Compiles nothing.

    Args:
        scores: whether an online reference counts, as it does in training.
    """
    mesh, reason, hlo = program.mesh, step.reason, step.hlo
    evaluation_reason = None if evaluation is None else evaluation.reason
    if reason is None and evaluation_reason is not None:
        reason = f"evaluation, eval.rows={config.eval.rows}: {evaluation_reason}"
    chip = table.chip(target)
    usable = None if chip is None else chip.usable_hbm_bytes_per_device
    evaluated = None if evaluation is None else evaluation.executable
    memory = memory_of(config, program, inputs, step.executable, hlo, usable, evaluated, scores=scores)
    memory = dataclasses.replace(memory, evaluation_failed=evaluation_reason is not None)
    if reason is None and usable is not None and memory.needed is not None and memory.needed > usable:
        what = "samples beside the weights need" if memory.samples_are_most else "the step needs"
        what = "evaluation needs" if memory.evaluation_is_most and not memory.samples_are_most else what
        reason = f"{what} {memory.needed / 2**30:.2f} GiB but only {usable / 2**30:.2f} GiB is usable"
    transfers = collectives(hlo, MeshPositions.of(mesh)) if hlo else []
    shards, bound = shards_by_axis(mesh, program.rules), None
    if chip is not None and hlo:
        ici, dcn = (sum(sent.wire_bytes for sent in transfers if sent.over_dcn == over) for over in (False, True))
        bound = step_bound(
            config,
            inputs,
            shards=shards,
            parameter_shards=_layer_shards(program),
            devices=mesh.devices.size,
            ici_bytes=ici,
            dcn_bytes=dcn,
            target=target,
            chip=chip,
            num_slices=num_slices,
            scores=scores,
        )
    price = None if chip is None or chip.usd_on_demand is None else chip.usd_on_demand * target.chips * num_slices
    return Plan(
        target=target,
        num_slices=num_slices,
        mesh=dict(mesh.shape),
        objective=inputs.objective.name,
        remat=as_text(config.remat),
        moments=config.moments,
        rows=inputs.shape.rows * inputs.shape.microbatches,
        row_length=inputs.shape.row_length,
        microbatches=inputs.shape.microbatches,
        row_shards=shards["batch"],
        attention=program.attention,
        assumed=inputs.assumed,
        notes=inputs.notes,
        fits=reason is None,
        reason=reason,
        memory=memory,
        collectives=tuple(transfers),
        findings=tuple(warnings(hlo, step.log, _arguments(program, inputs)) if hlo else ()),
        flops=step_flops(config, inputs, scores=scores),
        bound=bound,
        tokens_per_step=inputs.tokens_per_step,
        steps_per_epoch=inputs.steps_per_epoch,
        usd_per_hour=price,
        compile_s=step.seconds,
        program_sha256=hashlib.sha256(step.lowered.encode()).hexdigest(),
        versions=versions(),
        parameters=_parameters(program.abstract_params(program.params_dtype)),
    )


def program_of(config: RunConfig, inputs: Inputs, mesh: Any) -> Program:
    """The trainer's program on any mesh.

    Raises:
        ConfigError: as `build_program`, or rows do not divide over the mesh.
    """
    rules = meshes.merge_rules(config.sharding)
    check_rows(config, inputs, mesh, rules)
    schedule = build_schedule(config, inputs.total_steps)
    segments = max(inputs.shape.max_segments, inputs.held_out_segments or 0)
    sizes = {"shared_slots": inputs.shared_slots, "max_segments": segments}
    return build_program(config, inputs.model, inputs.objective, mesh, rules, schedule, **sizes)


def _arguments(program: Program, inputs: Inputs) -> tuple[Any, Any]:
    return program.abstract_state(), program.abstract_batch(inputs.shape)


def _evaluation(config: RunConfig, inputs: Inputs, program: Program) -> tuple[Any, Any] | None:
    """Arguments of the evaluation step; None if it takes no more rows at a time than training, so needs less."""
    rows = config.eval.rows
    if config.eval.every_steps is None or rows is None or rows <= inputs.shape.rows:
        return None
    segments = inputs.held_out_segments or inputs.shape.max_segments
    shape = dataclasses.replace(inputs.shape, microbatches=1, rows=rows, max_segments=segments)
    return program.abstract_state().params, program.abstract_batch(shape)


@contextlib.contextmanager
def _no_cache() -> Iterator[None]:
    """Turns JAX's persistent compilation cache off. It cannot read programs for other machines back, and warns about
    them; and a cached program has neither compiler warnings nor a compile time."""
    before = getattr(jax.config, _CACHE)
    try:
        _set_cache(False)
        yield
    finally:
        _set_cache(before)


def _set_cache(enabled: bool) -> None:
    jax.config.update(_CACHE, enabled)
    compilation_cache.reset_cache()  # or JAX keeps its first answer for the whole process


def _memory_message(error: str) -> str:
    sizes = re.search(r"\(([\d.]+[KMG])\) exceeds available (\w+) \(([\d.]+[KMG])\)", error)
    if sizes:
        return f"the step needs {sizes[1]} of {sizes[2]} but only {sizes[3]} is usable (XLA gave up at this size)"
    return "XLA ran out of memory: " + " ".join(error.split())[:300]


def _dump(directory: Path, lowered: str, compiled: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "lowered.mlir").write_text(lowered, encoding="utf-8")
    if compiled:
        (directory / "compiled.hlo").write_text(compiled, encoding="utf-8")


def _parameters(tree: Any) -> dict[str, Parameter]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    return {name: Parameter(leaf.shape, leaf.sharding.shard_shape(leaf.shape)) for name, leaf in named.items()}


def _layer_shards(program: Program) -> int:
    """Number of shards of a layer's weight."""
    weight = program.state_shardings.params["layers"]["mlp"]["gate"]
    model = program.functions.model
    shape = (model.num_layers, model.hidden_size, model.intermediate_size)
    return math.prod(shape) // math.prod(weight.shard_shape(shape))


def versions() -> dict[str, str]:
    """Versions of JAX and its compilers, as far as they are installed."""
    installed = {}
    for name in ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed
