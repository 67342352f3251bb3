"""A built data set: token ids with random access, and the lengths from which an epoch is packed. No TensorFlow here.

DIR/manifest.json                            describes the data set; a directory without it is not a data set
DIR/tokenizer/                               the tokenizer that made the ids
DIR/tfds/                                    the checked records as text, a TFDS data set
DIR/SPLIT/lengths.npy                        [E, 3] int32: tokens of prompt, chosen, rejected
DIR/SPLIT/margins.npy                        [E] float32; present if any record of the split has a margin
DIR/SPLIT/tokens-00000-of-00004.array_record one entry per example: the ids of prompt, chosen, rejected, little-endian,
                                             in the manifest's type (`ids`)
"""

import bisect
import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from janus_jax.data.boundary import Boundary
from janus_jax.data.example import TOKEN_FEATURES, Example
from janus_jax.data.schema import KINDS
from janus_jax.errors import DataError, first_line
from janus_jax.text.chat_format import ChatFormat
from janus_jax.text.served import CONVERSATIONS, Conversation, read_conversations
from janus_jax.text.template import get_template
from janus_jax.text.tokenizer import Tokenizer, load_tokenizer

FORMAT_VERSION = 1

MANIFEST = "manifest.json"
"""Written and uploaded last: a directory or bucket without it is not a data set."""

SPLIT_NAME = r"[a-z][a-z0-9_]*"
"""Allowed names of splits. They become folders, also in the cache, so names in a manifest are checked too."""


def id_dtype(vocab_size: int) -> np.dtype:
    """The type in which ids are stored: two bytes where the vocabulary allows it."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<i4")


@dataclasses.dataclass(frozen=True)
class Split:
    """What one split holds; `dropped` counts the records that the build left out, by reason. Older builds lack the
    later keys."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    examples: int
    tokens: int
    dropped: dict[str, int]
    margins: int = 0  # examples with a margin
    lengths: dict[str, list[int]] | None = None  # see `histogram`
    files: dict[str, int] | None = None  # file name -> bytes
    fingerprint: str = ""  # sha256 over lengths, token ids and margins
    notes: dict[str, int] | None = None  # note (notes.py) -> records
    unread: dict[str, int] | None = None  # column that was not read -> records in which it holds a value
    places: dict[str, dict[str, list[str]]] | None = None  # dropped, notes, unread -> key -> the first FILE:RECORD


def histogram(lengths: np.ndarray) -> dict[str, list[int]]:
    """Histogram of lengths in tokens: part -> counts between neighbouring `edges`; the last bin is open.

    Args:
        lengths: [E, 3] tokens of prompt, chosen, rejected.
    """
    edges = [0, *(1 << power for power in range(4, 16))]
    parts: dict[str, np.ndarray] = dict(zip(TOKEN_FEATURES, lengths.T, strict=True))
    if not lengths[:, 2].any():
        del parts["rejected"]
    parts["longest"] = lengths[:, 0] + lengths[:, 1:].max(1, initial=0)
    counts = {name: np.histogram(values, [*edges, np.inf])[0].tolist() for name, values in parts.items()}
    return {"edges": edges, **counts}


def fingerprint_of(splits: Mapping[str, Split]) -> str:
    """The sha256 of the fingerprints of all splits."""
    return hashlib.sha256(repr(sorted((name, s.fingerprint) for name, s in splits.items())).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Manifest:
    """manifest.json of a built data set."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    kind: Annotated[str, Field(pattern=f"^({'|'.join(KINDS)})$")]
    template: str
    source: str
    tokenizer: dict[str, Any]  # fingerprint, vocab_size, bos, eos
    splits: dict[Annotated[str, Field(pattern=f"^{SPLIT_NAME}$")], Split]
    fingerprint: str  # sha256 over token ids, lengths and margins of all splits
    boundary: Boundary = "separate"  # older builds lack the key
    bos: bool = True  # older builds lack the key
    ids: str = "<i4"  # numpy's name of the type of stored ids
    derived: dict[str, Any] | None = None  # seed and all_pairs, if pairs were drawn from SFT records
    ratings: dict[str, Any] | None = None  # min_margin and as_margin, if ratings of pairs were read
    # marks of the template that are written as control tokens; older builds spelled all as text
    marks: list[str] = dataclasses.field(default_factory=list)
    served: dict[str, Any] | None = None  # how many conversations a server was seen to read as training does
    format_version: int = FORMAT_VERSION
    unread_files: dict[str, int] | None = None  # files of the source that were not read, by reason
    file_sets: dict[str, list[str]] | None = None  # split -> the numbered sets of files that it joins, if several
    dedupe: bool = False  # repeated records were left out
    validation_fraction: float | None = None  # share of prompts that went to split validation
    validation_seed: int = 0  # of that draw

    def save(self, directory: Path) -> None:
        (directory / MANIFEST).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> "Manifest":
        """Raises DataError if the manifest is missing, cannot be read, or has another format version."""
        path = directory / MANIFEST
        try:
            if not path.is_file():
                state = "is not a built data set: it has no manifest.json"
                if not directory.is_dir():
                    state = "is a file, not a built data set" if directory.exists() else "no such directory"
                raise DataError(directory, f"{state}; `janus data build` makes one")
            values = json.loads(path.read_text(encoding="utf-8"))
            if (version := values["format_version"]) != FORMAT_VERSION:
                raise DataError(path, f"format_version {version!r}; allowed: {FORMAT_VERSION}; build again")
            manifest = TypeAdapter(cls).validate_python(values)
            np.dtype(manifest.ids)
            tokenizer = manifest.tokenizer
            if not (isinstance(tokenizer["fingerprint"], str) and isinstance(tokenizer["vocab_size"], int)):
                raise ValueError(f"tokenizer {tokenizer!r}")
            return manifest
        except OSError as error:
            raise DataError(path, f"cannot be read: {error.strerror or error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            key, value = ".".join(map(str, first["loc"])), ascii(first["input"])[:80]
            raise DataError(path, f"not a data set manifest: {key} = {value}: {first['msg']}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(path, f"not a data set manifest: {error}") from error


class Dataset(Protocol):
    """Tokenized examples by number: one built split, or several read as one (mixture.py)."""

    name: str
    """Its name in messages."""
    split: str
    kind: str
    fingerprint: str
    tokenizer_fingerprint: str
    lengths: np.ndarray  # [E, 3] int32 tokens of prompt, chosen, rejected
    margins: np.ndarray  # [E] float32

    @property
    def parts(self) -> Sequence["TokenizedDataset"]:
        """The built splits that hold the examples."""
        ...

    def __len__(self) -> int: ...

    def read(self, indices: Iterable[int]) -> list[Example]:
        """The examples with these numbers, in this order."""
        ...

    def draw(self, index: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """The examples that an epoch reads among `index` (ascending example numbers): [N] int64 indices into it."""
        ...

    def tokenizer(self) -> Tokenizer: ...

    def conversations(self) -> Iterator[Conversation]: ...

    def chat_format(self) -> ChatFormat: ...


class TokenizedDataset:
    """One split of a built data set. Several threads may read at once.

    Raises:
        DataError: `directory` is not a built data set, lacks the split, or its files contradict each other.
    """

    def __init__(self, directory: str | os.PathLike[str], split: str = "train"):
        from array_record.python.array_record_module import ArrayRecordReader

        self.directory = Path(os.path.expanduser(directory))
        self.name = str(self.directory)
        """Its name in messages."""
        self.split = split
        self.manifest = Manifest.load(self.directory)
        self.kind = self.manifest.kind
        """Kind of data: sft, dpo, orpo or rm."""
        self.fingerprint = self.manifest.fingerprint
        """sha256 over token ids, lengths and margins of all splits."""
        self.tokenizer_fingerprint: str = self.manifest.tokenizer["fingerprint"]
        """The fingerprint of the tokenizer that made the ids."""
        self._id_dtype = np.dtype(self.manifest.ids)
        if split not in self.manifest.splits:
            raise DataError(
                self.directory,
                f"has no split {split!r}; there are: {', '.join(self.manifest.splits)} (data.split and "
                "data.eval_split choose one; eval.every_steps=null turns evaluation off)",
            )
        folder = self.directory / split
        self.lengths = self._load("lengths.npy", np.dtype(np.int32), 3)
        """[E, 3] int32 tokens of prompt, chosen and rejected (0 without a rejected response)."""

        examples = len(self.lengths)
        has_margins = (folder / "margins.npy").exists()
        self.margins = (
            self._load("margins.npy", np.dtype(np.float32)) if has_margins else np.zeros(examples, np.float32)
        )
        """[E] float32 reward margins, zeros where the data has none."""

        files = sorted(folder.glob("tokens-*.array_record"))
        # no read-ahead and no reader threads: examples are read one by one, in the order of the packed rows
        options = "readahead_buffer_size:0,max_parallelism:0"
        try:
            self._readers = [ArrayRecordReader(str(file), options) for file in files]
            counts = [reader.num_records() for reader in self._readers]
        except (RuntimeError, ValueError, OSError) as error:  # a damaged file
            raise DataError(folder, f"token files cannot be read: {first_line(error)}; build again") from error
        self._files = files
        self._ends = np.cumsum(counts).tolist()
        self._lock = threading.Lock()
        expected = self.manifest.splits[split].examples
        if not sum(counts) == examples == len(self.margins) == expected:
            raise DataError(
                folder,
                f"manifest, lengths.npy, margins and token files disagree: {expected}, {examples}, "
                f"{len(self.margins)}, {sum(counts)} examples; build again",
            )
        if (self.lengths[:, 0] <= 0).any():
            first = int(np.argmax(self.lengths[:, 0] <= 0))
            raise DataError(folder, f"example {first} has a prompt without tokens; build again")
        self._check_sizes(folder)

    @property
    def parts(self) -> Sequence["TokenizedDataset"]:
        return (self,)

    @property
    def split_fingerprint(self) -> str:
        """Identifies the contents of this split. Older builds know those of all splits together."""
        return self.manifest.splits[self.split].fingerprint or f"{self.fingerprint}/{self.split}"

    def __len__(self) -> int:
        return len(self.lengths)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids. Raises DataError if its files changed since the build."""
        tokenizer = load_tokenizer(self.directory / "tokenizer")
        if tokenizer.fingerprint != self.tokenizer_fingerprint:
            raise DataError(self.directory / "tokenizer", "is not the tokenizer of the build (fingerprints differ)")
        return tokenizer

    def chat_format(self) -> ChatFormat:
        """How prompts and responses were written and tokenized."""
        manifest = self.manifest
        template = get_template(manifest.template)
        return ChatFormat(
            template, self.tokenizer(), boundary=manifest.boundary, bos=manifest.bos, marks=manifest.marks
        )

    def conversations(self) -> Iterator[Conversation]:
        """Some examples as text and ids; none in older data sets."""
        return read_conversations(self.directory / "tokenizer" / CONVERSATIONS)

    def read(self, indices: Iterable[int]) -> list[Example]:
        """The examples with these numbers, in this order.

        Raises:
            IndexError: a number is not in [0, E).
            DataError: stored ids cannot be read, or have another length than in lengths.npy.
        """
        numbers = [int(index) for index in indices]
        by_file: dict[int, list[int]] = {}
        for place, index in enumerate(numbers):
            if not 0 <= index < len(self):
                raise IndexError(f"example {index} of {len(self)} in {self.directory}, split {self.split}")
            by_file.setdefault(bisect.bisect_right(self._ends, index), []).append(place)
        stored: dict[int, bytes] = {}
        with self._lock:
            for file, places in by_file.items():
                start = self._ends[file - 1] if file else 0
                try:
                    ids = self._readers[file].read([numbers[place] - start for place in places])
                except (RuntimeError, ValueError, OSError) as error:
                    reason = first_line(error)
                    raise DataError(self._files[file], f"cannot be read: {reason}; build again") from error
                stored.update(zip(places, ids, strict=True))
        return [self._example(index, stored[place]) for place, index in enumerate(numbers)]

    def draw(self, index: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """Every epoch reads every example of `index` once."""
        del seed, epoch
        return np.arange(len(index))

    def _example(self, index: int, stored: bytes) -> Example:
        prompt, chosen, rejected = self.lengths[index].tolist()
        if len(stored) != self._id_dtype.itemsize * (prompt + chosen + rejected):
            raise DataError(
                self.directory / self.split,
                f"example {index} has {len(stored)} bytes of ids, but lengths.npy "
                f"has {prompt} + {chosen} + {rejected} tokens; build again",
            )
        ids = np.frombuffer(stored, self._id_dtype).astype(np.int32)
        return Example(
            prompt=ids[:prompt],
            chosen=ids[prompt : prompt + chosen],
            rejected=None if self.kind == "sft" else ids[prompt + chosen :],
            example_id=index,
            margin=float(self.margins[index]),
        )

    def _check_sizes(self, folder: Path) -> None:
        """Finds most files that were replaced or cut, without the time that reading all of them would take."""
        for name, expected in (self.manifest.splits[self.split].files or {}).items():
            size = (folder / name).stat().st_size if (folder / name).is_file() else None
            if size != expected:
                state = "is missing" if size is None else f"has {size} bytes, but manifest.json says {expected}"
                raise DataError(folder / name, f"{state}; build again")

    def _load(self, name: str, dtype: np.dtype, columns: int | None = None) -> np.ndarray:
        path = self.directory / self.split / name
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(path, f"cannot be read: {first_line(error)}; build again") from error
        shape = array.shape[1:] if array.ndim else None
        if array.dtype != dtype or shape != (() if columns is None else (columns,)):
            needed = f"{dtype} [examples{'' if columns is None else f', {columns}'}]"
            raise DataError(path, f"is {array.dtype} {list(array.shape)}, must be {needed}; build again")
        return array
