"""The results: `Plan` of a compiled step, `Timing` of a measured one."""

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

    usable: int | None  # None: simulated device
    arguments: dict[str, int]  # parameters, moments, batch; exact
    peak: int | None  # arguments and temporaries at the worst moment, from the compiler; None: it gave up
    temporaries: tuple[Buffer, ...]  # live at that moment; an estimate
    estimated_temporaries: int  # their sum, which should be about peak - arguments
    reference: int = 0  # weights of an online reference, which are not arguments of the step
    evaluation: int | None = None  # peak, idle moments included; None: needs no more rows than the step, or did not fit
    evaluation_failed: bool = False  # the compiler ran out of memory on evaluation
    code: int = 0  # the compiled programs
    host: int = 0  # of a host, at least: rows of batches, and what `remat: offload` or simulated devices keep there
    host_present: int | None = None  # what such a host has; None: not known
    peak_is_estimate: bool = False  # with `offload` the compiler's figure may be for host memory

    samples: dict[str, int] = dataclasses.field(default_factory=dict)  # weights, cache, temporaries; empty: none
    samples_rows: int = 0  # the most rows of samples that fit; 0: none do

    @property
    def evaluation_is_most(self) -> bool:
        return self.evaluation_failed or (self.evaluation or 0) > (self.peak or 0)

    @property
    def sampling(self) -> int:
        """Samples, with what stays of training: there is no step meanwhile."""
        kept = self.arguments["parameters"] + self.arguments["moments"]
        return kept + sum(self.samples.values()) if self.samples else 0

    @property
    def samples_are_most(self) -> bool:
        return not self.evaluation_failed and self.sampling > max(self.peak or 0, self.evaluation or 0)

    @property
    def needed(self) -> int | None:
        if self.peak is None:
            return None
        return max(self.peak, self.evaluation or 0, self.sampling) + self.reference + self.code


@dataclasses.dataclass(frozen=True)
class Parameter:
    """Shape of one parameter."""

    shape: tuple[int, ...]
    on_device: tuple[int, ...]  # shape of one shard


@dataclasses.dataclass(frozen=True)
class Expectation:
    """How far the step will probably be from its bound, from steps that ran on the same chips."""

    factor: float  # expected seconds over those of the bound
    low: float  # smallest factor of these steps
    high: float
    sources: tuple[str, ...]  # files of `janus time-step`, or who published the step
    alike: tuple[str, ...] = ()  # in what these steps are like the plan's
    own: bool = False  # measured with janus_jax


@dataclasses.dataclass(frozen=True)
class Plan:
    """One step of one configuration on one slice, or on several identical ones."""

    target: Slice
    num_slices: int
    mesh: dict[str, int]
    objective: str
    remat: str
    moments: str
    rows: int  # per step, all devices together
    row_length: int
    microbatches: int
    row_shards: int  # number of parts that the rows are split into
    attention: str
    assumed: tuple[str, ...]
    fits: bool
    reason: str | None  # why it does not fit
    memory: Memory
    collectives: tuple[Collective, ...]
    findings: tuple[Finding, ...]
    flops: StepFlops
    bound: Bound | None
    tokens_per_step: float
    steps_per_epoch: int | None
    usd_per_hour: float | None
    compile_s: float
    program_sha256: str  # of the lowered program, which is the trainer's own
    versions: dict[str, str]
    parameters: dict[str, Parameter] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()  # settings that are probably not meant
    expected: Expectation | None = None

    @property
    def rows_per_device(self) -> float:
        """Rows of a microbatch per row shard. The devices of a shard split heads, width or length of these rows."""
        return self.rows / self.microbatches / self.row_shards

    @property
    def hours_per_epoch(self) -> float | None:
        """Hours at the bound. A run takes longer."""
        if self.bound is None or self.steps_per_epoch is None:
            return None
        return self.bound.seconds * self.steps_per_epoch / 3600

    @property
    def usd_per_epoch(self) -> float | None:
        hours = self.hours_per_epoch
        return None if hours is None or self.usd_per_hour is None else hours * self.usd_per_hour

    @property
    def expected_seconds(self) -> float | None:
        """Of one step."""
        return None if self.bound is None or self.expected is None else self.bound.seconds * self.expected.factor

    def to_json(self) -> dict[str, Any]:
        """What `--json` writes; bytes and seconds."""
        derived = ("rows_per_device", "hours_per_epoch", "usd_per_epoch", "expected_seconds")
        values = dataclasses.asdict(self) | {name: getattr(self, name) for name in derived}
        values["memory"]["needed"] = self.memory.needed
        if self.bound is not None:
            derived = ("seconds", "serial_seconds", "limit")
            values["bound"] |= {name: getattr(self.bound, name) for name in derived}
        return values


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds per step after compilation and one warm-up step, and the plan of the same program."""

    plan: Plan
    device: str  # JAX's `device_kind`
    devices: int
    tokens_per_step: int  # of the made-up rows
    seconds: tuple[float, ...]
    held_bytes: int | None  # highest peak that a device reports; None: devices do not report it

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens_per_step / self.median_s

    @property
    def flops_per_s(self) -> float:
        """The model's operations per second on one device, without recomputation."""
        return self.plan.flops.model / self.devices / self.median_s

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation; None without figures for the device."""
        bound = self.plan.bound
        return None if bound is None else bound.mfu * bound.seconds / self.median_s

    def to_json(self) -> dict[str, Any]:
        """What `--json` writes."""
        derived = ("median_s", "tokens_per_s", "flops_per_s", "mfu")
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return plain | {name: getattr(self, name) for name in derived} | {"plan": self.plan.to_json()}
