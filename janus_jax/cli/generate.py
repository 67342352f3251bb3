"""The options of `janus generate`. `janus_jax/generation/` does the work."""

import dataclasses
import functools
import gc
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from janus_jax.cli import arguments
from janus_jax.cli.outputs import require_file
from janus_jax.errors import ConfigError, named

if TYPE_CHECKING:
    from janus_jax.generation.prompt_file import PromptRow
    from janus_jax.generation.sampling import SamplingOptions
    from janus_jax.generation.stopping import StoppingOptions
    from janus_jax.parallel.processes import RuntimeOptions

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
    place = arguments.runtime_options(coordinator, num_processes, process_id, devices)

    def read(unread: "Counter[str]") -> "list[PromptRow]":
        from janus_jax.generation.prompt_file import read_prompts

        arguments.require_pipe("--prompts", prompts)
        return read_prompts(prompts, system=system, unread=unread)

    answer_all(
        model,
        read,
        out,
        n=best_of or n,
        step=step,
        template=template,
        stopping=stopping,
        sampling=sampling,
        seed=seed,
        log_probs=log_probs,
        rows=rows,
        cache_dtype=cache_dtype,
        reward=reward,
        reward_template=reward_template,
        place=place,
    )


def answer_all(
    model: str,
    read: "Callable[[Counter[str]], list[PromptRow]]",
    out: Path,
    *,
    n: int = 1,
    step: int | None,
    template: str | None,
    stopping: "StoppingOptions",
    sampling: "SamplingOptions",
    seed: int,
    log_probs: bool = False,
    rows: int,
    cache_dtype: Literal["bfloat16", "float32", "int8"] | None,
    reward: str | None = None,
    reward_template: str | None = None,
    place: "RuntimeOptions",
) -> None:
    """Writes answers to the prompts that `read` gives; process 0 calls it, with a counter of columns that it leaves."""
    from janus_jax.parallel import processes, supervisor
    from janus_jax.parallel.same_everywhere import require_same

    processes.supervise(place)
    processes.start(place)
    from janus_jax.checkpoint.stored_model import open_model
    from janus_jax.generation import best_of as best
    from janus_jax.generation import memory
    from janus_jax.generation.answers import Journal, answer, begin, finish
    from janus_jax.generation.engine import require_language_model
    from janus_jax.generation.opened import facts, open_engine
    from janus_jax.generation.prompts import prompt_format
    from janus_jax.generation.requests import Request, check
    from janus_jax.generation.scores import RewardScorer
    from janus_jax.training.same_inputs import require_same_weights

    is_main, journal, scored, scorer, unread = processes.is_main(), None, None, None, Counter()
    with processes.agreement("generate"):
        if is_main:
            require_file("--out", out)
        records = read(unread) if is_main else []
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

    for column, count in unread.items():
        tell(f"note: {column!r} of {count:,} rows is no part of the prompt; it is kept beside the answer")
    unlike = {key: value for key, value in stored.facts.generation.items() if key in options["sampling"]}
    if unlike:
        named_settings = ", ".join(f"{key}={value}" for key, value in unlike.items())
        tell(f"note: the model's generation_config.json names {named_settings}; only the options count here")
    rows = min(rows, n * len(requests))
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
