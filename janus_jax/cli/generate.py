"""The options of `janus generate`. `janus_jax/generation/` does the work."""

import dataclasses
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import typer

from janus_jax.cli import arguments
from janus_jax.cli.outputs import require_file
from janus_jax.errors import ConfigError, named

EPILOG = "Example: janus generate runs/sft --prompts questions.jsonl --out answers.jsonl --temperature 0.7 --top-p 0.9"


def generate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A run, a step, a converted or Hugging Face directory, or a hub id; gs:// too."
        ),
    ],
    prompts: Annotated[
        str,
        typer.Option(
            metavar="FILE|-",
            help="Rows with prompt (and system), or messages: .jsonl, .json; or one prompt a line: .txt. -: stdin.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="JSONL file to write, in the order of the prompts.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Answers to each prompt.")] = 1,
    system: Annotated[str, typer.Option(metavar="TEXT", help="System message of rows that have none.")] = "",
    step: Annotated[int | None, typer.Option(min=0, help="Step of a run. Default: the newest.")] = None,
    template: Annotated[
        str | None, typer.Option(help="mistral-inst, chatml or plain, for a model whose files name no template.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 1024,
    min_new_tokens: Annotated[int, typer.Option(help="Tokens before which no answer ends.")] = 0,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Text that ends an answer; may be repeated.", show_default=False),
    ] = None,
    temperature: Annotated[float, typer.Option(help="0: always the most probable token.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Only so many of the most probable tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Only the most probable tokens with this share together.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Only tokens at least this probable, relative to the best one.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: tokens that have come are less likely.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the random numbers.")] = 0,
    log_probs: Annotated[bool, typer.Option("--log-probs", help="Also write ids and log-probs of tokens.")] = False,
    rows: Annotated[int, typer.Option(min=1, help="Answers that grow at the same time.")] = 32,
    cache_dtype: Annotated[
        Literal["bfloat16", "float32", "int8"] | None,
        typer.Option(help="Of the keys and values of earlier tokens. Default: bfloat16, on CPUs float32."),
    ] = None,
    coordinator: arguments.Coordinator = None,
    num_processes: arguments.NumProcesses = None,
    process_id: arguments.ProcessId = None,
    devices: arguments.Devices = None,
) -> None:
    """Answer every prompt of a file with MODEL.

    Stopped and started again with the same options, it goes on where it was. On several hosts, run the same command on
    each; process 0 reads the prompts and writes.
    """
    from janus_jax.generation.sampling import SamplingOptions
    from janus_jax.generation.stopping import StoppingOptions

    sampling = SamplingOptions(temperature, top_k, top_p, min_p, repetition_penalty)
    stopping = StoppingOptions(max_new_tokens, min_new_tokens, tuple(stop or ()))
    place = arguments.runtime_options(coordinator, num_processes, process_id, devices)
    from janus_jax.parallel import processes, supervisor
    from janus_jax.parallel.same_everywhere import require_same

    processes.supervise(place)
    processes.start(place)
    from janus_jax.checkpoint.stored_model import open_model
    from janus_jax.generation.answers import Journal, answer
    from janus_jax.generation.engine import require_language_model
    from janus_jax.generation.prompt_file import read_prompts
    from janus_jax.generation.prompts import prompt_format
    from janus_jax.generation.requests import Request, check
    from janus_jax.training.same_inputs import require_same_weights

    is_main, journal, unread = processes.is_main(), None, Counter()
    with processes.agreement("generate"):
        if is_main:
            require_file("--out", out)
            if prompts == "-" and supervisor.is_parented() and sys.stdin.isatty():
                raise ConfigError(
                    "--prompts -: where there may be several processes, none can read the terminal; "
                    "send prompts through a pipe, or name a file"
                )
        records = read_prompts(prompts, system=system, unread=unread) if is_main else []
        stored = open_model(model, step)
        require_language_model(stored.config, stored.path)
        written = prompt_format(stored, template)

        def ask(number: int, ids: list[int]) -> Request:
            return Request(ids, n, stopping, sampling, seed, name=number)

        requests = []
        for number, record in enumerate(records):
            with named(record.place):
                ids = written.encode(record.messages)
            requests.append(ask(number, ids))
            check(stored.config, record.place, requests[-1])
        options = {"sampling": dataclasses.asdict(sampling), "stopping": dataclasses.asdict(stopping)}
        if is_main:
            asked = [
                str(stored.path),
                stored.step,
                n,
                seed,
                log_probs,
                cache_dtype,
                options,
                [list(one.ids) for one in requests],
            ]
            journal = Journal(out, asked)
    same = {
        "--n": n,
        "--seed": seed,
        "--rows": rows,
        "--cache-dtype": cache_dtype,
        **options["sampling"],
        **options["stopping"],
    }
    # Copies of a model may have other paths.
    same |= {"step": stored.step, "tokenizer": written.tokenizer.fingerprint[:16], "end tokens": written.stop_ids}
    same |= {f"model.{key}": str(value) for key, value in dataclasses.asdict(stored.config).items()}
    require_same("options or models", same)
    require_same_weights({"MODEL": stored})
    of_all = processes.broadcast_large("prompts", [list(one.ids) for one in requests])
    requests = [ask(number, ids) for number, ids in enumerate(of_all)]

    def tell(line: str) -> None:
        if is_main:
            print(line, file=sys.stderr, flush=True)

    for column, count in unread.items():
        tell(f"note: {column!r} of {count:,} rows is no part of the prompt; it is kept beside the answer")
    unlike = {key: value for key, value in stored.facts.generation.items() if key in options["sampling"]}
    if unlike:
        named_settings = ", ".join(f"{key}={value}" for key, value in unlike.items())
        tell(f"note: the model's generation_config.json names {named_settings}; only the options count here")
    from janus_jax.generation import memory
    from janus_jax.generation.opened import open_engine

    rows = min(rows, n * len(requests))
    with processes.agreement("memory"):
        memory.require_for(stored.config, requests, rows, f"--rows {rows}", cache_dtype=cache_dtype)
    engine, _ = open_engine(stored, template=template, rows=rows, cache_dtype=cache_dtype)
    for note in engine.notes:
        tell(f"note: {note}")
    arguments.interruptibly(lambda: answer(engine, records, requests, journal, log_probs=log_probs, tell=tell))
    if is_main:
        print(f"wrote {out}", flush=True)
    supervisor.last_words(0, "")
