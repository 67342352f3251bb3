"""Changes with which a step does fit that does not, each of them compiled before it is named."""

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
from janus_jax.parallel import mesh as meshes
from janus_jax.planning.chips.slices import Slice, find_slice, load_chips
from janus_jax.planning.compile import plan
from janus_jax.planning.result import Plan
from janus_jax.planning.search.candidates import InputsCache, batches, mesh_shapes
from janus_jax.planning.search.estimate import Estimate, estimate

_KINDS = ("reference", "remat", "microbatches", "moments", "mesh", "offload")
"""What may change, cheapest first."""

_MICROBATCHES = "batch.microbatches"


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """A change with which the step fits."""

    changes: tuple[str, ...]  # overrides
    cost: str  # what it costs, for a user to read
    plan: Plan


@dataclasses.dataclass(frozen=True)
class _Change:
    kind: str
    values: dict[str, Any]
    besides: str | None = None  # another kind that it changes as well


@dataclasses.dataclass(frozen=True)
class _Attempt:
    changes: tuple[_Change, ...]
    values: dict[str, Any]
    config: RunConfig
    estimate: Estimate

    @property
    def kinds(self) -> set[str]:
        return {kind for change in self.changes for kind in (change.kind, change.besides) if kind is not None}

    @property
    def order(self) -> tuple[Any, ...]:
        """One change before two, cheap ones first, and of one kind what sends least and repeats least."""
        dear = tuple(sorted((_KINDS.index(change.kind) for change in self.changes), reverse=True))
        bound = self.estimate.bound
        return len(self.changes), dear, 0.0 if bound is None else round(sum(bound.parts.values()), 2)


def suggestions(
    config: RunConfig,
    topology: str,
    num_slices: int = 1,
    failed: Plan | None = None,
    *,
    chips: str | os.PathLike[str] | None = None,
    enough: int = 3,
    tries: int = 12,
    planner: Callable[..., Plan] = plan,
    report: Callable[[tuple[str, ...], bool], None] | None = None,
) -> Iterator[Suggestion]:
    """Changes of one or two keys with which the step fits, cheapest first, each as soon as it is compiled; of three if
    no two are enough. A mesh, with its microbatches, counts as one key.

    Nothing is suggested that changes as much as another suggestion and more. What an estimate calls hopeless is not
    compiled; one that does not fit takes seconds, one that does a minute and more.

    Args:
        failed: the plan of `config`; nothing is suggested if it fits.
        enough: suggestions at most.
        tries: programs at most that are compiled.
        planner: compiles, in place of `plan`.
        report: called with the overrides of each program that was compiled, and whether it fits.
    Raises:
        ConfigError: unknown slice, no libtpu.
        DataError, ConversionError: as training would.
    """
    if failed is not None and failed.fits:
        return
    if failed is not None and failed.memory.evaluation_is_most:
        smaller = changed(config, {"eval.rows": None})
        compiled = planner(smaller, topology, num_slices=num_slices, chips=chips)
        if report is not None:
            report(("eval.rows=null",), compiled.fits)
        if compiled.fits:
            yield Suggestion(("eval.rows=null",), "evaluation takes as many rows at a time as training", compiled)
            return
        config, tries = smaller, tries - 1
    target = find_slice(topology)
    chip = None if target.topology is None else load_chips(chips).chips[target.family]
    usable = None if chip is None else chip.usable_hbm_bytes_per_device
    inputs = InputsCache(target.devices * num_slices)
    measure = functools.partial(estimate, target=target, num_slices=num_slices, chip=chip)
    try:
        base = measure(config, found=inputs(config))
    except ConfigError:  # rows that do not divide: another mesh may help
        base = None
    singles, found = list(_singles(config, target, num_slices, inputs)), list[_Attempt]()
    for together in (1, 2, 3):
        attempts = [
            attempt
            for attempt in _attempts(config, singles, together, inputs, measure)
            if (base is None or attempt.estimate.bytes < base.bytes) and not attempt.estimate.is_hopeless(usable)
        ]
        for attempt in sorted(attempts, key=operator.attrgetter("order")):
            if any(before.kinds <= attempt.kinds for before in found):
                continue
            if len(found) == enough or tries <= 0:
                return
            tries -= 1
            try:
                compiled = planner(attempt.config, topology, num_slices=num_slices, chips=chips)
            except ConfigError:  # such as a kernel that the compiler refuses
                continue
            changes = tuple(overrides(attempt.values))
            if report is not None:
                report(changes, compiled.fits)
            if compiled.fits:
                found.append(attempt)
                yield Suggestion(changes, _cost(config, base, attempt), compiled)
        if together == 2 and found:
            return


def _attempts(
    config: RunConfig,
    singles: list[_Change],
    together: int,
    inputs: InputsCache,
    measure: Callable[..., Estimate],
) -> Iterator[_Attempt]:
    """All that training would accept of so many changes of different keys."""
    of_kind = {kind: [single for single in singles if single.kind == kind] for kind in _KINDS}
    kinds = itertools.combinations(_KINDS, together)
    for chosen in itertools.chain.from_iterable(itertools.product(*(of_kind[kind] for kind in some)) for some in kinds):
        values = functools.reduce(operator.or_, (change.values for change in chosen), {})
        if len(values) < sum(len(change.values) for change in chosen):  # two say something of the same key
            continue
        try:
            made = changed(config, values)
            yield _Attempt(chosen, values, made, measure(made, found=inputs(made)))
        except ConfigError:
            continue


def _singles(config: RunConfig, target: Slice, num_slices: int, inputs: InputsCache) -> Iterator[_Change]:
    if config.reference.mode == "online":
        yield _Change("reference", {"reference.mode": "precompute"})
    if config.remat in ("none", "dots"):
        yield _Change("remat", {"remat": "full"})
    count = target.devices * num_slices
    here = _sizes(config, count)
    more = [{}]  # those that this mesh does not allow may suit another
    more += [each for each in batches(config, 1, None, inputs) if each[_MICROBATCHES] > config.batch.microbatches]
    for batch in more[1:]:
        yield _Change("microbatches", batch)
    if config.optimizer.moments == "float32":
        yield _Change("moments", {"optimizer.moments": "bfloat16"})
    for mesh in mesh_shapes(count, num_slices):
        differing = {f"mesh.{axis}": size for axis, size in mesh.items() if size != here.get(axis)}
        # With fewer shards of rows a device has more of them, unless it takes them one after the other.
        for batch in more if differing else ():
            yield _Change("mesh", differing | batch, "microbatches" if batch else None)
    if config.remat != "offload":
        yield _Change("offload", {"remat": "offload"}, None if config.remat == "full" else "remat")


def _sizes(config: RunConfig, count: int) -> dict[str, int]:
    try:
        return dataclasses.asdict(meshes.MeshShape(**config.mesh.model_dump()).resolve(count))
    except ConfigError:
        return {}


def _cost(config: RunConfig, base: Estimate | None, attempt: _Attempt) -> str:
    found, was = attempt.estimate.bound, None if base is None else base.bound
    words = {
        "reference": "the same mathematics; the reference scores all examples before the first step",
        "remat": "blocks are computed a second time in the backward pass",
        "microbatches": f"the same mathematics; weights come together {attempt.config.batch.microbatches} times a step "
        f"in place of {config.batch.microbatches}",
        "moments": "another optimizer than configured, if little: moments are kept in bfloat16, rounded at random",
        "mesh": "the same mathematics; chips send each other other things",
        "offload": "inputs of blocks go to the host's memory and back, which the bound does not count",
    }
    if found is not None and was is not None:
        slower = found.compute_s / was.compute_s - 1
        if slower > 0.005:
            words["remat"] += f" ({slower:.0%} more operations)"
        words["mesh"] += f", {found.ici_s:.2f} s of it a step in place of {was.ici_s:.2f} by estimate"
    return "; ".join(words[kind] for kind in _KINDS if kind in attempt.kinds)
