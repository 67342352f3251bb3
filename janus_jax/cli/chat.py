"""The options of `janus chat`. `janus_jax/chat/` does the work."""

from typing import Annotated

import typer

from janus_jax.cli import arguments
from janus_jax.errors import ConfigError, named

EPILOG = 'Example: janus chat runs/sft --system "You answer in one sentence." --temperature 0.7'


def chat(
    model: arguments.Model,
    system: Annotated[str, typer.Option(metavar="TEXT", help="System message.")] = "",
    both: Annotated[
        str | None,
        typer.Option(metavar="'A | B'", help="Answer side by side under two system messages.", show_default=False),
    ] = None,
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
