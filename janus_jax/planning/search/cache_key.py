"""A hash of everything that determines a plan. A sweep caches its results under it."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
from pathlib import Path

from janus_jax.config.run import RunConfig
from janus_jax.planning.chips.slices import Chip, Slice
from janus_jax.planning.compile import versions
from janus_jax.planning.inputs import Inputs

_SECTIONS = ("objective", "optimizer", "schedule", "mesh", "sharding", "precision", "remat", "batch", "compat", "eval")
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "TPU_LIBRARY_PATH", "JAX_ENABLE_", "JAX_DEFAULT_")
"""Prefixes of environment variables that change what is compiled."""

_UNRELATED = ("checkpoint", "cli", "evaluation", "storage", "text")
"""Parts of the package that do not affect a program."""


def cache_key(config: RunConfig, inputs: Inputs, target: Slice, num_slices: int, chip: Chip | None) -> str:
    """Hash of shapes, configuration, slice, code and compiler. Nothing is lowered for it."""
    written = config.model_dump(mode="json", by_alias=True)
    values = [
        {name: written[name] for name in _SECTIONS} | {"reference": config.reference.mode},
        dataclasses.asdict(inputs) | {"objective": inputs.objective.name},
        [dataclasses.asdict(target), num_slices, None if chip is None else chip.model_dump()],
        [versions(), {name: importlib.metadata.version(name) for name in ("flax", "optax")}, code_hash()],
        {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)},
    ]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@functools.cache
def code_hash() -> str:
    """Hash of this package's sources."""
    digest, root = hashlib.sha256(), Path(__file__).parents[2]
    for path in sorted(path for path in root.rglob("*.py") if path.relative_to(root).parts[0] not in _UNRELATED):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
