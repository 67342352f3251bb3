"""Lowers the trainer's step for a mesh of any slice, has XLA compile it, and reads what came out."""

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
from janus_jax.parallel import mesh as meshes
from janus_jax.planning.bounds import shards_by_axis, step_bound, step_flops
from janus_jax.planning.chips.slices import ChipTable, Slice, check_count, devices, find_slice, load_chips
from janus_jax.planning.compiler_log import compiler_log
from janus_jax.planning.hlo.collectives import MeshPositions, collectives
from janus_jax.planning.hlo.findings import warnings
from janus_jax.planning.inputs import Inputs, check_layout, check_rows, find_inputs
from janus_jax.planning.memory import memory_of
from janus_jax.planning.result import Parameter, Plan
from janus_jax.training.program import Program, build_program, build_schedule

_OUT_OF_MEMORY, _CACHE = "RESOURCE_EXHAUSTED", "jax_enable_compilation_cache"


def plan(
    config: RunConfig,
    topology: str,
    *,
    num_slices: int = 1,
    mesh: Mesh | None = None,
    chips: str | os.PathLike[str] | None = None,
    dump_hlo: str | os.PathLike[str] | None = None,
) -> Plan:
    """Compiles one training step of `config` for a slice that need not be here.

    Args:
        topology: Google Cloud's name (`v5litepod-16`, `v4-32`), a shape (`v5e:4x4`), or `cpu:8` for simulated devices.
        num_slices: alike, connected over the data centre's network.
        mesh: all their devices (`topology.devices`) laid out by the caller, over axes of `mesh.AXES`; in place of the
            sizes in `config.mesh` and the order that suits the hardware.
        chips: YAML with figures and prices that differ from the package's (`load_chips`).
        dump_hlo: directory for the program before and after compilation.
    Raises:
        ConfigError: unknown slice, no libtpu, or a mesh, rows or rules that training would refuse.
        DataError, ConversionError: as training would.

    The evaluation step is compiled as well where it takes more rows at a time than the training step.
    """
    target, table = find_slice(topology), load_chips(chips)
    check_count(target, num_slices, table)
    if mesh is None:
        check_layout(config, target.devices * num_slices, num_slices)
    config, mesh = resolve_mesh(config, devices(target, num_slices), mesh)
    found = find_inputs(config, target.devices * num_slices)
    program = program_of(config, found, mesh)
    on_tpu, evaluation = target.topology is not None, None
    step = compile_step(program.train, _arguments(program, found), topology, on_tpu=on_tpu)
    if step.executable is not None and (larger := _evaluation(config, found, program)) is not None:
        evaluation = compile_step(program.evaluate, larger, topology, on_tpu=on_tpu)
    if dump_hlo is not None:
        _dump(Path(dump_hlo), step.lowered, step.hlo)
    return describe(config, found, program, step, target, table, num_slices, evaluation)


def resolve_mesh(config: RunConfig, here: list[Any], own: Mesh | None) -> tuple[RunConfig, Mesh]:
    """The mesh that a configuration asks of devices; or the caller's own, and the configuration with its sizes.

    Raises:
        ConfigError: sizes that do not multiply to the devices; other devices, or an unknown axis, in the caller's.
    """
    if own is None:
        return config, meshes.build_mesh(meshes.MeshShape(**config.mesh.model_dump()), here)
    mesh = meshes.adopt(own)
    if set(mesh.devices.flat) != set(here):
        raise ConfigError(f"mesh: its {mesh.devices.size} devices are not the {len(here)} of the slices")
    return changed(config, {f"mesh.{axis}": size for axis, size in mesh.shape.items()}), mesh


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """The training step, or that of evaluation, before and after compilation."""

    lowered: str
    executable: Any | None  # None: the compiler ran out of memory
    reason: str | None  # how it says so
    seconds: float  # of compiling
    log: str  # what the compiler wrote meanwhile

    @functools.cached_property
    def hlo(self) -> str:
        return "" if self.executable is None else self.executable.as_text()


class Refused(ConfigError):
    """XLA does not compile a program, and never will."""


def compile_step(jitted: Any, arguments: Any, where: str, *, on_tpu: bool) -> CompiledStep:
    """Lowers and compiles a step for arrays, or their shapes.

    Args:
        where: names the devices in an error.
        on_tpu: whether it is libtpu that compiles, which does not write to stderr what it has to say of a program.
    Raises:
        Refused: the compiler does not take the program, not for want of memory.
    """
    lowered = jitted.lower(*arguments)
    text, begun = lowered.as_text(), time.perf_counter()
    with compiler_log(aside=not on_tpu) as log, _no_cache():
        try:
            executable, reason = lowered.compile(), None
        except jax.errors.JaxRuntimeError as error:
            if _OUT_OF_MEMORY not in str(error):
                raise Refused(f"{where}: XLA refuses the program: {first_line(error)}") from error
            executable, reason = None, _translated(str(error))
    return CompiledStep(text, executable, reason, time.perf_counter() - begun, log())


def describe(
    config: RunConfig,
    found: Inputs,
    program: Program,
    step: CompiledStep,
    target: Slice,
    table: ChipTable,
    num_slices: int,
    evaluation: CompiledStep | None = None,
    *,
    scores: bool = True,
) -> Plan:
    """What a compiled step of so many slices says; compiles nothing.

    Args:
        scores: whether an online reference counts, as it does in training.
    """
    mesh, reason, hlo = program.mesh, step.reason, step.hlo
    too_much = None if evaluation is None else evaluation.reason
    if reason is None and too_much is not None:
        reason = f"evaluation, eval.rows={config.eval.rows}: {too_much}"
    chip = None if target.topology is None else table.chips[target.family]
    usable = None if chip is None else chip.usable_hbm_bytes_per_device
    evaluated = None if evaluation is None else evaluation.executable
    memory = memory_of(config, program, found, step.executable, hlo, usable, evaluated, scores=scores)
    memory = dataclasses.replace(memory, evaluation_failed=too_much is not None)
    if reason is None and usable is not None and memory.needed is not None and memory.needed > usable:
        which = "evaluation" if memory.evaluation_is_most else "the step"
        reason = f"{which} needs {memory.needed / 2**30:.2f} GiB and {usable / 2**30:.2f} GiB are usable"
    moved = collectives(hlo, MeshPositions.of(mesh)) if hlo else []
    shards, bound = shards_by_axis(mesh, program.rules), None
    if chip is not None and hlo:
        ici, dcn = (sum(each.wire_bytes for each in moved if each.over_dcn == over) for over in (False, True))
        bound = step_bound(
            config,
            found,
            shards=shards,
            parameter_shards=_pieces(program),
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
        objective=found.objective.name,
        remat=config.remat,
        moments=config.optimizer.moments,
        rows=found.shape.rows * found.shape.microbatches,
        row_length=found.shape.row_length,
        microbatches=found.shape.microbatches,
        row_shards=shards["batch"],
        attention=program.attention,
        assumed=found.assumed,
        fits=reason is None,
        reason=reason,
        memory=memory,
        collectives=tuple(moved),
        findings=tuple(warnings(hlo, step.log, _arguments(program, found)) if hlo else ()),
        flops=step_flops(config, found, scores=scores),
        bound=bound,
        tokens_per_step=found.tokens_per_step,
        steps_per_epoch=found.steps_per_epoch,
        usd_per_hour=price,
        compile_s=step.seconds,
        program_sha256=hashlib.sha256(step.lowered.encode()).hexdigest(),
        versions=versions(),
        parameters=_parameters(program.abstract_params(program.params_dtype)),
    )


def program_of(config: RunConfig, found: Inputs, mesh: Any) -> Program:
    """The trainer's program on any mesh.

    Raises:
        ConfigError: as `build_program`, or rows do not divide.
    """
    rules = meshes.merge_rules(config.sharding)
    check_rows(config, found, mesh, rules)
    schedule = build_schedule(config, found.total_steps)
    return build_program(config, found.model, found.objective, mesh, rules, schedule, shared_slots=found.shared_slots)


def _arguments(program: Program, found: Inputs) -> tuple[Any, Any]:
    return program.abstract_state(), program.abstract_batch(found.shape)


def _evaluation(config: RunConfig, found: Inputs, program: Program) -> tuple[Any, Any] | None:
    """What evaluation takes; None where the training step, which keeps more, has as many rows at a time."""
    rows = config.eval.rows
    if config.eval.every_steps is None or rows is None or rows <= found.shape.rows:
        return None
    segments = found.held_out_segments or found.shape.max_segments
    shape = dataclasses.replace(found.shape, microbatches=1, rows=rows, max_segments=segments)
    return program.abstract_state().params, program.abstract_batch(shape)


class _no_cache:
    """JAX's persistent cache can write programs of other machines, not read them, and warns about it; and of a program
    that comes from it the compiler neither says anything nor takes the time that it takes."""

    def __enter__(self) -> None:
        self._before = getattr(jax.config, _CACHE)
        self._set(False)

    def __exit__(self, *_: object) -> None:
        self._set(self._before)

    def _set(self, used: bool) -> None:
        jax.config.update(_CACHE, used)
        compilation_cache.reset_cache()  # JAX asks once for a process whether it is used


def _translated(error: str) -> str:
    found = re.search(r"\(([\d.]+[KMG])\) exceeds available (\w+) \(([\d.]+[KMG])\)", error)
    if found:
        return f"the step needs {found[1]} of {found[2]} and {found[3]} are usable (by XLA, which gave up there)"
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


def _pieces(program: Program) -> int:
    """Into how many a weight of the layers is cut."""
    weight = program.state_shardings.params["layers"]["mlp"]["gate"]
    model = program.functions.model
    shape = (model.num_layers, model.hidden_size, model.intermediate_size)
    return math.prod(shape) // math.prod(weight.shard_shape(shape))


def versions() -> dict[str, str]:
    return dict(_installed("jax", "jaxlib", "libtpu"))


def _installed(*names: str) -> Iterator[tuple[str, str]]:
    for name in names:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
