"""The sections of a configuration. docs/configuration.md is generated from these fields and docstrings."""

import dataclasses
import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator, StringConstraints, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from janus_jax.config.section import SIZE, Section
from janus_jax.parallel.axes import AXES, DEFAULT_RULES, LOGICAL_AXES, MeshShape

if TYPE_CHECKING:
    from janus_jax.model.config import ModelConfig

PathText = Annotated[str, StringConstraints(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class RunSection(Section):
    """Where the run writes, and its seed."""

    dir: PathText
    """Run directory for checkpoints, metrics and exports: a local or mounted directory, or gs://BUCKET/PATH. If it
    already holds this run, the run resumes."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of random weights and of the order of the data."""


class InitSection(Section):
    """The weights that training starts from."""

    from_: PathText | None = Field(default=None, alias="from")
    """A Hugging Face directory or hub id, a run, one step of a run, or a converted directory; gs:// works too.
    null: random weights of the shape in `model`."""
    allow_other_tokenizer: bool = False
    """Train these weights on data that another tokenizer built. Without it such data is refused: its ids mean other
    tokens to the model."""


class ModelSection(Section):
    """Shape of a model with random weights: a preset, and the sizes that differ from it (null: as in the preset).
    Give either `model` or `init.from`."""

    preset: Literal["mistral-7b", "tiny"]
    """`mistral-7b`: Mistral-7B-v0.2. `tiny`: 2 layers of width 128, for tests and demos."""
    vocab_size: Count | None = None
    """Number of token ids."""
    hidden_size: Count | None = None
    """Width of the residual stream."""
    intermediate_size: Count | None = None
    """Width of the feed-forward layers."""
    num_layers: Count | None = None
    """Number of transformer blocks."""
    num_heads: Count | None = None
    """Number of query heads; a multiple of `num_kv_heads`."""
    num_kv_heads: Count | None = None
    """Number of key and value heads."""
    head_dim: Count | None = None
    """Width of one head; even."""
    rope_theta: Positive | None = None
    """Base of the rotary position embedding."""
    rms_norm_eps: Positive | None = None
    """Added to the mean square in each RMS norm."""
    sliding_window: Count | None = None
    """Number of most recent positions that a query attends to, its own included. Both presets have no window."""
    tie_embeddings: bool | None = None
    """true: the output head uses the embedding matrix."""
    max_position_embeddings: Count | None = None
    """Longest sequence that the model is declared for."""

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

    dir: PathText
    """A directory written by `janus data build`, or the gs:// URL of one."""
    weight: Positive | None = None
    """Share of an epoch's examples, relative to the weights of the other parts. null, in all parts: an epoch reads
    every example once."""


class DataSection(Section):
    """The data to train and evaluate on: one data set (`dir`) or several in given shares (`mixture`)."""

    dir: PathText | None = None
    """A directory written by `janus data build`, or the gs:// URL of one. Give either `dir` or `mixture`."""
    mixture: list[MixturePart] | None = Field(default=None, min_length=1)
    """Several data sets that are read as one."""
    examples: Count | None = None
    """Number of examples in an epoch of a mixture with weights. null: the most that repeats none."""
    split: str = "train"
    """Split to train on."""
    eval_dir: PathText | None = None
    """Data set to evaluate on. null: the one in `dir`; for a mixture, the held-out examples of all parts, each once."""
    eval_split: str = "validation"
    """Split to evaluate on."""


class BatchSection(Section):
    """Size of a global batch, which is one optimizer step: `rows` packed rows, or exactly `examples` examples."""

    rows: Count | None = None
    """Packed rows in a batch; a multiple of `microbatches`. Give either `rows` or `examples`."""
    examples: Count | None = None
    """Examples in a batch. All batches of a run get the same number of rows, the fewest that suffice."""
    row_length: Count
    """Tokens in a packed row."""
    max_sequence_length: Count
    """Longest prompt with one response, in tokens; at most `row_length`. Longer examples fall under `overlong`."""
    microbatches: Count = 1
    """Parts into which a batch is cut. Gradients are summed over them, so more parts need less memory."""
    max_segments: Count | None = None
    """Most examples in a row. null: three times the average number that a row holds."""
    keep_together: Count = 1
    """With `examples`: number of neighbours in the data set that stay in one batch, such as all pairs of one prompt.
    If one of them is dropped, so are the others."""
    share_prompts: bool = True
    """For pairs. true: store and compute a prompt once for both responses. false: once for each, for comparison."""
    overlong: Literal["drop", "truncate", "error"] = "drop"
    """What to do with examples longer than `max_sequence_length` or than a row. drop: leave them out. truncate: cut
    their responses at the end. error: stop."""


class ReferenceSection(Section):
    """The frozen model that DPO compares with. The objective sees only its two log-probs of each pair."""

    mode: Literal["precompute", "online"] = "precompute"
    """precompute: score every pair once before the first step and store the log-probs. online: keep the reference's
    weights in memory and score each batch as it comes."""
    from_: PathText | None = Field(default=None, alias="from")
    """Weights of the reference, as in `init.from`. null: the initial weights of the run."""
    dir: PathText | None = None
    """Directory or gs:// URL of precomputed log-probs, for runs that share them. null: `reference` in `run.dir`."""


class OptimizerSection(Section):
    """AdamW with gradient clipping."""

    name: Literal["adamw"] = "adamw"
    """The optimizer."""
    b1: Decay = 0.9
    """Decay rate of the first moment."""
    b2: Decay = 0.999
    """Decay rate of the second moment."""
    eps: Positive = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay of matrices; norm weights do not decay."""
    clip_norm: Positive | None = 1.0
    """Largest global norm of the gradient. null: no clipping."""
    moments: Literal["float32", "bfloat16"] = "float32"
    """Type in which moments are stored. bfloat16 halves their memory; it rounds up or down at random, so that small
    changes are not lost."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """If loss or gradient is not finite. stop: end the run (exit code 12). skip: leave out this step's update."""
    max_skipped: Count = 10
    """Most steps in a row that `skip` leaves out; one more ends the run (exit code 12)."""


class ScheduleSection(Section):
    """Learning rate and length of the run. The rate warms up from 0. Then it falls until the end of the run (cosine,
    linear), stays (constant), or stays and falls at the end (wsd: warm-up, stable, decay)."""

    name: Literal["cosine", "linear", "constant", "wsd"]
    """Shape of the decay after the warm-up."""
    learning_rate: Positive
    """Peak learning rate."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = 10
    """Steps of linear warm-up; the first has rate 0. null, if you give `warmup_ratio`."""
    warmup_ratio: Share | None = None
    """Share of the steps that warm up, rounded up to whole steps. null: `warmup_steps` counts."""
    min_rate_ratio: Share | None = None
    """Rate at the end of the decay, as a share of `learning_rate`; with wsd the warm-up begins there too. null: 0."""
    decay_steps: Count | None = None
    """For wsd: steps of decay at the end. Give either `decay_steps` or `decay_ratio`."""
    decay_ratio: Share | None = None
    """For wsd: share of the steps that decay, rounded up to whole steps."""
    decay_shape: Literal["cosine", "linear", "1-sqrt"] | None = None
    """For wsd: shape of the decay; 1-sqrt is one minus the square root of its progress. null: cosine."""
    epochs: Count | None = None
    """Epochs to train for. Give either `epochs` or `steps`."""
    steps: Count | None = None
    """Optimizer steps to train for."""
    extend: Literal["restart", "stretch", "constant"] | None = None
    """How the run in `run.dir` goes on if `epochs` or `steps` are more than it had. restart: the added steps have a
    schedule of their own, warm-up included. stretch: from the newest checkpoint on, the rates are those of a run that
    had all steps from the beginning. constant: the last rate goes on. null: more steps are refused."""

    @model_validator(mode="before")
    @classmethod
    def _ratio_replaces_the_default(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("warmup_ratio") is not None:
            return {"warmup_steps": None, **values}
        return values

    def warmup(self, total_steps: int) -> int:
        """Steps of warm-up of a run of `total_steps`."""
        return self._whole(self.warmup_steps, self.warmup_ratio, total_steps)

    def decay(self, total_steps: int) -> int:
        """For wsd: steps of decay of a run of `total_steps`."""
        return self._whole(self.decay_steps, self.decay_ratio, total_steps)

    @staticmethod
    def _whole(steps: int | None, ratio: float | None, total_steps: int) -> int:
        return steps or 0 if ratio is None else math.ceil(total_steps * ratio)  # rounded as transformers does


def _not_zero(value: int) -> int:
    if value == 0:
        raise PydanticCustomError("mesh_size", "is not a mesh size")
    return value


MeshSize = Annotated[
    int,
    Field(ge=-1),
    AfterValidator(_not_zero),
    WithJsonSchema({"allowed": "a whole number >= 1, or -1 for all devices that the other axes leave"}),
]


class MeshSection(Section):
    """Devices on each mesh axis. At most one axis may be -1."""

    data: MeshSize = MeshShape.data
    """Replicas of the model, each with its own rows. With several slices, a multiple of their number."""
    fsdp: MeshSize = MeshShape.fsdp
    """Ways to split rows, and to shard parameters and their moments."""
    tensor: MeshSize = MeshShape.tensor
    """Ways to split heads, feed-forward layers and the vocabulary."""
    context: MeshSize = MeshShape.context
    """Ways to split the length of rows."""

    @property
    def shape(self) -> MeshShape:
        return MeshShape(**self.model_dump())


def _logical_axis(name: str) -> str:
    if name not in LOGICAL_AXES:
        raise PydanticCustomError("logical_axis", "is not a logical axis")
    return name


def _mesh_axes(value: Any) -> str | tuple[str, ...] | None:
    names = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(names, list | tuple) or not all(name in AXES for name in names):
        raise PydanticCustomError("mesh_axes", "not a mesh axis")
    if len(set(names)) < len(names):
        raise PydanticCustomError("mesh_axes", "an axis occurs twice")
    return tuple(value) if isinstance(value, list) else value


_MESH_AXES = {"allowed": f"a mesh axis ({', '.join(AXES)}), a list of them, or null for none"}

Sharding = Annotated[
    dict[Annotated[str, AfterValidator(_logical_axis)], Annotated[Any, PlainValidator(_mesh_axes)]],
    WithJsonSchema(
        {
            "type": "object",
            "properties": {
                axis: _MESH_AXES
                | {"default": axes[0] if len(axes) == 1 else list(axes) or None, "description": LOGICAL_AXES[axis]}
                for axis, axes in DEFAULT_RULES.items()
            },
            "additionalProperties": _MESH_AXES,  # a wrong value of an unknown axis has its words too
        }
    ),
]
"""Logical axis -> mesh axis, several of them, or None."""


class PrecisionSection(Section):
    """How activations are computed. Weights are float32, unless `compat.bfloat16_weights` is true."""

    compute: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of activations."""
    attention: Literal["auto", "splash", "cudnn", "triton", "reference"] = "auto"
    """auto: the first kernel that can run (splash on TPUs; cudnn, then triton on NVIDIA GPUs), plain JAX elsewhere.
    splash, cudnn, triton: this kernel, or an error where it cannot run. reference: plain JAX."""


class EvalSection(Section):
    """Evaluation on held-out examples."""

    every_steps: Count | None = None
    """Steps between evaluations; the last step is always evaluated. null: no evaluation at all."""
    at_start: bool = True
    """true: also evaluate before the first step, so that curves begin with the weights that the run starts from."""
    rows: Count | None = None
    """Rows in an evaluation batch. null: as many as in a microbatch of training."""
    stop_after: Count | None = None
    """End the run after this number of evaluations in a row that do not improve `stop_metric`. null: train to the
    end."""
    stop_metric: Literal["loss", "rewards/accuracies", "rewards/margins"] = "loss"
    """Held-out metric that `stop_after` and `checkpoint.keep_best` watch. The loss improves when it falls, the others
    when they rise."""
    stop_min_change: Annotated[float, Field(ge=0)] = 0.0
    """An improvement of at most this much does not count."""


class CheckpointSection(Section):
    """Checkpoints of the training state."""

    every_steps: Count | None = None
    """Steps between checkpoints, beside `every_minutes`. The last step is always saved, and the step at which SIGTERM,
    Ctrl-C or a notice of the machine ends a run."""
    every_minutes: Annotated[float, Field(gt=0)] | None = 10
    """Minutes after a checkpoint at which the next one is due. null: only `every_steps` decides."""
    keep: Count = 2
    """Number of newest checkpoints to keep."""
    keep_every_steps: Count | None = None
    """Also keep for ever the first checkpoint of every this many steps. null: none."""
    keep_best: Count | None = None
    """Also keep this number of checkpoints, the best by the held-out metric `eval.stop_metric`. Only those count that
    are evaluated at the step that they save. null: none."""
    on_error: Literal["stop", "continue"] = "stop"
    """After a save that failed, for example on a full disk. stop: end the run, with exit code 14. continue: say so and
    train on; the next save tries again, and `summary.json` counts `failed_saves`. A failed save of the last step, at a
    notice too, is made once more; if that fails as well, the run ends with exit code 14."""


class ExportSection(Section):
    """The Hugging Face directory that a finished run writes to `exports/STEP` in `run.dir`."""

    hf: bool = False
    """true: write it after the last step."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the exported weights. null: the type in which the run keeps them."""
    layout: Literal["transformers", "openrlhf"] = "transformers"
    """Library whose names a reward model's head and config.json use. openrlhf is for reward models only."""
    verify: Literal["logits", "digest", "none"] = "logits"
    """How to compare the export with the checkpoint before it appears. digest: every tensor. logits: every tensor,
    and, if `dtype` is not the type of the run, the logits of both models, which janus_jax computes."""
    max_shard_size: Annotated[str, StringConstraints(pattern=SIZE)] = Field(
        default="5GB", json_schema_extra={"allowed": "a size like 5GB or 500MB"}
    )
    """Largest size of one safetensors file."""


class LoggingSection(Section):
    """Metrics. `metrics.jsonl` in `run.dir` is always written."""

    every_steps: Count = 1
    """Steps between records of training metrics."""
    curves: bool = True
    """true: draw `curves.png` in `run.dir` when the run ends or stops."""
    tensorboard: bool = True
    """true: also write TensorBoard events to `tensorboard` in `run.dir`."""
    wandb: bool = False
    """true: also log to Weights & Biases; needs the `wandb` package."""


class ProfileSection(Section):
    """A profile of some steps, written to `profile` in `run.dir`."""

    steps: Annotated[
        Annotated[tuple[Count, Count], Field(strict=False)] | None,
        WithJsonSchema({"allowed": "[first, last] with 1 <= first <= last, or null"}),
    ] = None
    """First and last optimizer step to profile, counted from 1. null: no profile."""
