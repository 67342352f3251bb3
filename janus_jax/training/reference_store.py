"""Precomputed log-probs of the reference model: two floats an example, and what they belong to, in one file.

DIR/NAME.npz, of the arrays

    logps     [E, 2] float32 by example number: summed log-probs of chosen and rejected; NaN where not scored yet
    identity  JSON: data set, split, template, tokenizer, examples, compute dtype, reference model

The file is replaced as a whole: numbers never lie beside the description of others, whoever is killed or writes too.
Process 0 reads and writes it; the others get its contents from process 0.
"""

import dataclasses
import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

from janus_jax.data.loader import Loader
from janus_jax.errors import ConfigError, DataError
from janus_jax.parallel import processes
from janus_jax.storage.bucket import BucketPath, os_errors
from janus_jax.storage.local import whole_file, write_bytes

FORMAT_VERSION = 1
"""Raised when the same weights and tokens would give other numbers, as after a mended attention."""


def _part(difference: str) -> Any:
    return dataclasses.field(metadata={"difference": difference})


@dataclasses.dataclass(frozen=True)
class Identity:
    """Everything that decides what the numbers are. `model` is empty before the reference's weights are read."""

    dataset: str = _part("another data set")
    split: str = _part("another split")
    template: str = _part("another template")
    tokenizer: str = _part("another tokenizer")
    # Which are read, and how much of them.
    examples: str = _part("other examples (batch.max_sequence_length, batch.row_length or an over-long policy differs)")
    compute: str = _part("another precision.compute")
    model: str = _part("another reference model (weights, or a key of its config)")
    format_version: int = _part("another version of this program")

    @classmethod
    def of_loader(cls, loader: Loader, compute: str, model: str = "") -> "Identity":
        """The identity of the log-probs of a loader's split."""
        fitted, dataset = loader.fitted, loader.dataset
        examples = hashlib.sha256(fitted.index.astype("<i8").tobytes() + fitted.lengths.astype("<i4").tobytes())
        return cls(
            dataset=dataset.fingerprint,
            split=dataset.split,
            template=", ".join(dict.fromkeys(part.manifest.template for part in dataset.parts)),
            tokenizer=dataset.tokenizer_fingerprint,
            examples=examples.hexdigest(),
            compute=compute,
            model=model,
            format_version=FORMAT_VERSION,
        )

    def differences(self, expected: "Identity") -> list[str]:
        """What is not as expected, in words; a model that is not known yet is no difference."""
        differences = []
        for field in dataclasses.fields(self):
            ours, theirs = (str(getattr(side, field.name)) for side in (self, expected))
            if ours != theirs and (field.name != "model" or theirs):
                differences.append(f"{field.metadata['difference']} ({ours[:24]}, not {theirs[:24]})")
        return differences


class ReferenceStore:
    """The log-probs of one split under one reference, complete or in the making. See `open`."""

    def __init__(self, file: Path | BucketPath, loader: Loader, identity: Identity):
        self.loader, self.identity = loader, identity
        self.logps = np.full((len(loader.dataset), 2), np.nan, np.float32)
        self._file = file

    @classmethod
    def open(
        cls, directory: Path | BucketPath, name: str, loader: Loader, compute: str, model: str | None = None
    ) -> "ReferenceStore":
        """The store in DIR/NAME.npz as this process sees the file; empty if there is no file yet.

        Args:
            compute: dtype in which the reference computes.
            model: fingerprint of the reference, where it is known; without it everything else is compared.
        Raises:
            ConfigError: the file holds log-probs of something else; says of what.
            DataError: it is damaged.
        """
        store = cls(directory / f"{name}.npz", loader, Identity.of_loader(loader, compute, model or ""))
        if store._file.exists():
            identity, logps = store._read()
            store._refuse_other(identity, store.identity)
            if logps.shape != store.logps.shape or logps.dtype != np.float32:
                size = list(store.logps.shape)
                raise DataError(store._file, f"holds {logps.dtype} {list(logps.shape)}, not float32 {size}")
            store.identity, store.logps = identity, logps
        return store

    @property
    def name(self) -> str:
        """train or eval."""
        return self._file.name.removesuffix(".npz")

    def share(self) -> None:
        """Gives every process what process 0 has: all must agree on what is missing. Collective."""
        self.identity = Identity(**processes.broadcast(f"{self.name} identity", dataclasses.asdict(self.identity)))
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            self.logps = np.array(multihost_utils.broadcast_one_to_all(self.logps))

    def require_model(self, fingerprint: str) -> None:
        """Says which model the log-probs are of, or will be of.

        Raises:
            ConfigError: the stored ones are of another.
        """
        expected = dataclasses.replace(self.identity, model=fingerprint)
        if self.identity.model:
            self._refuse_other(self.identity, expected)
        self.identity = expected

    def is_missing(self, examples: np.ndarray) -> np.ndarray:
        """True for the given example numbers that are not scored."""
        return np.isnan(self.logps[examples].sum(-1))

    def missing(self) -> int:
        """How many examples that the run reads are not scored."""
        return int(self.is_missing(self.loader.examples_read()).sum())

    def save(self) -> None:
        """Has process 0 write the numbers known so far, at once: a kill leaves those before or these.

        Raises:
            StorageError: the directory cannot be written.
        """
        if not processes.is_main():
            return
        if isinstance(self._file, BucketPath):
            content = io.BytesIO()
            self._write(content)
            write_bytes(self._file, content.getvalue())
            return
        with os_errors(self._file):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self._file) as file:
                self._write(file)

    def _write(self, file: IO[bytes]) -> None:
        np.savez(file, logps=self.logps, identity=json.dumps(dataclasses.asdict(self.identity)))

    def _read(self) -> tuple[Identity, np.ndarray]:
        try:
            with np.load(io.BytesIO(self._file.read_bytes()), allow_pickle=False) as stored:
                return Identity(**json.loads(str(stored["identity"]))), stored["logps"]
        except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise DataError(self._file, f"cannot be read: {error}; remove it, to have it made again") from error

    def _refuse_other(self, stored: Identity, expected: Identity) -> None:
        if differences := stored.differences(expected):
            raise ConfigError(
                f"{self._file}: these log-probs are of {'; '.join(differences)}; choose another reference.dir for this "
                "run, or remove the file if no other run needs it"
            )
