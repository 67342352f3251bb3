"""`janus convert`: its commands; the work is in `janus_jax/checkpoint/convert.py`."""

import re
from typing import Annotated, Literal

import typer

from janus_jax.cli.outputs import require_writable
from janus_jax.config.section import SIZE
from janus_jax.errors import ConfigError

app = typer.Typer(
    help="Convert between Hugging Face directories and this project's checkpoints.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_SHOWN = 20
"""Tensors that `convert check` lists, the most different first."""

_Verification = Annotated[
    Literal["logits", "digest", "none"],
    typer.Option(help="digest: read the result again and compare every tensor; logits: also run both models."),
]


@app.command("from-hf", epilog="Example: janus convert from-hf models/Mistral-7B-v0.2 converted/mistral-7b")
def convert_from_hf(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="Hugging Face directory (gs:// too) or id of a Mistral or Llama.")
    ],
    target: Annotated[str, typer.Argument(metavar="DST", help="Directory or gs:// URL to write; new or empty.")],
    verify: _Verification = "logits",
) -> None:
    """Write the weights of a Hugging Face directory as a checkpoint that init.from takes."""
    require_writable("DST", target, empty=True, buckets=True)
    from janus_jax.checkpoint.convert import from_hf

    print(f"{target}: {from_hf(source, target, verify=verify)}")


@app.command("to-hf", epilog="Example: janus convert to-hf runs/sft_65k exports/sft --dtype bfloat16")
def convert_to_hf(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A run, a step of it, or another directory with a model; gs:// too.")
    ],
    target: Annotated[str, typer.Argument(metavar="DST", help="Directory or gs:// URL to write; new or empty.")],
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None, typer.Option(help="Type of the tensors; without it as stored.")
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest safetensors file, like 5GB or 500MB.")] = "5GB",
    step: Annotated[int | None, typer.Option(min=0, help="Step of the run; without it the last.")] = None,
    verify: _Verification = "logits",
    layout: Annotated[
        Literal["transformers", "openrlhf"],
        typer.Option(help="Who reads a reward model: score.weight for transformers, or value_head.weight."),
    ] = "transformers",
) -> None:
    """Export a checkpoint as a Hugging Face directory: config, sharded safetensors, tokenizer."""
    if not re.fullmatch(SIZE, max_shard_size):
        raise ConfigError(f"--max-shard-size {max_shard_size}: allowed: a size like 5GB or 500MB")
    require_writable("DST", target, empty=True, buckets=True)
    from janus_jax.checkpoint.convert import to_hf

    report = to_hf(source, target, dtype=dtype, max_shard_size=max_shard_size, step=step, verify=verify, layout=layout)
    print(f"{target}: {report}")


@app.command("check", epilog="Example: janus convert check models/Mistral-7B-v0.2 converted/mistral-7b")
def convert_check(
    a: Annotated[str, typer.Argument(metavar="A", help="Anything that holds a model.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The same model, in any layout.")],
) -> None:
    """Compare two models tensor by tensor. Exits with 2 if they are not bit for bit the same."""
    from janus_jax.checkpoint.convert import check
    from janus_jax.errors import ConversionError

    if not (differences := check(a, b)):
        print(f"{a} and {b}: the same model, bit for bit")
        return
    for found in sorted(differences, key=lambda found: -found.relative)[:_SHOWN]:
        print(found)
    if len(differences) > _SHOWN:
        print(f"... and {len(differences) - _SHOWN} that differ less")
    raise ConversionError(f"{a} and {b}: {len(differences)} tensors differ")
