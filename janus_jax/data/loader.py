"""Global batches on a mesh: the same rows in the same order on any number of hosts, loaded ahead in a thread."""

import collections
import concurrent.futures
import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from janus_jax.batch import Batch, row_bytes
from janus_jax.data.dataset import Dataset
from janus_jax.data.epoch import START, BatchSettings, PackedEpochs, Position
from janus_jax.parallel import mesh as meshes
from janus_jax.parallel.host_memory import require_host_memory

_LOOKAHEAD = 2
"""Batches that a thread reads and packs while the devices work."""


@dataclasses.dataclass(frozen=True)
class LoadedBatch:
    """A global batch on devices, and what is known about it without reading from a device."""

    batch: Batch  # jax.Arrays [M, B, L] and [M, B, S]
    position: Position  # where this batch begins
    next_position: Position
    examples: int
    tokens: int  # slots that hold a token
    fill: float  # fraction of slots that hold a token


def batch_shardings(mesh: Mesh, rules: meshes.Rules) -> Batch:
    """The sharding of each field of a batch."""
    slots = meshes.batch_sharding(mesh, rules, (None, "batch", "length"))
    fields = {field.name: slots for field in dataclasses.fields(Batch)}
    for name in ("example_id", "valid", "margin", "reference_logps"):
        fields[name] = meshes.batch_sharding(mesh, rules, (None, "batch", None))
    return Batch(**fields)


def host_bytes(rows: int, row_length: int, max_segments: int) -> int:
    """Memory of a process that reads `rows` rows of each batch: of the batch in use and of those read ahead."""
    return (_LOOKAHEAD + 1) * rows * row_bytes(row_length, max_segments)


class Loader(PackedEpochs):
    """Loads packed epochs as global batches.

    Which examples are in which row is a pure function of lengths, seed and epoch. So every host knows all rows and
    reads only those of its own devices, and the sequence of global batches does not depend on hosts or mesh.

    Args:
        options: arguments of `PackedEpochs`.
    Raises:
        ConfigError: rows do not divide over microbatches or row shards, or batches do not fit into this machine's
            memory.
        DataError: see `PackedEpochs`.
    """

    def __init__(self, dataset: Dataset, settings: BatchSettings, *, mesh: Mesh, rules: meshes.Rules, **options: Any):
        super().__init__(dataset, settings, row_shards=meshes.row_shards(mesh, rules), **options)
        meshes.check_rows(self.rows // settings.microbatches, mesh, rules, "batch.rows", settings.microbatches)
        self._shardings = batch_shardings(mesh, rules)
        self._local = self._local_rows()
        require_host_memory(self.host_bytes, self.keys, f"{_LOOKAHEAD + 1} batches (the others are read ahead)")

    @property
    def host_bytes(self) -> int:
        """Memory of this process for its rows of the batch in use and of those that are read ahead."""
        return host_bytes(self.settings.microbatches * len(self._local), self.settings.row_length, self.max_segments)

    def batches(
        self,
        start: Position = START,
        steps: int | None = None,
        *,
        reference_logps: np.ndarray | None = None,
        wait: Callable[[concurrent.futures.Future[Any]], object] = lambda future: None,
    ) -> Generator[LoadedBatch, None, None]:
        """Yields `steps` batches from `start` on, without end if None. A thread reads and packs ahead.

        Args:
            reference_logps: [E, 2] float32 by example number, for the field of that name; None leaves zeros in it.
            wait: called before a batch that the thread may still be reading; may raise to end the wait.
        Raises:
            DataError: no batch begins at `start`, or stored ids cannot be read.
        """
        positions = itertools.islice(self.positions(start), steps)
        pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="loader")
        ahead = collections.deque(pool.submit(self._load_next, positions, reference_logps) for _ in range(_LOOKAHEAD))
        try:
            while True:
                wait(ahead[0])
                if (loaded := ahead.popleft().result()) is None:
                    return
                ahead.append(pool.submit(self._load_next, positions, reference_logps))
                yield dataclasses.replace(loaded, batch=self._globalize(loaded.batch))
        finally:
            for future in ahead:
                future.cancel()
            pool.shutdown(wait=False)  # waiting would fail for a generator that is closed at interpreter exit

    def epoch(self, epoch: int = 0, **options: Any) -> Generator[LoadedBatch, None, None]:
        """The batches of one epoch, each once. `options` as `batches`."""
        return self.batches(Position(epoch, 0), self.steps(epoch), **options)

    def _load_next(self, positions: Iterator[Position], reference_logps: np.ndarray | None) -> LoadedBatch | None:
        position = next(positions, None)
        return None if position is None else self._load(position, reference_logps)

    def _local_rows(self) -> np.ndarray:
        """The rows of a microbatch on this process's devices, ascending."""
        shape = (self.settings.microbatches, self.rows // self.settings.microbatches, self.settings.row_length)
        needed: set[int] = set()
        for index in self._shardings.tokens.addressable_devices_indices_map(shape).values():
            assert index is not None
            needed.update(range(*index[1].indices(shape[1])))
        return np.asarray(sorted(needed))

    def _load(self, position: Position, reference_logps: np.ndarray | None) -> LoadedBatch:
        """The batch at `position` with this process's rows only, as numpy [M, local rows, ...]."""
        members = self.members(position)
        per_micro = self.rows // self.settings.microbatches
        packed = self.read(
            [members[m * per_micro + row] for m in range(self.settings.microbatches) for row in self._local]
        )
        if reference_logps is not None:
            packed.reference_logps[packed.valid] = reference_logps[packed.example_id[packed.valid]]
        local = jax.tree.map(lambda x: x.reshape(self.settings.microbatches, len(self._local), *x.shape[1:]), packed)
        everything = np.concatenate(members)
        tokens = int(self.fitted.slots[everything].sum())
        return LoadedBatch(
            batch=local,
            position=position,
            next_position=self.after(position),
            examples=len(everything),
            tokens=tokens,
            fill=tokens / (self.rows * self.settings.row_length),
        )

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

        with jax.transfer_guard("allow"):  # JAX takes what a callback gives for a transfer by mistake
            return jax.tree.map(place, local, self._shardings)
