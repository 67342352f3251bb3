"""The options of `janus bench export`. `janus_jax/evaluation/official/` does the work."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from janus_jax.cli import arguments
from janus_jax.cli.option_groups import grouped
from janus_jax.cli.outputs import CsvFile, JsonFile, require_table_files, require_writable, show_table, tell
from janus_jax.errors import ConfigError

if TYPE_CHECKING:
    from janus_jax.evaluation.official.questions import Question

EPILOG = "Example: janus bench export runs/sft --for mt_bench --prompts question.jsonl --out data/mt_bench"

RESULTS_EPILOG = "Example: janus bench helpfulness results/janus/leaderboard.csv gpt-4_single.jsonl --model janus"


@grouped()
def export(
    model: arguments.Model,
    tool: Annotated[str, typer.Option("--for", metavar="TOOL", help="alpaca_eval, mt_bench or arena_hard.")],
    prompts: Annotated[str, typer.Option(metavar="FILE", help="The tool's own file of questions: .json or .jsonl.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Directory below which the tool looks for answers.")],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What the tool calls the model. Default: the end of its path.")
    ] = None,
    system: Annotated[
        list[str] | None,
        typer.Option(
            metavar="default|none|TEXT|@FILE",
            help="System message; may be repeated, for a file of answers each. Default: default.",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        bool, typer.Option("--reference", help="Also write the reference answers that FILE has.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first questions.")] = None,
    step: arguments.Step = None,
    template: arguments.Template = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of an answer. Default: 1024 for mt_bench, otherwise 4096.")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="0: always the most probable token. Default: the tool's own, for mt_bench by category."),
    ] = None,
    top_k: arguments.TopK = 0,
    top_p: arguments.TopP = 1.0,
    min_p: arguments.MinP = 0.0,
    repetition_penalty: arguments.RepetitionPenalty = 1.0,
    seed: arguments.Seed = 0,
    rows: Annotated[int, typer.Option(min=1, help="Answers that grow at the same time.")] = 32,
    cache_dtype: arguments.CacheDtype = None,
    *,
    place: arguments.Place,
) -> None:
    """Answer the questions of AlpacaEval, MT-Bench or Arena-Hard-Auto, in a file that the official tool reads.

    Stopped and started again with the same options, it goes on where it was. On several hosts, run the same command on
    each; process 0 reads the questions and writes.
    """
    from janus_jax.evaluation.official import TOOLS
    from janus_jax.evaluation.official.systems import read_systems
    from janus_jax.generation.sampling import SamplingOptions
    from janus_jax.generation.stopping import StoppingOptions
    from janus_jax.parallel import processes, supervisor

    if tool not in TOOLS:
        raise ConfigError(f"--for {tool}", f"allowed: {', '.join(TOOLS)}")
    chosen, systems = TOOLS[tool], read_systems(system or ["default"])
    sampling = SamplingOptions(
        chosen.temperature if temperature is None else temperature, top_k, top_p, min_p, repetition_penalty
    )
    stopping = StoppingOptions(chosen.max_new_tokens if max_new_tokens is None else max_new_tokens)

    def read(unread: "Counter[str]") -> "list[Question]":
        from janus_jax.evaluation.official.questions import read_questions

        arguments.require_pipe("--prompts", prompts)
        return read_questions(prompts, chosen.read, same=chosen.same, unread=unread)[:limit]

    place.start()
    from janus_jax.evaluation.official.export import Export, ExportOptions

    with processes.agreement("files"):
        if processes.is_main():
            require_writable("--out", out)
    options = ExportOptions(sampling, temperature is None, stopping, seed, rows, cache_dtype, reference)
    answers = Export(chosen, model, read, out, systems, options, name=name, step=step, template=template, tell=tell)
    lines = arguments.interruptibly(answers.write)
    if processes.is_main():
        print(*lines, sep="\n", flush=True)
    supervisor.last_words(0, "")


def helpfulness(
    results: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="leaderboard.csv of AlpacaEval; judgments (.jsonl) of the other tools."),
    ],
    model: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this model; may be repeated.", show_default=False)
    ] = None,
    json_file: JsonFile = None,
    csv_file: CsvFile = None,
) -> None:
    """Show what the official tools found, beside the paper's Table 3."""
    arguments.on_cpu()
    from janus_jax.evaluation.official.results import read_results

    require_table_files(json_file, csv_file, inputs=results)
    show_table(read_results(results).table(results, model or ()), json_file, csv_file)
