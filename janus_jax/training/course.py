"""How many steps a run takes, as it was begun and as it was extended, and the learning rates that follow from it."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from janus_jax.config.run import RunConfig
from janus_jax.data.epoch import PackedEpochs
from janus_jax.errors import ConfigError, counted
from janus_jax.training.optimizer import Extended, Rates, Schedule
from janus_jax.training.program import build_schedule

Rule = Literal["restart", "stretch", "constant"]


@dataclasses.dataclass(frozen=True)
class Past:
    """The newest checkpoint of the run directory: finished optimizer steps, and the item `meta`."""

    step: int
    meta: Mapping[str, Any]
    extended: Mapping[str, Any] | None = None
    """The `meta` of a newer checkpoint, now damaged, that has extensions which this one does not have."""

    @classmethod
    def of_steps(cls, step: int, meta: Mapping[str, Any], newer: Iterable[Mapping[str, Any]]) -> "Past":
        """Takes the extensions from `newer`, the metas of damaged steps, newest first."""
        known = Course.of_meta(meta)
        for other in newer if known else ():
            course = Course.of_meta(other)
            if course and known and course != known and course.extends(known):
                return cls(step, meta, other)
        return cls(step, meta)


@dataclasses.dataclass(frozen=True)
class Extension:
    """More steps than the run had: `start` is the first step, counted from 0, whose rate is by the rule."""

    start: int
    total_steps: int
    rule: Rule
    rate: float | None = None  # the one that goes on, for `constant`

    def __str__(self) -> str:
        return f"{self.rule} from step {self.start}, to {counted(self.total_steps, 'step')}"


@dataclasses.dataclass(frozen=True)
class Course:
    """The steps of a run. A checkpoint's meta holds it, so that a stopped run goes on with the same rates."""

    begun_with: int  # steps that the run had when it began
    extensions: tuple[Extension, ...] = ()

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.extensions[-1].total_steps if self.extensions else self.begun_with

    def extends(self, other: "Course") -> bool:
        """Whether this is the other course, or that with more extensions."""
        first = self.extensions[: len(other.extensions)]
        return (self.begun_with, first) == (other.begun_with, other.extensions)

    @classmethod
    def of_meta(cls, meta: Mapping[str, Any]) -> "Course | None":
        """The course that `step_meta` wrote; None in checkpoints of older versions."""
        saved = meta.get("course")
        if saved is None:
            return None
        return cls(saved["begun_with"], tuple(Extension(**extension) for extension in saved["extensions"]))

    def rates(self, config: RunConfig) -> Rates:
        """The learning rate of every step.

        Raises:
            ConfigError: warm-up and decay do not fit into the steps.
        """
        rates: Rates = build_schedule(config, self.begun_with)
        for extension in self.extensions:
            start, total = extension.start, extension.total_steps
            if extension.rule == "restart":
                rates = Extended(rates, start, build_schedule(config, total - start), origin=start)
            elif extension.rule == "stretch":
                rates = Extended(rates, start, build_schedule(config, total), origin=0)
            else:
                assert extension.rate is not None
                rates = Extended(rates, start, Schedule(extension.rate, total, name="constant"), origin=0)
        return rates


def course_of(config: RunConfig, epochs: PackedEpochs, past: Past | None) -> Course:
    """The course of a run that begins, goes on, or is extended because the configuration says more steps than before.

    `restart` and `constant` begin where the run ends without them, at whatever step it was interrupted, so an extension
    before the end and one after it give the same weights. `stretch` begins at the newest checkpoint.

    Args:
        epochs: the packed rows of the configuration.
        past: the newest checkpoint, of the same run in everything but its length.
    Raises:
        ConfigError: fewer steps; more steps without `schedule.extend`, or that its rule or the batch does not allow.
    """
    section = config.schedule
    total = section.steps or epochs.total_steps(section.epochs or 1)
    if past is None:
        return Course(total)
    meta = past.extended or past.meta
    saved = meta["config"]["schedule"]
    before = Course.of_meta(meta) or Course(saved["steps"] or epochs.total_steps(saved["epochs"]))
    same_keys = (saved["steps"], saved["epochs"]) == (section.steps, section.epochs)
    if same_keys or total == before.total_steps:
        last = before.extensions[-1].rule if before.extensions else None
        if None not in (last, section.extend) and section.extend != last:
            raise ConfigError(
                f"schedule.extend = {section.extend}: run.dir={config.run.dir} holds a run that was extended by "
                f"{last} to {counted(before.total_steps, 'step')}; allowed: {last} or null, or more steps"
            )
        return before
    stopped = not past.extended and bool((past.meta.get("stopping") or {}).get("stopped"))
    end = past.step if stopped else before.total_steps
    now = f"steps = {total}" if section.steps else f"epochs = {section.epochs} ({counted(total, 'step')})"
    holds = f"schedule.{now}: run.dir={config.run.dir} holds a run of {counted(before.total_steps, 'step')}"
    holds += f", which stopped early at step {end}" if stopped else ""
    if total <= end:
        done = "" if past.step == end else f", {past.step} of them done"
        raise ConfigError(
            f"{holds}{done}; allowed: {before.total_steps}, or with schedule.extend more than {end}; or choose another "
            "run.dir"
        )
    if section.extend is None:
        raise ConfigError(
            f"{holds}; set schedule.extend to restart, stretch or constant to go on with it, or choose another run.dir"
        )
    _require_rows(config, epochs, before.total_steps, holds)
    return dataclasses.replace(
        before, extensions=(*before.extensions, _extension(config, before, past, end, total, holds))
    )


def without_decay(config: RunConfig, course: Course, rates: Rates, step: int) -> str | None:
    """A note that an extended run ends at a high rate after `step` steps; None if the rate has fallen by then."""
    if not course.extensions or not step:
        return None
    last, peak = float(rates(step - 1)), config.schedule.learning_rate
    if last < peak / 2:
        return None
    decays = course.extensions[-1].rule != "constant" and config.schedule.name != "constant"
    way_out = (
        "the added steps are too few for a decay after the warm-up: add steps, or lower schedule.warmup_steps or "
        "warmup_ratio"
        if decays
        else "schedule.extend = restart or stretch with a schedule.name other than constant ends with a decay"
    )
    return (
        f"the extended run ends at the rate {last:.3g}, and schedule.learning_rate = {peak:g}; weights at a high rate "
        f"are usually worse than after a decay; {way_out}"
    )


def _extension(config: RunConfig, before: Course, past: Past, end: int, total: int, holds: str) -> Extension:
    rule = config.schedule.extend
    assert rule is not None
    if rule == "restart" and (warmup := config.schedule.warmup(total - end)) >= total - end:
        raise ConfigError(
            f"{holds}; schedule.extend = restart: the warm-up of {warmup} steps takes all {total - end} added steps; "
            "allowed: more steps, or stretch or constant"
        )
    if rule != "constant":
        return Extension(past.step if rule == "stretch" else end, total, rule)
    rate = float(before.rates(config)(end))
    if rate == 0:
        raise ConfigError(
            f"{holds}; schedule.extend = constant: its rate ends at 0, and nothing would be learned; allowed: restart "
            "or stretch (schedule.min_rate_ratio makes a new run end at another rate)"
        )
    return Extension(end, total, rule, rate)


def _require_rows(config: RunConfig, epochs: PackedEpochs, steps: int, holds: str) -> None:
    """Refuses added steps whose `batch.examples` need more rows than those before, as another program would."""
    if config.batch.examples is not None and (rows := epochs.rows_for(0, steps)) != epochs.rows:
        raise ConfigError(
            f"{holds} with {rows} rows in a batch; batch.examples = {config.batch.examples} of the added steps need "
            f"{epochs.rows} rows; choose another run.dir and take the weights over with init.from"
        )
