"""Opens the splits of a built data set, or those that a run configuration reads, packed as training packs them."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from janus_jax.config.objectives import OBJECTIVES
from janus_jax.config.run import RunConfig, load_config
from janus_jax.data import fetch
from janus_jax.data.dataset import Manifest, TokenizedDataset
from janus_jax.data.epoch import BatchSettings, PackedEpochs, Position
from janus_jax.data.from_config import eval_batch_settings, open_held_out, packed_epochs
from janus_jax.data.mixture import Mixture
from janus_jax.errors import ConfigError, DataError
from janus_jax.objectives import build_objective
from janus_jax.storage.bucket import is_url

RECORD_SUFFIXES = (".jsonl", ".jsonl.gz", ".json.gz", ".parquet", ".arrow")
_OBJECTIVES = {"sft": "sft", "dpo": "dpo", "orpo": "dpo", "rm": "rm"}
"""Kind of data -> objective. Every objective on log-probs of pairs packs them alike, so DPO stands for all of them."""


@dataclasses.dataclass(frozen=True)
class DirectoryOptions:
    """How to pack a data set that is opened without a configuration."""

    row_length: int | None = None
    max_sequence_length: int | None = None
    objective: str | None = None

    def given(self) -> list[str]:
        """The options that were set, by their names on the command line."""
        return [f"--{name.replace('_', '-')}" for name, value in dataclasses.asdict(self).items() if value is not None]


@dataclasses.dataclass(frozen=True)
class OpenedSplit:
    """One split, packed as it is read in training, in evaluation, or without a configuration."""

    role: str
    """training, held out, or split (opened without a configuration)."""
    packed: PackedEpochs
    objective: str
    epochs: int | None
    """Epochs that the run starts; None without a configuration."""
    weights: tuple[float, ...] | None = None
    """Weights of a mixture's parts, as configured."""
    notes: tuple[str, ...] = ()

    @property
    def split(self) -> str:
        return self.packed.dataset.split

    @property
    def title(self) -> str:
        """For headings and messages."""
        role = "" if self.role == "split" else f" ({self.role})"
        return f"{self.packed.dataset.name}, split {self.split}{role}"

    def rows(self, epoch: int) -> list[np.ndarray]:
        """All rows of an epoch in the order of steps, as positions in `packed.fitted`; a row of padding is empty."""
        starts = (Position(epoch, step * self.packed.unit) for step in range(self.packed.steps(epoch)))
        return [row for start in starts for row in self.packed.members(start)]

    @functools.cached_property
    def mixture(self) -> Mixture:
        """The data set as a mixture; a single one is its only part."""
        dataset = self.packed.dataset
        return dataset if isinstance(dataset, Mixture) else Mixture(dataset.parts)

    def locate(self, example: int) -> tuple[TokenizedDataset, int]:
        """The part that an example of the whole data set lies in, and its number there."""
        number = int(self.mixture.part_of(np.array([example]))[0])
        return self.mixture.parts[number], example - int(self.mixture.starts[number])


def open_splits(
    target: str, overrides: Sequence[str] = (), options: DirectoryOptions | None = None, split: str | None = None
) -> list[OpenedSplit]:
    """The splits of a built data set (a directory) or of a configuration (a file).

    Raises:
        ConfigError: an option does not apply to the target, or training would reject the configuration.
        DataError: training would reject the data.
        StorageError: data on gs:// cannot be copied to this machine.
    """
    options = options or DirectoryOptions()
    if is_url(target) or Path(target).expanduser().is_dir():
        if overrides:
            raise ConfigError(f"{overrides[0]}: {target} is a directory; KEY=VALUE needs a configuration")
        return _directory_splits(target, options, split)
    if target.endswith(RECORD_SUFFIXES) and Path(target).expanduser().is_file():
        raise DataError(target, "is a file of records, not a built data set; build one with `janus data build`")
    if given := options.given():
        raise ConfigError(f"{given[0]}: allowed with a data set only; override keys instead, like batch.rows=4")
    return _config_splits(load_config(target, overrides, inputs=True), split)


def _directory_splits(directory: str, options: DirectoryOptions, split: str | None) -> list[OpenedSplit]:
    manifest = Manifest.load(fetch.dataset(directory, split or "train"))
    objective = options.objective or _OBJECTIVES[manifest.kind]
    branches, head = OBJECTIVES[objective].branches, OBJECTIVES[objective].head
    row_length = options.row_length or 8192 // branches
    max_length = options.max_sequence_length or max(1, row_length // branches)
    if max_length > row_length:
        raise ConfigError(f"--max-sequence-length {max_length}: allowed: at most --row-length, {row_length}")
    settings = BatchSettings(row_length, max_length, rows=1)
    names = list(manifest.splits) if split is None else [split]
    splits = []
    for name in names:
        dataset = TokenizedDataset(fetch.dataset(directory, name), name)
        dataset.name = directory  # the URL, not the directory of its local copy
        packed = PackedEpochs(dataset, settings, branches=branches, head=head)
        splits.append(OpenedSplit("split", packed, objective, epochs=None))
    return splits


def _config_splits(config: RunConfig, split: str | None) -> list[OpenedSplit]:
    splits = [_training_split(config)]
    held_out = open_held_out(config)
    if held_out is not None:
        objective, settings = build_objective(config), eval_batch_settings(config, splits[0].packed.rows)
        packed = PackedEpochs(
            held_out, settings, branches=objective.branches, head=objective.head, seed=config.run.seed, shuffle=False
        )
        splits.append(OpenedSplit("held out", packed, objective.name, epochs=1))
    chosen = [opened for opened in splits if split in (None, opened.split)]
    if not chosen:
        names = ", ".join(dict.fromkeys(opened.split for opened in splits))
        raise ConfigError(f"--split {split}: the configuration reads {names}")
    return chosen


def _training_split(config: RunConfig) -> OpenedSplit:
    packed, objective = packed_epochs(config), build_objective(config)
    notes = []
    if config.batch.examples is not None:
        notes.append("batch.examples: the number of rows per step depends on the mesh; the smallest is shown")
    if getattr(objective, "nll", None) == "prompt_and_response":
        notes.append("objective.nll = prompt_and_response: prompt tokens of the chosen sequence are targets too")
    weights = [part.weight for part in config.data.mixture or () if part.weight is not None]
    return OpenedSplit("training", packed, objective.name, packed.epochs, tuple(weights) or None, tuple(notes))
