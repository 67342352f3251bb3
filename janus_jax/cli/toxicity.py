"""The options of `janus measure toxicity`. `janus_jax/evaluation/toxicity/` does the work."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from janus_jax.cli import arguments
from janus_jax.cli.option_groups import grouped
from janus_jax.cli.outputs import (
    CsvFile,
    JsonFile,
    PlotFile,
    require_file,
    require_new_file,
    require_table_files,
    show_table,
    tell,
)
from janus_jax.errors import ConfigError, counted

if TYPE_CHECKING:
    from janus_jax.evaluation.toxicity.generations import Generation
    from janus_jax.generation.prompt_file import PromptRow

app = typer.Typer(help="Toxicity of continuations, by the protocol of RealToxicityPrompts.", **arguments.SETTINGS)

Generations = Annotated[
    str, typer.Argument(metavar="FILE", help="Rows with prompt and answers, as janus measure toxicity run writes them.")
]
Out = Annotated[Path, typer.Option(metavar="FILE", help="JSONL file to write: the rows, with more in them.")]
GivenName = Annotated[str | None, typer.Option("--name", metavar="NAME", help="Who made the numbers of a given file.")]


@app.callback()
def _toxicity() -> None:
    pass


@app.command("run", epilog="Example: janus measure toxicity run runs/sft --prompts prompts.jsonl --out texts.jsonl")
@grouped()
def run(
    model: arguments.Model,
    prompts: Annotated[
        str, typer.Option(metavar="FILE|-", help="RealToxicityPrompts as published, or rows with prompt; .txt too.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="JSONL file of continuations to write.")],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first prompts, after --non-toxic.")] = None,
    non_toxic: Annotated[
        bool, typer.Option("--non-toxic", help="Only prompts whose toxicity is known and below 0.5.")
    ] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="Prompts are messages to answer. Default: texts to go on with.")
    ] = False,
    system: Annotated[str, typer.Option(metavar="TEXT", help="System message; needs --chat.")] = "",
    n: Annotated[int, typer.Option("--n", min=1, help="Continuations of each prompt.")] = 25,
    step: arguments.Step = None,
    template: arguments.Template = None,
    max_new_tokens: arguments.MaxNewTokens = 20,
    temperature: arguments.Temperature = 1.0,
    top_k: arguments.TopK = 0,
    top_p: arguments.TopP = 0.9,
    seed: arguments.Seed = 0,
    rows: Annotated[int, typer.Option(min=1, help="Continuations that grow at the same time.")] = 100,
    cache_dtype: arguments.CacheDtype = None,
    *,
    place: arguments.Place,
) -> None:
    """Let MODEL continue every prompt. The defaults are the protocol's.

    Stopped and started again with the same options, it goes on where it was. On several hosts, run the same command on
    each; process 0 reads the prompts and writes.
    """
    from janus_jax.cli.generate import answer_all
    from janus_jax.generation.requests import AnswerOptions
    from janus_jax.generation.sampling import SamplingOptions
    from janus_jax.generation.stopping import StoppingOptions

    if not chat and (system or template is not None):
        raise ConfigError(f"{'--system' if system else '--template'}: needs --chat; a text has no messages")
    made: dict[str, Any] = {"model": model, "step": step, "chat": chat, "system": system, "template": template, "n": n}
    made |= {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    made |= {"prompts": prompts, "non_toxic": non_toxic, "limit": limit}

    def read(unread: Counter[str]) -> "list[PromptRow]":
        import dataclasses

        from janus_jax.evaluation.toxicity.prompts import read_prompts

        arguments.require_pipe("--prompts", prompts)
        left_out: Counter[str] = Counter()
        rows = read_prompts(prompts, non_toxic=non_toxic, limit=limit, unread=unread, left_out=left_out)
        for reason, count in left_out.items():
            tell(f"note: {counted(count, 'prompt')} left out by --non-toxic: they {reason}")
        before = [{"role": "system", "content": system}] if system.strip() else []
        return [
            dataclasses.replace(one, messages=(*before, *one.messages), rest={**one.rest, "generation": made})
            for one in rows
        ]

    sampling, stopping = SamplingOptions(temperature, top_k, top_p), StoppingOptions(max_new_tokens)
    answer_all(
        model,
        read,
        out,
        AnswerOptions(sampling, stopping, n, seed, rows=rows, cache_dtype=cache_dtype, continues=not chat),
        place,
        step=step,
        template=template,
    )


@app.command(
    "score", epilog="Example: janus measure toxicity score texts.jsonl --scorer perspective --out scored.jsonl"
)
def score(
    generations: Generations,
    out: Out,
    scorer: Annotated[str | None, typer.Option(metavar="NAME", help="perspective, classifier or profanity.")] = None,
    scores: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Scores from elsewhere: rows of id, sample, score. Needs --name."),
    ] = None,
    name: GivenName = None,
    key_variable: Annotated[
        str, typer.Option(metavar="NAME", help="perspective: environment variable with the key.")
    ] = "PERSPECTIVE_API_KEY",
    url: Annotated[str | None, typer.Option(metavar="URL", help="perspective: another address of the API.")] = None,
    language: Annotated[str, typer.Option(help="perspective: of the texts.")] = "en",
    requests_a_second: Annotated[float, typer.Option(help="perspective: your quota.")] = 1.0,
    concurrent: Annotated[int, typer.Option(min=1, help="perspective: requests at the same time.")] = 4,
    timeout: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="perspective: of one try.")] = 30.0,
    journal: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="perspective: replies, for other files too. Default: OUT.replies"),
    ] = None,
    classifier: Annotated[
        str | None, typer.Option(metavar="MODEL", help="classifier: a directory or hub id; needs torch.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="classifier: the label of toxic texts. Default: toxic.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="classifier: texts at once.")] = 64,
) -> None:
    """Score every continuation from 0 to 1.

    Stopped and started again with the same options, it goes on where it was; Perspective is asked for no text twice.
    """
    arguments.on_cpu()
    from janus_jax.evaluation.toxicity import generations as file
    from janus_jax.evaluation.toxicity import scoring
    from janus_jax.evaluation.toxicity.perspective import ENDS, URL
    from janus_jax.evaluation.toxicity.prompts import share
    from janus_jax.evaluation.toxicity.scorers import SCORERS, ScorerOptions

    _require_one("--scorer", scorer, "--scores", scores, name)
    require_new_file("--out", out)
    if scorer is not None and scorer not in SCORERS:
        raise ConfigError(f"--scorer {scorer}: allowed: {', '.join(SCORERS)}")
    of_scorers = {
        "perspective": {
            "--key-variable": (key_variable, "PERSPECTIVE_API_KEY"),
            "--url": (url, None),
            "--language": (language, "en"),
            "--requests-a-second": (requests_a_second, 1.0),
            "--concurrent": (concurrent, 4),
            "--timeout": (timeout, 30.0),
            "--journal": (journal, None),
        },
        "classifier": {"--classifier": (classifier, None), "--label": (label, None), "--batch": (batch, 64)},
    }
    for owner, own in of_scorers.items():
        if scorer != owner:
            arguments.require_unset(own, f"needs --scorer {owner}")
    rows = file.read_generations(generations)
    if any(one.toxicity is not None for row in rows for one in row.samples):
        tell(f"note: {generations} has scores already; the new ones replace them in {out}")
    if scores is not None:
        _join(scoring.join, rows, scores, "score", share, str(name), out)
        return
    kept = out.with_name(f"{out.name}.replies") if journal is None else journal
    if scorer == "perspective":
        require_file("--journal", kept)
        tell(f"note: {ENDS}")
    options = ScorerOptions(
        kept,
        key_variable,
        url or URL,
        language=language,
        requests_a_second=requests_a_second,
        concurrent=concurrent,
        timeout_s=timeout,
        classifier=classifier,
        label=label,
        batch=batch,
    )
    made = SCORERS[scorer or ""](options)
    try:
        scoring.score(rows, made, out, tell)
    finally:
        made.close()
    print(f"wrote {out}", flush=True)


@app.command(
    "perplexity", epilog="Example: janus measure toxicity perplexity scored.jsonl --model base-model --out done.jsonl"
)
@grouped()
def perplexity(
    generations: Generations,
    out: Out,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The model that reads, as a MODEL of janus generate.")
    ] = None,
    step: arguments.Step = None,
    perplexities: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Made elsewhere: rows of id, sample, perplexity. Needs --name.")
    ] = None,
    name: GivenName = None,
    *,
    place: arguments.Place,
) -> None:
    """Compute how surprising every continuation is to another model.

    Stopped and started again with the same options, it goes on where it was. On several hosts, run the same command on
    each.
    """
    _require_one("--model", model, "--perplexities", perplexities, name)
    if model is None:
        arguments.on_cpu()
    from janus_jax.evaluation.toxicity import generations as file

    if perplexities is not None:
        arguments.require_unset({"--step": (step, None)}, "needs --model")
        place.require_none("needs --model")
        from janus_jax.evaluation.toxicity import perplexity as joining

        require_new_file("--out", out)
        _join(
            joining.join, file.read_generations(generations), perplexities, "perplexity", file.positive, str(name), out
        )
        return
    from janus_jax.parallel import processes, supervisor

    place.start()
    from janus_jax.evaluation.toxicity.perplexity import PerplexityFile

    with processes.agreement("files"):
        if processes.is_main():
            require_file("--out", out)
    made = PerplexityFile(str(model), lambda: file.read_generations(generations), out, step=step, tell=tell)
    arguments.interruptibly(made.write)
    if processes.is_main():
        print(f"wrote {out}", flush=True)
    supervisor.last_words(0, "")


@app.command("table", epilog="Example: janus measure toxicity table sft.jsonl dpo.jsonl --plot maxima.svg")
def table(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Scored continuations, one file for a model.")],
    scorer: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who scored, for files that do not say it.")
    ] = None,
    json_file: JsonFile = None,
    csv_file: CsvFile = None,
    plot: PlotFile = None,
) -> None:
    """Show toxicity (average maximum, probability), perplexity, dist-2 and dist-3, beside the paper's Table 4."""
    arguments.on_cpu()
    from janus_jax.evaluation.toxicity import tables
    from janus_jax.evaluation.toxicity.generations import read_generations

    require_table_files(json_file, csv_file, plot, inputs=files)
    names = [path.stem for path in files]
    names = names if len(set(names)) == len(names) else list(map(str, files))
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(f"{twice[0]}: is given twice")
    read = {name: read_generations(path) for name, path in zip(names, files, strict=True)}
    made = tables.table(read, scorer)
    if plot is not None:
        tables.draw(read, made.settings["scorer"]["name"], plot)
    show_table(made, json_file, csv_file)


def _join(
    join: Callable[..., Iterable[dict[str, Any]]],
    rows: "list[Generation]",
    given: Path,
    column: str,
    check: Callable[[Any, str], float],
    name: str,
    out: Path,
) -> None:
    """Writes rows with numbers of a given file."""
    from janus_jax.evaluation.toxicity.given import read_given
    from janus_jax.storage import local

    unread: Counter[str] = Counter()
    known = read_given(given, rows, column, check, unread=unread)
    for other, count in unread.items():
        tell(f"note: {other!r} of {counted(count, 'line')} is not used")
    lines = join(rows, known, name, str(given))
    local.write_bytes(
        out, b"".join(json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n" for line in lines)
    )
    print(f"wrote {out}", flush=True)


def _require_one(one: str, first: Any, other: str, second: Any, name: str | None) -> None:
    if (first is None) is (second is None):
        raise ConfigError(f"{one} and {other}: give one of them")
    if (second is None) is not (name is None or not name.strip()):
        raise ConfigError(f"{other} and --name: give both or neither")
