"""The `janus` command. Each subcommand imports what it needs when it runs, so that `janus --help` is instant.

Exit codes are those of `janus_jax.errors`; an unwritable or occupied output is found before any work and exits with 2.
"""

import contextlib
import dataclasses
import gc
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from janus_jax import __version__
from janus_jax.cli import (
    arguments,
    bench,
    chat,
    config,
    convert,
    data,
    eval,
    generate,
    launch,
    measure,
    plan,
    report,
    runs,
    score,
    serve,
    time_step,
)
from janus_jax.cli.option_groups import grouped
from janus_jax.cli.outputs import require_writable
from janus_jax.errors import (
    ConfigError,
    Interrupted,
    JanusError,
    LostLockError,
    LostPeerError,
    OutOfMemoryError,
    Preempted,
)
from janus_jax.parallel import supervisor
from janus_jax.parallel.environment import quiet_libraries
from janus_jax.parallel.processes import START_TIMEOUT_S
from janus_jax.storage.lock_stores import OWNER

app = typer.Typer(
    help="Post-train models of Mistral and Llama shape in JAX: SFT, preference pairs, reward models.",
    **arguments.SETTINGS,
)
app.add_typer(data.app, name="data")
app.add_typer(convert.app, name="convert")
app.add_typer(bench.app, name="bench")
app.add_typer(measure.app, name="measure")
app.add_typer(config.app, name="config")
app.add_typer(runs.app, name="runs")


_COLLECTED = 50_000, 10, 10
"""How many new objects start a search for cycles of references. Modules and traces make many objects, which stay."""

_stops: list[int] = []
"""SIGINT, SIGTERM and SIGHUP that this process received."""


def main() -> None:
    """Runs the command line; a user's mistake becomes `error: ...` on stderr and its exit code, never a traceback."""
    global _leaving
    gc.set_threshold(*_COLLECTED)
    for number in (signal.SIGINT, signal.SIGTERM, *supervisor.heard([signal.SIGHUP])):
        signal.signal(number, _interrupt)
    sys.unraisablehook = _again_if_interrupted
    code: Any = None
    try:
        code = _run()
        _leaving = True
    except BaseException:
        _leaving = True
        if not _stops:
            raise
    if _stops:  # whatever a library has made of the exception
        print(_word(_stops[0]), file=sys.stderr, flush=True)
        os._exit(128 + _stops[0])  # threads of XLA and TensorFlow still work; they would crash the interpreter's end
    sys.exit(code)


def _run() -> Any:
    """Runs the command and returns its exit code."""
    try:
        app()
    except JanusError as error:
        if _stops:  # a process that got the signal too has gone
            return None
        if isinstance(error, Preempted):
            from janus_jax.parallel import processes

            again = shlex.join(["janus", *sys.argv[1:]])
            supervisor.last_words(error.exit_code, f"stopped: {error}\nto go on: {again}")
            processes.part(error.exit_code)
        supervisor.last_words(error.exit_code, f"error: {error}", soft=isinstance(error, LostPeerError))
        if isinstance(error, LostPeerError | LostLockError):
            from janus_jax.parallel import processes

            processes.leave(error.exit_code)
        return _flushed(error.exit_code)
    except Exception as error:
        if _stops or not supervisor.is_parented():
            raise
        supervisor.last_words(1, traceback.format_exc(), soft="JaxRuntimeError" in type(error).__name__)
        return _flushed(1)
    except SystemExit as done:  # typer and rich make one of a closed pipe, with code 1
        return _flushed(_CLOSED_PIPE if isinstance(done.__context__, BrokenPipeError) else done.code)


def _word(number: int) -> str:
    return "interrupted" if number == signal.SIGINT else "terminated"


@contextlib.contextmanager
def _begins() -> Iterator[None]:
    """Inside, a signal ends the process at once."""
    global _beginning
    _beginning = True
    try:
        yield
    finally:
        _beginning = False


_CLOSED_PIPE = 128 + signal.SIGPIPE


def _flushed(code: Any) -> Any:
    """The exit code; without a message of Python's if the reader of stdout has gone, as `head` does."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code or _CLOSED_PIPE
    return code


_leaving = False


_beginning = False
"""Modules are imported and other processes are waited for: nothing is to be cleaned up."""


def _interrupt(number: int, frame: Any) -> None:
    _stops.append(number)
    if _beginning:  # some modules answer an exception with a traceback of their own
        print(_word(number), file=sys.stderr, flush=True)
        os._exit(128 + number)
    if _leaving:  # nobody would catch it
        os._exit(128 + number)
    raise Interrupted(number)


def _again_if_interrupted(unraisable: Any) -> None:
    """Python drops what is raised in a finalizer or in a callback of the garbage collector (JAX has one)."""
    if isinstance(stop := unraisable.exc_value, Interrupted):
        signal.signal(signal.SIGALRM, lambda number, frame: _interrupt(stop.signal, frame))
        signal.setitimer(signal.ITIMER_REAL, 0.05)  # until it meets code that can be interrupted
    else:
        sys.__unraisablehook__(unraisable)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"janus_jax {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    quiet_libraries()


@app.command(epilog="Example: janus demo --out my-demo")
def demo(
    model: Annotated[
        Path | None, typer.Option(help="Hugging Face directory to start from, instead of random weights.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=2, help="Optimizer steps of each stage. Default: SFT 75, DPO 32, ORPO 40, reward model 64."),
    ] = None,
    out: Annotated[str, typer.Option(help="Directory for everything that the demo writes.")] = "janus-demo",
    devices: Annotated[int, typer.Option(min=1, help="CPU devices to simulate.")] = 8,
    objective: Annotated[
        Literal["dpo", "orpo", "rm"], typer.Option(help="What to train after SFT: DPO, ORPO, or a reward model.")
    ] = "dpo",
) -> None:
    """Run the whole job on this machine: build data, train, resume, export, compare. Needs no network."""
    if model is not None and not model.is_dir():
        raise ConfigError(f"--model {model}: is no directory; allowed: a Hugging Face model directory")
    require_writable("--out", out)
    from janus_jax.cli import demo

    demo.run(model=model, steps=steps, out=Path(out), devices=devices, objective=objective, importing=_begins)


@app.command(epilog="Example: janus train configs/demo_sft.yaml --devices 8 schedule.epochs=null schedule.steps=20")
@grouped()
def train(
    config: arguments.ConfigFile,
    overrides: arguments.Overrides = None,
    *,
    place: arguments.Place,
    start_timeout: arguments.StartTimeout = START_TIMEOUT_S,
) -> None:
    """Train as CONFIG says, or resume if the run directory holds checkpoints.

    SIGTERM, Ctrl-C, SIGHUP and a preemption notice save the newest step and end with exit code 10 (Ctrl-C: 130); a
    second signal ends at once.
    """
    options = place.runtime(start_timeout)
    loaded = arguments.load(config, overrides, quiet=True, inputs=True)
    from janus_jax.parallel import processes

    with _begins():
        processes.supervise(options)
        launch = os.environ.get(OWNER, "")
        processes.start(dataclasses.replace(options, run=loaded.run.dir, launch=launch))
        from janus_jax.training.run import train
    if processes.is_main():
        arguments.advise(loaded)
    with processes.agreement("outputs"):  # a host on which a disk is missing would leave the others waiting
        require_writable("run.dir", loaded.run.dir, buckets=True)
    try:
        summary = train(loaded)
    except OutOfMemoryError as error:
        raise _with_remedies(error, loaded) from error
    if processes.is_main():
        from janus_jax.training.console import closing

        print(*closing(summary, loaded.objective.head), sep="\n", flush=True)
    supervisor.last_words(0, "")


def _with_remedies(error: OutOfMemoryError, config: Any) -> OutOfMemoryError:
    """The error with changes that the planner has for these devices, if it has any."""
    import jax

    from janus_jax.parallel import processes
    from janus_jax.planning.search.remedies import remedies

    if not processes.is_main():
        return error
    with contextlib.suppress(JanusError):
        return OutOfMemoryError(*error.places, "\n".join([error.args[-1], *remedies(config, jax.devices())]))
    return error


app.command("plan", epilog=plan.EPILOG)(plan.plan)
app.command("chat", epilog=chat.EPILOG)(chat.chat)
app.command("generate", epilog=generate.EPILOG)(generate.generate)
app.command("score", epilog=score.EPILOG)(score.score)
app.command("eval", epilog=eval.EPILOG)(eval.evaluate)
app.command("serve", epilog=serve.EPILOG)(serve.serve)
app.command("report", epilog=report.EPILOG)(report.report)
app.command("time-step", epilog=time_step.EPILOG)(time_step.time_step)
app.command("launch", epilog=launch.EPILOG, context_settings=launch.FORWARDS)(launch.launch)


@app.command(epilog="Example: janus doctor")
def doctor() -> None:
    """Report versions, devices, and what is missing for TPU, GPU and gs://. Exits with 2 if a requirement fails."""
    from janus_jax.cli import doctor

    raise typer.Exit(doctor.show(doctor.report()))
