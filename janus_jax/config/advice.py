"""Notes on settings that can run and are probably not meant, one sentence each."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from janus_jax.config.run import RunConfig

USUAL = {
    "schedule.learning_rate": (1e-8, 1e-2),
    "schedule.epochs": (1, 100),
    "optimizer.b1": (0.5, 0.99),
    "optimizer.b2": (0.9, 0.9999),
    "optimizer.eps": (1e-12, 1e-4),
    "optimizer.weight_decay": (0, 0.5),
    "optimizer.clip_norm": (0.01, 100),
}
"""The smallest and largest value that is not worth a note. Those of objectives are in their sections (`usual`)."""


def of_values(config: "RunConfig") -> Iterator[str]:
    """Notes that need neither data nor the number of steps."""
    ranges = USUAL | {f"objective.{key}": limits for key, limits in config.objective.usual.items()}
    for key, (low, high) in ranges.items():
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        if value is not None and not low <= value <= high:
            yield f"{key} = {value:g} is unusual; usual values are {low:g} to {high:g}"
    if config.optimizer.b1 > config.optimizer.b2:
        yield f"optimizer.b1 = {config.optimizer.b1} is larger than optimizer.b2 = {config.optimizer.b2}"
    yield from config.objective.advice()
    batch = config.batch
    if config.objective.branches == 2 and batch.row_length < 2 * batch.max_sequence_length:
        yield (
            f"batch.row_length = {batch.row_length} is less than twice batch.max_sequence_length = "
            f"{batch.max_sequence_length}: long pairs do not fit into a row and fall to batch.overlong"
        )
    if config.eval.every_steps is None:
        for key, value in (("eval.rows", config.eval.rows), ("data.eval_dir", config.data.eval_dir)):
            if value is not None:
                yield f"{key} = {value} has no effect: eval.every_steps is null, so nothing is evaluated"
    keep, saved, evaluated = config.checkpoint.keep_best, config.checkpoint.every_steps, config.eval.every_steps
    if keep is not None and saved is not None and evaluated is not None and saved % evaluated:
        yield (
            f"checkpoint.keep_best = {keep} looks at steps that are saved and evaluated: every "
            f"{math.lcm(saved, evaluated):,}, by checkpoint.every_steps = {saved} and eval.every_steps = {evaluated}"
        )
    if not config.export.hf:
        for name, field in type(config.export).model_fields.items():
            if (value := getattr(config.export, name)) != field.default:
                yield f"export.{name} = {value} has no effect: export.hf is false, so nothing is exported"


def of_steps(config: "RunConfig", steps: int, warmup_steps: int) -> Iterator[str]:
    """Notes on settings that the number of steps leaves without effect, or with another one.

    Args:
        steps: optimizer steps of the whole run.
        warmup_steps: those in which the rate rises.
    """
    run = f"the run, which has {steps:,} step{'s' * (steps != 1)}"
    if steps <= warmup_steps:
        peak = config.schedule.learning_rate
        yield (
            f"the warm-up, {warmup_steps:,} steps, is {'longer than' if steps < warmup_steps else 'as long as'} "
            f"{run}: the highest rate is {peak * (steps - 1) / warmup_steps:.3g}, not schedule.learning_rate = "
            f"{peak:g}; set schedule.warmup_steps"
        )
    lasts: tuple[tuple[str, Any, str], ...] = (
        ("eval", config.eval, "only the last step is evaluated"),
        ("checkpoint", config.checkpoint, "only the last step is saved"),
        ("logging", config.logging, "only the last step is logged"),
    )
    for name, section, effect in lasts:
        if section.every_steps is not None and section.every_steps > steps:
            yield f"{name}.every_steps = {section.every_steps:,} is longer than {run}: {effect}"
    if config.profile.steps is not None and (last := config.profile.steps[1]) > steps:
        effect = "nothing is profiled" if config.profile.steps[0] > steps else f"the profile ends with step {steps}"
        yield f"profile.steps = {list(config.profile.steps)}: step {last:,} is after {run}: {effect}"
