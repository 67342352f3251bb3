"""The sweep's estimate of memory beside the compiler's figure, for small models of many shapes.

    python -m tests.benchmarks.estimates [NAME ...]        # needs libtpu; half an hour on two cores

An estimate may leave a cell of a sweep out only if it cannot fit: none may be more than `MARGIN` times what the
compiler finds. Exits with 1 if one is.

A reward model of 0.9 GiB is: 1.17 by libtpu 0.0.50, which keeps fewer products of a block when little waits with them.
With four and twenty times its rows, where memory begins to matter, it is 0.97 and 0.96.
"""

import argparse
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from janus_jax.config.run import RunConfig
from janus_jax.planning import plan
from janus_jax.planning.chips.slices import find_slice
from janus_jax.planning.search.estimate import MARGIN, estimate

GIB = 2**30
_SMALL = {"num_layers": 2, "hidden_size": 512, "intermediate_size": 1024, "vocab_size": 2048}
_SMALL |= {"preset": "mistral-7b", "num_heads": 4, "num_kv_heads": 2, "head_dim": 128}
_MIDDLE = {"num_layers": 8, "hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 32000}
_MIDDLE = _SMALL | _MIDDLE | {"num_heads": 8, "num_kv_heads": 4}
_LARGE = {"num_layers": 24, "hidden_size": 2048, "intermediate_size": 5632, "vocab_size": 32000}
_LARGE = _SMALL | _LARGE | {"num_heads": 16, "num_kv_heads": 8}
_BFLOAT16 = {"compat": {"bfloat16_weights": True}, "optimizer": {"moments": "bfloat16"}}
FOUR, EIGHT = "v5litepod-4", "v5litepod-8"


def _rows(rows: int, length: int, microbatches: int = 1) -> dict[str, Any]:
    longest = min(length, 4096)
    return {"rows": rows, "row_length": length, "max_sequence_length": longest, "microbatches": microbatches}


CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "context 4, 2 rows of 32k": (FOUR, {"model": _MIDDLE, "batch": _rows(2, 32768), "mesh": {"context": 4}}),
    "context 4, 20 rows of 32k": (FOUR, {"model": _MIDDLE, "batch": _rows(20, 32768), "mesh": {"context": 4}}),
    "context 2, fsdp 2, 32k": (FOUR, {"model": _MIDDLE, "batch": _rows(2, 32768), "mesh": {"context": 2, "fsdp": 2}}),
    "context 8, remat none": (
        EIGHT,
        {"model": _MIDDLE, "batch": _rows(1, 32768), "mesh": {"context": 8}, "remat": "none"},
    ),
    "vocabulary of 256k": (FOUR, {"model": _MIDDLE | {"vocab_size": 262144}, "batch": _rows(4, 4096)}),
    "vocabulary of 256k, tied, tensor 4": (
        FOUR,
        {
            "model": _MIDDLE | {"vocab_size": 262144, "tie_embeddings": True},
            "batch": _rows(4, 4096),
            "mesh": {"tensor": 4},
        },
    ),
    "reward model": (FOUR, {"model": _MIDDLE, "batch": _rows(4, 8192), "objective": {"name": "rm"}}),
    "bfloat16 weights": (FOUR, {"model": _MIDDLE, "batch": _rows(8, 4096), **_BFLOAT16}),
    "bfloat16 weights, 8 microbatches": (FOUR, {"model": _LARGE, "batch": _rows(32, 2048, 8), **_BFLOAT16}),
    "64 microbatches": (FOUR, {"model": _LARGE, "batch": _rows(256, 1024, 64)}),
    "float32 compute": (FOUR, {"model": _MIDDLE, "batch": _rows(8, 4096), "precision": {"compute": "float32"}}),
    "remat none": (FOUR, {"model": _MIDDLE, "batch": _rows(16, 4096), "remat": "none"}),
    "remat dots": (FOUR, {"model": _MIDDLE, "batch": _rows(16, 4096), "remat": "dots"}),
    "remat offload": (FOUR, {"model": _LARGE, "batch": _rows(16, 4096), "remat": "offload"}),
    "short rows": (EIGHT, {"model": _LARGE, "batch": _rows(8, 512)}),
    "pairs, tensor 2": (
        EIGHT,
        {"model": _LARGE, "batch": _rows(8, 4096), "mesh": {"tensor": 2}, "objective": {"name": "dpo"}},
    ),
    "replicas": (EIGHT, {"model": _MIDDLE, "batch": _rows(8, 4096), "mesh": {"data": 8}}),
    "128 thin layers": (FOUR, {"model": _SMALL | {"num_layers": 128}, "batch": _rows(8, 1024)}),
    "wide blocks": (FOUR, {"model": _SMALL | {"intermediate_size": 65536}, "batch": _rows(8, 4096)}),
    "32 key heads, remat none": (
        FOUR,
        {"model": _MIDDLE | {"num_heads": 32, "num_kv_heads": 32}, "batch": _rows(8, 4096), "remat": "none"},
    ),
}


def config(changes: dict[str, Any]) -> RunConfig:
    """A run whose data and weights are not here."""
    values: dict[str, Any] = {
        "run": {"dir": "runs/none"},
        "data": {"dir": "nowhere"},
        "objective": {"name": "sft"},
        "schedule": {"name": "cosine", "learning_rate": 1e-5, "steps": 100},
        "precision": {"compute": "bfloat16"},
        "remat": "full",
        **changes,
    }
    sizes = {"data": 1, "fsdp": 1 if "data" in changes.get("mesh", {}) else -1, "tensor": 1, "context": 1}
    return RunConfig.model_validate(values | {"mesh": sizes | changes.get("mesh", {})})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*CELLS, []])
    table, worst = Table("step", "estimate GiB", "compiler GiB", "ratio"), 0.0
    for name in parser.parse_args().names or CELLS:
        topology, changes = CELLS[name]
        run = config(changes)
        guess, result = estimate(run, find_slice(topology)), plan(run, topology)
        if result.memory.needed is None:
            table.add_row(name, f"{guess.bytes / GIB:.2f}", "too much", "")
            continue
        ratio = guess.bytes / result.memory.needed
        worst = max(worst, ratio)
        table.add_row(name, f"{guess.bytes / GIB:.2f}", f"{result.memory.needed / GIB:.2f}", f"{ratio:.2f}")
        print(f"{name}: {ratio:.2f}", file=sys.stderr, flush=True)
    Console(width=100).print(table)
    sys.exit(worst > MARGIN)


if __name__ == "__main__":
    main()
