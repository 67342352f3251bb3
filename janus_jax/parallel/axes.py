"""Names of mesh axes and logical axes, mesh sizes and the default rules. Imports no JAX, so a configuration can."""

import dataclasses
import math
from collections.abc import Mapping

from janus_jax.errors import ConfigError

AXES = ("data", "fsdp", "tensor", "context")
"""Mesh axes. data: replicas · fsdp: parameters and rows sharded · tensor: heads, mlp and vocab sharded · context:
length."""

Rules = Mapping[str, tuple[str, ...]]
"""Logical axis -> mesh axes. A logical axis that is absent is replicated."""

DEFAULT_RULES: Rules = {
    "batch": ("data", "fsdp"),
    "length": ("context",),
    "embed": ("fsdp",),
    "q_heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "head_dim": (),
    "layers": (),
}
LOGICAL_AXES = {
    "batch": "Rows of a batch.",
    "length": "Slots of a row.",
    "embed": "Width of the residual stream.",
    "q_heads": "Query heads.",
    "kv_heads": "Key and value heads.",
    "head_dim": "Width of a head.",
    "mlp": "Width of the feed-forward layers.",
    "vocab": "Token ids.",
    "layers": "Transformer blocks.",
}


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Sizes of the mesh axes. One size may be -1: it takes all devices that the others leave."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    context: int = 1

    @property
    def fixed(self) -> int:
        """The product of the sizes that are not -1."""
        return math.prod(size for size in dataclasses.astuple(self) if size != -1)

    def resolve(self, devices: int) -> "MeshShape":
        """The shape with -1 filled in.

        Raises:
            ConfigError: the sizes do not multiply to `devices`.
        """
        sizes = dataclasses.asdict(self)
        open_axes = [axis for axis, size in sizes.items() if size == -1]
        fixed, present = self.fixed, f"{devices} device{'s' * (devices != 1)}"
        text = " x ".join(f"{axis}={size}" for axis, size in sizes.items())
        if len(open_axes) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
            raise ConfigError(f"mesh: {text}: sizes are positive, and at most one is -1")
        if open_axes:
            if devices % fixed:
                raise ConfigError(f"mesh: {text} does not divide {present}")
            sizes[open_axes[0]] = devices // fixed
        elif fixed != devices:
            count = f"is {devices}" if devices == 1 else f"are {devices}"
            raise ConfigError(f"mesh: {text} needs {fixed} devices, but there {count}")
        return MeshShape(**sizes)
