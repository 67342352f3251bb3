"""The options of `janus eval`. `janus_jax/evaluation/harness/` does the work."""

import os
from pathlib import Path
from typing import Annotated

import typer

from janus_jax.cli import arguments
from janus_jax.cli.option_groups import grouped
from janus_jax.cli.outputs import CsvFile, JsonFile, require_table_files, require_writable, show_table, tell
from janus_jax.errors import ConfigError

EPILOG = "Example: janus eval runs/dpo --social-bias --data-dir bias-data --out results"


@grouped()
def evaluate(
    model: arguments.Model,
    tasks: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="Tasks, groups or tags of lm-evaluation-harness.")
    ] = None,
    social_bias: Annotated[
        bool, typer.Option("--social-bias", help="Winogender, CrowS-Pairs and BBQ in one table, instead of --tasks.")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="Only the first documents of each task.")] = None,
    data_dir: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Read data from files like bbq.jsonl in DIR (gs:// too), not from the Hugging Face hub."
        ),
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(help="Examples before each document. Default: as each task has it.")
    ] = None,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Ask in the model's chat template.")
    ] = False,
    fewshot_as_multiturn: Annotated[
        bool, typer.Option(help="With a chat template: examples are turns of the conversation, not one message.")
    ] = True,
    system_instruction: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System message, or first text without a chat template.")
    ] = None,
    step: arguments.Step = None,
    template: arguments.Template = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of a text. Default: as each task has it.")
    ] = None,
    seed: arguments.Seed = 0,
    rows: Annotated[int, typer.Option("--rows", "--batch", min=1, help="Texts that grow at the same time.")] = 32,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Directory of the harness's result files. The same command goes on in it."),
    ] = None,
    json: JsonFile = None,
    csv: CsvFile = None,
    *,
    place: arguments.Place,
) -> None:
    """Evaluate MODEL on tasks of lm-evaluation-harness.

    With --out, a command that was stopped goes on where it was. On several hosts, run the same command on each; process
    0 has data and files.
    """
    names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    if bool(names) is social_bias:
        raise ConfigError("--tasks and --social-bias: allowed: exactly one of them")
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit {limit}: allowed: 1 or more; leave it out for all documents")
    if num_fewshot is not None and num_fewshot < 0:
        raise ConfigError(f"--num-fewshot {num_fewshot}: allowed: 0 or more")
    if template is not None and not apply_chat_template:
        raise ConfigError("--template: needs --apply-chat-template")
    os.environ.setdefault("TQDM_DISABLE", "1")  # there are lines of progress
    from janus_jax.parallel import processes, supervisor

    place.start()
    from janus_jax.evaluation.harness.run import Evaluation, HarnessOptions, require_installed

    with processes.agreement("files"):
        if processes.is_main():
            require_installed()
            if out is not None:
                require_writable("--out", out)
            require_table_files(json, csv, inputs=())
    options = HarnessOptions(
        names,
        social_bias=social_bias,
        limit=limit,
        data_dir=data_dir,
        num_fewshot=num_fewshot,
        chat=apply_chat_template,
        multiturn=fewshot_as_multiturn,
        system=system_instruction,
        seed=seed,
        rows=rows,
        max_new_tokens=max_new_tokens,
    )
    evaluation = Evaluation(model, options, out, step=step, template=template, tell=tell)
    table = arguments.interruptibly(evaluation.run)
    if table is not None:
        show_table(table, json, csv)
        if out is not None:
            print(f"wrote {out}", flush=True)
    supervisor.last_words(0, "")
