"""Replays a recorded run of another trainer through packed rows, with the code that training uses."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.batch import Batch
from janus_jax.checkpoint.hf.read import load_hf
from janus_jax.data.example import Example
from janus_jax.data.padding import Padding
from janus_jax.data.rows import RowFormat, assign_rows, default_max_segments, fit, pack
from janus_jax.errors import ConversionError, DataError
from janus_jax.model.mistral import Compute, Params, param_specs
from janus_jax.objectives import Objective, metric_values
from janus_jax.training.optimizer import AdamW, Schedule
from janus_jax.training.step import StepFunctions

Micro = Sequence[Mapping[str, Any]]
"""Examples of one microbatch, as token ids: {prompt, chosen, rejected?}, EOS included where it is; a pair may have a
`margin`, a number."""


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """What one optimizer step produced."""

    loss: float
    grad_norm: float
    metrics: dict[str, float]


def run(
    objective: Objective,
    hf_dir: str | os.PathLike[str],
    steps: Sequence[Sequence[Micro]],
    optimizer: AdamW | None = None,
    *,
    schedule: Schedule,
    row_length: int | None = None,
    seed: int = 0,
    share_prompts: bool = True,
    padding: Padding | None = None,
) -> tuple[list[StepRecord], Params]:
    """Trains from the weights in `hf_dir` on given examples, in float32; the reference is the initial weights.

    Args:
        objective: any objective; its normaliser says how microbatches are averaged.
        hf_dir: a Hugging Face directory (config.json and safetensors).
        steps: optimizer steps, each a list of microbatches, each a list of examples.
        optimizer: AdamW settings; transformers' defaults when None.
        schedule: learning rate by step.
        row_length: slots of a packed row; by default twice the longest example, so that rows hold several.
        seed: order of packing; it changes nothing but rounding.
        share_prompts: False copies the prompt to each branch; it changes nothing but rounding either.
        padding: with ORPO's `padding`: that of the recorded rows. TRL's are as long as the longest of a microbatch.
    Returns:
        one record per optimizer step, and the final parameters.
    """
    form = RowFormat(objective.head, objective.branches, share_prompts, padding)
    functions, initial, batches = _prepare(
        objective, hf_dir, steps, optimizer or AdamW(), schedule, row_length, seed, form
    )
    train, state, records = jax.jit(functions.train), functions.init(initial), []
    for batch in batches:
        state, scalars, metrics = train(state, batch)
        records.append(
            StepRecord(float(scalars["loss"]), float(scalars["grad_norm"]), metric_values(metrics, objective))
        )
    return records, state.params


def gradients(
    objective: Objective,
    hf_dir: str | os.PathLike[str],
    step: Sequence[Micro],
    *,
    row_length: int | None = None,
    seed: int = 0,
    share_prompts: bool = True,
    padding: Padding | None = None,
) -> tuple[float, Params]:
    """Loss and unclipped gradients of one optimizer step at the weights in `hf_dir`; arguments as in `run`."""
    form = RowFormat(objective.head, objective.branches, share_prompts, padding)
    unused = Schedule(0.0, 1)
    functions, initial, batches = _prepare(objective, hf_dir, [step], AdamW(), unused, row_length, seed, form)
    loss, grads, _ = jax.jit(functions.gradients)(initial, next(batches))
    return float(loss), grads


def _prepare(
    objective: Objective,
    hf_dir: str | os.PathLike[str],
    steps: Sequence[Sequence[Micro]],
    optimizer: AdamW,
    schedule: Schedule,
    row_length: int | None,
    seed: int,
    form: RowFormat,
) -> tuple[StepFunctions, Params, Iterator[Batch]]:
    """The step's functions, the initial weights, and packed batches [M, B, L] with the reference's log-probs."""
    config, initial = load_hf(Path(hf_dir), dtype=jnp.float32)
    if config.head != objective.head:
        raise ConversionError(f"{hf_dir}: has a head of kind {config.head}; {objective.name} needs {objective.head}")
    sees_nothing = form.padding is not None and form.padding.kind == "axolotl"
    functions = StepFunctions(
        model=config,
        objective=objective,
        compute=Compute(dtype=jnp.float32, padding_sees_nothing=sees_nothing),
        transformation=optimizer.transformation(schedule, param_specs(config)),
        clip_norm=optimizer.clip_norm,
    )
    examples = [[[_example(e) for e in micro] for micro in step] for step in steps]
    wanted = objective.branches == 2
    if any((e.rejected is not None) != wanted for step in examples for micro in step for e in micro):
        raise DataError(f"objective {objective.name} reads {'pairs' if wanted else 'single responses'}: not all are")
    batches = _pack_steps(examples, form, row_length, seed)
    if not objective.needs_reference:
        return functions, initial, iter(batches)
    reference = jax.jit(functions.reference)
    return functions, initial, (dataclasses.replace(b, reference_logps=reference(initial, b)) for b in batches)


def _example(ids: Mapping[str, Any]) -> Example:
    rejected = ids.get("rejected")
    return Example(
        prompt=np.asarray(ids["prompt"], np.int32),
        chosen=np.asarray(ids["chosen"], np.int32),
        rejected=None if rejected is None else np.asarray(rejected, np.int32),
        margin=float(ids.get("margin", 0.0)),
    )


def _lengths(examples: Sequence[Example]) -> np.ndarray:
    sizes = [(len(e.prompt), len(e.chosen), 0 if e.rejected is None else len(e.rejected)) for e in examples]
    return np.asarray(sizes, np.int32)


def _padded(form: RowFormat, micro: list[Example]) -> RowFormat:
    """The layout of a microbatch, whose rows TRL pads to the longest of them."""
    if form.padding is None or form.padding.kind != "trl":
        return form
    lengths = _lengths(micro)
    longest = int((lengths[:, 0] + lengths[:, 1:].max(1)).max())
    return dataclasses.replace(form, padding=dataclasses.replace(form.padding, length=longest))


def _pack_steps(steps: list[list[list[Example]]], form: RowFormat, row_length: int | None, seed: int) -> list[Batch]:
    """Numpy batches [M, B, L]. One B for all of them, so that steps with equally many microbatches compile once."""
    everything = _lengths([e for step in steps for micro in step for e in micro])
    longest = max(int(_padded(form, micro).slots(_lengths(micro)).max()) for step in steps for micro in step)
    length = row_length or 2 * longest
    cap = default_max_segments(
        fit(everything, row_length=length, max_sequence_length=length, overlong="error", name="replay", form=form),
        length,
    )

    def plan(micro: list[Example]) -> list[np.ndarray]:
        slots = _padded(form, micro).slots(_lengths(micro))
        return assign_rows(slots, row_length=length, max_segments=cap, seed=seed, epoch=0)

    plans = [[plan(micro) for micro in step] for step in steps]
    rows = max(len(p) for step in plans for p in step)
    batches = []
    for step, step_plans in zip(steps, plans, strict=True):
        packed = [
            pack(
                [[micro[i] for i in row] for row in p] + [[]] * (rows - len(p)),
                row_length=length,
                max_segments=cap,
                form=_padded(form, micro),
            )
            for micro, p in zip(step, step_plans, strict=True)
        ]
        batches.append(jax.tree.map(lambda *fields: np.stack(fields), *packed))
    return batches
