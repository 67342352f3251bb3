"""Arguments that several commands share: configurations and overrides, models and sampling, processes and devices."""

import concurrent.futures
import dataclasses
import re
import sys
import textwrap
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from janus_jax.cli.option_groups import OptionGroup
from janus_jax.errors import ConfigError
from janus_jax.parallel import environment, preflight, supervisor
from janus_jax.parallel.environment import COORDINATOR_PORT
from janus_jax.parallel.processes import START_TIMEOUT_S, RuntimeOptions

if TYPE_CHECKING:
    from janus_jax.config.run import RunConfig
    from janus_jax.generation.sampling import SamplingOptions

SETTINGS: dict[str, Any] = {"no_args_is_help": True, "add_completion": False, "pretty_exceptions_enable": False}
"""Of every group of commands."""

ConfigFile = Annotated[
    str, typer.Argument(metavar="CONFIG", help="YAML file. Relative paths in it start at the working directory.")
]
ConfigAlone = Annotated[
    str, typer.Argument(metavar="CONFIG", help="YAML file. Its data and weights need not exist here.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Changes to keys of CONFIG, like SECTION.KEY=4. Values are YAML or text.",
        show_default=False,
    ),
]
BeamOptions = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="With --runner: an option of the runner, such as project=NAME. Repeat."),
]
Coordinator = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT", help="Address of process 0, where JAX cannot detect it (CPU, GPU). Default port: 8476."
    ),
]
NumProcesses = Annotated[int | None, typer.Option(min=1, help="Number of processes.")]
ProcessId = Annotated[int | None, typer.Option(min=0, help="Number of this process, from 0.")]
Devices = Annotated[int | None, typer.Option(min=1, help="CPU devices to simulate in this process.")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place(OptionGroup):
    """Where a command runs: its processes and devices."""

    coordinator: Coordinator = None
    num_processes: NumProcesses = None
    process_id: ProcessId = None
    devices: Devices = None

    def runtime(self, start_timeout: float = START_TIMEOUT_S) -> RuntimeOptions:
        """Raises ConfigError if the options contradict each other."""
        return runtime_options(self.coordinator, self.num_processes, self.process_id, self.devices, start_timeout)

    def start(self) -> None:
        """Starts JAX here; with several processes, each of them under a supervisor."""
        from janus_jax.parallel import processes

        options = self.runtime()
        processes.supervise(options)
        processes.start(options)

    def require_none(self, why: str) -> None:
        """Raises ConfigError if an option is given."""
        given = dataclasses.asdict(self)
        require_unset({f"--{name.replace('_', '-')}": (value, None) for name, value in given.items()}, why)


StartTimeout = Annotated[
    float, typer.Option(min=1, metavar="SECONDS", help="How long processes wait for each other at the start.")
]

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A run, a step, a converted or Hugging Face directory, or a hub id; gs:// too."
    ),
]
Step = Annotated[int | None, typer.Option(min=0, help="Step of a run. Default: the newest.")]
Template = Annotated[
    str | None,
    typer.Option(help="mistral-inst, chatml or plain, for a model without a template, or in place of its own."),
]
DefaultSystem = Annotated[str, typer.Option(metavar="TEXT", help="System message of rows that have none.")]
CacheDtype = Annotated[
    Literal["bfloat16", "float32", "int8"] | None,
    typer.Option(help="Of the keys and values of earlier tokens. Default: bfloat16, on CPUs float32."),
]

MaxNewTokens = Annotated[int, typer.Option(help="Most tokens of an answer.")]
MinNewTokens = Annotated[int, typer.Option(help="Tokens before which no answer ends.")]
Stop = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="Text that ends an answer; may be repeated.", show_default=False),
]
Temperature = Annotated[float, typer.Option(help="0: always the most probable token.")]
TopK = Annotated[int, typer.Option(help="Only so many of the most probable tokens; 0: all.")]
TopP = Annotated[float, typer.Option(help="Only the most probable tokens with this share together.")]
MinP = Annotated[float, typer.Option(help="Only tokens at least this probable, relative to the best one.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1: tokens that have come are less likely.")]
Seed = Annotated[int, typer.Option(help="Of the random numbers.")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling(OptionGroup):
    """How the next token is chosen."""

    temperature: Temperature = 1.0
    top_k: TopK = 0
    top_p: TopP = 1.0
    min_p: MinP = 0.0
    repetition_penalty: RepetitionPenalty = 1.0

    def options(self) -> "SamplingOptions":
        from janus_jax.generation.sampling import SamplingOptions

        return SamplingOptions(**dataclasses.asdict(self))


T = TypeVar("T")

_WIDTH = 100
"""Columns of a line, as on the console of a run."""


def load(config: str, overrides: list[str] | None, *, quiet: bool = False, inputs: bool = False) -> "RunConfig":
    """The configuration of a command. Prints its advice to stderr, unless `quiet`; `inputs`: as `load_config`."""
    from janus_jax.config.run import load_config

    loaded = load_config(config, overrides or [], inputs=inputs)
    if not quiet:
        advise(loaded)
    return loaded


def advise(config: "RunConfig") -> None:
    """Prints what a configuration makes one think of to stderr."""
    for advice in config.advice():
        print(in_lines(f"note: {advice}"), file=sys.stderr)


def in_lines(text: str) -> str:
    """A text in lines of at most `_WIDTH` columns; a longer word, such as a path, is broken."""
    return textwrap.fill(text, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def interruptibly(work: Callable[[], T]) -> T:
    """Returns `work()`, run in another thread: in the main thread, a compiler would hold back signals for minutes."""
    pool = concurrent.futures.ThreadPoolExecutor(1)
    try:
        return pool.submit(work).result()
    finally:
        pool.shutdown(wait=False)


def require_pipe(option: str, source: str) -> None:
    """Raises ConfigError if standard input is to be read, but is a terminal that this process must not read."""
    if source == "-" and supervisor.is_parented() and sys.stdin.isatty():
        raise ConfigError(
            f"{option} -: where there may be several processes, none can read the terminal; send rows through a pipe, "
            "or name a file"
        )


def on_cpu() -> None:
    """What commands begin with that need no accelerator, whatever JAX_PLATFORMS says."""
    environment.use_cpu_only()
    preflight.require_known_xla_flags()
    preflight.require_known_jax_variables()


def require_unset(options: Mapping[str, tuple[Any, Any]], why: str) -> None:
    """Refuses options that would not be used.

    Args:
        options: their names, values and defaults.
        why: what they need, for the message.

    Raises:
        ConfigError: one is not its default.
    """
    for name, (value, default) in options.items():
        if value != default:
            raise ConfigError(f"{name}: {why}")


def runtime_options(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    devices: int | None,
    start_timeout: float = START_TIMEOUT_S,
) -> RuntimeOptions:
    """Raises ConfigError if the options contradict each other."""
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if any(given) and not all(given):
        raise ConfigError("--coordinator, --num-processes and --process-id: allowed: all three or none of them")
    if coordinator is not None and re.fullmatch(r"[\w.-]+|\[[0-9A-Fa-f:.]+\]", coordinator):
        coordinator = f"{coordinator}:{COORDINATOR_PORT}"
    if coordinator is not None and not (
        (parts := re.fullmatch(r"\S+:([0-9]{1,5})", coordinator)) and 0 < int(parts[1]) < 2**16
    ):
        raise ConfigError(f"--coordinator {coordinator}: allowed: HOST or HOST:PORT, like 10.0.0.2:{COORDINATOR_PORT}")
    if num_processes is not None and process_id is not None and process_id >= num_processes:
        raise ConfigError(f"--process-id {process_id}: allowed: 0 to {num_processes - 1} (--num-processes - 1)")
    from janus_jax.storage.staging import cache

    programs = str(cache() / "programs")
    return RuntimeOptions(coordinator, num_processes, process_id, devices, start_timeout, programs=programs)
