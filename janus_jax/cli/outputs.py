"""Outputs that cannot be written, refused before any work is done for them; lines of notes and progress."""

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from janus_jax.errors import ConfigError

if TYPE_CHECKING:
    from janus_jax.evaluation.result_table import Table

JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the table here.")]
CsvFile = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Also write the table here.")]
PlotFile = Annotated[Path | None, typer.Option("--plot", metavar="FILE.svg", help="Also draw it here.")]


def require_writable(name: str, path: str | os.PathLike[str], *, empty: bool = False, buckets: bool = False) -> None:
    """Refuses an output directory that cannot be written.

    Args:
        name: of the option or key, for the message.
        empty: also refuse one that holds something.
        buckets: allow gs:// URLs, of which only `empty` is checked.
    """
    from janus_jax.storage import local, staging
    from janus_jax.storage.bucket import is_url

    text = os.fspath(path)
    if not text.strip():
        raise ConfigError(f"{name}: is empty; allowed: a directory")
    if buckets and is_url(text):
        reason = None if text.startswith("gs://") else "allowed: a local or mounted directory, or gs://BUCKET/PATH"
    else:
        reason = local.unwritable(text)
    if reason is None and empty:
        reason = staging.occupied(text)
    if reason is not None:
        raise ConfigError(f"{name} {path}: {reason}")


def require_file(name: str, path: Path) -> None:
    """Refuses an output file that cannot be written; an existing file is replaced."""
    from janus_jax.storage.local import unusable, unwritable

    if url := re.match(r"(\w[\w+.-]*):/(.*)", os.fspath(path)):  # Path has taken one slash of it
        raise ConfigError(f"{name} {url[1]}://{url[2]}: is a URL; allowed: a file of this machine")
    if os.fspath(path) == "-":
        raise ConfigError(f"{name} -: names no file; allowed: a file of this machine")
    if reason := unusable(path):
        raise ConfigError(f"{name} {path}: {reason}")
    if path.is_dir():
        raise ConfigError(f"{name} {path}: is a directory")
    if not path.parent.is_dir():
        raise ConfigError(f"{name} {path}: {path.parent} is not a directory")
    if reason := unwritable(path.parent):
        raise ConfigError(f"{name} {path}: {reason}")


def require_new_file(name: str, path: Path) -> None:
    """Refuses an output file that cannot be written, or that exists."""
    require_file(name, path)
    if path.exists():
        raise ConfigError(f"{name} {path}: exists; remove it, or choose another name")


def require_table_files(
    json: Path | None, csv: Path | None, plot: Path | None = None, *, inputs: Iterable[str | os.PathLike[str] | None]
) -> None:
    """Refuses files of --json, --csv and --plot that cannot be written, are one file, or are one of the inputs.

    Args:
        inputs: what the command reads, as it was given: FILE or NAME=FILE. None is nothing.
    """
    given = {name: path for name, path in (("--json", json), ("--csv", csv), ("--plot", plot)) if path is not None}
    for name, path in given.items():
        require_file(name, path)
    if len({path.resolve() for path in given.values()}) < len(given):
        raise ConfigError(f"{' and '.join(given)}: name the same file")
    texts = [os.fspath(one) for one in inputs if one is not None]
    read = {os.path.realpath(os.path.expanduser(part)) for text in texts for part in (text, text.partition("=")[2])}
    for name, path in given.items():
        if os.path.realpath(path) in read and path.exists():
            raise ConfigError(f"{name} {path}: is a file that this command reads; choose another name")
    if plot is not None and plot.suffix != ".svg":
        raise ConfigError(f"--plot {plot}: allowed: a file that ends with .svg")


def show_table(table: "Table", json: Path | None, csv: Path | None, more: dict[str, Any] | None = None) -> None:
    """Writes the files that were asked for, then prints the table. `more`: what the JSON has beside it."""
    from janus_jax.storage import local

    if json is not None:
        local.write_json(json, {**table.as_json(), **(more or {})})
    if csv is not None:
        local.write_whole(csv, table.as_csv())
    print(*table.lines(), sep="\n", flush=True)


def tell(line: str) -> None:
    """Prints a note or progress to stderr, in process 0. Call it after processes are started."""
    from janus_jax.parallel import processes

    if "jax" not in sys.modules or processes.is_main():  # which would load it, for a second, where one process is all
        print(line, file=sys.stderr, flush=True)
