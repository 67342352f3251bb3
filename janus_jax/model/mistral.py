"""The Mistral decoder in Flax NNX: stacked, scanned layers; each parameter declared once with its logical axes.

The rest of the package sees plain nested dicts of arrays; `param_specs`, `init_params`, `hidden_states` and
`token_scalars` are the views of the one declaration below.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from janus_jax.model import blockwise, head
from janus_jax.model.attention import Keys, Slots, attention
from janus_jax.model.config import ModelConfig
from janus_jax.model.kernels import Kernel
from janus_jax.model.products import product
from janus_jax.model.remat import INPUT, Remat, kept, policy
from janus_jax.model.remat_scan import rematerialized
from janus_jax.model.vocabulary import embed
from janus_jax.parallel.mesh import NOWHERE, Placement

ACTIVATION_AXES = (
    ("batch", "length", "q_heads", "head_dim"),
    ("batch", "length", "kv_heads", "head_dim"),
    ("batch", "length", "mlp"),
)
"""Logical axes of the activations that are constrained, as `Compute.constrain` gets them."""

INPUT_AXES, INPUT_OVER = ("batch", "length", None), "mlp"
"""Logical axes of a block's input. All devices along `INPUT_OVER` hold it alike, and each may keep a share of it."""

Params = dict[str, Any]
"""Nested dict of arrays, as `init_params` makes it."""


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """Shape, dtype and logical axis names of one parameter; a leaf to `jax.tree`."""

    shape: tuple[int, ...]
    dtype: Any
    axes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Compute:
    """How to run the forward pass: dtype of activations, what to recompute, where activations live."""

    dtype: Any = jnp.bfloat16
    remat: Remat = "none"
    place: Placement = NOWHERE
    kernel: Kernel | None = None  # how attention is computed; None: the rule in plain JAX
    padding_sees_nothing: bool = False  # attention gives 0 at padding, as FlashAttention in torch; else unused values

    def long_rows(self, x: Array) -> Array:
        """[B, L, D] as XLA's CPU backend multiplies it best: rows of a device end to end, [shards, B * L / shards, D].

        Gradients of weights sum over rows and slots, and with one row XLA need not transpose activations for that.
        """
        shards = self.place.shards("batch")
        if self.place.platform != "cpu" or self.place.shards("length") > 1 or x.shape[0] % shards:
            return x
        return x.reshape(shards, -1, x.shape[-1])


class Attention(nnx.Module):
    """Weights of all layers on a leading axis; called on one layer's slice."""

    def __init__(self, config: ModelConfig, declare: "Declare"):
        n, layers = config, config.num_layers
        self.q = declare((layers, n.hidden_size, n.num_heads, n.head_dim), "layers embed q_heads head_dim")
        self.k = declare((layers, n.hidden_size, n.num_kv_heads, n.head_dim), "layers embed kv_heads head_dim")
        self.v = declare((layers, n.hidden_size, n.num_kv_heads, n.head_dim), "layers embed kv_heads head_dim")
        self.o = declare((layers, n.num_heads, n.head_dim, n.hidden_size), "layers q_heads head_dim embed")

    def __call__(
        self, x: Array, slots: Slots, config: ModelConfig, compute: Compute, past: Sequence[Keys] = ()
    ) -> tuple[Array, Keys]:
        """The output [B, L, D], and keys and values of these slots. They see those of `past` too."""
        long = compute.long_rows(x)

        def heads(weight: nnx.Param, axis: str) -> Array:
            projected = product(long, weight[...].astype(x.dtype), compute.place)
            projected = projected.reshape(*x.shape[:2], *projected.shape[2:])
            return compute.place.constrain(projected, ("batch", "length", axis, "head_dim"))

        with jax.named_scope("attention"):
            q = checkpoint_name(rotary(heads(self.q, "q_heads"), slots.position, config.rope_theta), "query")
            k = checkpoint_name(rotary(heads(self.k, "kv_heads"), slots.position, config.rope_theta), "key")
            v = checkpoint_name(heads(self.v, "kv_heads"), "value")
            window, kernel = config.sliding_window, compute.kernel
            in_blocks = blockwise.suits(x.shape[1], compute.place)
            if kernel is None and not past and in_blocks:
                out = blockwise.on_devices(q, k, v, slots, window=window, place=compute.place)
                out = checkpoint_name(out, "attention")
            elif kernel is None or past:
                shards = compute.place.shards("batch", "kv_heads")
                on_cpu = compute.place.platform == "cpu"
                out = attention(q, k, v, slots, window=window, shards=shards, past=past, on_cpu=on_cpu)
                out = checkpoint_name(out, "attention")
            else:
                out = kernel(q, k, v, slots, window=window, place=compute.place)
            if compute.padding_sees_nothing:
                out = jnp.where(slots.segment[..., None, None] > 0, out, 0)
            out = compute.place.constrain(out, ("batch", "length", "q_heads", "head_dim"))
            out = out.reshape(*long.shape[:2], *out.shape[2:])
            projected = product(out, self.o[...].astype(x.dtype), compute.place)
            return checkpoint_name(projected, "projection"), Keys(k, v, slots)


class MLP(nnx.Module):
    """SwiGLU feed-forward of all layers; called on one layer's slice."""

    def __init__(self, config: ModelConfig, declare: "Declare"):
        layers, width, ffn = config.num_layers, config.hidden_size, config.intermediate_size
        self.gate = declare((layers, width, ffn), "layers embed mlp")
        self.up = declare((layers, width, ffn), "layers embed mlp")
        self.down = declare((layers, ffn, width), "layers mlp embed")

    def __call__(self, x: Array, compute: Compute) -> Array:
        with jax.named_scope("mlp"):
            gate = checkpoint_name(product(x, self.gate[...].astype(x.dtype), compute.place), "gate")
            up = checkpoint_name(product(x, self.up[...].astype(x.dtype), compute.place), "up")
            hidden = compute.place.constrain(jax.nn.silu(gate) * up, ("batch", "length", "mlp"))
            return product(hidden, self.down[...].astype(x.dtype), compute.place)


class Block(nnx.Module):
    """One pre-norm transformer block, declared for all layers at once."""

    def __init__(self, config: ModelConfig, declare: "Declare"):
        self.attention_norm = declare((config.num_layers, config.hidden_size), "layers embed", ones=True)
        self.attention = Attention(config, declare)
        self.mlp_norm = declare((config.num_layers, config.hidden_size), "layers embed", ones=True)
        self.mlp = MLP(config, declare)

    def __call__(
        self, x: Array, slots: Slots, config: ModelConfig, compute: Compute, past: Sequence[Keys] = ()
    ) -> tuple[Array, Keys]:
        """As `Attention`."""
        h = rms_norm(x, self.attention_norm[...], config.rms_norm_eps)
        h, keys = self.attention(h, slots, config, compute, past)
        x = x + h.reshape(x.shape)
        h = rms_norm(x, self.mlp_norm[...], config.rms_norm_eps)
        x = x + self.mlp(compute.long_rows(h), compute).reshape(x.shape)
        return x, keys


class Mistral(nnx.Module):
    """Embedding, scanned blocks, final norm and the head: of the vocabulary (unless tied) or of values."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, param_dtype: Any = jnp.float32):
        declare = Declare(rngs, param_dtype, config.initializer_range)
        self.config = config
        self.embedding = declare((config.vocab_size, config.hidden_size), "vocab embed")
        self.layers = Block(config, declare)
        self.final_norm = declare((config.hidden_size,), "embed", ones=True)
        if config.head == "value":  # OpenRLHF's initial spread
            stddev = 1 / (config.hidden_size + 1)
            self.value_head = declare((config.hidden_size, 1), "embed reward", stddev=stddev)
        elif not config.tie_embeddings:
            self.lm_head = declare((config.hidden_size, config.vocab_size), "embed vocab")

    def __call__(self, tokens: Array, slots: Slots, compute: Compute, sums: Params | None = None) -> Array:
        """Final hidden states [B, L, D] in the compute dtype. `sums`: as in `token_scalars`."""
        with jax.named_scope("embed"):
            x = embed(self.embedding[...], tokens, dtype=compute.dtype, place=compute.place)
        block, weights = nnx.split(self.layers)
        to_host = INPUT in kept(compute.remat).host

        def one(layer: nnx.State, x: Array, slots: Slots) -> Array:
            x = checkpoint_name(x, INPUT) if to_host else x
            x, _ = nnx.merge(block, layer)(x, slots, self.config, compute)
            # Not split over tensor: XLA exchanges rows of a product whose result is (docs/design.md).
            return compute.place.constrain(x, INPUT_AXES)

        accumulator = None if sums is None else _filled(weights, sums)
        shares = compute.place.shares(x.shape, INPUT_AXES, INPUT_OVER)  # whole, inputs take as many times the memory
        x = rematerialized(one, weights, x, slots, policy=policy(compute.remat), accumulator=accumulator, shares=shares)
        return rms_norm(x, self.final_norm[...], self.config.rms_norm_eps)

    def after(
        self, tokens: Array, slots: Slots, compute: Compute, past: Any, keys_of: Callable[[Any], Sequence[Keys]]
    ) -> tuple[Array, tuple[Array, Array]]:
        """Final hidden states as `__call__`, and the keys and values [layers, B, L, K, H] of these slots.

        Args:
            past: what all layers remember, arrays with a leading axis of layers.
            keys_of: the part of one layer -> the keys that its queries see too.
        """
        with jax.named_scope("embed"):
            x = embed(self.embedding[...], tokens, dtype=compute.dtype, place=compute.place)
        block, weights = nnx.split(self.layers)

        def body(x: Array, layer: tuple[nnx.State, Any]) -> tuple[Array, tuple[Array, Array]]:
            x, keys = nnx.merge(block, layer[0])(x, slots, self.config, compute, keys_of(layer[1]))
            return compute.place.constrain(x, ("batch", "length", None)), (keys.k, keys.v)

        x, keys = jax.lax.scan(body, x, (weights, past))
        return rms_norm(x, self.final_norm[...], self.config.rms_norm_eps), keys

    def head(self) -> Array:
        """[D, V]: the language-model head, or the transposed embedding if tied."""
        return self.embedding[...].T if self.config.tie_embeddings else self.lm_head[...]


class Declare:
    """Makes one `nnx.Param` with its initial value and logical axes."""

    def __init__(self, rngs: nnx.Rngs, dtype: Any, stddev: float):
        self.rngs, self.dtype, self.stddev = rngs, dtype, stddev

    def __call__(
        self, shape: tuple[int, ...], axes: str, *, ones: bool = False, stddev: float | None = None
    ) -> nnx.Param:
        if ones:
            value = jnp.ones(shape, self.dtype)
        else:
            normal = jax.random.normal(self.rngs.params(), shape, jnp.float32)
            value = (normal * (self.stddev if stddev is None else stddev)).astype(self.dtype)
        return nnx.Param(value, axes=tuple(axes.split()))


def rms_norm(x: Float[Array, "*B D"], scale: Float[Array, " D"], eps: float) -> Float[Array, "*B D"]:
    """x / rms(x) * scale, in float32, returned in x's dtype (Zhang & Sennrich 2019)."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    # Broadcast at once: summed over all rows and slots, the gradient is quick to compute on CPUs also for a single row.
    return y.astype(x.dtype) * jax.lax.broadcast_in_dim(scale.astype(x.dtype), x.shape, (x.ndim - 1,))


def rotary(x: Float[Array, "B L N H"], position: Int[Array, "B L"], theta: float) -> Float[Array, "B L N H"]:
    """Rotary embedding in the half-split order of Hugging Face checkpoints; angles in float32, because bfloat16
    cannot tell neighbouring positions apart beyond 256."""
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = position[..., None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


@functools.cache
def _abstract(config: ModelConfig, dtype: Any) -> tuple[nnx.GraphDef, nnx.State]:
    model = nnx.eval_shape(lambda: Mistral(config, rngs=nnx.Rngs(0), param_dtype=dtype))
    return nnx.split(model)


def param_specs(config: ModelConfig, dtype: Any = jnp.float32) -> Params:
    """The parameter tree with a `ParamSpec` at each leaf; nothing is allocated."""
    _, state = _abstract(config, jnp.dtype(dtype))
    tree: Params = {}
    for path, variable in nnx.to_flat_state(state):
        *parents, name = map(str, path)
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[name] = ParamSpec(tuple(variable.shape), jnp.dtype(dtype), variable.get_metadata()["axes"])
    return tree


def init_params(config: ModelConfig, key: Array, dtype: Any = jnp.float32) -> Params:
    """Random parameters: normal(0, initializer_range), value head normal(0, 1 / (D + 1)), norms one. Pure: jit it with
    out_shardings."""
    return nnx.to_pure_dict(nnx.split(Mistral(config, rngs=nnx.Rngs(key), param_dtype=dtype))[1])


def one_layer(
    config: ModelConfig, weights: Params, x: Float[Array, "B L D"], slots: Slots, compute: Compute
) -> Float[Array, "B L D"]:
    """Runs a single layer, for a caller that holds the weights of one layer at a time.

    Args:
        weights: as `params["layers"]`, without the leading axis.
    """
    graph, abstract = nnx.split(_abstract_block(config))
    return nnx.merge(graph, _filled(abstract, weights))(x, slots, config, compute)[0]


@functools.cache
def _abstract_block(config: ModelConfig) -> Block:
    return nnx.eval_shape(lambda: Block(config, Declare(nnx.Rngs(0), jnp.float32, config.initializer_range)))


def bind(config: ModelConfig, params: Params) -> Mistral:
    """The module with these parameters."""
    graph, abstract = _abstract(config, jnp.dtype(jnp.float32))
    return nnx.merge(graph, _filled(abstract, params))


def _filled(state: nnx.State, values: Params) -> nnx.State:
    """`state` with these values. It is copied, because cached trees stay abstract."""
    state = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(state, values)
    return state


def hidden_states(
    config: ModelConfig, params: Params, tokens: Int[Array, "B L"], slots: Slots, compute: Compute
) -> Float[Array, "B L D"]:
    """Final hidden states of packed rows."""
    return bind(config, params)(tokens, slots, compute)


def working_params(params: Params, dtype: Any) -> Params:
    """Parameters as the blocks use them: layers and final norm in the compute dtype, unless they are narrower.

    The backward pass computes gradients of these, in that dtype. Gradients of the float32 parameters would be the same
    numbers in twice the memory.
    """

    def narrow(leaf: Array) -> Array:
        return leaf.astype(dtype) if leaf.dtype.itemsize > jnp.dtype(dtype).itemsize else leaf

    return params | jax.tree.map(narrow, {name: params[name] for name in ("layers", "final_norm")})


def token_logps(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B L"],
    targets: Int[Array, "B L"],
    slots: Slots,
    compute: Compute,
    sums: Params | None = None,
    counted: Bool[Array, "B L"] | None = None,
) -> Float[Array, "B L"]:
    """log p(target | what the slot sees) at each slot, float32; logits are never whole. `counted`: as the head's."""
    model = bind(config, params)
    hidden = model(tokens, slots, compute, sums)
    with jax.named_scope("head"):
        return head.token_logps(hidden, model.head(), targets, counted=counted, place=compute.place)


def token_values(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B L"],
    slots: Slots,
    compute: Compute,
    sums: Params | None = None,
) -> Float[Array, "B L"]:
    """The value head's number at each slot, multiplied and summed in float32."""
    model = bind(config, params)
    hidden = model(tokens, slots, compute, sums).astype(jnp.float32)
    with jax.named_scope("head"):
        # Accelerators multiply float32 in fewer bits by default, which would round rewards and the head itself.
        weight, exact = model.value_head[...].astype(jnp.float32), jax.lax.Precision.HIGHEST
        return jnp.einsum("bld,dv->blv", hidden, weight, precision=exact)[..., 0]


def token_scalars(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B L"],
    targets: Int[Array, "B L"],
    slots: Slots,
    compute: Compute,
    sums: Params | None = None,
    counted: Bool[Array, "B L"] | None = None,
) -> Float[Array, "B L"]:
    """The output of the model's head at each slot, float32: `token_logps`, or `token_values` of a reward model.

    Args:
        sums: a tree like `params["layers"]`: differentiated by it, the result is `sums` plus the gradient of the
            layers (`model/remat_scan.py`), which have none of their own.
        counted: the slots whose log-probs matter; None: all.
    """
    if config.head == "value":
        return token_values(config, params, tokens, slots, compute, sums)
    return token_logps(config, params, tokens, targets, slots, compute, sums, counted)


def logits(
    config: ModelConfig, params: Params, tokens: Int[Array, "B L"], slots: Slots, compute: Compute
) -> Float[Array, "B L V"]:
    """Whole logits in float32, for comparisons; training uses `token_logps`."""
    model = bind(config, params)
    return unembed(model, model(tokens, slots, compute), compute)


def unembed(model: Mistral, hidden: Float[Array, "B L D"], compute: Compute) -> Float[Array, "B L V"]:
    """Logits of final hidden states, in float32."""
    with jax.named_scope("head"):
        return compute.place.constrain(head.logits(hidden, model.head()), ("batch", "length", "vocab"))
