"""`janus plan`: compiles the exact training step for a TPU slice, without the slice, and reports memory and time.

from janus_jax.config.run import load_config
from janus_jax.planning import plan

result = plan(load_config("configs/sft_65k.yaml", ["mesh.tensor=2"]), "v5litepod-64")
print(result.fits, result.memory.peak / 2**30, result.bound.seconds)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from janus_jax.planning.compile import plan
    from janus_jax.planning.result import Memory, Plan

__all__ = ["Memory", "Plan", "plan"]


def __getattr__(name: str) -> Any:
    """Imports JAX with the first use: `launch` reads the table of chips without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from janus_jax.planning import compile, result

    return getattr(compile if name == "plan" else result, name)
