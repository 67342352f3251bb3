"""What decides a plan, as one name for it: results of a sweep are kept under it."""

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
"""How the names of those begin that change what is compiled."""

_NO_PART_OF_IT = ("checkpoint", "cli", "evaluation", "storage", "text")
"""Parts of the package that no program depends on."""


def key(config: RunConfig, found: Inputs, target: Slice, num_slices: int, chip: Chip | None) -> str:
    """Of the shapes, what is configured, slice, code and compiler; nothing is lowered for it."""
    written = config.model_dump(mode="json", by_alias=True)
    values = [
        {name: written[name] for name in _SECTIONS} | {"reference": config.reference.mode},
        dataclasses.asdict(found) | {"objective": found.objective.name},
        [dataclasses.asdict(target), num_slices, None if chip is None else chip.model_dump()],
        [versions(), {name: importlib.metadata.version(name) for name in ("flax", "optax")}, code()],
        {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)},
    ]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@functools.cache
def code() -> str:
    """Of this package's sources, which decide the program as much as its version does."""
    digest, root = hashlib.sha256(), Path(__file__).parents[2]
    for path in sorted(path for path in root.rglob("*.py") if path.relative_to(root).parts[0] not in _NO_PART_OF_IT):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
