"""Finds changes that make an oversized step fit. Each is compiled before it is suggested."""

import contextlib
import dataclasses
import functools
import itertools
import operator
import os
from collections.abc import Callable, Iterator
from typing import Any

from janus_jax.config.changes import changed, overrides
from janus_jax.config.run import RunConfig
from janus_jax.errors import ConfigError
from janus_jax.planning.chips.slices import Slice, find_slice, load_chips
from janus_jax.planning.compile import plan
from janus_jax.planning.result import Plan
from janus_jax.planning.search.candidates import InputsCache, batches, mesh_shapes
from janus_jax.planning.search.estimate import Estimate, estimate
from janus_jax.planning.search.keep import fitting_list

_KINDS = ("reference", "remat", "microbatches", "moments", "mesh", "offload")
"""Kinds of changes, cheapest first."""

_MICROBATCHES = "batch.microbatches"


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """A change that makes the step fit."""

    changes: tuple[str, ...]  # overrides
    cost: str  # what the change costs, in words for the user
    plan: Plan


@dataclasses.dataclass(frozen=True)
class Change:
    """New values of the keys of one kind."""

    kind: str
    values: dict[str, Any]
    second_kind: str | None = None  # another kind that it changes as well


@dataclasses.dataclass(frozen=True)
class _Attempt:
    changes: tuple[Change, ...]
    values: dict[str, Any]
    config: RunConfig
    estimate: Estimate

    @property
    def kinds(self) -> set[str]:
        return {kind for change in self.changes for kind in (change.kind, change.second_kind) if kind is not None}

    @property
    def order(self) -> tuple[Any, ...]:
        """Few changes first, then cheap kinds, then the least time for sending and recomputing."""
        ranks = tuple(sorted((_KINDS.index(change.kind) for change in self.changes), reverse=True))
        bound = self.estimate.bound
        return len(self.changes), ranks, 0.0 if bound is None else round(sum(bound.parts.values()), 2)


def _beside_the_step(failed: Plan | None) -> list[tuple[bool, dict[str, Any], str]]:
    """What else than the step may be too large: whether it is, changes that make it smaller, and their cost."""
    if failed is None:
        return []
    memory = failed.memory
    fewer: dict[str, Any] = {"samples.rows": memory.samples_rows} if memory.samples_rows else {"samples": None}
    slower = "fewer answers grow at the same time" if memory.samples_rows else "no answers while the run trains"
    rows = "evaluation takes as many rows at a time as training does"
    return [(memory.evaluation_is_most, {"eval.rows": None}, rows), (memory.samples_are_most, fewer, slower)]


def suggestions(
    config: RunConfig,
    topology: str,
    num_slices: int = 1,
    failed: Plan | None = None,
    *,
    chips: str | os.PathLike[str] | None = None,
    usable: int | None = None,
    enough: int = 3,
    tries: int = 12,
    planner: Callable[..., Plan] = plan,
    report: Callable[[tuple[str, ...], bool], None] | None = None,
) -> Iterator[Suggestion]:
    """Yields changes of one or two keys that make the step fit, cheapest first, as soon as each is compiled. Changes
    three keys if two are not enough. A mesh, with its microbatches, counts as one key.

    A suggestion never contains all changes of an earlier one. Changes that are hopeless by estimate are not compiled.
    Compiling takes seconds if the step does not fit, a minute or more if it does.

    Args:
        failed: the plan of `config`; if it fits, nothing is suggested.
        usable: bytes of a device, in place of what the table of chips says.
        enough: maximum number of suggestions.
        tries: maximum number of programs to compile.
        planner: compiles in place of `plan`.
        report: called after each compilation with the overrides and whether they fit.
    Raises:
        ConfigError: unknown slice, or libtpu is missing.
        DataError, ConversionError: as training would.
    """
    if failed is not None and failed.fits:
        return
    for applies, changes, cost in _beside_the_step(failed):
        if not applies:
            continue
        smaller, names = changed(config, changes), tuple(overrides(changes))
        compiled = planner(smaller, topology, num_slices=num_slices, chips=chips)
        if report is not None:
            report(names, compiled.fits)
        if compiled.fits:
            yield Suggestion(names, cost, compiled)
            return
        config, tries = smaller, tries - 1
    target = find_slice(topology)
    chip = load_chips(chips).chip(target)
    if usable is None and chip is not None:
        usable = chip.usable_hbm_bytes_per_device
    inputs = InputsCache(target.devices * num_slices)
    measure = functools.partial(estimate, target=target, num_slices=num_slices, chip=chip)
    lists = functools.partial(fitting_list, target=target, num_slices=num_slices, usable=usable)
    try:
        base = measure(config, inputs=inputs(config))
    except ConfigError:  # rows do not divide over this mesh; another may suit
        base = None
    singles, fitting = list(single_changes(config, target, num_slices, inputs)), list[_Attempt]()
    for together in (1, 2, 3):
        attempts = [
            attempt
            for attempt in _attempts(config, singles, together, inputs, measure, lists)
            if (base is None or attempt.estimate.bytes < base.bytes) and not attempt.estimate.is_hopeless(usable)
        ]
        for attempt in sorted(attempts, key=operator.attrgetter("order")):
            if any(earlier.kinds <= attempt.kinds for earlier in fitting):
                continue
            if len(fitting) == enough or tries <= 0:
                return
            tries -= 1
            try:
                compiled = planner(attempt.config, topology, num_slices=num_slices, chips=chips)
            except ConfigError:  # for instance, the compiler refuses a kernel
                continue
            changes = tuple(overrides(attempt.values))
            if report is not None:
                report(changes, compiled.fits)
            if compiled.fits:
                fitting.append(attempt)
                yield Suggestion(changes, _cost(config, base, attempt), compiled)
        if together == 2 and fitting:
            return


def _attempts(
    config: RunConfig,
    singles: list[Change],
    together: int,
    inputs: InputsCache,
    measure: Callable[..., Estimate],
    lists: Callable[..., tuple[str, ...] | None],
) -> Iterator[_Attempt]:
    """All combinations of `together` changes of different kinds that training would accept. Those that set `remat` to
    `full` occur a second time, with a list of tensors in its place, if one fits."""
    of_kind = {kind: [single for single in singles if single.kind == kind] for kind in _KINDS}
    kinds = itertools.combinations(_KINDS, together)
    for chosen in itertools.chain.from_iterable(itertools.product(*(of_kind[kind] for kind in some)) for some in kinds):
        values = functools.reduce(operator.or_, (change.values for change in chosen), {})
        if len(values) < sum(len(change.values) for change in chosen):  # two changes set the same key
            continue
        with contextlib.suppress(ConfigError):
            made = changed(config, values)
            yield _Attempt(chosen, values, made, measure(made, inputs=inputs(made)))
            if values.get("remat") == "full" and (kept := lists(made, inputs=inputs(made))) is not None:
                values = values | {"remat": kept}
                made = changed(config, values)
                yield _Attempt(chosen, values, made, measure(made, inputs=inputs(made)))


def single_changes(config: RunConfig, target: Slice, num_slices: int, inputs: InputsCache) -> Iterator[Change]:
    """Changes of one key (a mesh counts as one) that need not suit training or each other."""
    if config.reference.mode == "online":
        yield Change("reference", {"reference.mode": "precompute"})
    if config.remat not in ("full", "offload"):
        yield Change("remat", {"remat": "full"})
    devices = target.devices * num_slices
    current = _mesh_sizes(config, devices)
    finer = [batch for batch in batches(config, 1, None, inputs) if batch[_MICROBATCHES] > config.batch.microbatches]
    for batch in finer:  # a batch that this mesh does not allow may suit another mesh
        yield Change("microbatches", batch)
    if config.moments == "float32":
        yield Change("moments", {"optimizer.moments": "bfloat16"})
    for mesh in mesh_shapes(devices, num_slices):
        differing = {f"mesh.{axis}": size for axis, size in mesh.items() if size != current.get(axis)}
        # With fewer row shards a device has more rows at once, unless there are more microbatches.
        for batch in ({}, *finer) if differing else ():
            yield Change("mesh", differing | batch, "microbatches" if batch else None)
    if config.remat != "offload":
        yield Change("offload", {"remat": "offload"}, None if config.remat == "full" else "remat")


def _mesh_sizes(config: RunConfig, devices: int) -> dict[str, int]:
    try:
        return dataclasses.asdict(config.mesh.shape.resolve(devices))
    except ConfigError:
        return {}


def _cost(config: RunConfig, base: Estimate | None, attempt: _Attempt) -> str:
    after, before = attempt.estimate.bound, None if base is None else base.bound
    kept = attempt.config.remat
    again = "each block" if isinstance(kept, str) else f"what blocks do not keep: they keep {', '.join(kept)}"
    words = {
        "reference": "the same mathematics; the reference scores all examples before the first step",
        "remat": f"the backward pass recomputes {again}",
        "microbatches": "the same mathematics; weights are gathered "
        f"{attempt.config.batch.microbatches} times per step instead of {config.batch.microbatches}",
        "moments": "a slightly different optimizer: moments are kept in bfloat16, rounded at random",
        "mesh": "the same mathematics; other traffic between chips",
        "offload": "inputs of blocks go to host memory and back, which the bound does not count",
    }
    if after is not None and before is not None:
        slower = after.compute_s / before.compute_s - 1
        if slower > 0.005:
            words["remat"] += f" ({slower:.0%} more operations)"
        words["mesh"] += f", by estimate {after.ici_s:.2f} s per step instead of {before.ici_s:.2f}"
    return "; ".join(words[kind] for kind in _KINDS if kind in attempt.kinds)
