"""The options of `janus score`. `janus_jax/generation/` does the work."""

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from janus_jax.cli import arguments
from janus_jax.cli.outputs import require_file
from janus_jax.errors import ConfigError

EPILOG = "Example: janus score runs/rm --responses answers.jsonl --out scored.jsonl"


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
    coordinator: arguments.Coordinator = None,
    num_processes: arguments.NumProcesses = None,
    process_id: arguments.ProcessId = None,
    devices: arguments.Devices = None,
) -> None:
    """Score every response of a file with MODEL: rewards of a reward model, log-probs under a language model.

    Stopped and started again with the same options, it goes on where it was. On several hosts, run the same command on
    each; process 0 reads the responses and writes.
    """
    place = arguments.runtime_options(coordinator, num_processes, process_id, devices)
    from janus_jax.parallel import processes, supervisor
    from janus_jax.parallel.same_everywhere import require_same

    processes.supervise(place)
    processes.start(place)
    from janus_jax.checkpoint.stored_model import open_model
    from janus_jax.generation import scores
    from janus_jax.generation.answers import Journal, finish
    from janus_jax.generation.opened import facts
    from janus_jax.generation.response_file import read_responses
    from janus_jax.training.same_inputs import require_same_weights

    is_main, journal, unscored = processes.is_main(), None, Counter()
    with processes.agreement("score"):
        if is_main:
            require_file("--out", out)
            arguments.require_pipe("--responses", responses)
        stored = open_model(model, step)
        scorer = scores.scorer(stored, template)
        key = scorer.key if key is None else key
        if not key.strip():
            raise ConfigError("--key: is empty; allowed: a name")
        rows = read_responses(responses, key=key, system=system, unscored=unscored) if is_main else []
        pairs = [scorer.pairs(row) for row in rows]
        if is_main:
            contents = map(json.dumps, zip((row.raw for row in rows), pairs, strict=True))
            digests = [hashlib.sha256(content.encode()).hexdigest() for content in contents]  # all at once may be GiBs
            asked = [str(stored.path), stored.step, key, digests]
            journal = Journal(out, asked, holds="scores of other rows or of other options")
    require_same("options or models", {"--key": key, **facts(stored, scorer.written)})
    require_same_weights({"MODEL": stored})
    pairs = processes.broadcast_large("pairs", pairs)

    def tell(line: str) -> None:
        if is_main:
            print(line, file=sys.stderr, flush=True)

    tell(f"note: {key!r} holds {scorer.kind} ({stored.path})")
    for column, count in unscored.items():
        tell(f"note: {column!r} of {count:,} rows is not scored, because they have other responses; it is kept")

    def record(number: int, own: list[Any]) -> dict[str, Any]:
        return rows[number].with_scores(own, key)

    arguments.interruptibly(lambda: scores.score(scorer, pairs, journal, record, tell=tell))
    finish(journal)
    if is_main:
        print(f"wrote {out}", flush=True)
    supervisor.last_words(0, "")
