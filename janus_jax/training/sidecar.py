"""Precomputed reference log-probs on disk: two floats an example, and what they are of.

DIR/NAME.json   identity: data set, split, template, tokenizer, examples, reference model, compute dtype
DIR/NAME.npy    [E, 2] float32 by example number: summed log-probs of chosen and rejected; NaN where not scored (yet)
"""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import numpy as np

from janus_jax.data.loader import Loader
from janus_jax.errors import ConfigError, DataError, StorageError
from janus_jax.storage import write_whole

_WORDS = {
    "dataset": "another data set",
    "split": "another split",
    "template": "another template",
    "tokenizer": "another tokenizer",
    "examples": "other examples (batch.max_sequence_length, batch.row_length or an over-long policy differs)",
    "weights": "another reference model (weights, or a key of its config)",
    "compute": "another precision.compute",
}


@dataclasses.dataclass(frozen=True)
class Identity:
    """Everything that decides what the numbers are. `weights` is empty before the weights are there."""

    dataset: str
    split: str
    template: str
    tokenizer: str
    examples: str  # which are read, and how much of them
    compute: str
    weights: str = ""

    @classmethod
    def of(cls, loader: Loader, compute: str) -> "Identity":
        """What is known without weights."""
        fitted, dataset = loader.fitted, loader.dataset
        examples = hashlib.sha256(fitted.index.astype("<i8").tobytes() + fitted.lengths.astype("<i4").tobytes())
        return cls(
            dataset=dataset.fingerprint,
            split=dataset.split,
            template=dataset.manifest.template,
            tokenizer=dataset.manifest.tokenizer["fingerprint"],
            examples=examples.hexdigest(),
            compute=compute,
        )

    @property
    def fingerprint(self) -> str:
        """sha256 of all of it."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()


class Sidecar:
    """The log-probs of one split under one reference, complete or in the making.

    Args:
        directory: where the two files lie or will lie.
        name: train or eval.
        examples: in the split, E.
        identity: what the log-probs must be of; without `weights`, everything else is compared.
    Raises:
        ConfigError: the files there are of something else; says of what.
        DataError: they are damaged.
    """

    def __init__(self, directory: Path, name: str, examples: int, identity: Identity):
        self.directory, self.name = directory, name
        self.logps = np.full((examples, 2), np.nan, np.float32)
        self.identity = identity
        self._described = directory / f"{name}.json"
        self._numbers = directory / f"{name}.npy"
        if not self._described.exists():
            return
        try:
            there = Identity(**json.loads(self._described.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{self._described}: cannot be read: {error}; remove {directory}") from error
        self._refuse_other(there, dataclasses.replace(identity, weights=identity.weights or there.weights))
        self.identity = there
        if self._numbers.exists():
            self.logps = self._read(examples)

    def require_weights(self, fingerprint: str) -> None:
        """Names the weights that the log-probs are of, or must be of.

        Raises:
            ConfigError: those that are there are of others.
        """
        wanted = dataclasses.replace(self.identity, weights=fingerprint)
        if self.identity.weights:
            self._refuse_other(self.identity, wanted)
        self.identity = wanted

    def _refuse_other(self, there: Identity, wanted: Identity) -> None:
        pairs = {name: (getattr(there, name)[:12], getattr(wanted, name)[:12]) for name in _WORDS}
        if other := [f"{_WORDS[name]} ({a}, not {b})" for name, (a, b) in pairs.items() if a != b]:
            raise ConfigError(
                f"{self._described}: these log-probs are of {'; '.join(other)}; remove {self.directory}, or choose "
                "another reference.dir for this run"
            )

    def missing(self, examples: np.ndarray) -> np.ndarray:
        """True for the given example numbers that are not scored."""
        unscored = np.isnan(self.logps[examples])
        return unscored[:, 0] | unscored[:, 1]

    def describe(self) -> None:
        """Writes what the log-probs will be of.

        Raises:
            StorageError: the directory cannot be written.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            text = json.dumps(dataclasses.asdict(self.identity), indent=1) + "\n"
            write_whole(self._described, text)
        except OSError as error:
            raise StorageError(f"{self._described}: cannot be written: {error.strerror or error}") from error

    def save(self) -> None:
        """Writes the numbers known so far, at once: a kill leaves those before or these.

        Raises:
            StorageError: the directory cannot be written.
        """
        temporary = self._numbers.with_name(f".{self._numbers.name}.{os.getpid()}.incomplete")  # runs may share them
        try:
            with temporary.open("wb") as file:
                np.save(file, self.logps)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._numbers)
        except OSError as error:
            raise StorageError(f"{self._numbers}: cannot be written: {error.strerror or error}") from error

    def _read(self, examples: int) -> np.ndarray:
        try:
            logps = np.load(self._numbers, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{self._numbers}: cannot be read: {error}; remove it") from error
        if logps.shape != (examples, 2) or logps.dtype != np.float32:
            raise DataError(f"{self._numbers}: is {logps.dtype} {list(logps.shape)}, not float32 [{examples}, 2]")
        return logps
