"""Where numbers go: JSON lines, TensorBoard, wandb. Only the main process writes."""

import importlib.util
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from janus_jax.errors import ConfigError
from janus_jax.storage.bucket import os_errors
from janus_jax.storage.local import finite, write_whole
from janus_jax.training.event_file import EventFile

Values = Mapping[str, float]


class Writer(Protocol):
    """Takes one record of numbers at a time."""

    def write(self, kind: str, step: int, values: Values) -> None:
        """`kind` is train, eval or samples; `step` counts finished optimizer steps."""
        ...

    def close(self) -> None:
        """Flushes and lets go of files."""
        ...


class JsonLines:
    """Writes `{"kind": ..., "step": ..., name: value}` lines; NaN and infinity become null.

    Args:
        kept: lines of earlier starts, with which the file begins anew.
    Raises:
        StorageError: the file cannot be written.
    """

    def __init__(self, path: Path, kept: Sequence[str] = ()):
        write_whole(path, "".join(f"{line}\n" for line in kept))
        self._path = path
        with os_errors(path):
            self._file = path.open("a")

    def write(self, kind: str, step: int, values: Values) -> None:
        with os_errors(self._path):
            self._file.write(json.dumps({"kind": kind, "step": step, **finite(values)}) + "\n")
            self._file.flush()

    def close(self) -> None:
        with os_errors(self._path):
            self._file.close()


def better(best: dict[str, float], record: dict[str, float]) -> dict[str, float]:
    """The record with the smaller loss, the earlier one at equal losses; empty if no loss is finite."""
    loss, least = (math.inf if (v := r.get("loss")) is None or math.isnan(v) else v for r in (record, best))
    return record if loss < least else best


class TensorBoard:
    """An event file. Readers drop what an earlier process wrote after `resumed_at`."""

    def __init__(self, directory: Path, resumed_at: int = 0):
        self._file = EventFile(directory, resumed_at + 1 if resumed_at else 0)

    def write(self, kind: str, step: int, values: Values) -> None:
        self._file.scalars(step, {f"{kind}/{name}": value for name, value in values.items()})

    def text(self, name: str, step: int, markdown: str) -> None:
        """A text under a name, which has one for each step."""
        self._file.text(step, name, markdown)

    def close(self) -> None:
        self._file.close()


def require_wandb() -> None:
    """Raises ConfigError if wandb is not installed."""
    if importlib.util.find_spec("wandb") is None:
        raise ConfigError("logging.wandb=true: wandb is not installed; pip install 'janus_jax[wandb]'")


class Wandb:
    """Weights & Biases, when the config asks for it; see `require_wandb`."""

    def __init__(self, directory: Path, config: Mapping[str, Any], name: str):
        import wandb  # pyright: ignore[reportMissingImports] (an extra)

        self._run = wandb.init(dir=str(directory), config=dict(config), name=name, resume="allow")

    def write(self, kind: str, step: int, values: Values) -> None:
        self._run.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def table(self, name: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table under a name, which has one for each step."""
        import wandb  # pyright: ignore[reportMissingImports] (an extra)

        self._run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])}, step=step)

    def close(self) -> None:
        self._run.finish()


class MetricsLog:
    """Writes to several writers, with the time between train records as tokens/s.

    Args:
        mfu_per_rate: MFU at one token/s; None where it is not known.
    """

    def __init__(self, writers: Sequence[Writer], mfu_per_rate: float | None = None):
        self._writers, self._mfu_per_rate = list(writers), mfu_per_rate
        self._since = time.perf_counter()
        self._tokens = 0
        self._waited_s = 0.0

    def count(self, tokens: int, waited_s: float) -> None:
        """Adds one step's tokens and the seconds that it waited for data."""
        self._tokens += tokens
        self._waited_s += waited_s

    def train(self, step: int, values: Values, *, timed: bool = True) -> list[float]:
        """A train record; `timed` adds tokens/s, the share of time spent waiting for data, and MFU since the last one.

        Returns:
            its tokens/s, if it has any. The caller has waited for the devices, so that the time is theirs.
        """
        elapsed = time.perf_counter() - self._since
        rates = {"tokens_per_s": self._tokens / elapsed, "data_wait": self._waited_s / elapsed} if timed else {}
        if timed and self._mfu_per_rate is not None:
            rates["mfu"] = rates["tokens_per_s"] * self._mfu_per_rate
        self.write("train", step, {**values, **rates})
        self.restart_clock()
        return [rates["tokens_per_s"]] if timed else []

    def restart_clock(self) -> None:
        """Starts the clock anew: what came before (compiling, evaluation, saving) is not training time."""
        self._since, self._tokens, self._waited_s = time.perf_counter(), 0, 0.0

    def write(self, kind: str, step: int, values: Values) -> None:
        """A record as it is."""
        for writer in self._writers:
            writer.write(kind, step, values)

    def texts(
        self, step: int, markdown: Mapping[str, str], columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        """Samples: to TensorBoard a text for each name, to wandb a table."""
        for writer in self._writers:
            if isinstance(writer, TensorBoard):
                for name, text in markdown.items():
                    writer.text(name, step, text)
            if isinstance(writer, Wandb):
                writer.table("samples", step, columns, rows)

    def note(self, kind: str, step: int, facts: Mapping[str, Any]) -> None:
        """A record of facts that are no numbers, for metrics.jsonl alone."""
        for writer in self._writers:
            if isinstance(writer, JsonLines):
                writer.write(kind, step, facts)

    def close(self) -> None:
        """Closes all; nothing can be written any more."""
        while self._writers:
            self._writers.pop(0).close()
