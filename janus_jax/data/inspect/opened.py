"""What is looked at: splits of a built data set, or those that a run configuration reads, each with its row plan."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from janus_jax.config.run import RunConfig, load_config
from janus_jax.data import fetch
from janus_jax.data.dataset import Manifest, TokenizedDataset
from janus_jax.data.epoch import BatchSettings, PackedEpochs, Position
from janus_jax.data.from_config import batch_settings, open_held_out, packed_epochs
from janus_jax.errors import ConfigError, DataError
from janus_jax.model.config import Head
from janus_jax.objectives import build_objective
from janus_jax.storage.bucket import is_url

ROWS_ENDINGS = (".jsonl", ".jsonl.gz", ".json.gz", ".parquet")
OBJECTIVE_OF_KIND = {"sft": "sft", "dpo": "dpo", "orpo": "dpo", "rm": "rm"}
"""Pairs lie in rows in one way whatever is learned of their log-probs, so that of DPO stands for all of them."""

HEAD_OF_OBJECTIVE: dict[str, Head] = {"sft": "lm", "dpo": "lm", "rm": "value"}


@dataclasses.dataclass(frozen=True)
class DirectoryOptions:
    """How the rows of a bare data set are made, which a configuration would say."""

    row_length: int | None = None
    max_sequence_length: int | None = None
    objective: str | None = None

    def given(self) -> list[str]:
        """Options that are not left to their defaults, as the command line calls them."""
        return [f"--{name.replace('_', '-')}" for name, value in dataclasses.asdict(self).items() if value is not None]


@dataclasses.dataclass(frozen=True)
class View:
    """One split as it is read: in training, in evaluation, or by itself."""

    role: str
    """training, held out, or split (of a bare data set)."""
    plan: PackedEpochs
    objective: str
    epochs: int | None
    """That a run begins; None of a bare data set."""
    weights: tuple[float, ...] | None = None
    """Of a mixture's parts, as they are stated."""
    notes: tuple[str, ...] = ()

    @property
    def split(self) -> str:
        return self.plan.dataset.split

    @property
    def title(self) -> str:
        """As headings call it."""
        role = "" if self.role == "split" else f" ({self.role})"
        return f"{self.plan.dataset.name}, split {self.split}{role}"

    def rows(self, epoch: int) -> list[np.ndarray]:
        """All rows of an epoch, step after step: positions in `plan.fitted`; an empty one is a row of padding."""
        starts = (Position(epoch, step * self.plan.unit) for step in range(self.plan.steps(epoch)))
        return [row for start in starts for row in self.plan.members(start)]

    def part_of(self, index: np.ndarray) -> np.ndarray:
        """Number of the part that each example number of the whole lies in."""
        return np.searchsorted(self.starts, index, side="right") - 1

    @property
    def starts(self) -> np.ndarray:
        """Example number of the whole at which each part begins, and the number of all."""
        return np.cumsum([0] + [len(part) for part in self.plan.dataset.parts])


def open_views(
    target: str, overrides: Sequence[str] = (), options: DirectoryOptions | None = None, split: str | None = None
) -> list[View]:
    """The splits of a built data set (a directory) or of a configuration (a file).

    Raises:
        ConfigError: options that do not go with the target, or a configuration that training would refuse.
        DataError: data that training would refuse.
        StorageError: data on gs:// that cannot be copied here.
    """
    options = options or DirectoryOptions()
    if is_url(target) or Path(target).expanduser().is_dir():
        if overrides:
            raise ConfigError(f"{overrides[0]}: {target} is a directory; allowed: KEY=VALUE with a configuration only")
        return _views_of_directory(target, options, split)
    if target.endswith(ROWS_ENDINGS) and Path(target).expanduser().is_file():
        raise DataError(f"{target}: holds rows, not yet a data set; `janus data build` makes one of them")
    if given := options.given():
        raise ConfigError(f"{given[0]}: allowed with a data set only; change the configuration, like batch.rows=4")
    return _views_of_config(load_config(target, overrides), split)


def _views_of_directory(directory: str, options: DirectoryOptions, split: str | None) -> list[View]:
    manifest = Manifest.load(fetch.dataset(directory, split or "train"))
    objective = options.objective or OBJECTIVE_OF_KIND[manifest.kind]
    row_length = options.row_length or (8192 if objective == "sft" else 4096)
    longest = options.max_sequence_length or (row_length if objective == "sft" else max(1, row_length // 2))
    if longest > row_length:
        raise ConfigError(f"--max-sequence-length {longest}: allowed: at most --row-length, {row_length}")
    settings = BatchSettings(row_length, longest, rows=1)
    names = list(manifest.splits) if split is None else [split]
    views = []
    for name in names:
        dataset = TokenizedDataset(fetch.dataset(directory, name), name)
        dataset.name = directory  # and not that of a copy
        branches = 1 if objective == "sft" else 2
        plan = PackedEpochs(dataset, settings, branches=branches, head=HEAD_OF_OBJECTIVE[objective])
        views.append(View("split", plan, objective, epochs=None))
    return views


def _views_of_config(config: RunConfig, split: str | None) -> list[View]:
    views = [_training_view(config)]
    held_out = open_held_out(config)
    if held_out is not None:
        objective, settings = build_objective(config), batch_settings(config)
        rows = config.eval.rows or views[0].plan.rows // settings.microbatches
        settings = dataclasses.replace(settings, rows=rows, examples=None, microbatches=1, keep_together=1)
        plan = PackedEpochs(
            held_out, settings, branches=objective.branches, head=objective.head, seed=config.run.seed, shuffle=False
        )
        views.append(View("held out", plan, objective.name, epochs=1))
    found = [view for view in views if split in (None, view.split)]
    if not found:
        there = ", ".join(dict.fromkeys(view.split for view in views))
        raise ConfigError(f"--split {split}: the configuration reads {there}")
    return found


def _training_view(config: RunConfig) -> View:
    plan, objective = packed_epochs(config), build_objective(config)
    notes = []
    if config.batch.examples is not None:
        notes.append("batch.examples: how many rows a step takes depends on the mesh; shown are the fewest")
    if getattr(objective, "nll", None) == "prompt_and_response":
        notes.append("objective.nll = prompt_and_response: the targets of the chosen sequence's prompt count too")
    stated = [part.weight for part in config.data.mixture or () if part.weight is not None]
    return View("training", plan, objective.name, plan.epochs, tuple(stated) or None, tuple(notes))
