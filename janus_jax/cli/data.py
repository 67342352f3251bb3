"""The commands of `janus data`; `janus_jax/data/build/` and `janus_jax/data/inspect/` do the work."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import typer

from janus_jax.cli import inspect
from janus_jax.cli.arguments import SETTINGS
from janus_jax.cli.outputs import require_writable
from janus_jax.errors import ConfigError

app = typer.Typer(help="Build data sets from JSONL, JSON or Parquet records, and inspect them.", **SETTINGS)


@app.command(
    "build",
    epilog="Example: janus data build --kind dpo --source pairs.jsonl --validation-source held.jsonl --out data/dpo",
)
def data_build(
    source: Annotated[
        str, typer.Option(help="JSONL, JSON or Parquet file, a directory of them, a gs:// URL of either, or a hub id.")
    ],
    out: Annotated[str, typer.Option(help="Directory or gs:// URL to write; new or empty.")],
    kind: Annotated[
        Literal["sft", "dpo", "orpo", "rm"] | None,
        typer.Option(help="Kind of data to build. It decides which columns are read."),
    ] = None,
    derive: Annotated[
        Literal["dpo", "orpo", "rm"] | None,
        typer.Option(help="Instead of --kind: draw pairs of this kind from SFT records."),
    ] = None,
    all_pairs: Annotated[
        bool, typer.Option("--all-pairs", help="With --derive: make every ordered pair, not one per instruction.")
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="With --derive: seed of the draw. Default: 0. Has no effect with --all-pairs."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Directory with tokenizer.model or tokenizer.json. Default: Mistral, 32k ids.")
    ] = None,
    template: Annotated[str, typer.Option(help="Prompt template: mistral-inst, chatml or plain.")] = "mistral-inst",
    boundary: Annotated[
        Literal["separate", "joint"],
        typer.Option(
            help="Tokenize prompt and response separately, or as one text. compat.token_boundary must say the same."
        ),
    ] = "separate",
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Drop and count bad records instead of stopping.")
    ] = False,
    validation_source: Annotated[
        str | None, typer.Option(help="Source of the split 'validation'. --source then gives only the split 'train'.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes that tokenize. Default: 1, or one per core for large sources.")
    ] = None,
) -> None:
    """Check records, apply the prompt template, tokenize, and write a data set for training."""
    built_kind = kind or derive
    if built_kind is None or (kind and derive):
        raise ConfigError("--kind, --derive: allowed: exactly one of them")
    if derive is None and (all_pairs or seed is not None):
        raise ConfigError(f"{'--all-pairs' if all_pairs else '--seed'}: allowed: only with --derive")
    require_writable("--out", out, empty=True, buckets=True)
    from janus_jax.data.build.derive import Derivation
    from janus_jax.data.build.pipeline import build

    for name, value in (("--source", source), ("--validation-source", validation_source), ("--tokenizer", tokenizer)):
        if value is not None and not value.strip():
            raise ConfigError(f"{name}: is empty; allowed: a path")
    sources = source if validation_source is None else {"train": source, "validation": validation_source}
    with _progress() as progress:
        manifest = build(
            sources,
            out,
            kind=built_kind,
            tokenizer=tokenizer,
            template=template,
            boundary=boundary,
            skip_bad=skip_bad,
            processes=processes,
            derive=Derivation(seed or 0, all_pairs) if derive else None,
            progress=progress,
        )
    _print_manifest(manifest, out)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, str, int, int | None], None]]:
    """Yields a callback for (split, phase, records done, total records); shows bars if stderr is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[tuple[str, str], Any] = {}

        def show(split: str, phase: str, done: int, total: int | None) -> None:
            if (split, phase) not in tasks:
                tasks[split, phase] = bars.add_task(f"{phase} {split}", total=total)
            bars.update(tasks[split, phase], completed=done, total=total)

        yield show


def _print_manifest(manifest: Any, out: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from janus_jax.text.served import served_lines

    plain = dataclasses.asdict(manifest)
    title = Text(f"{plain['kind']} data in {out}")  # no markup: a path may hold brackets
    table = Table("split", "examples", "tokens", "dropped", title=title, title_justify="left")
    for name, split in plain["splits"].items():
        dropped = ", ".join(f"{count} {reason}" for reason, count in split["dropped"].items()) or "none"
        table.add_row(name, f"{split['examples']:,}", f"{split['tokens']:,}", dropped)
    console = Console()
    console.print(table)
    console.print(
        f"fingerprint {plain['fingerprint'][:16]}   template {plain['template']}   boundary {plain['boundary']}",
        highlight=False,
    )
    for line in served_lines(plain["served"] or {}):
        console.print(line, highlight=False, markup=False)


app.command("inspect", epilog=inspect.EPILOG)(inspect.data_inspect)
