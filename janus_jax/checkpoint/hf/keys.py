"""The key table: for each Hugging Face tensor, the parameter or layer that it stores, and how its axes map.

One table drives both directions. It is derived from `param_specs`, so a parameter without an entry here is an error.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np

from janus_jax.checkpoint.hf.blocks import contiguous
from janus_jax.errors import ConversionError
from janus_jax.model.config import ModelConfig
from janus_jax.model.mistral import ParamSpec, param_specs

KeyPath = tuple[str, ...]
"""Names that lead to a leaf of a parameter tree."""
Axes = tuple[tuple[int, ...], ...]

Layout = Literal["transformers", "openrlhf"]
"""The library that a directory is written for. They differ only for reward models: head name and config.json."""

LAYOUTS: tuple[Layout, ...] = get_args(Layout)
VALUE_HEADS: dict[Layout, str] = {"transformers": "score.weight", "openrlhf": "value_head.weight"}

_TABLE: dict[KeyPath, tuple[str, Axes]] = {
    # key path: (torch name, for each torch axis the parameter axes folded into it, without the layer axis)
    ("embedding",): ("model.embed_tokens.weight", ((0,), (1,))),  # [V, D]
    ("layers", "attention_norm"): ("input_layernorm.weight", ((0,),)),  # [D]
    ("layers", "attention", "q"): ("self_attn.q_proj.weight", ((1, 2), (0,))),  # [D, N, H] <-> [N*H, D]
    ("layers", "attention", "k"): ("self_attn.k_proj.weight", ((1, 2), (0,))),
    ("layers", "attention", "v"): ("self_attn.v_proj.weight", ((1, 2), (0,))),
    ("layers", "attention", "o"): ("self_attn.o_proj.weight", ((2,), (0, 1))),  # [N, H, D] <-> [D, N*H]
    ("layers", "mlp_norm"): ("post_attention_layernorm.weight", ((0,),)),
    ("layers", "mlp", "gate"): ("mlp.gate_proj.weight", ((1,), (0,))),  # [D, F] <-> [F, D]
    ("layers", "mlp", "up"): ("mlp.up_proj.weight", ((1,), (0,))),
    ("layers", "mlp", "down"): ("mlp.down_proj.weight", ((1,), (0,))),
    ("final_norm",): ("model.norm.weight", ((0,),)),
    ("lm_head",): ("lm_head.weight", ((1,), (0,))),  # [D, V] <-> [V, D]
    ("value_head",): (VALUE_HEADS["transformers"], ((1,), (0,))),  # [D, 1] <-> [1, D]
}


def stored_axes(path: KeyPath) -> Axes | None:
    """For each axis of the Hugging Face tensor, the axes of a parameter's layer that it folds; None: not in a file."""
    return _TABLE[path][1] if path in _TABLE else None


@dataclasses.dataclass(frozen=True)
class KeyEntry:
    """One Hugging Face tensor, and the parameter or the layer of a stacked parameter that it stores."""

    key: str
    path: KeyPath
    layer: int | None  # index on the leading axis of the parameter; None if the parameter is not stacked
    shape: tuple[int, ...]  # of the parameter, without the layer axis
    axes: Axes

    @property
    def torch_shape(self) -> tuple[int, ...]:
        return tuple(math.prod(self.shape[axis] for axis in group) for group in self.axes)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """The torch matrix [out, in] (C order) of one layer of the parameter."""
        assert array.shape == self.shape, (self.key, array.shape, self.shape)
        order = [axis for group in self.axes for axis in group]
        return contiguous(array.transpose(order)).reshape(self.torch_shape)

    def from_torch(self, read: Callable[[tuple[slice, ...]], np.ndarray], index: tuple[slice, ...]) -> np.ndarray:
        """The block `index` (unit-step slices over `shape`) of the parameter, read from the torch tensor.

        `read` takes slices over `torch_shape`. Where several axes are folded into one, reading cuts the outer axis
        only, so that it reads a box of the tensor. The inner axes are cut in memory.
        """
        bounds = [part.indices(size)[:2] for part, size in zip(index, self.shape, strict=True)]
        box, folded = [], []
        for outer, *inner in self.axes:
            start, stop = bounds[outer]
            rest = [self.shape[axis] for axis in inner]
            box.append(slice(start * math.prod(rest), stop * math.prod(rest)))
            folded += [stop - start, *rest]
        order = [axis for group in self.axes for axis in group]
        block = read(tuple(box)).reshape(folded).transpose(np.argsort(order))
        outer_axes = {group[0] for group in self.axes}
        cut = tuple(slice(None) if axis in outer_axes else slice(*bounds[axis]) for axis in range(len(self.shape)))
        return block[cut]


def leaves(tree: dict[str, Any], prefix: KeyPath = ()) -> dict[KeyPath, Any]:
    """Flattens nested dicts to {key path: leaf}, in insertion order."""
    flat: dict[KeyPath, Any] = {}
    for name, node in tree.items():
        flat |= leaves(node, (*prefix, name)) if isinstance(node, dict) else {(*prefix, name): node}
    return flat


def nest(flat: dict[KeyPath, Any]) -> dict[str, Any]:
    """The reverse of `leaves`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf
    return tree


def key_table(config: ModelConfig, layout: Layout = "transformers") -> list[KeyEntry]:
    """All tensors of a model directory in the order of the forward pass (a tied model has no `lm_head.weight`)."""
    specs: dict[KeyPath, ParamSpec] = leaves(param_specs(config))
    if unknown := sorted("/".join(path) for path in specs if path not in _TABLE):
        raise ConversionError(f"parameters without a Hugging Face key: {', '.join(unknown)}")
    rows = {path: (row, specs[path]) for path, row in _TABLE.items() if path in specs}
    stacked = {path: value for path, value in rows.items() if value[1].axes[0] == "layers"}
    table = []
    for path, ((name, axes), spec) in rows.items():
        if path not in stacked:
            key = VALUE_HEADS[layout] if path == ("value_head",) else name
            table.append(KeyEntry(key, path, None, spec.shape, axes))
        elif path == next(iter(stacked)):  # all layers go in at the position of the first stacked parameter
            for layer in range(config.num_layers):
                for inner, ((inner_name, inner_axes), inner_spec) in stacked.items():
                    key = f"model.layers.{layer}.{inner_name}"
                    table.append(KeyEntry(key, inner, layer, inner_spec.shape[1:], inner_axes))
    return table
