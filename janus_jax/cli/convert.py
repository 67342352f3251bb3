"""The commands of `janus convert`; `janus_jax/checkpoint/convert.py` does the work."""

import re
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from janus_jax.cli.arguments import SETTINGS, on_cpu
from janus_jax.cli.outputs import require_writable
from janus_jax.config.section import SIZE
from janus_jax.config.sections import ExportSection
from janus_jax.errors import ConfigError

if TYPE_CHECKING:
    from janus_jax.checkpoint.digest import TensorDifference

app = typer.Typer(
    help="Convert models between Hugging Face directories and Orbax checkpoints, and compare them.",
    callback=on_cpu,
    **SETTINGS,
)

_DEFAULTS = ExportSection()
_MAX_LISTED = 20
"""Tensors that `convert check` lists, the most different first, of those that no rounding to bfloat16 explains."""

_Verification = Annotated[
    Literal["logits", "digest", "none"],
    typer.Option(
        help="digest: read the result again and compare every tensor. logits: after a change of type (to-hf "
        "--dtype), also run source and result, both with janus_jax, and compare their outputs. none: no check."
    ),
]


@app.command("from-hf", epilog="Example: janus convert from-hf models/Mistral-7B-v0.2 converted/mistral-7b")
def convert_from_hf(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="Mistral or Llama model: a Hugging Face directory (local or gs://) or a hub id."
        ),
    ],
    target: Annotated[str, typer.Argument(metavar="DST", help="Directory or gs:// URL to write; new or empty.")],
    verify: _Verification = _DEFAULTS.verify,
) -> None:
    """Convert a Hugging Face model for init.from. On a slice, each host then reads only the parts that it needs."""
    require_writable("DST", target, empty=True, buckets=True)
    from janus_jax.checkpoint.convert import from_hf

    print(f"{target}: {from_hf(source, target, verify=verify)}")


@app.command("to-hf", epilog="Example: janus convert to-hf runs/sft_65k exports/sft --dtype bfloat16")
def convert_to_hf(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A run, a step of a run, or any other stored model; local or gs://.")
    ],
    target: Annotated[str, typer.Argument(metavar="DST", help="Directory or gs:// URL to write; new or empty.")],
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None, typer.Option(help="Type of the tensors. Default: as stored.")
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option(help="Upper limit for one safetensors file, like 5GB or 500MB.")
    ] = _DEFAULTS.max_shard_size,
    step: Annotated[int | None, typer.Option(min=0, help="Step of the run. Default: the newest.")] = None,
    verify: _Verification = _DEFAULTS.verify,
    layout: Annotated[
        Literal["transformers", "openrlhf"],
        typer.Option(help="For reward models: library that loads the export. Decides the head's name and config.json."),
    ] = _DEFAULTS.layout,
) -> None:
    """Export a model as a Hugging Face directory: config, safetensors, tokenizer, model card."""
    if not re.fullmatch(SIZE, max_shard_size):
        raise ConfigError(f"--max-shard-size {max_shard_size}: allowed: a size like 5GB or 500MB")
    require_writable("DST", target, empty=True, buckets=True)
    from janus_jax.checkpoint.convert import to_hf

    report = to_hf(source, target, dtype=dtype, max_shard_size=max_shard_size, step=step, verify=verify, layout=layout)
    print(f"{target}: {report}")


@app.command("check", epilog="Example: janus convert check models/Mistral-7B-v0.2 converted/mistral-7b")
def convert_check(
    a: Annotated[
        str, typer.Argument(metavar="A", help="A run, a step, a converted or Hugging Face directory, or hub id.")
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="The model to compare it with, in any of these forms.")],
) -> None:
    """Compare two models tensor by tensor. Exits with 2 if they are not equal bit for bit."""
    from janus_jax.checkpoint.convert import check
    from janus_jax.errors import ConversionError, counted

    if not (differences := check(a, b)):
        print(f"{a} and {b}: the same model, bit for bit")
        return
    worse = sorted((one for one in differences if not one.steps <= 0.5), key=lambda one: -one.relative)
    print(_in_words(differences, len(worse)))
    for difference in worse[:_MAX_LISTED]:
        print(difference)
    if len(worse) > _MAX_LISTED:
        print(f"... and {len(worse) - _MAX_LISTED} that differ less")
    raise ConversionError(
        f"{a} and {b}: {counted(len(differences), 'tensor')} {'differs' if len(differences) == 1 else 'differ'}"
    )


def _in_words(differences: "list[TensorDifference]", worse: int) -> str:
    """How many tensors differ, and how much."""
    from janus_jax.errors import counted

    tensors, half = counted(len(differences), "different tensor"), "half a step of bfloat16"
    if worse:
        return f"{worse:,} of {tensors}: more than {half} apart"
    worst = max(differences, key=lambda one: one.steps)
    if not worst.steps:
        return f"{tensors}: equal values; only dtypes or signs of zeros differ, as in {worst}"
    return f"{tensors}: all at most {half} apart, as after rounding to it; the worst: {worst}"
