"""The commands of `janus data`; `janus_jax/data/build/` and `janus_jax/data/inspect/` do the work."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import typer

from janus_jax.cli import inspect, synthesize
from janus_jax.cli.arguments import SETTINGS, BeamOptions, on_cpu
from janus_jax.cli.outputs import require_writable
from janus_jax.errors import ConfigError, counted

app = typer.Typer(
    help="Build data sets from JSONL, JSON, Parquet or Arrow records, and inspect them.", callback=on_cpu, **SETTINGS
)


@app.command(
    "build",
    epilog="Example: janus data build --kind dpo --source pairs.jsonl --validation-source held.jsonl --out data/dpo",
)
def data_build(
    source: Annotated[
        str,
        typer.Option(
            help="JSONL, JSON, Parquet or Arrow file (JSONL and JSON also with .gz or .zst), a directory of them, a "
            "gs:// URL of either, or a hub id. Names say the splits; SPLIT=PATH overrules the name of a file."
        ),
    ],
    out: Annotated[str, typer.Option(help="Directory or gs:// URL to write; new or empty.")],
    kind: Annotated[
        Literal["sft", "dpo", "orpo", "rm"] | None,
        typer.Option(help="Kind of data to build. It decides which columns are read."),
    ] = None,
    derive: Annotated[
        Literal["dpo", "orpo", "rm"] | None,
        typer.Option(help="Instead of --kind: draw pairs of this kind from records of kind sft."),
    ] = None,
    all_pairs: Annotated[
        bool, typer.Option("--all-pairs", help="With --derive: make every ordered pair, not one per instruction.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, help="With --derive or --validation-fraction: seed of the draw. Default: 0.")
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
    bos: Annotated[
        bool,
        typer.Option("--bos/--no-bos", help="Begin prompts with BOS, or without it. compat.bos must say the same."),
    ] = True,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Drop bad records instead of stopping; count them and name the first.")
    ] = False,
    validation_source: Annotated[
        str | None, typer.Option(help="Source of the split 'validation'. --source then gives only the split 'train'.")
    ] = None,
    validation_fraction: Annotated[
        float | None,
        typer.Option(help="Share of the prompts of split 'train', above 0 and below 1, to move to split 'validation'."),
    ] = None,
    min_margin: Annotated[
        float | None,
        typer.Option(
            min=0, help="Drop and count pairs whose responses are rated less than this apart. Needs columns of ratings."
        ),
    ] = None,
    margin_from_ratings: Annotated[
        bool,
        typer.Option("--margin-from-ratings", help="The margin of a pair without one is how far its ratings differ."),
    ] = False,
    dedupe: Annotated[
        bool, typer.Option("--dedupe", help="Drop and count records that repeat another of their split.")
    ] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes that tokenize. Default: 1, or one per core for large sources.")
    ] = None,
    runner: Annotated[
        str | None,
        typer.Option(
            help="Build on Apache Beam: direct (this machine), dataflow, flink, spark, or a runner's name. Needs the "
            "extra beam. Default: build without Beam."
        ),
    ] = None,
    beam_option: BeamOptions = None,
) -> None:
    """Check records, apply the prompt template, tokenize, and write a data set for training."""
    built_kind = kind or derive
    if built_kind is None or (kind and derive):
        raise ConfigError("--kind, --derive: allowed: exactly one of them")
    if derive is None and all_pairs:
        raise ConfigError("--all-pairs: allowed: only with --derive")
    if derive is None and validation_fraction is None and seed is not None:
        raise ConfigError("--seed: allowed: only with --derive or --validation-fraction")
    if (min_margin is not None or margin_from_ratings) and kind in (None, "sft"):
        raise ConfigError("--min-margin, --margin-from-ratings: allowed: only with --kind dpo, orpo or rm")
    if validation_fraction is not None and validation_source is not None:
        raise ConfigError("--validation-fraction, --validation-source: allowed: at most one of them")
    if validation_fraction is not None and not 0 < validation_fraction < 1:
        raise ConfigError(f"--validation-fraction {validation_fraction:g}: allowed: more than 0 and less than 1")
    if beam_option and runner is None:
        raise ConfigError("--beam-option: allowed: only with --runner")
    require_writable("--out", out, empty=True, buckets=True)
    from janus_jax.data.build.beam.runner import Runner
    from janus_jax.data.build.derive import Derivation
    from janus_jax.data.build.pipeline import build
    from janus_jax.data.build.ratings import Ratings
    from janus_jax.data.build.sources import named_sources

    for name, value in (("--source", source), ("--validation-source", validation_source), ("--tokenizer", tokenizer)):
        if value is not None and not value.strip():
            raise ConfigError(f"{name}: is empty; allowed: a path")
    with _progress() as progress:
        manifest = build(
            named_sources(source, validation_source),
            out,
            kind=built_kind,
            tokenizer=tokenizer,
            template=template,
            boundary=boundary,
            bos=bos,
            skip_bad=skip_bad,
            processes=processes,
            derive=Derivation(seed or 0, all_pairs) if derive else None,
            ratings=Ratings(min_margin, margin_from_ratings),
            dedupe=dedupe,
            validation_fraction=validation_fraction,
            validation_seed=0 if validation_fraction is None else seed or 0,
            runner=None if runner is None else Runner(runner, tuple(beam_option or ())),
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
        f"fingerprint {plain['fingerprint'][:16]}   template {plain['template']}   boundary {plain['boundary']}"
        f"{'' if plain['bos'] else '   no BOS'}",
        highlight=False,
    )
    for line in served_lines(plain["served"] or {}):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for line in _left_out(manifest):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _left_out(manifest: Any) -> Iterator[str]:
    """Lines about what was not read, and about records that may be mistakes."""
    from janus_jax.data.build.sources import OVERRULE, listed
    from janus_jax.data.notes import said_of
    from janus_jax.data.tally import located, reasons

    if "train" not in manifest.splits:
        yield f"no split train: names in {manifest.source} say {', '.join(manifest.splits)}; to train on it, {OVERRULE}"
    if manifest.unread_files:
        yield f"files not read: {listed(manifest.unread_files)}"
    for name, sets in (manifest.file_sets or {}).items():
        what = f"joins {counted(len(sets), 'set')} of files: {', '.join(sets)}"
        yield f"note: split {name} {what}; if they repeat each other, move one set into a folder of its own"
    unread: Counter[str] = Counter()
    first: dict[str, str] = {}
    for name, split in manifest.splits.items():
        unread.update(split.unread or {})
        places = split.places or {}
        first = {column: where[0] for column, where in places.get("unread", {}).items()} | first
        if dropped := places.get("dropped"):
            yield f"dropped from split {name}: {reasons(split.dropped, dropped)}"
    by_count: dict[tuple[int, str], list[str]] = {}
    every = sum(split.examples for split in manifest.splits.values())
    for name, count in sorted(unread.items()):
        where = f", from {first[name]} on" if name in first and count < every else ""
        by_count.setdefault((count, where), []).append(f"`{name if name.isprintable() else ascii(name)}`")
    columns = []
    for (count, where), names in sorted(by_count.items(), reverse=True):
        more = f" and {len(names) - 20:,} more" if len(names) > 20 else ""
        columns.append(f"{', '.join(names[:20])}{more} ({counted(count, 'record')}{where})")
    if columns:
        yield f"columns not read: {', '.join(columns)}"
    for name, split in manifest.splits.items():
        for note, count in (split.notes or {}).items():
            where = located(count, (split.places or {}).get("notes", {}).get(note, ()))
            of_split = f"{count:,} of {counted(split.examples, 'record')} of split {name}{where}"
            yield f"note: {of_split} {said_of(note, count)}"


app.command("inspect", epilog=inspect.EPILOG)(inspect.data_inspect)
app.command("synthesize", epilog=synthesize.EPILOG)(synthesize.data_synthesize)
