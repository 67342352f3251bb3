"""The options of `janus report`; `janus_jax/evaluation/report/` does the work."""

from pathlib import Path
from typing import Annotated

import typer

from janus_jax.cli.outputs import require_file, tell
from janus_jax.errors import ConfigError

EPILOG = "Example: janus report runs/sft runs/dpo table.json --out report.html"


def report(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]PATH...",
            help="Run directories or gs:// URLs, directories of janus bench judge or compare, JSON tables of "
            "evaluations, files of answers; in any mix. NAME: what the page calls it.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Page to write. An existing file is replaced.")] = Path(
        "report.html"
    ),
    title: Annotated[str | None, typer.Option(help="Title of the page. Default: the names of what it shows.")] = None,
) -> None:
    """Write one self-contained HTML page about runs, evaluations and answers, from their files alone."""
    require_file("--out", out)
    if out.suffix not in (".html", ".htm"):
        raise ConfigError(f"--out {out}: allowed: a name that ends in .html")
    from janus_jax.evaluation.report.inputs import read
    from janus_jax.evaluation.report.page import made_from, page
    from janus_jax.storage.local import write_whole

    given = read(inputs)
    names = [one.label for one in (*given.runs, *given.results)] + [label for label, _, _ in given.files]
    named = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if names[4:] else "")
    write_whole(out, page(given, title or f"Report: {named}", out))
    for run in given.runs:
        for line in run.missing:
            tell(f"note: {run.label}: {line}")
    print(f"{out}: {made_from(given)}", flush=True)
