"""The options of `janus generate`. `janus_jax/generation/` does the work."""

import dataclasses
import functools
import gc
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from janus_jax.cli import arguments
from janus_jax.cli.outputs import require_file
from janus_jax.errors import ConfigError, named

EPILOG = "Example: janus generate runs/sft --prompts questions.jsonl --out answers.jsonl --temperature 0.7 --top-p 0.9"


def generate(
    model: arguments.Model,
    prompts: Annotated[
        str,
        typer.Option(
            metavar="FILE|-",
            help="Rows with prompt (and system), or messages: .jsonl, .json; or one prompt a line: .txt. -: stdin.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="JSONL file to write, in the order of the prompts.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Answers to each prompt.")] = 1,
    system: arguments.DefaultSystem = "",
    step: arguments.Step = None,
    template: arguments.Template = None,
    max_new_tokens: arguments.MaxNewTokens = 1024,
    min_new_tokens: arguments.MinNewTokens = 0,
    stop: arguments.Stop = None,
    temperature: arguments.Temperature = 1.0,
    top_k: arguments.TopK = 0,
    top_p: arguments.TopP = 1.0,
    min_p: arguments.MinP = 0.0,
    repetition_penalty: arguments.RepetitionPenalty = 1.0,
    seed: arguments.Seed = 0,
    log_probs: Annotated[bool, typer.Option("--log-probs", help="Also write ids and log-probs of tokens.")] = False,
    rows: Annotated[int, typer.Option(min=1, help="Answers that grow at the same time.")] = 32,
    cache_dtype: arguments.CacheDtype = None,
    best_of: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Make N answers, and put the one with the best reward first.")
    ] = None,
    reward: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The reward model of --best-of, named as MODEL is.")
    ] = None,
    reward_template: Annotated[
        str | None, typer.Option(help="Template of a reward model whose files name none.")
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
    if (best_of is None) is not (reward is None):
        raise ConfigError("--best-of and --reward: allowed: both or neither of them")
    if reward_template is not None and reward is None:
        raise ConfigError("--reward-template: needs --reward")
    if best_of is not None and n not in (1, best_of):
        raise ConfigError(f"--n {n}: --best-of {best_of} makes {best_of} answers; leave out --n")
    n = best_of or n
    place = arguments.runtime_options(coordinator, num_processes, process_id, devices)
    from janus_jax.parallel import processes, supervisor
    from janus_jax.parallel.same_everywhere import require_same

    processes.supervise(place)
    processes.start(place)
    from janus_jax.checkpoint.stored_model import open_model
    from janus_jax.generation import best_of as best
    from janus_jax.generation import memory
    from janus_jax.generation.answers import WRITTEN, Journal, answer, begin, finish
    from janus_jax.generation.engine import require_language_model
    from janus_jax.generation.opened import facts, open_engine
    from janus_jax.generation.prompt_file import notes, read_prompts
    from janus_jax.generation.prompts import prompt_format
    from janus_jax.generation.requests import Request, check
    from janus_jax.generation.scores import RewardScorer
    from janus_jax.training.same_inputs import require_same_weights

    is_main, journal, scored, scorer, unread = processes.is_main(), None, None, None, Counter()
    with processes.agreement("generate"):
        if is_main:
            require_file("--out", out)
            arguments.require_pipe("--prompts", prompts)
        records = read_prompts(prompts, system=system, unread=unread, written=WRITTEN) if is_main else []
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
        of_all = [list(one.ids) for one in requests]
        asked = [str(stored.path), stored.step, n, seed, log_probs, cache_dtype, options, of_all]
        if is_main:
            journal = Journal(out, asked)
        if reward is not None:
            with named("--reward"):
                scorer = RewardScorer(open_model(reward), reward_template)
            best.require_readable(scorer, records)
            if is_main:
                require_file("--out", best.sidecar(out))
                asked += [str(scorer.stored.path), scorer.stored.step]
                scored = Journal(out.with_name(f"{out.name}.rewards"), asked, holds="rewards of other answers")
    models = {"MODEL": stored} | ({} if scorer is None else {"--reward": scorer.stored})
    same = {"--n": n, "--seed": seed, "--rows": rows, "--cache-dtype": cache_dtype}
    same |= options["sampling"] | options["stopping"]
    if scorer is not None:
        same |= {f"--reward: {key}": value for key, value in facts(scorer.stored, scorer.written).items()}
    require_same("options or models", {**same, **facts(stored, written)})
    require_same_weights(models)
    of_all = processes.broadcast_large("prompts", of_all)
    requests = [ask(number, ids) for number, ids in enumerate(of_all)]

    def tell(line: str) -> None:
        if is_main:
            print(line, file=sys.stderr, flush=True)

    for note in notes(records, unread):
        tell(f"note: {note}")
    unlike = {key: value for key, value in stored.facts.generation.items() if key in options["sampling"]}
    if unlike:
        named_settings = ", ".join(f"{key}={value}" for key, value in unlike.items())
        tell(f"note: the model's generation_config.json names {named_settings}; only the options count here")
    rows = min(rows, n * len(requests))
    with processes.agreement("memory"):
        memory.require_for(stored.config, requests, rows, f"--rows {rows}", cache_dtype=cache_dtype)

    def write() -> None:
        """Its engine, weights and cache, is freed at the end."""
        if left := begin(journal, len(requests), "prompts are answered", tell):
            engine, _ = open_engine(stored, template=template, rows=rows, cache_dtype=cache_dtype)
            for note in engine.notes:
                tell(f"note: {note}")
            answer(engine, records, requests, left, journal, log_probs=log_probs, tell=tell)

    arguments.interruptibly(write)
    curve: list[str] = []
    if scorer is None:
        finish(journal)
    else:
        gc.collect()  # what cycles of references hold of the engine
        choose = functools.partial(best.choose, scorer, journal, scored, rows=len(requests), tell=tell)
        curve = arguments.interruptibly(choose)
    if is_main:
        print(*curve, f"wrote {out}", sep="\n", flush=True)
    supervisor.last_words(0, "")
