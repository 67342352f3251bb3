"""What the forward pass keeps of each block for the backward pass: tensors by name, and the words for usual choices.

Importing this needs no JAX.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from janus_jax.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a block that costs a product with weights, or attention's kernel."""

    meaning: str
    axis: str | None  # the logical axis of its width
    width: Callable[[ModelConfig], int]  # elements of a token
    weights: Callable[[ModelConfig], int]  # elements of the matrix that makes it; attention has none


def _queries(model: ModelConfig) -> int:
    return model.num_heads * model.head_dim


def _keys(model: ModelConfig) -> int:
    return model.num_kv_heads * model.head_dim


def _width(model: ModelConfig) -> int:
    return model.hidden_size


def _wide(model: ModelConfig) -> int:
    return model.intermediate_size


def _product(meaning: str, axis: str | None, width: Callable[[ModelConfig], int], other: Any = _width) -> Tensor:
    return Tensor(meaning, axis, width, lambda model: width(model) * other(model))


TENSORS = {
    "query": _product("queries, rotated", "q_heads", _queries),
    "key": _product("keys, rotated", "kv_heads", _keys),
    "value": _product("values", "kv_heads", _keys),
    "attention": Tensor("what attention's kernel returns: values by head, sums", "q_heads", _queries, lambda model: 0),
    "projection": _product("what attention adds to the block's input", None, _width, _queries),
    "gate": _product("the feed-forward layer's gate, before SiLU", "mlp", _wide),
    "up": _product("what the gate multiplies", "mlp", _wide),
}
"""Each is computed again unless it is kept. A block's input is always kept. What else gradients read is cheap to
compute from these, and none reads the last product, whose sum with its input is the next block's input."""

INPUT = "input"
HOST = "@host"
"""Ends the name of a tensor that is kept in the memory of the host."""

WORDS: dict[str, tuple[str, ...] | None] = {
    "none": None,
    "dots": tuple(name for name in TENSORS if name != "attention"),
    "full": (),
    "offload": (INPUT + HOST,),
}
"""Words for lists of tensors. None: everything that gradients read, norms and rotations too."""

Remat = str | tuple[str, ...]
"""A word, or names of tensors in the order of TENSORS, some with `@host`."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """Names of tensors by where they are kept; the block's input is in one of them."""

    device: tuple[str, ...]
    host: tuple[str, ...]
    everything: bool = False  # what has no name too


@functools.cache
def kept(remat: Remat) -> Kept:
    """What a value of `remat` keeps."""
    names = WORDS[remat] if isinstance(remat, str) else remat
    if names is None:
        return Kept((INPUT, *TENSORS), (), everything=True)
    host = tuple(name.removesuffix(HOST) for name in names if name.endswith(HOST))
    device = tuple(name for name in names if not name.endswith(HOST))
    return Kept(device if INPUT in host else (INPUT, *device), host)


def in_order(names: Sequence[Any]) -> Remat:
    """Names as a value of `remat`, in one order whatever order they came in.

    Raises:
        ValueError: says which name is unknown, or occurs twice.
    """
    order = {INPUT: 0} | {name: 1 + place for place, name in enumerate(TENSORS)}
    plain = [name.removesuffix(HOST) if isinstance(name, str) else name for name in names]
    for name, bare in zip(names, plain, strict=True):
        if not isinstance(name, str) or bare not in order or name == INPUT:
            raise ValueError(f"{name} is no tensor")
        if plain.count(bare) > 1:
            raise ValueError(f"{bare} occurs twice")
    return tuple(sorted(names, key=lambda name: order[name.removesuffix(HOST)])) or "full"


def as_text(remat: Remat) -> str:
    """As the command line takes it: a word, or names in brackets, without spaces."""
    return remat if isinstance(remat, str) else f"[{','.join(remat)}]"


@functools.cache
def policy(remat: Remat) -> Any:
    """The policy of JAX's checkpoints that keeps this; None for a block's input alone, in the device's memory."""
    import jax

    chosen, policies = kept(remat), jax.checkpoint_policies
    if chosen.everything:
        return policies.everything_saveable
    if chosen.host:
        return policies.save_and_offload_only_these_names(
            names_which_can_be_saved=list(chosen.device),
            names_which_can_be_offloaded=list(chosen.host),
            offload_src="device",
            offload_dst="pinned_host",
        )
    return policies.save_only_these_names(*chosen.device) if chosen.device != (INPUT,) else None
