"""Precomputed reference log-probs on disk: two floats an example, and what they are of, in one file.

DIR/NAME.npz, of the arrays

    logps     [E, 2] float32 by example number: summed log-probs of chosen and rejected; NaN where not scored yet
    identity  JSON: data set, split, template, tokenizer, examples, compute dtype, reference model

One file, replaced at once: numbers never lie beside the description of others, whoever is killed or writes too.
"""

import dataclasses
import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax.data.loader import Loader
from janus_jax.errors import ConfigError, DataError, StorageError
from janus_jax.storage.local import whole_file

FORMAT_VERSION = 1
"""Raised when the same weights and tokens would give other numbers, as after a mended attention."""


def _part(what: str) -> Any:
    return dataclasses.field(metadata={"what": what})


@dataclasses.dataclass(frozen=True)
class Identity:
    """Everything that decides what the numbers are. `model` is empty before the weights are there."""

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
    def of(cls, loader: Loader, compute: str, model: str = "") -> "Identity":
        """What the log-probs of a loader's split are."""
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

    def differences(self, wanted: "Identity") -> list[str]:
        """What is not as wanted, in words; a model that is not known yet is no difference."""
        found = []
        for field in dataclasses.fields(self):
            ours, theirs = (str(getattr(side, field.name)) for side in (self, wanted))
            if ours != theirs and (field.name != "model" or theirs):
                found.append(f"{field.metadata['what']} ({ours[:24]}, not {theirs[:24]})")
        return found


class Sidecar:
    """The log-probs of one split under one reference, complete or in the making.

    Args:
        directory: where the file lies or will lie.
        name: train or eval.
        examples: in the split, E.
        identity: what the log-probs must be of; without `model`, everything else is compared.
    Raises:
        ConfigError: the file there is of something else; says of what.
        DataError: it is damaged.
    """

    def __init__(self, directory: Path, name: str, examples: int, identity: Identity):
        self.name = name
        self.logps = np.full((examples, 2), np.nan, np.float32)
        self.identity = identity
        self._file = directory / f"{name}.npz"
        if self._file.exists():
            there, logps = self._read()
            self._refuse_other(there, identity)
            if logps.shape != self.logps.shape or logps.dtype != np.float32:
                raise DataError(f"{self._file}: holds {logps.dtype} {list(logps.shape)}, not float32 [{examples}, 2]")
            self.identity, self.logps = there, logps

    def require_model(self, fingerprint: str) -> None:
        """Says which model the log-probs are of, or must be of.

        Raises:
            ConfigError: those that are there are of another.
        """
        wanted = dataclasses.replace(self.identity, model=fingerprint)
        if self.identity.model:
            self._refuse_other(self.identity, wanted)
        self.identity = wanted

    def missing(self, examples: np.ndarray) -> np.ndarray:
        """True for the given example numbers that are not scored."""
        unscored = np.isnan(self.logps[examples])
        return unscored[:, 0] | unscored[:, 1]

    def save(self) -> None:
        """Writes the numbers known so far, at once: a kill leaves those before or these.

        Raises:
            StorageError: the directory cannot be written.
        """
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self._file) as file:
                np.savez(file, logps=self.logps, identity=json.dumps(dataclasses.asdict(self.identity)))
        except OSError as error:
            raise StorageError(f"{self._file}: cannot be written: {error.strerror or error}") from error

    def _read(self) -> tuple[Identity, np.ndarray]:
        try:
            with np.load(self._file, allow_pickle=False) as stored:
                return Identity(**json.loads(str(stored["identity"]))), stored["logps"]
        except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise DataError(f"{self._file}: cannot be read: {error}; remove it, to have it made again") from error

    def _refuse_other(self, there: Identity, wanted: Identity) -> None:
        if other := there.differences(wanted):
            raise ConfigError(
                f"{self._file}: these log-probs are of {'; '.join(other)}; choose another reference.dir for this run, "
                "or remove the file if no other run needs it"
            )
