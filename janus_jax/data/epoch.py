"""The packed rows of each epoch, as a pure function of lengths, seed and settings. Numpy only, no devices.

Of the ids, one fact counts: which pairs have equal responses. Only pairs of equally long responses are read to know.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from janus_jax.batch import Batch, row_bytes
from janus_jax.config.sections import BatchSection
from janus_jax.data.dataset import Dataset
from janus_jax.data.example import Example
from janus_jax.data.padding import MULTIPLE, Padding, PaddingKind
from janus_jax.data.rows import (
    OverlongPolicy,
    RowFormat,
    assign_rows,
    assign_steps,
    default_max_segments,
    fit,
    pack,
    rows_per_step,
)
from janus_jax.errors import ConfigError, DataError
from janus_jax.model.config import Head
from janus_jax.parallel.host_memory import require_host_memory

_AT_ONCE = 4096
"""Pairs that are read at once to compare their responses."""

_DEFAULTS = BatchSection(row_length=1, max_sequence_length=1)  # the lengths have none

_ROW_BYTES = 150
"""Of the list of a packed row, without its examples."""


@dataclasses.dataclass(frozen=True)
class BatchSettings:
    """The batch unit: `rows` packed rows, or exactly `examples` examples in the fewest rows that hold every step."""

    row_length: int
    max_sequence_length: int
    rows: int | None = _DEFAULTS.rows
    examples: int | None = _DEFAULTS.examples
    microbatches: int = _DEFAULTS.microbatches
    max_segments: int | None = _DEFAULTS.max_segments
    keep_together: int = _DEFAULTS.keep_together
    share_prompts: bool = _DEFAULTS.share_prompts
    overlong: OverlongPolicy = _DEFAULTS.overlong
    padding: PaddingKind | None = None  # `compat.orpo_padding`


@dataclasses.dataclass(frozen=True)
class Position:
    """Where the next batch begins. With the data set and the settings, this is the whole state of the reader.

    `row` counts rows of the epoch, or examples if `BatchSettings.examples` is set: the number of rows depends on the
    mesh, but which examples a batch holds does not.
    """

    epoch: int = 0
    row: int = 0


START = Position()
"""The beginning of the first epoch."""


class PackedEpochs:
    """Assigns the examples of each epoch to rows and batches, and packs the rows.

    Args:
        branches: responses per example that the objective reads, 1 or 2.
        head: the head that the objective reads; it decides how examples are laid out in a row.
        seed: seed of the order.
        epochs, steps: how far a run reads, in epochs and in batches (the larger counts); this decides how many rows
            `batch.examples` takes.
        shuffle: False makes the same rows in every epoch: blocks in the order of the data set, packed by length.
        row_shards: number of shards that the rows of a microbatch are divided over.
        rows_key: the key that sets the number of rows.
    Raises:
        ConfigError: rows do not divide over microbatches, or their lists do not fit into this machine's memory.
        DataError: the split does not suit the objective, or no example fits.
    """

    def __init__(
        self,
        dataset: Dataset,
        settings: BatchSettings,
        *,
        branches: int,
        head: Head = "lm",
        seed: int = 0,
        epochs: int = 1,
        steps: int = 0,
        shuffle: bool = True,
        row_shards: int = 1,
        rows_key: str = "batch.rows",
    ):
        micro = settings.microbatches
        unit = (rows_key, settings.rows) if settings.examples is None else ("batch.examples", settings.examples)
        self.keys = f"{unit[0]} = {unit[1]}, batch.microbatches = {micro}, batch.row_length = {settings.row_length}"
        self.keys += "" if settings.max_segments is None else f", batch.max_segments = {settings.max_segments}"
        require_host_memory((settings.rows or micro * row_shards) * _ROW_BYTES, self.keys, "the lists of rows")
        self.dataset, self.settings, self.seed, self.shuffle = dataset, settings, seed, shuffle
        self._run = (epochs, steps)
        pairs = bool((dataset.lengths[:, 2] > 0).any())
        if pairs != (branches == 2):
            raise DataError(
                dataset.name,
                f"holds {'pairs' if pairs else 'single responses'} (kind {dataset.kind}), but the "
                f"objective reads {'pairs' if branches == 2 else 'single responses'}; build it with the right --kind",
            )
        self.form = RowFormat(head, branches, settings.share_prompts, self._padding())
        self.fitted = fit(
            dataset.lengths,
            row_length=settings.row_length,
            max_sequence_length=settings.max_sequence_length,
            overlong=settings.overlong,
            keep_together=settings.keep_together,
            name=dataset.name,
            form=self.form,
            equal=self._equal_responses if branches == 2 else None,
        )
        self.max_segments = settings.max_segments or default_max_segments(self.fitted, settings.row_length)
        self._packed = functools.lru_cache(maxsize=2)(self._pack_epoch)
        if settings.examples is None:
            assert settings.rows is not None
            self.rows = settings.rows
            if self.rows % micro:
                raise ConfigError(f"batch.rows={self.rows} is not a multiple of batch.microbatches={micro}")
        else:
            self._multiple = micro * row_shards
            self.rows = self.rows_for(epochs, steps)

    def _padding(self) -> Padding | None:
        """Padding with EOS: axolotl's to `max_sequence_length`, TRL's to the longer sequence of a pair."""
        kind = self.settings.padding
        if kind is None:
            return None
        length = -(-self.settings.max_sequence_length // MULTIPLE) * MULTIPLE if kind == "axolotl" else None
        return Padding(kind, self.dataset.parts[0].manifest.tokenizer["eos"], length)

    def rows_for(self, epochs: int, steps: int) -> int:
        """Rows of a batch of `batch.examples` examples, the fewest that suffice for a run of this length.

        Raises:
            ConfigError: an example is longer than a row.
        """
        assert self.settings.examples is not None
        return rows_per_step(
            [self.fitted.slots[self._drawn(epoch)] for epoch in range(self._begun(epochs, steps))],
            examples=self.settings.examples,
            row_length=self.settings.row_length,
            max_segments=self.max_segments,
            seed=self.seed,
            multiple=self._multiple,
            keep_together=self.settings.keep_together,
        )

    @property
    def unit(self) -> int:
        """Rows (or examples) from one batch's position to the next."""
        return self.settings.examples or self.rows

    @functools.cached_property
    def epochs(self) -> int:
        """Number of epochs that the run begins."""
        return self._begun(*self._run)

    def _begun(self, epochs: int, steps: int) -> int:
        """Number of epochs that a run of this length begins."""
        count = 0
        while count < epochs or steps > 0:
            steps -= self.steps(count)
            count += 1
        return count

    def steps(self, epoch: int) -> int:
        """Batches in an epoch. The last may hold rows of padding, so that no example is left out."""
        if self.settings.examples is not None:
            return -(-len(self._drawn(epoch)) // self.settings.examples)
        return len(self._packed(epoch))

    def total_steps(self, epochs: int) -> int:
        """Batches in the first `epochs` epochs."""
        return sum(self.steps(epoch) for epoch in range(epochs))

    def tokens(self, epoch: int) -> int:
        """Slots that the examples of an epoch fill; an example that a mixture draws twice counts twice."""
        return int(self.fitted.slots[self._drawn(epoch)].sum())

    def tokens_before(self, position: Position) -> int:
        """Slots filled in all batches before `position`."""
        whole = sum(self.tokens(epoch) for epoch in range(position.epoch))
        batches = self._packed(position.epoch)[: position.row // self.unit] if position.row else []
        return whole + sum(int(self.fitted.slots[row].sum()) for batch in batches for row in batch)

    def example_ids(self, position: Position) -> np.ndarray:
        """The numbers of the examples in the batch at `position`. Reads no data."""
        return self.fitted.index[np.concatenate(self.members(position))]

    def examples_read(self) -> np.ndarray:
        """The numbers of the examples that the run reads at least once, ascending."""
        read = np.zeros(len(self.fitted.index), bool)
        epochs, left = self._run
        for epoch in range(self.epochs):
            if epoch < epochs or left >= self.steps(epoch):
                read[self._drawn(epoch)] = True
            else:  # the run ends inside this epoch
                for step in self._packed(epoch)[:left]:
                    read[np.concatenate(step)] = True
            left -= self.steps(epoch)
            if read.all():
                break
        return self.fitted.index[read]

    def most_shared_slots(self) -> int:
        """The most slots of shared prompts in any row of the run; 0 if branches do not share prompts."""
        if self.form.branches < 2 or not self.form.share_prompts:
            return 0
        shared = self.fitted.lengths[:, 0] - 1
        return max((int(shared[row].sum()) for row in self._rows_of_run()), default=0)

    def most_segments(self) -> int:
        """The most segments in any row of the run; `max_segments` or fewer."""
        return max((len(row) for row in self._rows_of_run()), default=0)

    def longest_sequence(self) -> int:
        """The most tokens of a prompt with one of its branches; `max_sequence_length` or fewer."""
        lengths = self.fitted.lengths
        return int((lengths[:, 0] + lengths[:, 1:].max(1)).max())

    def _rows_of_run(self) -> Iterator[np.ndarray]:
        return (row for epoch in range(max(1, self.epochs)) for step in self._packed(epoch) for row in step)

    def after(self, position: Position) -> Position:
        """The position of the batch after the one at `position`."""
        row = position.row + self.unit
        if row >= self.steps(position.epoch) * self.unit:
            return Position(position.epoch + 1, 0)
        return Position(position.epoch, row)

    def epochs_before(self, position: Position) -> float:
        """Epochs before `position`; a partial epoch counts as a fraction."""
        if not position.row:  # a run that ends here need not pack another epoch
            return float(position.epoch)
        return position.epoch + position.row / (self.steps(position.epoch) * self.unit)

    def positions(self, start: Position = START) -> Iterator[Position]:
        """Iterates over the positions of batches from `start` on, without end.

        Raises:
            DataError: no batch begins at `start`.
        """
        if start.row % self.unit:
            unit = "rows" if self.settings.examples is None else "examples"
            raise DataError(f"position row {start.row} is not a multiple of the {self.unit} {unit} of a batch")
        return self._positions(start)

    def _positions(self, start: Position) -> Iterator[Position]:
        if start.row >= self.steps(start.epoch) * self.unit:  # saved by a run whose epochs were longer
            start = Position(start.epoch + 1, 0)
        while True:
            yield start
            start = self.after(start)

    def members(self, position: Position) -> list[np.ndarray]:
        """The rows of the batch at `position`, each as indices into `fitted`."""
        return self._packed(position.epoch)[position.row // self.unit]

    def read(self, rows: Sequence[np.ndarray]) -> Batch:
        """Reads and packs these rows: [rows, ...] in numpy.

        Args:
            rows: indices into `fitted` for each row; an empty array makes a row of padding.
        Raises:
            DataError: stored ids cannot be read.
        """
        size = len(rows) * row_bytes(self.settings.row_length, self.max_segments)
        require_host_memory(size, self.keys, f"{len(rows):,} rows")
        needed = np.unique(np.concatenate(rows)) if rows else np.zeros(0, np.int64)
        examples = self.dataset.read(self.fitted.index[needed])
        cut = {i: self._cut(example, i) for i, example in zip(needed.tolist(), examples, strict=True)}
        members = [[cut[int(i)] for i in row] for row in rows]
        return pack(members, row_length=self.settings.row_length, max_segments=self.max_segments, form=self.form)

    def _equal_responses(self, index: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """[P] bool: whether the pairs `index`, cut to `lengths` [P, 3], have the same ids in both responses."""
        equal = np.zeros(len(index), bool)
        for start in range(0, len(index), _AT_ONCE):
            for at, example in enumerate(self.dataset.read(index[start : start + _AT_ONCE]), start):
                assert example.rejected is not None
                chosen, rejected = (
                    self._cut_response(ids, int(lengths[at, 1])) for ids in (example.chosen, example.rejected)
                )
                equal[at] = np.array_equal(chosen, rejected)
        return equal

    def _drawn(self, epoch: int) -> np.ndarray:
        """Indices into `fitted` of the examples that an epoch reads."""
        return self.dataset.draw(self.fitted.index, self.seed, epoch)

    def _pack_epoch(self, epoch: int) -> list[list[np.ndarray]]:
        """The batches of an epoch, each `self.rows` arrays of indices into `fitted`."""
        drawn = self._drawn(epoch)
        slots = self.fitted.slots[drawn]
        common = {"row_length": self.settings.row_length, "max_segments": self.max_segments, "seed": self.seed}
        if self.settings.examples is not None:
            steps = assign_steps(
                slots,
                examples=self.settings.examples,
                epoch=epoch,
                rows=self.rows,
                keep_together=self.settings.keep_together,
                **common,
            )
            if steps is None:
                raise DataError(
                    self.dataset.name,
                    f"epoch {epoch} needs more than {self.rows} rows for "
                    f"batch.examples={self.settings.examples}; raise batch.row_length",
                )
        else:
            rows = assign_rows(slots, epoch=epoch, shuffle=self.shuffle, **common)
            empty = np.zeros(0, np.int64)
            rows += [empty] * (-len(rows) % self.rows)
            steps = [rows[at : at + self.rows] for at in range(0, len(rows), self.rows)]
        return [[drawn[row] for row in step] for step in steps]

    def _cut(self, example: Example, i: int) -> Example:
        """The example with the lengths of number `i` in `fitted`."""
        prompt, chosen, rejected = self.fitted.lengths[i]
        return dataclasses.replace(
            example,
            prompt=example.prompt[:prompt],
            chosen=self._cut_response(example.chosen, chosen),
            rejected=None if example.rejected is None else self._cut_response(example.rejected, rejected),
        )

    def _cut_response(self, ids: np.ndarray, length: int) -> np.ndarray:
        """The first `length` ids. Rewards are read at EOS, so with a value head EOS stays last (as in OpenRLHF)."""
        if self.form.head == "lm" or length in (0, len(ids)):
            return ids[:length]
        return np.concatenate([ids[: length - 1], ids[-1:]])
