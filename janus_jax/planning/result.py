"""What a plan says, and what was measured beside it."""

import dataclasses
import statistics
from typing import Any

from janus_jax.planning.chips.roofline import Bound, StepFlops
from janus_jax.planning.chips.slices import Slice
from janus_jax.planning.hlo.collectives import Collective
from janus_jax.planning.hlo.findings import Finding
from janus_jax.planning.hlo.memory import Buffer


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    usable: int | None  # None: a simulated device
    arguments: dict[str, int]  # parameters, moments, batch, ...; exact
    peak: int | None  # all of it at the worst moment, by the compiler; None: it did not get so far
    temporaries: tuple[Buffer, ...]  # beside the arguments, at that moment; an estimate
    estimated_temporaries: int  # their sum, which should be about peak - arguments
    reference: int = 0  # what a run holds on the device that the step does not take: an online reference
    evaluation: int | None = None  # with the moments that wait; None: it takes no more rows than the step, or too much
    evaluation_failed: bool = False  # the compiler ran out of memory
    code: int = 0  # of the programs themselves
    peak_is_estimate: bool = False  # with `offload` the compiler's figure may be that of the host's memory

    @property
    def evaluation_is_most(self) -> bool:
        return self.evaluation_failed or (self.evaluation or 0) > (self.peak or 0)

    @property
    def needed(self) -> int | None:
        return None if self.peak is None else max(self.peak, self.evaluation or 0) + self.reference + self.code


@dataclasses.dataclass(frozen=True)
class Parameter:
    """Sizes of one parameter."""

    shape: tuple[int, ...]
    on_device: tuple[int, ...]  # of the piece that one device has


@dataclasses.dataclass(frozen=True)
class Plan:
    """One step of one configuration on one slice, or several alike."""

    target: Slice
    num_slices: int
    mesh: dict[str, int]
    objective: str
    remat: str
    moments: str
    rows: int  # of a step, over all devices
    row_length: int
    microbatches: int
    row_shards: int  # devices, or groups of them, that have rows of their own
    attention: str
    assumed: tuple[str, ...]
    fits: bool
    reason: str | None  # why it does not
    memory: Memory
    collectives: tuple[Collective, ...]
    findings: tuple[Finding, ...]
    flops: StepFlops
    bound: Bound | None
    tokens_per_step: float
    steps_per_epoch: int | None
    usd_per_hour: float | None
    compile_s: float
    program_sha256: str  # of what was lowered: that of the trainer's own step
    versions: dict[str, str]
    parameters: dict[str, Parameter] = dataclasses.field(default_factory=dict)

    @property
    def rows_per_device(self) -> float:
        """Of a microbatch; those that share a row's heads, width or length have the same ones."""
        return self.rows / self.microbatches / self.row_shards

    @property
    def hours_per_epoch(self) -> float | None:
        """At the bound; a run takes longer."""
        if self.bound is None or self.steps_per_epoch is None:
            return None
        return self.bound.seconds * self.steps_per_epoch / 3600

    @property
    def usd_per_epoch(self) -> float | None:
        hours = self.hours_per_epoch
        return None if hours is None or self.usd_per_hour is None else hours * self.usd_per_hour

    def to_json(self) -> dict[str, Any]:
        """Numbers and texts, bytes and seconds; what `--json` writes."""
        derived = ("rows_per_device", "hours_per_epoch", "usd_per_epoch")
        found = dataclasses.asdict(self) | {name: getattr(self, name) for name in derived}
        found["memory"]["needed"] = self.memory.needed
        if self.bound is not None:
            derived = ("seconds", "serial_seconds", "limit")
            found["bound"] |= {name: getattr(self.bound, name) for name in derived}
        return found


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of steps, after those that compile and warm up, and what the plan says of the same program."""

    plan: Plan
    device: str  # as JAX names its kind
    devices: int
    tokens_per_step: int  # in the made-up rows
    seconds: tuple[float, ...]
    held_bytes: int | None  # at most, as a device reports it; None: it reports nothing

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens_per_step / self.median_s

    @property
    def flops_per_s(self) -> float:
        """That the model asks for, of one device; what is recomputed is left out."""
        return self.plan.flops.model / self.devices / self.median_s

    @property
    def mfu(self) -> float | None:
        """Share of the device's peak; None without a figure of that."""
        bound = self.plan.bound
        return None if bound is None else bound.mfu * bound.seconds / self.median_s

    def to_json(self) -> dict[str, Any]:
        """Numbers and texts; what `--json` writes."""
        derived = ("median_s", "tokens_per_s", "flops_per_s", "mfu")
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return plain | {name: getattr(self, name) for name in derived} | {"plan": self.plan.to_json()}
