"""Models on disk or gs://: a Hugging Face directory, a run, a step of a run, or a converted directory."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.checkpoint import run_dir
from janus_jax.checkpoint.checksums import require_same_arrays, require_same_block
from janus_jax.checkpoint.damage import read_meta
from janus_jax.checkpoint.hf.config import read_json
from janus_jax.checkpoint.hf.config_keys import ignored_keys
from janus_jax.checkpoint.hf.facts import CARD, ModelFacts
from janus_jax.checkpoint.hf.files import left_out, refuse_adapter
from janus_jax.checkpoint.hf.hub import is_wanted, local_copy
from janus_jax.checkpoint.hf.keys import KeyEntry, KeyPath, Layout, leaves, nest
from janus_jax.checkpoint.hf.read import HFDirectory
from janus_jax.checkpoint.item import ItemReader
from janus_jax.checkpoint.restore import check_tree, restore_item, stored_leaves
from janus_jax.errors import ConversionError, StorageError
from janus_jax.model.config import ModelConfig
from janus_jax.model.mistral import Params, param_specs
from janus_jax.storage import staging
from janus_jax.storage.bucket import BucketPath
from janus_jax.storage.local import Place, as_path, place
from janus_jax.text.chat_format import ChatFormat
from janus_jax.text.hf_files import HF_FILES
from janus_jax.text.template import get_template
from janus_jax.text.tokenizer import load_tokenizer

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
_INDEX = "model.safetensors.index.json"
_CONVERTED = ("params/", "meta/", "tokenizer/", "conversion_report.json")
_REPORT = "conversion_report.json"  # each conversion writes its own


@dataclasses.dataclass(frozen=True)
class StoredModel:
    """A model on disk or gs://. Only its description is read until you call `read` or `load`."""

    path: str
    config: ModelConfig
    stored_dtype: np.dtype
    tokenizer_directory: str | None
    step: int | None  # of the run; None for anything but a step
    template: str | None  # name of the chat template it was trained with, if a run records one
    _load: Callable[[np.dtype, Any], Params]
    _block: Callable[[KeyPath, tuple[slice, ...] | None], np.ndarray]
    facts: ModelFacts = dataclasses.field(default_factory=ModelFacts)
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The run's description of itself (the `meta` item of a step); empty for a Hugging Face directory."""
    layout: Layout | None = None
    """The layout of a Hugging Face directory; None for anything else."""
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What a directory holds that no conversion carries over, and why: names of files, of directories
    (with a slash), `tensor NAME`, and `config.json: KEY`."""
    read_ahead: Callable[[KeyEntry], None] = lambda entry: None
    """Has the system read a tensor of a local directory from the disk, before `read` waits for it."""
    require_unchanged: Callable[[], None] = lambda: None
    """Raises ConversionError if a file has changed since `open_model`. Steps of runs never change."""

    def chat_format(self) -> ChatFormat | None:
        """How training wrote and tokenized conversations; None without a run or a tokenizer.

        Raises:
            DataError: the tokenizer's files are damaged.
        """
        if self.template is None or self.tokenizer_directory is None:
            return None
        data = (self.meta.get("data") or [{}])[0]
        return ChatFormat(
            get_template(self.template),
            load_tokenizer(self.tokenizer_directory),
            boundary=data.get("boundary", "separate"),
            bos=data.get("bos", True),
            marks=data.get("marks", ()),  # older data spelled all as text
        )

    def read(self, entry: KeyEntry) -> np.ndarray:
        """One tensor of the key table, in the parameter's layout without the layer axis, in the stored dtype.

        Raises:
            ConversionError: the tensor is damaged, or (in a Hugging Face directory) holds NaN or infinity.
        """
        index = (
            None if entry.layer is None else (slice(entry.layer, entry.layer + 1), *(slice(None),) * len(entry.shape))
        )
        block = self._block(entry.path, index).astype(self.stored_dtype, copy=False)
        return block if entry.layer is None else block[0]

    def load(self, *, dtype: Any = None, shardings: Any = None) -> Params:
        """Parameters as jax arrays.

        Args:
            dtype: of the parameters; None keeps the stored dtype.
            shardings: tree of shardings with the parameters' structure, on any mesh; None: the default device.
        """
        dtype = self._dtype(dtype)
        if shardings is None:
            device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            shardings = jax.tree.map(lambda _: device, param_specs(self.config, dtype))
        return self._load(dtype, shardings)

    def load_host(self, *, dtype: Any = None) -> Params:
        """Parameters as numpy arrays, in host memory only."""
        return self._load(self._dtype(dtype), None)

    def _dtype(self, dtype: Any) -> np.dtype:
        return jnp.dtype(self.stored_dtype if dtype is None else dtype)


def open_model(path: str | os.PathLike[str], step: int | None = None) -> StoredModel:
    """Opens the model at `path`.

    Args:
        path: a Hugging Face directory or hub id, a run directory, a step directory, or a directory that
            `janus convert from-hf` wrote. All but hub ids may be on gs://.
        step: which step of a run directory; None: the newest.

    Raises:
        ConversionError: `path` is none of these, or is damaged.
        StorageError: gs:// has nothing there, refuses access, or cannot be reached.
    """
    if not os.fspath(path).strip():  # a shell variable that is not set; it would be the working directory
        raise ConversionError("''", "names no model")
    local = local_copy(path)
    hub_id = None if local == os.fspath(path) else os.fspath(path)
    directory = place(local)
    if isinstance(directory, BucketPath):
        _check_listing(directory)
    elif not directory.is_dir():
        raise ConversionError(directory, "is a file, not a directory" if directory.exists() else "no such directory")
    refuse_adapter(directory)
    if (directory / "config.json").exists():
        _refuse_step(directory, step, "a Hugging Face directory")
        return _from_hf(directory, hub_id)
    if checkpoints := run_dir.find_checkpoints(directory):
        step = run_dir.committed_steps(checkpoints)[-1] if step is None else step
        return _from_orbax(run_dir.step_directory(checkpoints, step))
    if run_dir.has_params(directory):
        _refuse_step(directory, step, "a single step")
        return _from_orbax(directory)
    raise ConversionError(
        directory,
        "holds no model; looked for config.json (a Hugging Face directory), a complete checkpoints/STEP "
        "(a run), params and meta (a step or a converted directory)",
    )


def _check_listing(directory: BucketPath) -> None:
    names = [child.name for child in directory.iterdir()]
    if not names:
        raise StorageError(directory, "cannot be read: no such object, and nothing below it")
    if staging.MARKER in names and staging.is_cut_off(directory.url, lambda name: (directory / name).exists()):
        raise ConversionError(directory, "holds no model: an upload to it is incomplete")


def _refuse_step(directory: Place, step: int | None, kind: str) -> None:
    if step is not None:
        raise ConversionError(directory, f"step={step} can only be chosen for a run directory; this is {kind}")


def _from_hf(directory: Place, hub_id: str | None) -> StoredModel:
    local = _local_copy(directory)
    hf = HFDirectory(local)
    tokenizer = _tokenizer([as_path(local)])
    used = {"config.json", "generation_config.json", CARD, _REPORT, *hf.weight_files}
    used |= set() if "model.safetensors" in hf.weight_files else {_INDEX}
    used |= set() if tokenizer is None else _copied_with(local)
    keys = ignored_keys(
        read_json(local / "config.json"),
        reward=hf.config.head == "value",
        generation_file=(local / "generation_config.json").is_file(),
    )
    return StoredModel(
        path=str(directory),
        config=hf.config,
        stored_dtype=hf.stored_dtype,
        tokenizer_directory=tokenizer,
        step=None,
        template=None,
        _load=hf.load,
        _block=lambda path, index: hf.read(path, hf.stored_dtype, index),
        facts=ModelFacts.of_directory(local, reward=hf.config.head == "value", base_model=hub_id),
        layout=hf.layout,
        left_out={
            **left_out(directory, used),
            **hf.left_out,
            **{f"config.json: {key}": why for key, why in keys.items()},
        },
        read_ahead=lambda entry: hf.read_ahead(entry.path, entry.layer),
        require_unchanged=hf.require_unchanged,
    )


def _from_orbax(directory: Place) -> StoredModel:
    meta, record = read_meta(directory)
    params, sums = directory / "params", None if record is None else record["params"]
    try:
        config = ModelConfig(**meta["model"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConversionError(directory / "meta", f"model: not a model config: {error!r}") from error
    try:
        facts = ModelFacts(**(meta.get("facts") or {}))  # what an older version did not write stays empty
    except TypeError as error:
        raise ConversionError(directory / "meta", f"facts: {error}; a later version of janus_jax wrote this") from error
    # of a converted directory, of a run
    places = [directory / "tokenizer", run_dir.RunDir.of_step(directory).tokenizer]
    data = meta.get("config", {}).get("data", {}).get("dir") if isinstance(meta.get("config"), dict) else None
    if data and "://" not in data:  # not from a bucket: the run has its own copy
        places.append(as_path(data) / "tokenizer")
    check_tree(params, param_specs(config))
    dtypes = {np.dtype(leaf.dtype) for leaf in stored_leaves(params).values()}
    stored_dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
    reader = ItemReader(params, mapped=True)  # steps never change

    def read(dtype: np.dtype, shardings: Any) -> Params:
        placed = None if shardings is None else leaves(shardings)
        abstract = {
            name: jax.ShapeDtypeStruct(spec.shape, dtype, sharding=None if placed is None else placed[name])
            for name, spec in leaves(param_specs(config, dtype)).items()
        }
        restored = restore_item(params, nest(abstract))
        if record is not None and dtype == stored_dtype:  # of a cast nothing is known
            require_same_arrays(directory, record, params=restored)
        return restored

    def read_block(path: KeyPath, index: tuple[slice, ...] | None) -> np.ndarray:
        block = reader.read(path, index)
        if sums is not None:
            layer = None if index is None else index[0].start
            require_same_block(params, sums, "/".join(path), layer, block if layer is None else block[0])
        return block

    return StoredModel(
        path=str(directory),
        config=config,
        stored_dtype=stored_dtype,
        tokenizer_directory=_tokenizer(places),
        step=int(directory.name) if run_dir.is_committed(directory) and directory.name.isdecimal() else None,
        template=meta.get("template"),
        _load=read,
        _block=read_block,
        facts=facts,
        meta=meta,
        left_out={} if meta.get("config") else left_out(directory, _CONVERTED),
    )


def _local_copy(directory: Place) -> Path:
    return Path(staging.files(directory.url, is_wanted, "models") if isinstance(directory, BucketPath) else directory)


def _copied_with(directory: Path) -> set[str]:
    """Names of the tokenizer files that travel: with tokenizer.json all of them."""
    if (directory / "tokenizer.json").is_file():
        return {*HF_FILES}
    return {name for name in HF_FILES if name not in ("vocab.json", "merges.txt")}


def _tokenizer(places: Sequence[Place]) -> str | None:
    """The first of these directories that holds a tokenizer; a local copy if it is on gs://."""
    for directory in places:
        if any((directory / name).exists() for name in _TOKENIZER_FILES):
            return str(_local_copy(directory))
    return None
