"""What a run is: `RunConfig`, read from YAML with `base:` files and dotted overrides, all mistakes in one report.

Relative paths in a configuration (run.dir, data.dir, init.from, ...) are relative to the working directory; only
`base:` is relative to the file that says it. Reading a configuration imports neither JAX nor TensorFlow.
"""

import dataclasses
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    PlainValidator,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError, ValidationError

from janus_jax.config import mistakes, yaml_file
from janus_jax.config.objectives import AnyObjective
from janus_jax.config.rules import LOGICAL_AXES, MESH_AXES, conflicts
from janus_jax.config.section import SIZE, Section
from janus_jax.errors import ConfigError

if TYPE_CHECKING:
    from janus_jax.model.config import ModelConfig

Path = Annotated[str, StringConstraints(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


def _logical_axis(name: str) -> str:
    if name not in LOGICAL_AXES:
        raise PydanticCustomError("logical_axis", "is no logical axis")
    return name


def _mesh_size(value: int) -> int:
    if value == 0:
        raise PydanticCustomError("mesh_size", "is no size")
    return value


MeshSize = Annotated[
    int,
    Field(ge=-1),
    AfterValidator(_mesh_size),
    WithJsonSchema({"allowed": "a whole number >= 1, or -1 for all devices that the other axes leave"}),
]


def _mesh_axes(value: Any) -> str | tuple[str, ...] | None:
    names = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(names, list | tuple) or not all(name in MESH_AXES for name in names):
        raise PydanticCustomError("mesh_axes", "is no mesh axis")
    if len(set(names)) < len(names):
        raise PydanticCustomError("mesh_axes", "names an axis twice")
    return tuple(value) if isinstance(value, list) else value


MeshAxes = Annotated[
    Any,  # str | tuple[str, ...] | None
    PlainValidator(_mesh_axes),
    WithJsonSchema({"allowed": f"a mesh axis ({', '.join(MESH_AXES)}), a list of them, or null for none"}),
]


class RunSection(Section):
    dir: Path
    """Run directory: checkpoints, metrics, exports. A run that is there is resumed."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class InitSection(Section):
    from_: Path | None = Field(default=None, alias="from")
    """A Hugging Face directory or hub id, a run, one of its steps or a converted directory; null: random weights."""


class ModelSection(Section):
    """A preset and what differs from it; null means as in the preset. For random weights only."""

    preset: Literal["mistral-7b", "tiny"]
    vocab_size: Count | None = None
    hidden_size: Count | None = None
    intermediate_size: Count | None = None
    num_layers: Count | None = None
    num_heads: Count | None = None
    num_kv_heads: Count | None = None
    head_dim: Count | None = None
    rope_theta: Annotated[float, Field(gt=0)] | None = None
    rms_norm_eps: Annotated[float, Field(gt=0)] | None = None
    sliding_window: Count | None = None
    tie_embeddings: bool | None = None
    max_position_embeddings: Count | None = None

    def overrides(self) -> dict[str, Any]:
        """The given keys other than `preset`."""
        return self.model_dump(exclude={"preset"}, exclude_none=True)

    def build(self) -> "ModelConfig":
        from janus_jax.model.config import PRESETS

        return dataclasses.replace(PRESETS[self.preset], **self.overrides())

    @model_validator(mode="after")
    def _sizes_agree(self) -> "ModelSection":
        try:
            self.build()
        except ValueError as error:
            raise PydanticCustomError("section", "{reason}", {"reason": str(error)}) from error
        return self


class MixturePart(Section):
    """One of several data sets that are read as one."""

    dir: Path
    """As `data.dir`."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """Share of an epoch's examples, beside the other parts' weights; null, for all parts: every example once."""


class DataSection(Section):
    """What is trained on: one data set (`dir`) or several in stated shares (`mixture`)."""

    dir: Path | None = None
    """A directory written by `janus data build`, or the gs:// URL of one."""
    mixture: list[MixturePart] | None = Field(default=None, min_length=1)
    examples: Count | None = None
    """An epoch of a mixture with weights reads; null: as many as repeat none."""
    split: str = "train"
    eval_dir: Path | None = None
    """null: as trained on; of a mixture every held-out example of every part, once."""
    eval_split: str = "validation"


class BatchSection(Section):
    """Size of a global batch (one optimizer step): `rows` packed rows, or exactly `examples` examples."""

    rows: Count | None = None
    examples: Count | None = None
    row_length: Count
    """Tokens in a packed row."""
    max_sequence_length: Count
    """Tokens of a prompt with one response; at most row_length."""
    microbatches: Count = 1
    max_segments: Count | None = None
    """Most examples in a row; null: derived from the lengths."""
    keep_together: Count = 1
    """With `examples`: neighbours in the data set that stay in one step, such as all pairs of one prompt."""
    share_prompts: bool = True
    """Pairs: store and compute a prompt once for both responses; false: a copy for each, for comparison."""
    overlong: Literal["drop", "truncate", "error"] = "drop"


class ReferenceSection(Section):
    """The frozen model that DPO compares with; it reaches the objective as two log-probs per pair."""

    mode: Literal["precompute", "online"] = "precompute"
    """precompute: score every pair once before the first step and keep the numbers; online: hold the reference's
    weights and score each batch as it comes."""
    from_: Path | None = Field(default=None, alias="from")
    """Weights of the frozen reference; null: the initial weights of the run."""
    dir: Path | None = None
    """Where precomputed log-probs lie, for runs that share them; null: `reference` in run.dir."""


class OptimizerSection(Section):
    name: Literal["adamw"] = "adamw"
    b1: Share = 0.9
    b2: Share = 0.999
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest global norm of the gradient; null: no clipping."""
    moments: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 halves their memory; they are rounded up or down at random, so that small changes are not lost."""


class ScheduleSection(Section):
    """Warm-up from 0 over `warmup_steps`, then to 0 (cosine, linear) or on (constant) until `epochs` or `steps` end."""

    name: Literal["cosine", "linear", "constant"]
    learning_rate: Annotated[float, Field(gt=0)]
    warmup_steps: Annotated[int, Field(ge=0)] = 10
    epochs: Count | None = None
    steps: Count | None = None


class MeshSection(Section):
    data: MeshSize = 1
    fsdp: MeshSize = -1
    tensor: MeshSize = 1
    context: MeshSize = 1


class PrecisionSection(Section):
    """Of activations; weights are float32, see compat.bfloat16_weights."""

    compute: Literal["bfloat16", "float32"] = "bfloat16"
    attention: Literal["auto", "splash", "reference"] = "auto"
    """auto: the splash kernel on TPUs where rows and window allow it, plain JAX elsewhere."""


class EvalSection(Section):
    every_steps: Count | None = None
    """null: no held-out evaluation."""
    rows: Count | None = None
    """Rows of an evaluation batch; null: as in training."""


class CheckpointSection(Section):
    every_steps: Count | None = None
    """null: only at the end."""
    keep: Count = 2


class ExportSection(Section):
    hf: bool = False
    dtype: Literal["float32", "bfloat16"] | None = None
    """null: as the parameters are kept."""
    layout: Literal["transformers", "openrlhf"] = "transformers"
    """Of a reward model."""
    verify: Literal["logits", "digest", "none"] = "logits"
    max_shard_size: Annotated[str, StringConstraints(pattern=SIZE)] = Field(
        default="5GB", json_schema_extra={"allowed": "a size like 5GB or 500MB"}
    )


class LoggingSection(Section):
    every_steps: Count = 1
    tensorboard: bool = True
    wandb: bool = False


class ProfileSection(Section):
    """First and last optimizer step of the profile, counted from 1."""

    steps: Annotated[
        Annotated[tuple[Count, Count], Field(strict=False)] | None,
        WithJsonSchema({"allowed": "[first, last] with 1 <= first <= last, or null"}),
    ] = None


class CompatSection(Section):
    """Switches that reproduce what published trainers did and this one would not; each is explained in configs/."""

    token_boundary: Literal["separate", "joint"] = "separate"
    """Prompt and response tokenized apart, or as one text. It must be how data.dir was built."""
    overlong_pairs: Literal["drop", "zero_grad"] = "drop"
    """zero_grad: pairs over batch.max_sequence_length lose both responses, and still count in the mean."""
    token_mean: Literal["global", "per_microbatch"] = "global"
    """per_microbatch: a mean of the microbatches' own means, whatever their tokens (or pairs)."""
    bfloat16_weights: bool = False
    """Weights, and so their updates, are rounded to bfloat16, without a float32 master copy."""


class RunConfig(Section):
    """Everything that decides what a run computes and where it writes."""

    run: RunSection
    init: InitSection = InitSection()
    model: ModelSection | None = None
    data: DataSection
    batch: BatchSection
    objective: AnyObjective
    reference: ReferenceSection = ReferenceSection()
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection
    mesh: MeshSection = MeshSection()
    sharding: dict[Annotated[str, AfterValidator(_logical_axis)], MeshAxes] = Field(
        default_factory=dict, json_schema_extra={"propertyNames": {"enum": list(LOGICAL_AXES)}}
    )
    precision: PrecisionSection = PrecisionSection()
    remat: Literal["none", "dots", "full", "offload"] = "none"
    eval: EvalSection = EvalSection()
    checkpoint: CheckpointSection = CheckpointSection()
    export: ExportSection = ExportSection()
    logging: LoggingSection = LoggingSection()
    profile: ProfileSection = ProfileSection()
    compat: CompatSection = CompatSection()

    @model_validator(mode="after")
    def _keys_agree(self) -> "RunConfig":
        found = [text for _, text in conflicts(self.model_dump(by_alias=True))]
        if found:
            raise PydanticCustomError("conflict", "{found}", {"found": "; ".join(found)})
        return self

    @property
    def params_dtype(self) -> Literal["float32", "bfloat16"]:
        """In which the trained weights are kept."""
        return "bfloat16" if self.compat.bfloat16_weights else "float32"

    def advice(self) -> list[str]:
        """What can run and is still probably not meant, one sentence each."""
        batch, sentences = self.batch, list(self.objective.advice())
        if self.objective.branches == 2 and batch.row_length < 2 * batch.max_sequence_length:
            sentences.append(
                f"batch.row_length = {batch.row_length} is less than twice batch.max_sequence_length = "
                f"{batch.max_sequence_length}: long pairs do not fit into a row and fall to batch.overlong"
            )
        return sentences


def load_config(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> RunConfig:
    """Reads a YAML file with its `base:` files; `overrides` are texts like `batch.rows=4`, applied last.

    Raises:
        ConfigError: every mistake in one message, each with its file:line or override, the value and what is allowed.
    """
    root, problems = yaml_file.read_tree(path, overrides)
    values = root.plain()
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        config = None
        problems += mistakes.problems(error, root, RunConfig.model_json_schema())
    problems += [f"{root.origin_of(key.split('.'))}: {text}" for key, text in conflicts(values)]
    if problems or config is None:
        raise ConfigError(mistakes.join(os.fspath(path), problems))
    return config


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration as YAML: every key written out, no `base:`; loads back equal."""
    values = config.model_dump(mode="json", by_alias=True)
    if config.model is not None:
        values["model"] = config.model.model_dump(exclude_none=True)
    return yaml_file.dump(values)
