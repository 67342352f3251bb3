"""The shapes of a run's step. Data and weights that are not on this machine are assumed, and the plan lists what is."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from janus_jax.checkpoint.stored_model import open_model
from janus_jax.config.run import RunConfig
from janus_jax.data.epoch import PackedEpochs
from janus_jax.data.from_config import eval_batch_settings, open_held_out, open_training, packed_epochs
from janus_jax.model.config import PRESETS, ModelConfig
from janus_jax.objectives import Objective, build_objective
from janus_jax.parallel import mesh as meshes
from janus_jax.storage.bucket import is_url
from janus_jax.training.program import BatchShape
from janus_jax.training.same_tokenizer import unused_rows
from janus_jax.training.sample_prompts import open_sample_prompts
from janus_jax.training.setup import check_fits, model_to_train, open_reference_source

SLOTS_PER_PAIR, SLOTS_PER_EXAMPLE, SHARED_SHARE = 1560, 900, 0.24
"""For rows like those of the Multifaceted Collection: median prompts of 330 tokens, median responses of 520."""

SAMPLE_PROMPT = 1024
"""Tokens of the longest prompt of `samples`, where it is not here."""

_STEPS = 1000


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What determines the program, besides configuration and mesh."""

    model: ModelConfig
    objective: Objective
    shape: BatchShape
    shared_slots: int
    total_steps: int
    steps_per_epoch: int | None  # None: no data set
    tokens_per_step: float  # slots that are not padding
    segment: float  # slots per example
    assumed: tuple[str, ...]
    held_out_segments: int | None = None  # most segments in a row of evaluation; None: as in training
    notes: tuple[str, ...] = ()  # what is probably not meant
    samples: dict[str, int] | None = None  # `rows`, `prompt` and `new` of `sample_memory`


def find_inputs(config: RunConfig, devices: int) -> Inputs:
    """What `prepare` finds in data and weights, or likely values if they are not on this machine.

    Args:
        devices: number of devices of the mesh.
    Raises:
        ConfigError, DataError, ConversionError: as training would.
    """
    assumed: list[str] = []
    model, objective = find_model(config, assumed)
    sizes = config.mesh.shape.resolve(devices)
    rules = meshes.merge_rules(config.sharding)
    shards = math.prod(getattr(sizes, axis) for axis in rules.get("batch", ()))
    if _is_here(config):
        inputs = _measured(config, packed_epochs(config, row_shards=shards), model, objective, assumed)
    else:
        inputs = _likely(config, shards, model, objective, assumed)
    samples = _samples(config, model, assumed)
    return dataclasses.replace(inputs, samples=samples, assumed=tuple(assumed))


def find_model(config: RunConfig, assumed: list[str] | None = None) -> tuple[ModelConfig, Objective]:
    """The trained model and its objective. Appends to `assumed` what is not on this machine.

    Raises:
        ConfigError, ConversionError: as training would.
    """
    objective, assumed = build_objective(config), [] if assumed is None else assumed
    model = model_to_train(config, _stored(config, assumed), objective)
    path = config.reference.from_
    if path is not None and _exists(path):
        open_reference_source(config, model)
    elif path is not None:
        shape = "the reference has the shape of the trained model"
        assumed.append(f"reference.from={path} is not on this machine; {shape}")
    return model, objective


def _is_here(config: RunConfig) -> bool:
    parts = [config.data.dir] if config.data.dir is not None else [part.dir for part in config.data.mixture or ()]
    held_out = [config.data.eval_dir] if config.data.eval_dir and config.eval.every_steps else []
    return all(_exists(part) for part in (*parts, *held_out) if part)


def _samples(config: RunConfig, model: ModelConfig, assumed: list[str]) -> dict[str, int] | None:
    """What `sample_memory` takes; None without samples."""
    section = config.samples
    if section is None:
        return None
    if _is_here(config) and _exists(section.prompts):
        prompts = open_sample_prompts(config, model, open_training(config))
        assert prompts is not None
        return {"rows": prompts.rows, "prompt": prompts.longest_prompt, "new": section.max_new_tokens}
    longest = min(SAMPLE_PROMPT, config.batch.row_length - 1)
    assumed.append(
        f"samples.prompts={section.prompts} or the data set is not on this machine; the longest prompt has {longest:,} "
        f"tokens, and {section.rows} answers grow at the same time"
    )
    return {"rows": section.rows, "prompt": longest, "new": section.max_new_tokens}


def _exists(path: str) -> bool:
    """Whether a path exists. Objects in buckets are assumed to exist."""
    return is_url(path) or Path(path).expanduser().exists()


def _stored(config: RunConfig, assumed: list[str]) -> ModelConfig | None:
    """The shape of the initial weights; None: random weights."""
    path = config.init.from_
    if path is None:
        return None
    if _exists(path):
        return open_model(path).config
    assumed.append(f"init.from={path} is not on this machine; the model has the shape of Mistral-7B-v0.2")
    return PRESETS["mistral-7b"]


def _measured(
    config: RunConfig, rows: PackedEpochs, model: ModelConfig, objective: Objective, assumed: list[str]
) -> Inputs:
    held_out = open_held_out(config)
    for examples in filter(None, (rows.dataset, held_out)):
        for built in examples.parts:
            check_fits(model, built, config)
    shared, held_segments = rows.most_shared_slots(), None
    if held_out is not None:
        settings = eval_batch_settings(config, rows.rows)
        form = {"branches": objective.branches, "head": objective.head}
        held = PackedEpochs(held_out, settings, shuffle=False, seed=config.run.seed, **form)
        shared, held_segments = max(shared, held.most_shared_slots()), held.max_segments
    per_epoch, tokens = rows.steps(0), float(rows.tokens(0))
    return Inputs(
        model,
        objective,
        _shape(config, rows.rows, rows.max_segments),
        shared,
        config.schedule.steps or rows.total_steps(config.schedule.epochs or 1),
        per_epoch,
        tokens / max(1, per_epoch),
        tokens / max(1, len(rows.dataset.draw(rows.fitted.index, rows.seed, 0))),
        tuple(assumed),
        held_segments,
        tuple(unused_rows(model, rows.dataset, config.init.from_)),
    )


def _likely(config: RunConfig, shards: int, model: ModelConfig, objective: Objective, assumed: list[str]) -> Inputs:
    batch, pairs = config.batch, objective.branches == 2
    slots = min(SLOTS_PER_PAIR if pairs else SLOTS_PER_EXAMPLE, batch.row_length)
    assumed.append(f"the data set is not on this machine; examples take {slots:,} slots, rows are 98 % full")
    if batch.rows is not None:
        rows, tokens = batch.rows, 0.98 * batch.rows * batch.row_length
    else:
        assert batch.examples is not None
        per_row = max(1, batch.row_length // slots)
        multiple = batch.microbatches * shards
        rows = -(-batch.examples // per_row)
        rows = -(-rows // multiple) * multiple
        tokens = batch.examples * slots
        assumed.append(f"batch.examples={batch.examples} take {rows} rows")
    cap = batch.max_segments or max(1, math.ceil(3 * batch.row_length / slots))
    shared = 0
    if pairs and batch.share_prompts:
        shared = min(batch.row_length, math.ceil(2 * SHARED_SHARE * batch.row_length))
        assumed.append(f"rows have at most {shared:,} slots of shared prompts")
    schedule = config.schedule
    steps = schedule.steps or max(_STEPS, (schedule.warmup_steps or 0) + (schedule.decay_steps or 0))
    shape = _shape(config, rows, cap)
    return Inputs(model, objective, shape, shared, steps, None, float(tokens), float(slots), tuple(assumed))


def _shape(config: RunConfig, rows: int, max_segments: int) -> BatchShape:
    micro = config.batch.microbatches
    return BatchShape(micro, rows // micro, config.batch.row_length, max_segments)


def online_reference(config: RunConfig, inputs: Inputs) -> bool:
    """Whether a frozen reference stays on the devices and scores every batch."""
    return inputs.objective.needs_reference and config.reference.mode == "online"


def check_rows(config: RunConfig, inputs: Inputs, mesh: Any, rules: meshes.Rules) -> None:
    """Raises ConfigError if rows of training or evaluation do not divide over the mesh, as training would."""
    meshes.check_rows(inputs.shape.rows, mesh, rules, "batch.rows", inputs.shape.microbatches)
    if config.eval.every_steps is not None and config.eval.rows is not None:
        meshes.check_rows(config.eval.rows, mesh, rules, "eval.rows")
