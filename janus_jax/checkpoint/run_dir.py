"""The entries of a run directory: their names, their paths, and which of its steps are whole."""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Generic, TypeVar, cast

from janus_jax.errors import ConversionError
from janus_jax.storage.bucket import BucketPath, is_url
from janus_jax.storage.local import Place

P = TypeVar("P", bound=Path | Place)

ITEMS = ("params", "optimizer", "data", "meta")
"""The Orbax items of every step. A converted directory has params and meta only. Newer steps also have checksums."""
COMMITTED = "commit_success.txt"
"""Orbax writes it last."""


_WRITTEN = ("tokenizer", "metrics", "tensorboard", "wandb", "checkpoints", "exports", "reference", "profile", "samples")
"""The directories of a run."""

_METRICS_PART = re.compile(r"(\d+\.[0-9a-f]+)-from-(\d+)-\d+\.jsonl")


@dataclasses.dataclass(frozen=True)
class RunDir(Generic[P]):
    """A run directory, local or on gs://. Its entries have the type of `path`; none of them needs to exist."""

    path: P

    @classmethod
    def of_step(cls, step: P) -> "RunDir[P]":
        """The run that a step directory (RUN/checkpoints/STEP) belongs to."""
        return cls(cast(P, step.parent.parent))

    @property
    def config(self) -> P:
        """The whole configuration, as YAML."""
        return self._entry("config.yaml")

    @property
    def lock(self) -> P:
        """Says which process trains here at this time; gone when none does."""
        return self._entry("lock.json")

    @property
    def tokenizer(self) -> P:
        """A copy of the data set's tokenizer: the run can be exported after the data set is deleted."""
        return self._entry("tokenizer")

    @property
    def metrics(self) -> P:
        """One JSON object per line. Of a run in a bucket only what was copied there; see `metrics_parts`."""
        return self._entry("metrics.jsonl")

    @property
    def metrics_parts(self) -> P:
        """The lines of a run that trained in a bucket, in the order of their names."""
        return self._entry("metrics")

    def metrics_part(self, start: str, resumed_at: int, number: int) -> P:
        """One of `metrics_parts`: of the start that resumed after step `resumed_at`, or began the run (0).

        Args:
            start: what `parts.new_start` gave.
            number: counted from 1, within the start.
        """
        return cast(P, self.metrics_parts / f"{start}-from-{resumed_at}-{number:05d}.jsonl")

    @property
    def curves(self) -> P:
        """The picture of `metrics`."""
        return self._entry("curves.png")

    @property
    def tensorboard(self) -> P:
        return self._entry("tensorboard")

    def tensorboard_part(self, start: str, number: int) -> P:
        """A part of the event file of a start in a bucket. TensorBoard reads the files here in the order of names."""
        return cast(P, self.tensorboard / f"events.out.tfevents.{start}.{number:05d}")

    @property
    def wandb(self) -> P:
        """Weights & Biases' own directory; the package names it."""
        return self._entry("wandb")

    @property
    def checkpoints(self) -> P:
        """One directory per step, named by its number."""
        return self._entry("checkpoints")

    @property
    def exports(self) -> P:
        """Hugging Face directories, one per exported step, named by its number."""
        return self._entry("exports")

    @property
    def reference(self) -> P:
        """Precomputed log-probs of the reference model, unless `reference.dir` names another place."""
        return self._entry("reference")

    @property
    def profile(self) -> P:
        return self._entry("profile")

    @property
    def samples(self) -> P:
        """Answers to the prompts of `samples`, one file for each step that has some."""
        return self._entry("samples")

    @property
    def summary(self) -> P:
        """How the run ended, as JSON."""
        return self._entry("summary.json")

    @property
    def goodput(self) -> P:
        """Where the time went, start by start, as JSON."""
        return self._entry("goodput.json")

    def export(self, step: int) -> P:
        """The Hugging Face directory of a step."""
        return cast(P, self.exports / str(step))

    def committed_steps(self) -> list[int]:
        """See the function `committed_steps`."""
        return committed_steps(self.checkpoints)

    def clash(self, inputs: Mapping[str, str | None]) -> str | None:
        """Why a run here would write into what it reads, or delete it; None if it would not.

        Args:
            inputs: key of the configuration -> what it names: a path, a gs:// URL, a hub id, or None.
        """
        remote = is_url(str(self.path))
        run = str(self.path) if remote else os.path.realpath(self.path)
        written = [os.path.join(run, name) for name in _WRITTEN]
        for key, name in inputs.items():
            if name is None or is_url(name) != remote:
                continue
            if not remote and not os.path.exists(os.path.expanduser(name)):
                continue
            source = name.rstrip("/") if remote else os.path.realpath(os.path.expanduser(name))
            if _holds(source, run):
                where = "is" if source == run else "lies in"
                return f"{where} {key}={name}, which the run reads; choose another directory"
            if any(_holds(place, source) for place in written):
                return f"{key}={name} lies in it, where the run writes and deletes; choose another directory"
        return None

    def _entry(self, name: str) -> P:
        return cast(P, self.path / name)


AnyRunDir = RunDir[Path | BucketPath]
"""A run directory that is written."""


def _holds(directory: str, path: str) -> bool:
    return f"{path}/".startswith(f"{directory.rstrip('/')}/")


def start_of_part(name: str) -> tuple[str, int] | None:
    """The start, and the step that it resumed at, in the name of a `metrics_part`; None for other names."""
    match = _METRICS_PART.fullmatch(name)
    return match and (match[1], int(match[2]))


def committed_steps(checkpoints: Path | Place) -> list[int]:
    """Whole steps below a directory of checkpoints, ascending. A step without its commit mark or without one of its
    items (an interrupted deletion or copy) does not count."""
    if not checkpoints.is_dir():
        return []
    return sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdecimal() and is_committed(path))


def is_committed(step: Path | Place) -> bool:
    """Whether a step directory is whole."""
    return is_marked(step) and all((step / item).is_dir() for item in ITEMS)


def is_marked(step: Path | Place) -> bool:
    """Whether a step directory was whole once: it has Orbax's commit mark."""
    return (step / COMMITTED).exists()


def step_directory(checkpoints: P, step: int) -> P:
    """The directory of a committed step.

    Raises:
        ConversionError: the step does not exist; names those that do.
    """
    steps = committed_steps(checkpoints)
    if step not in steps:
        raise ConversionError(checkpoints, f"no step {step}; existing steps: {', '.join(map(str, steps)) or 'none'}")
    return cast(P, checkpoints / str(step))


def find_checkpoints(directory: P) -> P | None:
    """RUN/checkpoints where `directory` is a run, `directory` where it is such a directory of checkpoints itself; None
    where neither has a whole step."""
    return next((place for place in (RunDir(directory).checkpoints, directory) if committed_steps(place)), None)


def has_params(directory: Path | Place) -> bool:
    """Whether a directory is a step, or what `janus convert from-hf` writes.

    Raises:
        ConversionError: it is a step that is not whole.
    """
    if not ((directory / "params").is_dir() and (directory / "meta").is_dir()):
        return False
    if (directory / "optimizer").is_dir() and not is_committed(directory):
        raise ConversionError(directory, "this step is incomplete: its write, copy or deletion was interrupted")
    return True
