"""What several commands take: configurations, changes to them, processes and simulated devices."""

import concurrent.futures
import re
from collections.abc import Callable
from typing import Annotated, TypeVar

import typer

from janus_jax.errors import ConfigError
from janus_jax.parallel.processes import RuntimeOptions

ConfigFile = Annotated[
    str, typer.Argument(metavar="CONFIG", help="YAML file; paths in it start at the working directory.")
]
ConfigAlone = Annotated[
    str, typer.Argument(metavar="CONFIG", help="YAML file; data and weights that it names need not be here.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Changes to single keys, like batch.rows=4 or init.from=runs/sft; values are YAML.",
        show_default=False,
    ),
]
Coordinator = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Address of process 0, where nothing detects it (CPU, GPU).")
]
NumProcesses = Annotated[int | None, typer.Option(min=1, help="Processes in all.")]
ProcessId = Annotated[int | None, typer.Option(min=0, help="Number of this process, from 0.")]
Devices = Annotated[int | None, typer.Option(min=1, help="CPU devices to simulate in this process.")]


T = TypeVar("T")


def interruptibly(work: Callable[[], T]) -> T:
    """What `work` returns. It runs in a thread of its own, because a compiler would keep signals from the main one for
    minutes."""
    pool = concurrent.futures.ThreadPoolExecutor(1)
    try:
        return pool.submit(work).result()
    finally:
        pool.shutdown(wait=False)


def runtime_options(
    coordinator: str | None, num_processes: int | None, process_id: int | None, devices: int | None
) -> RuntimeOptions:
    """Raises ConfigError where they do not go together."""
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if any(given) and not all(given):
        raise ConfigError("--coordinator, --num-processes and --process-id: allowed: all three or none of them")
    if coordinator is not None and not re.fullmatch(r"\S+:[0-9]{1,5}", coordinator):
        raise ConfigError(f"--coordinator {coordinator}: allowed: HOST:PORT, like 10.0.0.2:8476")
    if num_processes is not None and process_id is not None and process_id >= num_processes:
        raise ConfigError(f"--process-id {process_id}: allowed: 0 to {num_processes - 1} (--num-processes - 1)")
    return RuntimeOptions(coordinator, num_processes, process_id, devices)
