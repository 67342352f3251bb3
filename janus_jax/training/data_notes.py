"""What of a run's data is probably not meant, one sentence each."""

import os
from collections.abc import Iterator

import numpy as np

from janus_jax.data.dataset import Dataset
from janus_jax.data.epoch import PackedEpochs, Position
from janus_jax.data.mixture import Mixture
from janus_jax.errors import counted
from janus_jax.objectives import Objective

_LEAST_USED = 0.5
"""Of the rows, or of the slots of rows, that an epoch uses, the share that is not worth a note."""


def data_notes(objective: Objective, loader: PackedEpochs, held_out: PackedEpochs | None) -> list[str]:
    """Notes on the data that a run trains and evaluates on, and on batches that they do not fill.

    Args:
        held_out: None without evaluation.
    """
    lines = [*_margins(objective, loader), *_batches(loader), *_repeats(loader), *_twice(loader.dataset)]
    return lines if held_out is None else [*lines, *_held_out(loader.dataset, held_out.dataset)]


def _held_out(dataset: Dataset, held_out: Dataset) -> Iterator[str]:
    """How held-out data differ from the training data, or do not."""
    known, templates = {part.split_fingerprint for part in dataset.parts}, _templates(dataset)
    for part in held_out.parts:
        if part.split_fingerprint in known:
            yield (
                f"the held-out examples of {part.name}, split {part.split}, are training examples: their loss does not "
                "say how well the model does on others"
            )
    if others := [name for name in _templates(held_out) if name not in templates]:
        yield (
            f"the held-out data has template {', '.join(others)}, the training data {', '.join(templates)}: its loss "
            "is that of prompts that the model is not trained on"
        )


def _templates(dataset: Dataset) -> list[str]:
    return list(dict.fromkeys(part.manifest.template for part in dataset.parts))


def _margins(objective: Objective, loader: PackedEpochs) -> Iterator[str]:
    count = np.count_nonzero(loader.dataset.margins)
    if count and not objective.uses_margins:
        having = f"{counted(int(count), 'training example')} {'has' if count == 1 else 'have'}"
        yield f"{having} a margin, which objective {objective.name} does not use"


def _batches(loader: PackedEpochs) -> Iterator[str]:
    """Batches that an epoch cannot fill."""
    settings, rows = loader.settings, _rows(loader)
    used, examples = sum(len(row) > 0 for row in rows), sum(map(len, rows))
    if settings.examples is not None and settings.examples > examples:
        yield f"batch.examples = {settings.examples:,}, but an epoch has {examples:,}: a step reads no more than these"
    elif settings.examples is None and used < _LEAST_USED * len(rows):
        yield f"batch.rows = {settings.rows:,}, but the examples of an epoch fill {used:,}: the others are padding"
    fill = loader.tokens(0) / (used * settings.row_length)
    if settings.max_segments is not None and fill < _LEAST_USED:
        yield (
            f"batch.max_segments = {settings.max_segments} leaves rows of batch.row_length = {settings.row_length:,} "
            f"mostly empty: {fill:.0%} of their slots hold tokens"
        )


def _repeats(loader: PackedEpochs) -> Iterator[str]:
    """Parts of a mixture that an epoch reads more than once."""
    mixture = loader.dataset
    if not isinstance(mixture, Mixture):
        return
    size = len(mixture.parts)
    present = np.bincount(mixture.part_of(loader.fitted.index), minlength=size)
    drawn = np.bincount(mixture.part_of(loader.fitted.index[np.concatenate(_rows(loader))]), minlength=size)
    for part, has, reads in zip(mixture.parts, present.tolist(), drawn.tolist(), strict=True):
        if reads > has:
            yield f"data.mixture: an epoch reads {reads:,} examples of {part.name}, which has {has:,}: they repeat"


def _twice(dataset: Dataset) -> Iterator[str]:
    """Parts of a mixture with the same examples. Whoever read the configuration knows equal names."""
    first: dict[str, str] = {}
    for part in dataset.parts:
        name = first.setdefault(part.split_fingerprint, part.name)
        if os.path.normpath(name) != os.path.normpath(part.name):
            yield f"data.mixture: {name} and {part.name} hold the same examples, which count twice"


def _rows(loader: PackedEpochs) -> list[np.ndarray]:
    """The rows of the first epoch, as indices into `fitted`."""
    steps = range(loader.steps(0))
    return [row for step in steps for row in loader.members(Position(0, step * loader.unit))]
