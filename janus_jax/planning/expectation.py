"""What a step will probably take: its bound, times how far steps on the same chips were from theirs."""

import dataclasses
import functools
import json
import math
import os
import reprlib
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import yaml

from janus_jax.errors import ConfigError, first_line
from janus_jax.model.config import ModelConfig
from janus_jax.planning.chips.roofline import Recompute, StepFlops, Workload, training_flops
from janus_jax.planning.chips.slices import load_chips
from janus_jax.planning.result import Expectation, Plan


@dataclasses.dataclass(frozen=True)
class Measured:
    """A step that ran."""

    source: str
    """A file, or who published it."""
    family: str
    """Of its chips."""
    factor: float
    """Seconds that it took over the seconds of its bound."""
    objective: str | None = None
    remat: str | None = None


def read_timing(path: str | os.PathLike[str]) -> Measured:
    """A step that `janus time-step --json` wrote.

    Raises:
        ConfigError: the file cannot be read, is something else, or has no bound, because its devices are simulated;
            names the key and its value.
    """
    where = f"--measured {os.fspath(path)}"
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except OSError as error:
        raise ConfigError(f"{where}: {(error.strerror or str(error)).lower()}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: is no JSON: {first_line(error)}; {_TIMING}") from error
    plan, median = _key(value, "plan", where), _key(value, "median_s", where)
    target, objective, remat, bound = (_key(plan, f"plan.{key}", where) for key in _PLAN)
    family = _key(target, "plan.target.family", where)
    if bound is None:
        raise ConfigError(f"{where}: was measured on {target.get('name')}, whose steps have no bound")
    least = _key(bound, "plan.bound.seconds", where)
    seconds, least = _positive(median, "median_s", where), _positive(least, "plan.bound.seconds", where)
    if seconds < least:
        raise ConfigError(
            f"{where}: median_s = {median} is less than plan.bound.seconds = {least}; no step is faster than its bound"
        )
    if math.isinf(factor := seconds / least):
        raise ConfigError(f"{where}: median_s = {median} with plan.bound.seconds = {least}: too far apart to divide")
    return Measured(os.fspath(path), family, factor, objective, remat)


_TIMING = "allowed: a file of janus time-step --json"
_PLAN = ("target", "objective", "remat", "bound")


def _key(section: Any, path: str, where: str) -> Any:
    """The value at a path of a timing's file, whose last key is one of `section`."""
    parent, _, key = path.rpartition(".")
    if not isinstance(section, Mapping):
        place = f"{parent} = {reprlib.repr(section)}: is no object" if parent else "is no JSON object"
        raise ConfigError(f"{where}: {place}; {_TIMING}")
    if key not in section:
        raise ConfigError(f"{where}: has no {path!r}; {_TIMING}")
    return section[key]


def _positive(value: Any, path: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
        raise ConfigError(f"{where}: {path} = {reprlib.repr(value)}: allowed: a finite number > 0")
    return float(value)


class Published(NamedTuple):
    """A step that others timed, for one row."""

    measured: Measured
    flops: StepFlops


@functools.cache
def published(family: str) -> Published | None:
    """A published step on these chips, if the package has one (`chips/published.yaml`)."""
    text = (resources.files("janus_jax.planning.chips") / "published.yaml").read_text(encoding="utf-8")
    one = yaml.safe_load(text).get(family)
    if one is None:
        return None
    work = Workload(ModelConfig(**one["model"]), rows=1, length=one["length"], recompute=Recompute(**one["recomputed"]))
    flops = training_flops(work)
    least = flops.total / load_chips().chips[family].peak_bf16_flops
    return Published(Measured(one["source"], family, one["length"] / one["tokens_per_s"] / least), flops)


def expect(plan: Plan, measured: Sequence[Measured]) -> Plan:
    """The plan with what its step will probably take, if that can be said.

    Of the steps in `measured` on the same chips, those count that are most like the plan's: with its objective and
    remat, else with its objective, else all. Without any, a published step counts. The factor is their geometric mean.
    """
    if plan.bound is None or not math.isfinite(plan.bound.seconds):
        return plan
    same = [one for one in measured if one.family == plan.target.family]
    for alike in (("objective", "remat"), ("objective",), ()):
        if chosen := [one for one in same if all(getattr(one, key) == getattr(plan, key) for key in alike)]:
            factors = [one.factor for one in chosen]
            mean = math.exp(math.fsum(map(math.log, factors)) / len(factors))
            sources = tuple(one.source for one in chosen)
            expected = Expectation(mean, min(factors), max(factors), sources, alike, own=True)
            return dataclasses.replace(plan, expected=expected)
    if (other := published(plan.target.family)) is None:
        return plan
    factor, source = other.measured.factor, other.measured.source
    return dataclasses.replace(plan, expected=Expectation(factor, factor, factor, (source,)))


def require_used(measured: Sequence[Measured], family: str) -> None:
    """Raises ConfigError: a file is of other chips than the plan's, or is given twice."""
    seen: set[str] = set()
    for one in measured:
        if (path := os.path.realpath(one.source)) in seen:
            raise ConfigError(f"--measured {one.source}: is given twice")
        seen.add(path)
        if one.family != family:
            raise ConfigError(f"--measured {one.source}: was measured on {one.family}, but this plan is for {family}")
