"""Stages of whole training steps: the trainer's own program on random weights and packed rows."""

import dataclasses
import math
import time
from typing import Any

import jax
import numpy as np

from janus_jax.batch import Batch
from janus_jax.config.run import RunConfig
from janus_jax.data.epoch import PackedEpochs
from janus_jax.model.config import ModelConfig
from janus_jax.model.mistral import init_params, param_specs
from janus_jax.objectives import build_objective
from janus_jax.parallel import mesh as meshes
from janus_jax.training.program import BatchShape, Program, build_program, build_schedule
from janus_jax.training.speed import PEAK_BF16_FLOPS, flops_per_token, keys_per_query
from tests.benchmarks.gpu.child import NotHere, first_line, free, measured
from tests.benchmarks.gpu.rows import batches, packed_epochs
from tests.benchmarks.gpu.sizes import Setting, Sizes, StepCase

_LARGE_CARD = 100 * 2**30
_BATCHES = 4
_OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"


@dataclasses.dataclass(frozen=True)
class Step:
    """Everything that a step takes, before anything is on the device."""

    config: RunConfig
    model: ModelConfig
    epochs: PackedEpochs
    program: Program

    @property
    def shape(self) -> BatchShape:
        return BatchShape(1, self.epochs.rows, self.epochs.settings.row_length, self.epochs.max_segments)


def configured(case: StepCase, setting: Setting, attention: str) -> RunConfig:
    """The configuration of a run that has these settings; its directories are never opened."""
    return RunConfig.model_validate(
        {
            "run": {"dir": "none"},
            "data": {"dir": "none"},
            "model": dict(case.model) | dict(setting.model),
            "batch": {"rows": setting.rows, "row_length": case.row_length, "max_sequence_length": case.longest},
            "objective": {"name": case.objective},
            "optimizer": {"moments": setting.moments},
            "schedule": {"name": "constant", "learning_rate": 1e-6, "warmup_steps": 0, "steps": 100},
            "precision": {"attention": attention},
            "remat": setting.remat,
            "compat": {"bfloat16_weights": setting.bfloat16_weights},
        }
    )


def build(config: RunConfig, shrink: int = 1) -> Step:
    """The program that training would build for this configuration on the devices here."""
    objective = build_objective(config)
    assert config.model is not None
    model = dataclasses.replace(config.model.build(), head=objective.head)
    assert config.batch.rows is not None
    epochs = packed_epochs(
        branches=objective.branches,
        rows=config.batch.rows,
        row_length=config.batch.row_length,
        longest=config.batch.max_sequence_length,
        vocab_size=model.vocab_size,
        shrink=shrink,
    )
    program = build_program(
        config,
        model,
        objective,
        meshes.build_mesh(config.mesh.shape, jax.devices()[:1]),
        meshes.merge_rules(config.sharding),
        build_schedule(config, 100),
        shared_slots=epochs.most_shared_slots(),
        max_segments=epochs.most_segments(),
        longest=epochs.longest_sequence(),
    )
    return Step(config, model, epochs, program)


def step(name: str, sizes: Sizes, attention: str) -> None:
    """The stage of one case: the first setting that fits is timed. Measures `step`, and what did not fit before it.

    Args:
        attention: `precision.attention`.
    """
    case, limit = sizes.cases[name], (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    settings = case.settings_large if (limit or 0) > _LARGE_CARD else case.settings
    for setting in settings:
        reason = _attempt(name, build(configured(case, setting, attention), sizes.shrink), setting, sizes, limit)
        if reason is None:
            return
        measured("does not fit", case=name, reason=reason, setting=dataclasses.asdict(setting))
        free()
    raise NotHere("no setting of this case fits into the card's memory")


def _attempt(name: str, step: Step, setting: Setting, sizes: Sizes, limit: int | None) -> str | None:
    """Compiles and times a step; the reason if it does not fit."""
    program = step.program
    try:
        begun = time.perf_counter()
        lowered = program.train.lower(program.abstract_state(), program.abstract_batch(step.shape))
        executable = lowered.compile()
        compile_s = time.perf_counter() - begun
        needed = _planned_bytes(executable)
        if limit and needed and needed > limit:
            return f"the compiled step needs {needed / 2**30:.1f} GiB of {limit / 2**30:.1f}"
        _time(name, step, setting, sizes, executable, compile_s, needed)
    except jax.errors.JaxRuntimeError as error:
        if _OUT_OF_MEMORY not in str(error):
            raise
        return first_line(error)
    return None


def _planned_bytes(executable: Any) -> int | None:
    memory = executable.memory_analysis()
    if memory is None:
        return None
    inside = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return inside + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes


def _time(
    name: str, step: Step, setting: Setting, sizes: Sizes, executable: Any, compile_s: float, planned: int | None
) -> None:
    program, model = step.program, step.model
    shardings = program.state_shardings.params
    make = jax.jit(lambda key: init_params(model, key, program.params_dtype), out_shardings=shardings)
    state = program.init(make(jax.random.key(0)))
    host = [_with_reference(batch, model) for batch in batches(step.epochs, _BATCHES)]
    placed = [
        jax.device_put(jax.tree.map(lambda x: np.asarray(x)[None], batch), program.batch_shardings) for batch in host
    ]
    state, scalars, _ = jax.block_until_ready(executable(state, placed[0]))
    first = {key: float(value) for key, value in scalars.items()}
    state, *_ = jax.block_until_ready(executable(state, placed[-1]))
    seconds, tokens, examples = [], 0, 0
    for number in range(sizes.steps):
        batch = host[number % len(host)]
        begun = time.perf_counter()
        state, scalars, _ = jax.block_until_ready(executable(state, placed[number % len(host)]))
        seconds.append(time.perf_counter() - begun)
        tokens += int((batch.segment > 0).sum())
        examples += int(batch.valid.sum())
    if not np.isfinite(float(scalars["loss"])):
        raise RuntimeError(f"{name}: the loss is {float(scalars['loss'])} after {sizes.steps + 2} steps")
    device, keys = jax.devices()[0], keys_per_query(step.epochs, model.sliding_window)
    rate, per_token = tokens / sum(seconds), flops_per_token(model, keys)
    peak = PEAK_BF16_FLOPS.get(device.device_kind)
    measured(
        "step",
        case=name,
        tokens_per_s=rate,
        mfu=None if peak is None else rate * per_token / peak,
        examples_per_s=examples / sum(seconds),
        peak_gib=_gib((device.memory_stats() or {}).get("peak_bytes_in_use")),
        planned_gib=_gib(planned),
        compile_s=compile_s,
        attention=program.attention,
        attention_key=step.config.precision.attention,
        loss=first["loss"],
        grad_norm=first["grad_norm"],
        parameters=_parameters(model),
        tokens_per_step=tokens / sizes.steps,
        fill=tokens / sizes.steps / (step.shape.rows * step.shape.row_length),
        keys_per_query=keys,
        flops_per_token=per_token,
        peak_flops=peak,
        seconds=seconds,
        setting=dataclasses.asdict(setting),
        model=dataclasses.asdict(model),
        row_length=step.shape.row_length,
        objective=step.config.objective.name,
    )


def _with_reference(batch: Batch, model: ModelConfig) -> Batch:
    """With the log-probs of a reference for which all tokens are equally likely, as for the random weights."""
    counts = np.zeros_like(batch.reference_logps)
    at = np.nonzero(batch.weights)
    np.add.at(counts, (at[0], batch.segment[at] - 1, batch.branch[at] - 1), 1)
    return dataclasses.replace(batch, reference_logps=-math.log(model.vocab_size) * counts)


def _gib(size: int | None) -> float | None:
    return None if size is None else size / 2**30


def _parameters(model: ModelConfig) -> int:
    return sum(int(np.prod(spec.shape)) for spec in jax.tree.leaves(param_specs(model)))
