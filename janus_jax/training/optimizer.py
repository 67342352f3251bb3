"""AdamW, learning-rate schedules and gradient clipping, as the reference trainers define them."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from janus_jax.config.run import RunConfig
from janus_jax.config.sections import OptimizerSection
from janus_jax.parallel.hashing import element_index, mix
from janus_jax.training.adamw_8bit import EightBitMoments

_DEFAULTS = OptimizerSection()


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate by optimizer step, counted from 0; the numbers are those of transformers' schedules.

    Linear warm-up from 0 over `warmup_steps` (so the first step has rate 0), then, over the rest of `total_steps`, with
    t from 0 to 1: cosine 0.5 (1 + cos(pi t)), linear 1 - t, or constant 1. `wsd` stays at 1 and falls over its last
    `decay_steps`, in `decay_shape`. What falls, falls to `min_rate_ratio`; the warm-up of `wsd` begins there too.
    """

    learning_rate: float
    total_steps: int
    warmup_steps: int = 0
    name: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    min_rate_ratio: float = 0.0
    decay_steps: int = 0
    decay_shape: Literal["cosine", "linear", "1-sqrt"] = "cosine"

    def __call__(self, step: Any) -> Float[Array, ""]:
        """The rate for optimizer step `step`."""
        step = jnp.asarray(step).astype(jnp.float32)
        shape, begin = self.name, self.warmup_steps
        if self.name == "wsd":
            shape, begin = self.decay_shape, self.total_steps - self.decay_steps
        warmup = jnp.minimum(step / max(1, self.warmup_steps), 1.0)
        progress = jnp.clip((step - begin) / max(1, self.total_steps - begin), 0.0, 1.0)
        decay = {
            "cosine": 0.5 * (1.0 + jnp.cos(math.pi * progress)),
            "linear": 1.0 - progress,
            "1-sqrt": 1.0 - jnp.sqrt(progress),
            "constant": jnp.ones_like(progress),
        }[shape]
        if self.min_rate_ratio:
            decay = decay * (1.0 - self.min_rate_ratio) + self.min_rate_ratio
            if self.name == "wsd":
                warmup = warmup * (1.0 - self.min_rate_ratio) + self.min_rate_ratio
        return self.learning_rate * jnp.where(step < self.warmup_steps, warmup, decay)


@dataclasses.dataclass(frozen=True)
class Extended:
    """Rates by `before` until optimizer step `start`, then by `after`, whose first step is step `origin`."""

    before: "Rates"
    start: int
    after: Schedule
    origin: int

    def __call__(self, step: Any) -> Float[Array, ""]:
        """The rate for optimizer step `step`."""
        step = jnp.asarray(step)
        return jnp.where(step < self.start, self.before(step), self.after(step - self.origin))


Rates = Schedule | Extended
"""Learning rate by optimizer step."""


@dataclasses.dataclass(frozen=True)
class AdamW:
    """Decoupled weight decay (Loshchilov & Hutter 2019) on matrices; norm weights are not decayed (transformers)."""

    b1: float = _DEFAULTS.b1
    b2: float = _DEFAULTS.b2
    eps: float = _DEFAULTS.eps
    weight_decay: float = _DEFAULTS.weight_decay
    clip_norm: float | None = _DEFAULTS.clip_norm
    moments: Literal["float32", "bfloat16"] = _DEFAULTS.moments
    """Kept as; computed in float32 either way, and rounded to bfloat16 up or down at random."""
    block: int | None = None
    """Elements that share a scale, if moments are kept in 8 bits as bitsandbytes does; None: `moments`."""
    float32_embedding: bool = False
    """With `block`: the moments of the embedding are float32."""

    @classmethod
    def of(cls, config: RunConfig) -> "AdamW":
        """The optimizer of a run."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(
            **config.optimizer.model_dump(include=names),
            block=config.compat.adamw_8bit,
            float32_embedding=config.compat.embedding_moments == "float32",
        )

    def transformation(self, schedule: Callable[[Any], Any], specs: Any) -> optax.GradientTransformation:
        """The optax transformation for parameters described by `specs` (a tree of `ParamSpec`)."""
        decayed = jax.tree.map(lambda spec: len([axis for axis in spec.axes if axis != "layers"]) > 1, specs)
        if self.block is None:
            adam = _scale_by_adam(self.b1, self.b2, self.eps, jnp.dtype(self.moments))
        else:
            adam = self._eight_bits(specs).scale_by_adam(self.b1, self.b2, self.eps, _correction)
        return optax.chain(
            adam, optax.add_decayed_weights(self.weight_decay, mask=decayed), optax.scale_by_learning_rate(schedule)
        )

    def state_shardings(self, state: Any, specs: Any, params: Any) -> Any:
        """Where the state lies: moments like their parameters, counters everywhere.

        Args:
            state: of `transformation`, or its shapes.
            params: the parameters' shardings.
        """
        some = jax.tree.leaves(params)[0]
        adam, *rest = jax.tree.map(lambda _: NamedSharding(some.mesh, PartitionSpec()), state)
        moments = params if self.block is None else self._eight_bits(specs).shardings(params)
        return (adam._replace(mu=moments, nu=moments), *rest)

    def moment_bytes(self, specs: Any, params: Any) -> int:
        """Bytes of both moments on each device; arguments as for `state_shardings`."""
        if self.block is None:
            shapes = jax.tree.map(lambda spec: jax.ShapeDtypeStruct(spec.shape, jnp.dtype(self.moments)), specs)
        else:
            shapes, params = jax.eval_shape(self._eight_bits(specs).zeros), self._eight_bits(specs).shardings(params)
        leaves = jax.tree.map(
            lambda leaf, lies: math.prod(lies.shard_shape(leaf.shape)) * leaf.dtype.itemsize, shapes, params
        )
        return 2 * sum(jax.tree.leaves(leaves))

    def _eight_bits(self, specs: Any) -> EightBitMoments:
        assert self.block is not None
        return EightBitMoments(specs, self.block, self.float32_embedding)


def _scale_by_adam(b1: float, b2: float, eps: float, dtype: Any) -> optax.GradientTransformation:
    """`optax.scale_by_adam`, its state too, with bias corrections that keep float32's precision.

    optax takes 1 - b2**t in float32, where 1 - 0.999 is off by 1.3e-5 of itself and torch's, in float64, is not: early
    updates are scaled wrongly, and a recorded run of TRL's reward trainer was missed by 2.2e-4 in its losses.
    """
    adam = optax.scale_by_adam(b1, b2, eps)

    def init(params: Any) -> Any:
        state: Any = adam.init(params)
        return state._replace(mu=_cast(state.mu, dtype), nu=_cast(state.nu, dtype))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        wide = state._replace(mu=_cast(state.mu, jnp.float32), nu=_cast(state.nu, jnp.float32))
        updated: Any = adam.update(updates, wide, params)[1]
        mean, square = _correction(b1, updated.count), _correction(b2, updated.count)
        scaled = jax.tree.map(lambda m, v: m / mean / (jnp.sqrt(v / square) + eps), updated.mu, updated.nu)
        if dtype != jnp.float32:
            updated = updated._replace(mu=_round(updated.mu, updated.count, 0), nu=_round(updated.nu, updated.count, 1))
        return scaled, updated

    return optax.GradientTransformation(init, update)


def _correction(decay: float, count: Array) -> Array:
    """1 - decay**count."""
    return -jnp.expm1(count.astype(jnp.float32) * (math.log(decay) if decay else -math.inf))


def _cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def _round(tree: Any, step: Array, salt: int) -> Any:
    """float32 to bfloat16, up or down with the probability that keeps the mean.

    To the nearest, a moment would stand still: a step changes it by 0.1 % (b2 = 0.999), half a bfloat16 step is 0.2 %.
    The chance is a hash of step, leaf and index, so it is the same on every mesh and after a resume.
    """
    leaves, structure = jax.tree.flatten(tree)
    rounded = []
    for number, leaf in enumerate(leaves):
        seed = step.astype(jnp.uint32) * jnp.uint32(0x9E3779B9) + jnp.uint32(2 * number + salt) * jnp.uint32(0x85EBCA6B)
        chance = mix(element_index(leaf.shape) ^ mix(seed)) >> 16
        bits = (jax.lax.bitcast_convert_type(leaf, jnp.uint32) + chance) & jnp.uint32(0xFFFF0000)
        rounded.append(jax.lax.bitcast_convert_type(bits, jnp.float32).astype(jnp.bfloat16))
    return jax.tree.unflatten(structure, rounded)


def clip(grads: Any, max_norm: float | None) -> tuple[Any, Float[Array, ""]]:
    """Scales gradients by min(1, max_norm / (norm + 1e-6)) as torch does; returns them and the norm before."""
    leaves = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(grads)]
    norm = jnp.sqrt(sum(leaves[1:], leaves[0]))
    if max_norm is None:
        return grads, norm
    scale = jnp.minimum(1.0, max_norm / (norm + 1e-6))
    return jax.tree.map(lambda leaf: (leaf * scale).astype(leaf.dtype), grads), norm
