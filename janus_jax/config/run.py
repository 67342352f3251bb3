"""`RunConfig`, read from YAML with `base:` files and dotted overrides. All mistakes come in one report.

Relative paths in a configuration (run.dir, data.dir, init.from, ...) start at the working directory; only `base:` is
relative to its file. Reading a configuration imports neither JAX nor TensorFlow.
"""

import os
from collections.abc import Iterable
from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError, ValidationError

from janus_jax.config import advice, mistakes, sections, yaml_file
from janus_jax.config.compat import CompatSection
from janus_jax.config.objectives import AnyObjective
from janus_jax.config.remat import RematKey
from janus_jax.config.rules import absent_data, conflicts
from janus_jax.config.samples import SamplesSection
from janus_jax.config.section import Section
from janus_jax.config.timeouts import TimeoutsSection
from janus_jax.errors import ConfigError


class RunConfig(Section):
    """Everything that decides what a run computes and where it writes."""

    run: sections.RunSection
    init: sections.InitSection = sections.InitSection()
    model: sections.ModelSection | None = None
    data: sections.DataSection
    batch: sections.BatchSection
    objective: AnyObjective
    reference: sections.ReferenceSection = sections.ReferenceSection()
    optimizer: sections.OptimizerSection = sections.OptimizerSection()
    schedule: sections.ScheduleSection
    mesh: sections.MeshSection = sections.MeshSection()
    sharding: sections.Sharding = Field(default_factory=dict)
    """The mesh axes that split each logical axis of an array. A key that you leave out keeps its default."""
    precision: sections.PrecisionSection = sections.PrecisionSection()
    remat: RematKey = "none"
    """What each block keeps of the forward pass for the backward pass, which computes the rest again. none:
    everything. dots: products with weights. full: the block's input only. offload: the block's input, in the memory
    of the host. A list names tensors to keep beside the block's input; `@host` keeps one in the memory of the host."""
    eval: sections.EvalSection = sections.EvalSection()
    samples: SamplesSection | None = None
    checkpoint: sections.CheckpointSection = sections.CheckpointSection()
    export: sections.ExportSection = sections.ExportSection()
    logging: sections.LoggingSection = sections.LoggingSection()
    profile: sections.ProfileSection = sections.ProfileSection()
    timeouts: TimeoutsSection = TimeoutsSection()
    compat: CompatSection = CompatSection()

    @model_validator(mode="after")
    def _keys_agree(self) -> "RunConfig":
        texts = [text for _, text in conflicts(self.model_dump(by_alias=True))]
        if texts:
            raise PydanticCustomError("conflict", "{texts}", {"texts": "; ".join(texts)})
        return self

    @property
    def params_dtype(self) -> Literal["float32", "bfloat16"]:
        """The type in which the trained weights are kept."""
        return "bfloat16" if self.compat.bfloat16_weights else "float32"

    @property
    def moments(self) -> str:
        """How the optimizer's moments are kept, to be read."""
        block = self.compat.adamw_8bit
        return self.optimizer.moments if block is None else f"8 bits, blocks of {block}"

    def advice(self) -> list[str]:
        """Settings that can run but are probably not intended, one sentence each."""
        steps = self.schedule.steps
        return [*advice.of_values(self), *([] if steps is None else self.step_advice(steps))]

    def step_advice(self, steps: int) -> list[str]:
        """That part of the advice which needs the number of steps, given by `schedule.steps` or counted in the data."""
        return list(advice.of_steps(self, steps, self.schedule.warmup(steps)))


def load_config(path: str | os.PathLike[str], overrides: Iterable[str] = (), *, inputs: bool = False) -> RunConfig:
    """Reads a YAML file with its `base:` files; `overrides` are texts like `batch.rows=4`, applied last.

    Args:
        inputs: The data will be read here. If anything is wrong, directories that are not there are in the report too.

    Raises:
        ConfigError: every mistake in one message, each with its file:line or override, the value and what is allowed.
    """
    schema = RunConfig.model_json_schema()
    root, problems = yaml_file.read_tree(path, overrides, takes_text=lambda key: mistakes.takes_text(key, schema))
    values = root.plain()
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        config = None
        problems += mistakes.problems(error, root, schema)
    problems += [f"{root.origin_of(key.split('.'))}: {text}" for key, text in conflicts(values)]
    if inputs and (absent := [f"{root.origin_of(key)}: {text}" for key, text in absent_data(values)]):
        problems += absent if problems or len(absent) > 1 else []  # a single one is reported better by its reader
    if problems or config is None:
        raise ConfigError(mistakes.join(os.fspath(path), problems))
    return config


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration as YAML: every key written out, no `base:`; loads back equal."""
    values = config.model_dump(mode="json", by_alias=True)
    if config.model is not None:
        values["model"] = config.model.model_dump(exclude_none=True)
    return yaml_file.dump(values)
