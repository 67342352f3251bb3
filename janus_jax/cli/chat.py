"""The options of `janus chat`. `janus_jax/chat/` does the work."""

from typing import Annotated

import typer

from janus_jax.cli import arguments
from janus_jax.errors import ConfigError, named

EPILOG = 'Example: janus chat runs/sft --system "You answer in one sentence." --temperature 0.7'


def chat(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A run, a step, a converted or Hugging Face directory, or a hub id; gs:// too."
        ),
    ],
    system: Annotated[str, typer.Option(metavar="TEXT", help="System message.")] = "",
    both: Annotated[
        str | None,
        typer.Option(metavar="'A | B'", help="Answer side by side under two system messages.", show_default=False),
    ] = None,
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
    devices: arguments.Devices = None,
) -> None:
    """Talk with MODEL in the terminal. /help shows what you can type.

    If standard input is no terminal, each of its lines is a question, and standard output has the answers.
    """
    from janus_jax.generation.sampling import SamplingOptions
    from janus_jax.generation.stopping import StoppingOptions

    sampling = SamplingOptions(temperature, top_k, top_p, min_p, repetition_penalty)
    stopping = StoppingOptions(max_new_tokens, min_new_tokens, tuple(stop or ()))
    if both is not None and system:
        raise ConfigError("--system, --both: allowed: at most one of them")
    from janus_jax.chat import commands, terminal
    from janus_jax.chat.conversation import MOST_SIDES, Chat, require_readable
    from janus_jax.checkpoint.stored_model import open_model
    from janus_jax.generation.engine import require_language_model
    from janus_jax.generation.opened import ignored_settings, open_engine
    from janus_jax.generation.prompts import prompt_format

    with named("--both"):
        systems = [system] if both is None else commands.both(both)
    stored = open_model(model, step)
    require_language_model(stored.config, stored.path)
    written = prompt_format(stored, template)
    with named("--system" if both is None else "--both"):
        require_readable(stored.config, written, systems)
    from janus_jax.parallel import processes

    processes.start(arguments.runtime_options(None, None, None, devices))
    import jax

    if jax.process_count() > 1:
        raise ConfigError("janus chat runs on one host; on a slice of several, use `janus generate`")
    screen = terminal.make_screen()
    if settings := ignored_settings(stored, sampling):
        screen.note(f"The model's generation_config.json names {settings}; only the options count here.")
    screen.waiting("loading the weights")
    rows, steps = MOST_SIDES, 4  # few tokens a call, so that text comes evenly
    engine = arguments.interruptibly(lambda: open_engine(stored, written, rows=rows, steps_per_call=steps))
    for note in engine.notes:
        screen.note(note)
    talk = Chat(engine, written, systems=systems, sampling=sampling, stopping=stopping, seed=seed)
    try:
        if not screen.plain:
            screen.come()
            screen.waiting("compiling for these devices")
            talk.warm()
            screen.come()
        terminal.talk(talk, commands.Commands(talk, stored.path), screen)
    finally:
        talk.close()
