"""From a built data set to global batches on a mesh: the same rows in the same order on any number of hosts."""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
from collections.abc import Generator, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from janus_jax.batch import Batch
from janus_jax.data.dataset import TokenizedDataset
from janus_jax.data.example import Example
from janus_jax.data.rows import (
    OverlongPolicy,
    RowFormat,
    default_max_segments,
    fit,
    pack,
    plan_groups,
    plan_rows,
    rows_for_groups,
)
from janus_jax.errors import ConfigError, DataError
from janus_jax.model.config import Head
from janus_jax.parallel import mesh as meshes

_LOOKAHEAD = 2
"""Batches that are read and packed while the devices work."""


@dataclasses.dataclass(frozen=True)
class BatchSettings:
    """The batch unit: `rows` packed rows, or exactly `examples` examples over as few rows as always suffice."""

    row_length: int
    max_sequence_length: int
    rows: int | None = None
    examples: int | None = None
    microbatches: int = 1
    max_segments: int | None = None
    keep_together: int = 1
    share_prompts: bool = True
    overlong: OverlongPolicy = "drop"


@dataclasses.dataclass(frozen=True)
class Position:
    """Where the next batch begins; with the data set and the settings this is the whole state of the reader.

    `row` counts rows of the epoch's plan, or examples where a batch is so many examples: how many rows hold them
    depends on the mesh, which examples they are does not.
    """

    epoch: int = 0
    row: int = 0


@dataclasses.dataclass(frozen=True)
class LoadedBatch:
    """A global batch on devices, and what the plan knows about it without asking any device."""

    batch: Batch  # jax.Arrays [M, B, L] and [M, B, S]
    position: Position  # where this batch begins
    next_position: Position
    examples: int
    tokens: int  # slots that hold a token
    fill: float  # the share of slots that hold a token


class Loader:
    """Reads the rows of a split, epoch after epoch, as global batches.

    The plan of an epoch is a pure function of lengths, seed and epoch, so every host knows all of it and reads only
    the rows that its own devices hold: the sequence of global batches does not depend on hosts or mesh.

    Args:
        branches: responses that the objective reads of each example, 1 or 2.
        head: what it reads of them, which decides how they lie in a row.
        seed: of the order.
        epochs, steps: how far a run will read (the larger counts); it settles how many rows `batch.examples` takes.
        shuffle: False keeps the order of the data set, packed row by row.
    Raises:
        ConfigError: rows do not divide over microbatches or row shards.
        DataError: the split does not suit the objective, or no example fits.
    """

    def __init__(
        self,
        dataset: TokenizedDataset,
        settings: BatchSettings,
        *,
        mesh: Mesh,
        rules: meshes.Rules,
        branches: int,
        head: Head = "lm",
        seed: int = 0,
        epochs: int = 1,
        steps: int = 0,
        shuffle: bool = True,
    ):
        self.dataset, self.settings, self.seed, self.shuffle = dataset, settings, seed, shuffle
        pairs = bool((dataset.lengths[:, 2] > 0).any())
        if pairs != (branches == 2):
            raise DataError(
                f"{dataset.directory}: holds {'pairs' if pairs else 'single responses'} (kind {dataset.kind}), but the "
                f"objective reads {'pairs' if branches == 2 else 'single responses'}; build it with the right --kind"
            )
        self.form = RowFormat(head, branches, settings.share_prompts)
        self.fitted = fit(
            dataset.lengths,
            row_length=settings.row_length,
            max_sequence_length=settings.max_sequence_length,
            overlong=settings.overlong,
            keep_together=settings.keep_together,
            name=str(dataset.directory),
            form=self.form,
        )
        self.max_segments = settings.max_segments or default_max_segments(self.fitted, settings.row_length)
        micro = settings.microbatches
        if settings.examples is not None:
            steps_per_epoch = -(-len(self.fitted.index) // settings.examples)
            self.rows = rows_for_groups(
                self.fitted.slots,
                examples=settings.examples,
                row_length=settings.row_length,
                max_segments=self.max_segments,
                seed=seed,
                epochs=max(epochs, -(-steps // steps_per_epoch)),
                multiple=micro * meshes.row_shards(mesh, rules),
                keep_together=settings.keep_together,
            )
        else:
            assert settings.rows is not None
            self.rows = settings.rows
            if self.rows % micro:
                raise ConfigError(f"batch.rows={self.rows} is not a multiple of batch.microbatches={micro}")
            meshes.check_rows(self.rows // micro, mesh, rules, "batch.rows")
        self.reference_logps: np.ndarray | None = None
        """[E, 2] float32 by example number; where it is set, batches come with them."""

        self.unit = settings.examples or self.rows
        """Rows, or examples, from one batch's position to the next."""
        self._slots_sharding = meshes.batch_sharding(mesh, rules, (None, "batch", "length"))
        self._segments_sharding = meshes.batch_sharding(mesh, rules, (None, "batch", None))
        self._local = self._local_rows()
        self._plan = functools.lru_cache(maxsize=2)(self._plan_epoch)

    def sharding(self) -> Batch:
        """The sharding of each field of a batch."""
        fields = {field.name: self._slots_sharding for field in dataclasses.fields(Batch)}
        for name in ("example_id", "valid", "margin", "reference_logps"):
            fields[name] = self._segments_sharding
        return Batch(**fields)

    def steps(self, epoch: int) -> int:
        """Batches in an epoch; the last may hold rows of padding, so that nothing is left out."""
        return len(self._plan(epoch))

    def total_steps(self, epochs: int) -> int:
        """Batches in the first `epochs` epochs."""
        return sum(self.steps(epoch) for epoch in range(epochs))

    def batches(self, start: Position = Position(), steps: int | None = None) -> Generator[LoadedBatch, None, None]:
        """`steps` batches from `start` on, or endlessly many; planned, read and packed ahead in a thread.

        Raises:
            DataError: `start` is not where a batch begins, or a record cannot be read.
        """
        if start.row % self.unit:
            unit = "rows" if self.settings.examples is None else "examples"
            raise DataError(f"position row {start.row} is not a multiple of the {self.unit} {unit} of a batch")
        positions = itertools.islice(self._positions(start), steps)
        pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="loader")
        ahead = collections.deque(pool.submit(self._read_next, positions) for _ in range(_LOOKAHEAD))
        try:
            while (found := ahead.popleft().result()) is not None:
                ahead.append(pool.submit(self._read_next, positions))
                local, loaded = found
                yield dataclasses.replace(loaded, batch=self._globalize(local))
        finally:
            for future in ahead:
                future.cancel()
            pool.shutdown(wait=False)  # a generator left to the end of the interpreter can no longer join a thread

    def epoch(self, epoch: int = 0) -> Generator[LoadedBatch, None, None]:
        """The batches of one epoch, each once."""
        return self.batches(Position(epoch, 0), self.steps(epoch))

    def example_ids(self, position: Position) -> np.ndarray:
        """Numbers of the examples in the batch at `position`; nothing is read."""
        return self.fitted.index[np.concatenate(self._plan(position.epoch)[position.row // self.unit])]

    def after(self, position: Position) -> Position:
        """Where the batch after the one at `position` begins."""
        row = position.row + self.unit
        if row >= self.steps(position.epoch) * self.unit:
            return Position(position.epoch + 1, 0)
        return Position(position.epoch, row)

    def epochs_before(self, position: Position) -> float:
        """How many epochs, and parts of one, lie before `position`."""
        return position.epoch + position.row / (self.steps(position.epoch) * self.unit)

    def _positions(self, start: Position) -> Iterator[Position]:
        if start.row >= self.steps(start.epoch) * self.unit:  # saved by a run whose epochs were longer
            start = Position(start.epoch + 1, 0)
        while True:
            yield start
            start = self.after(start)

    def _read_next(self, positions: Iterator[Position]) -> tuple[Batch, LoadedBatch] | None:
        position = next(positions, None)
        return None if position is None else self._read(position)

    def _plan_epoch(self, epoch: int) -> list[list[np.ndarray]]:
        """Steps of an epoch, each `self.rows` arrays of positions in `self.fitted`."""
        common = {"row_length": self.settings.row_length, "max_segments": self.max_segments, "seed": self.seed}
        slots = self.fitted.slots
        if self.settings.examples is not None:
            steps = plan_groups(
                slots,
                examples=self.settings.examples,
                epoch=epoch,
                rows=self.rows,
                keep_together=self.settings.keep_together,
                **common,
            )
            if steps is None:
                raise DataError(
                    f"{self.dataset.directory}: epoch {epoch} needs more than {self.rows} rows for "
                    f"batch.examples={self.settings.examples}; raise batch.row_length"
                )
            return steps
        rows = plan_rows(slots, epoch=epoch, shuffle=self.shuffle, **common)
        empty = np.zeros(0, np.int64)
        return [
            rows[at : at + self.rows] + [empty] * (self.rows - len(rows[at : at + self.rows]))
            for at in range(0, len(rows), self.rows)
        ]

    def _local_rows(self) -> np.ndarray:
        """Rows of a microbatch that devices of this process hold, ascending."""
        shape = (self.settings.microbatches, self.rows // self.settings.microbatches, self.settings.row_length)
        needed: set[int] = set()
        for index in self._slots_sharding.addressable_devices_indices_map(shape).values():
            assert index is not None
            needed.update(range(*index[1].indices(shape[1])))
        return np.asarray(sorted(needed))

    def _read(self, position: Position) -> tuple[Batch, LoadedBatch]:
        """Packs this process's rows of the batch at `position`, as numpy [M, local rows, ...]."""
        members = self._plan(position.epoch)[position.row // self.unit]
        per_micro = self.rows // self.settings.microbatches
        mine = [members[m * per_micro + row] for m in range(self.settings.microbatches) for row in self._local]
        wanted = np.concatenate(mine)
        read = self.dataset.read(self.fitted.index[wanted])
        found = {int(at): self._cut(example, at) for at, example in zip(wanted, read, strict=True)}
        rows = [[found[int(at)] for at in row] for row in mine]
        packed = pack(rows, row_length=self.settings.row_length, max_segments=self.max_segments, form=self.form)
        if self.reference_logps is not None:
            packed.reference_logps[packed.valid] = self.reference_logps[packed.example_id[packed.valid]]
        local = jax.tree.map(lambda x: x.reshape(self.settings.microbatches, len(self._local), *x.shape[1:]), packed)
        everything = np.concatenate(members)
        tokens = int(self.fitted.slots[everything].sum())
        return local, LoadedBatch(
            batch=local,
            position=position,
            next_position=self.after(position),
            examples=len(everything),
            tokens=tokens,
            fill=tokens / (self.rows * self.settings.row_length),
        )

    def _cut(self, example: Example, at: int) -> Example:
        prompt, chosen, rejected = self.fitted.lengths[at]
        return dataclasses.replace(
            example,
            prompt=example.prompt[:prompt],
            chosen=self._cut_response(example.chosen, chosen),
            rejected=None if example.rejected is None else self._cut_response(example.rejected, rejected),
        )

    def _cut_response(self, ids: np.ndarray, length: int) -> np.ndarray:
        """The first `length` ids. A reward is read at EOS, which therefore stays last (as OpenRLHF does)."""
        if self.form.head == "lm" or length in (0, len(ids)):
            return ids[:length]
        return np.concatenate([ids[: length - 1], ids[-1:]])

    def _globalize(self, local: Batch) -> Batch:
        """Global jax.Arrays from this process's rows."""
        row_at = {int(row): i for i, row in enumerate(self._local)}

        def place(x: np.ndarray, sharding: Any) -> jax.Array:
            shape = (x.shape[0], self.rows // self.settings.microbatches, *x.shape[2:])

            def shard(index: tuple[slice, ...] | None) -> np.ndarray:
                assert index is not None
                rows = [row_at[row] for row in range(*index[1].indices(shape[1]))]
                return x[(index[0], rows, *index[2:])]

            return jax.make_array_from_callback(shape, sharding, shard)

        return jax.tree.map(place, local, self.sharding())
