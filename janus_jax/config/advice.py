"""Notes on settings that can run and are probably not meant, one sentence each."""

import math
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from janus_jax.config.sections import ExportSection
from janus_jax.errors import counted

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

_NO_EFFECT: tuple[tuple[Callable[["RunConfig"], bool], str, tuple[str, ...]], ...] = (
    (
        lambda config: config.eval.every_steps is None,
        "eval.every_steps is null, so nothing is evaluated",
        ("eval.rows", "eval.at_start", "data.eval_dir"),
    ),
    (
        lambda config: not config.export.hf,
        "export.hf is false, so nothing is exported",
        tuple(f"export.{name}" for name in ExportSection.model_fields),
    ),
    (
        lambda config: config.objective.branches == 1,
        "the objective reads one response of each example",
        ("batch.share_prompts",),
    ),
    (
        lambda config: config.init.from_ is None and config.reference.from_ is None,
        "init.from and reference.from are null, so no tokenizer comes with weights",
        ("init.allow_other_tokenizer",),
    ),
    (
        lambda config: config.batch.microbatches == 1,
        "batch.microbatches = 1, so the two means are the same",
        ("compat.token_mean",),
    ),
)
"""When keys have no effect, why, and the keys."""

_USUAL_WEIGHT = 0.02
"""Standard deviation of initial weights (`initializer_range`)."""


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
    yield from () if config.samples is None else config.samples.advice()
    batch = config.batch
    if config.objective.branches == 2 and batch.row_length < 2 * batch.max_sequence_length:
        yield (
            f"batch.row_length = {batch.row_length} is less than twice batch.max_sequence_length = "
            f"{batch.max_sequence_length}: long pairs do not fit into a row and fall to batch.overlong"
        )
    for applies, reason, keys in _NO_EFFECT:
        for key in keys if applies(config) else ():
            section, name = key.split(".")
            values = getattr(config, section)
            if (value := getattr(values, name)) != type(values).model_fields[name].default:
                shown = str(value).lower() if isinstance(value, bool) else value
                yield f"{key} = {shown} has no effect: {reason}"
    directories = [os.path.normpath(part.dir) for part in config.data.mixture or ()]
    for directory in dict.fromkeys(name for name in directories if directories.count(name) > 1):
        yield f"data.mixture names {directory} {directories.count(directory)} times: its examples count as often"
    smallest = 512 * config.schedule.learning_rate  # half a step of bfloat16 is 1/512 of a weight, or more
    if config.compat.bfloat16_weights and smallest < _USUAL_WEIGHT:
        yield (
            f"compat.bfloat16_weights = true: a step of about schedule.learning_rate = "
            f"{config.schedule.learning_rate:g} is rounded to nothing for weights above {smallest:.2g}"
        )
    keep, saved, evaluated = config.checkpoint.keep_best, config.checkpoint.every_steps, config.eval.every_steps
    if keep is not None and saved is not None and evaluated is not None and saved % evaluated:
        yield (
            f"checkpoint.keep_best = {keep} looks at steps that are saved and evaluated: every "
            f"{math.lcm(saved, evaluated):,}, by checkpoint.every_steps = {saved} and eval.every_steps = {evaluated}"
        )


def of_steps(config: "RunConfig", steps: int, warmup_steps: int) -> Iterator[str]:
    """Notes on settings that the number of steps leaves without effect, or with another one.

    Args:
        steps: optimizer steps of the whole run.
        warmup_steps: those in which the rate rises.
    """
    run = f"the run, which has {counted(steps, 'step')}"
    if steps <= warmup_steps:
        peak = config.schedule.learning_rate
        length = "longer than" if steps < warmup_steps else "as long as"
        yield (
            f"the warm-up, {counted(warmup_steps, 'step')}, is {length} {run}: the highest rate is "
            f"{peak * (steps - 1) / warmup_steps:.3g}, not schedule.learning_rate = {peak:g}; set schedule.warmup_steps"
        )
    lasts: tuple[tuple[str, Any, str], ...] = (
        ("eval", config.eval, "only the last step is evaluated"),
        ("samples", config.samples, "only the last step is sampled"),
        ("checkpoint", config.checkpoint, "only the last step is saved"),
        ("logging", config.logging, "only the last step is logged"),
    )
    for name, section, effect in lasts:
        if section is not None and section.every_steps is not None and section.every_steps > steps:
            yield f"{name}.every_steps = {section.every_steps:,} is longer than {run}: {effect}"
    if config.profile.steps is not None and (last := config.profile.steps[1]) > steps:
        effect = "nothing is profiled" if config.profile.steps[0] > steps else f"the profile ends with step {steps}"
        yield f"profile.steps = {list(config.profile.steps)}: step {last:,} is after {run}: {effect}"
