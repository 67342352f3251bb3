"""Checksums of a step's items: written with the step, compared with what is restored from it.

Arrays are summed where they lie, on the devices. That reads and sends no byte, and it is the same on every mesh and
number of processes. It covers the whole way: what is compared is what the run goes on with, whatever copies, codecs,
networks and disks did to it in between. Checksums of files would need every byte a second time at each restore. Stacked
arrays have a sum for each layer, so that whoever reads a single layer can compare it.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from janus_jax.errors import ConversionError, DamagedError
from janus_jax.parallel.hashing import checksums
from janus_jax.storage.local import Place

ITEM = "checksums"
"""The Orbax item (JSON) of a step that holds them."""
_ARRAYS, _VALUES = ("params", "optimizer"), ("data", "meta")
_whole_sums, _layer_sums = jax.jit(checksums), jax.jit(jax.vmap(checksums))


def of_step(params: Any, optimizer: Any, data: Any, meta: Any) -> dict[str, Any]:
    """What the item holds: names, shapes, dtypes and sums of all leaves, hashes of the JSON items, and its own hash.

    Collective: call it on every process.
    """
    record: dict[str, Any] = {"params": of_tree(params), "optimizer": of_tree(optimizer)}
    record |= {"data": of_json(data), "meta": of_json(meta)}
    return {**record, "own": of_json(record)}


def of_tree(tree: Any) -> dict[str, Any]:
    """{path/of/leaf: {shape, dtype, sums}}, of jax or numpy arrays. Collective: call it on every process."""
    leaves = named_leaves(tree)
    sums = jax.device_get({name: _sums(name, leaf) for name, leaf in leaves.items()})
    return {
        name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "sums": sums[name].tolist()}
        for name, leaf in leaves.items()
    }


def _sums(name: str, leaf: Any) -> Any:
    function = _layer_sums if "layers" in name.split("/") and np.ndim(leaf) > 1 else _whole_sums
    return np.asarray(function(_on_cpu(leaf))) if isinstance(leaf, np.ndarray) else function(leaf)  # one after another


def _on_cpu(block: np.ndarray) -> Any:
    return jax.device_put(block, jax.local_devices(backend="cpu")[0])


def of_json(value: Any) -> str:
    """sha256 of a JSON value, as it is after it was written and read."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(value)), sort_keys=True).encode()).hexdigest()


def named_leaves(tree: Any) -> dict[str, Any]:
    """{path/of/leaf: leaf}."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


def with_meta(record: Mapping[str, Any], *metas: Any) -> dict[str, Any]:
    """The record of a step whose item `meta` is one of these."""
    rest = {name: value for name, value in record.items() if name != "own"} | {
        "meta": [of_json(meta) for meta in metas]
    }
    return {**rest, "own": of_json(rest)}


def require_whole(step: Place, record: Mapping[str, Any]) -> None:
    """Raises DamagedError if the item does not hold what `of_step` wrote."""
    rest = {name: value for name, value in record.items() if name != "own"}
    if set(rest) != {*_ARRAYS, *_VALUES} or record.get("own") != of_json(rest):
        raise DamagedError(step / ITEM, "is not what was written")


def require_same_json(step: Place, record: Mapping[str, Any], **items: Any) -> None:
    """Raises DamagedError if a JSON item (`data`, `meta`) is not what was written."""
    for name, value in items.items():
        if of_json(value) not in (record[name] if isinstance(record[name], list) else [record[name]]):
            raise DamagedError(step / name, "is not what was written: its checksum differs")


def require_same_arrays(step: Place, record: Mapping[str, Any], **items: Any) -> None:
    """Raises DamagedError if restored arrays (`params`, `optimizer`) are not those that were written.

    Collective: call it on every process. All of them raise or none.
    """
    for item, tree in items.items():
        written = record[item]
        differing = [name for name, leaf in of_tree(tree).items() if leaf != written.get(name)]
        if differing:
            more = f" (and {len(differing) - 1} others)" if len(differing) > 1 else ""
            raise DamagedError(step / item, f"{differing[0]}{more} is not what was written: its checksum differs")


def require_same_block(item: Place, record: Mapping[str, Any], name: str, layer: int | None, block: np.ndarray) -> None:
    """Raises DamagedError if an array, or one layer of a stacked one, is not what was written.

    Args:
        record: the part of the item that `item` is.
    """
    sums = record[name]["sums"] if layer is None else record[name]["sums"][layer]
    if np.asarray(_whole_sums(_on_cpu(block))).tolist() != sums:
        where = name if layer is None else f"{name}, layer {layer},"
        raise DamagedError(item, f"{where} is not what was written: its checksum differs")


def require_same_leaves(item: Place, stored: Mapping[str, Any], needed: Mapping[str, Any]) -> None:
    """Refuses the weights or optimizer of another run.

    Args:
        stored, needed: {path/of/leaf: {shape, dtype}}.
    Raises:
        ConversionError: names the first leaf whose presence, shape or dtype differs.
    """
    for name in sorted(stored.keys() ^ needed.keys()):
        state = "is stored but not needed" if name in stored else "is needed but not stored"
        raise ConversionError(item, f"{name} {state}: another model or optimizer wrote this checkpoint")
    for name, leaf in needed.items():
        for key in ("shape", "dtype"):
            if key in leaf and stored[name][key] != leaf[key]:
                raise ConversionError(item, f"{name} has {key} {stored[name][key]}; needed: {leaf[key]}")
