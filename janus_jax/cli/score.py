"""The options of `janus score`. `janus_jax/generation/` does the work."""

from pathlib import Path
from typing import Annotated

import typer

from janus_jax.cli import arguments
from janus_jax.cli.option_groups import grouped
from janus_jax.cli.outputs import require_file, tell

EPILOG = "Example: janus score runs/rm --responses answers.jsonl --out scored.jsonl"


@grouped()
def score(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A reward model or a language model: a run, a step, a converted or Hugging Face directory, or a hub "
            "id; gs:// too.",
        ),
    ],
    responses: Annotated[
        str,
        typer.Option(
            metavar="FILE|-",
            help="JSONL or JSON rows with prompt (and system) or messages, and with answers (as janus generate writes "
            "them), responses, response, output, or chosen and rejected. -: stdin.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="JSONL file to write: the rows, with their scores.")],
    key: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where scores stand. Default: reward, or log_prob.")
    ] = None,
    system: arguments.DefaultSystem = "",
    step: arguments.Step = None,
    template: Annotated[
        str | None, typer.Option(help="mistral-inst, chatml or plain, for a model whose files name no template.")
    ] = None,
    *,
    place: arguments.Place,
) -> None:
    """Score every response of a file with MODEL: rewards of a reward model, log-probs under a language model.

    Stopped and started again with the same options, it goes on where it was. On several hosts, run the same command on
    each; process 0 reads the responses and writes.
    """
    from janus_jax.parallel import processes, supervisor

    place.start()
    from janus_jax.generation.score_file import ScoreFile

    with processes.agreement("files"):
        if processes.is_main():
            arguments.require_pipe("--responses", responses)
            require_file("--out", out)
    scores = ScoreFile(model, responses, out, key=key, step=step, template=template, system=system, tell=tell)
    arguments.interruptibly(scores.write)
    if processes.is_main():
        print(f"wrote {out}", flush=True)
    supervisor.last_words(0, "")
