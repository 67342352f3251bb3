"""The options of `janus serve`. `janus_jax/serving/` does the work."""

import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from janus_jax.cli import arguments
from janus_jax.cli.outputs import tell
from janus_jax.errors import ConfigError, counted

EPILOG = "Example: janus serve runs/dpo --port 8000"

_WINDOW = 4096
_DAYS = 1e6  # seconds


def serve(
    model: arguments.Model,
    host: Annotated[str, typer.Option(help="Address to listen on. One that others can reach needs JANUS_API_KEY.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    name: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What clients call the model. Default: the last part of MODEL.")
    ] = None,
    step: arguments.Step = None,
    template: arguments.Template = None,
    rows: Annotated[int, typer.Option(min=1, help="Texts that grow at the same time.")] = 16,
    window: Annotated[
        int | None,
        typer.Option(min=2, help=f"Most tokens of prompt and answer. Default: the model's, at most {_WINDOW:,}."),
    ] = None,
    cache_dtype: arguments.CacheDtype = None,
    max_queue: Annotated[int, typer.Option(min=0, help="Texts that may wait for a row; more are refused.")] = 256,
    tokens_per_call: Annotated[
        int, typer.Option(min=1, help="Tokens of a text between two looks at new requests; more is faster.")
    ] = 8,
    timeout: Annotated[float, typer.Option(help="Seconds for one request.")] = 600.0,
    grace: Annotated[float, typer.Option(help="Seconds that running answers have after Ctrl-C or SIGTERM.")] = 30.0,
    devices: arguments.Devices = None,
) -> None:
    """Answer requests of OpenAI's form with MODEL: /v1/chat/completions, /v1/completions, /v1/models.

    Ctrl-C or SIGTERM ends it with exit code 0 when running answers have ended; a second one ends them at once.
    """
    for option, value, least in (("--timeout", timeout, 0.1), ("--grace", grace, 0)):
        if not least <= value <= _DAYS:  # nor is it NaN
            raise ConfigError(f"{option} {value:g}: allowed: {least:g} to {_DAYS:.0f} seconds")
    if missing := [package for package in ("starlette", "uvicorn") if importlib.util.find_spec(package) is None]:
        raise ConfigError(f"janus serve needs {' and '.join(missing)}: pip install 'janus_jax[serve]'")
    from janus_jax.checkpoint.stored_model import open_model
    from janus_jax.generation.engine import require_language_model
    from janus_jax.generation.prompts import prompt_format
    from janus_jax.serving.server import Listener, serve

    stored = open_model(model, step)
    require_language_model(stored.config, stored.path)
    written = prompt_format(stored, template)
    longest = stored.config.max_position_embeddings
    if window is not None and window > longest:
        raise ConfigError(f"--window {window}: allowed: 2 to {longest} (the model's longest text)")
    most = min(longest, _WINDOW) if window is None else window
    if name is None:
        name = Path(model).resolve().name if os.path.isdir(model) else model
    if not re.fullmatch(r"[!-~]+", name):
        raise ConfigError(f"--name {name!r}: allowed: printable ASCII characters without blanks")
    listener = Listener(host, port)
    from janus_jax.parallel import processes

    processes.start(arguments.runtime_options(None, None, None, devices))
    import jax

    if jax.process_count() > 1:
        raise ConfigError("janus serve runs on one host; use a slice of one host, or janus generate, which takes all")
    from janus_jax.generation.opened import open_engine
    from janus_jax.serving.app import Service
    from janus_jax.serving.asks import Served
    from janus_jax.serving.worker import Worker

    def load() -> Service:
        options = {"rows": rows, "steps_per_call": tokens_per_call, "cache_dtype": cache_dtype}
        engine = open_engine(stored, written, **options)
        assert engine.detokenizer is not None
        for note in engine.notes:
            tell(f"note: {note}")
        worker = Worker(engine, engine.rows + max_queue)
        worker.reserve(most)
        served = Served(name, stored.config, written, most, engine.rows + max_queue)
        tell(
            f"{name} at {listener.url}/v1: window of {most:,} tokens, {counted(engine.rows, 'row')}, {max_queue:,} wait"
        )
        return Service(served, worker, engine.detokenizer, timeout)

    if most < longest:
        tell(f"note: the model reads up to {longest:,} tokens; --window takes more than {most:,}, and more memory")
    if not listener.local:
        tell("note: the key and all texts travel unencrypted; put a proxy with TLS before it, or use ssh -L")
    service = arguments.interruptibly(load)
    if not serve(service, listener, grace=grace, ready=lambda _: tell("ready")):
        sys.stdout.flush()
        os._exit(0)  # a call of the model still runs, for minutes if it compiles
