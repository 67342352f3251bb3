"""`janus plan`: the exact training step, compiled for a TPU slice that is not here; whether it fits, what it does.

from janus_jax.config.run import load_config
from janus_jax.planning import plan

found = plan(load_config("configs/sft_65k.yaml", ["mesh.tensor=2"]), "v5litepod-64")
print(found.fits, found.memory.peak / 2**30, found.bound.seconds)
"""

from janus_jax.planning.compile import plan
from janus_jax.planning.result import Memory, Plan

__all__ = ["Memory", "Plan", "plan"]
