"""The options of `janus generate`. `janus_jax/generation/` does the work."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from janus_jax.cli import arguments
from janus_jax.cli.option_groups import grouped
from janus_jax.cli.outputs import require_file, tell
from janus_jax.errors import ConfigError

if TYPE_CHECKING:
    from janus_jax.generation import requests
    from janus_jax.generation.prompt_file import PromptRow

EPILOG = "Example: janus generate runs/sft --prompts questions.jsonl --out answers.jsonl --temperature 0.7 --top-p 0.9"


@grouped()
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
    *,
    sampling: arguments.Sampling,
    place: arguments.Place,
) -> None:
    """Answer every prompt of a file with MODEL.

    Stopped and started again with the same options, it goes on where it was. On several hosts, run the same command on
    each; process 0 reads the prompts and writes.
    """
    from janus_jax.generation.requests import AnswerOptions
    from janus_jax.generation.stopping import StoppingOptions

    stopping = StoppingOptions(max_new_tokens, min_new_tokens, tuple(stop or ()))
    if (best_of is None) is not (reward is None):
        raise ConfigError("--best-of and --reward: allowed: both or neither of them")
    if reward_template is not None and reward is None:
        raise ConfigError("--reward-template: needs --reward")
    if best_of is not None and n not in (1, best_of):
        raise ConfigError(f"--n {n}: --best-of {best_of} makes {best_of} answers; leave out --n")

    def read(unread: Counter[str]) -> "list[PromptRow]":
        from janus_jax.generation.answers import WRITTEN
        from janus_jax.generation.prompt_file import read_prompts

        arguments.require_pipe("--prompts", prompts)
        return read_prompts(prompts, system=system, unread=unread, written=WRITTEN)

    answer_all(
        model,
        read,
        out,
        AnswerOptions(sampling.options(), stopping, best_of or n, seed, log_probs, rows, cache_dtype),
        place,
        step=step,
        template=template,
        reward=reward,
        reward_template=reward_template,
    )


def answer_all(
    model: str,
    read: "Callable[[Counter[str]], list[PromptRow]]",
    out: Path,
    options: "requests.AnswerOptions",
    place: arguments.Place,
    *,
    reward: str | None = None,
    **rest: Any,
) -> None:
    """Writes answers to prompts, on this host or all hosts of `place`; arguments are those of `AnswerFile`."""
    from janus_jax.parallel import processes, supervisor

    place.start()
    from janus_jax.generation.answer_file import AnswerFile
    from janus_jax.generation.best_of import sidecar

    with processes.agreement("files"):
        if processes.is_main():
            for file in (out, *([] if reward is None else [sidecar(out)])):
                require_file("--out", file)
    answers = AnswerFile(model, read, out, options, reward=reward, tell=tell, **rest)
    curve = arguments.interruptibly(answers.write)
    if processes.is_main():
        print(*curve, f"wrote {out}", sep="\n", flush=True)
    supervisor.last_words(0, "")
