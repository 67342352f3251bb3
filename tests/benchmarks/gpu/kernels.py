"""Stages of attention alone: is a kernel equal to the rule in plain JAX, and how long does it take."""

import dataclasses
import functools
import traceback
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.batch import Batch
from janus_jax.model.attention import Slots, attention
from janus_jax.model.kernels import Need, choice
from janus_jax.parallel.mesh import DEFAULT_RULES, MeshShape, Placement, build_mesh
from tests.benchmarks.gpu.child import NotHere, first_line, measured, median_ms, seconds_of
from tests.benchmarks.gpu.rows import batches, packed_epochs, score_pairs
from tests.benchmarks.gpu.sizes import Sizes

PLAIN = "reference"
"""Plain JAX, by the name that `precision.attention` has for it."""

FLOPS_PER_PAIR = 14
"""Operations for a pair of query and key, of one head and one of its dimensions: two products forward and five
backward (the scores are computed again), as the papers on FlashAttention count."""

_BOUND, _PLAIN_TIMES = 1e-2, 2.0
_SLOT_BOUND, _PLAIN_SLOT_TIMES = 0.08, 3.0
"""Bounds of the error of a whole result, and of its worst slot: at least this, or so many times plain JAX's."""

_NAMES = ("out", "dq", "dk", "dv")


@dataclasses.dataclass(frozen=True)
class Layout:
    """Rows of a kind, and what a kernel must be told of them."""

    name: str
    batch: Batch
    copies: int
    segments: int
    branches: int
    longest: int

    @property
    def slots(self) -> Slots:
        """As arrays on the device."""
        return Slots(*(jnp.asarray(getattr(self.batch, name)) for name in Slots._fields))


def layouts(sizes: Sizes, rows: int) -> list[Layout]:
    """Packed rows of responses, the same of pairs that share prompts, and one example as long as the row."""
    made = []
    for name, branches in (("sft", 1), ("pairs", 2)):
        epochs = packed_epochs(
            branches=branches,
            rows=rows,
            row_length=sizes.row_length,
            longest=sizes.longest,
            vocab_size=100,
            shrink=sizes.shrink,
        )
        batch = batches(epochs, 1)[0]
        limits = (epochs.most_shared_slots(), epochs.most_segments(), branches, epochs.longest_sequence())
        made.append(Layout(name, batch, *limits))
    return [*made, _one_segment(sizes.row_length, rows)]


def _one_segment(length: int, rows: int) -> Layout:
    from janus_jax.data.example import Example
    from janus_jax.data.rows import pack

    ids = np.zeros(length, np.int32)
    example = Example(ids[:1], ids)
    batch = pack([[example]] * rows, row_length=length, max_segments=1)
    return Layout("one", batch, 0, 1, 1, length)


def attend_with(name: str, layout: Layout, sizes: Sizes) -> tuple[Any, str]:
    """A function of q, k, v and slots, and what the trainer says of it.

    Raises:
        NotHere: the kernel says that it cannot compute this here.
    """
    place = Placement(build_mesh(MeshShape(), jax.devices()[:1]), DEFAULT_RULES)
    if name == PLAIN:
        return attention, "plain JAX"
    need = Need(
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        window=None,
        dtype=jnp.dtype(jnp.bfloat16),
        row_length=sizes.row_length,
        longest=layout.longest,
        copies=layout.copies,
        segments=layout.segments,
        branches=layout.branches,
        place=place,
    )
    # Not `choose`: what a run compares before it trains is compared here on real rows, and shown if it differs.
    made = choice.candidate(name, need)
    if isinstance(made, str):
        raise NotHere(made)
    kernel, how = made
    return functools.partial(kernel, window=None, place=place), how


@functools.cache
def forward_and_backward(attend: Any) -> Any:
    """Jitted, once for plain JAX: out and the gradients of q, k and v for a cotangent."""

    def both(q: Any, k: Any, v: Any, cotangent: Any, slots: Slots) -> Any:
        out, pull = jax.vjp(lambda *qkv: attend(*qkv, slots), q, k, v)
        return out, *pull(cotangent)

    return jax.jit(both)


def inputs(layout: Layout, sizes: Sizes, seed: int) -> tuple[jax.Array, ...]:
    """Random q, k, v and cotangent in bfloat16; the cotangent is 0 at padding."""
    keys = jax.random.split(jax.random.key(seed), 4)
    rows, length = layout.batch.segment.shape
    heads = (sizes.heads, sizes.kv_heads, sizes.kv_heads, sizes.heads)
    q, k, v, cotangent = (
        jax.random.normal(key, (rows, length, count, sizes.head_dim), jnp.bfloat16)
        for key, count in zip(keys, heads, strict=True)
    )
    used = jnp.asarray(layout.batch.segment > 0)[..., None, None]
    return q, k, v, jnp.where(used, cotangent, 0)


def check(name: str, layout: Layout, sizes: Sizes) -> bool:
    """Compares a kernel with the rule in float32 on the same bfloat16 numbers. Measures `equal`.

    The yardstick is plain JAX in bfloat16. The error of a whole result shows keys that many slots see wrongly, that of
    the worst slot what is wrong in one place.
    """
    attend, how = attend_with(name, layout, sizes)
    q, k, v, cotangent = inputs(layout, sizes, seed=0)
    wide = [x.astype(jnp.float32) for x in (q, k, v, cotangent)]
    with jax.default_matmul_precision("highest"):
        truth = jax.block_until_ready(forward_and_backward(attention)(*wide, layout.slots))
    yardstick = _errors(forward_and_backward(attention)(q, k, v, cotangent, layout.slots), truth, layout)
    results = forward_and_backward(attend)(q, k, v, cotangent, layout.slots)
    finite = all(bool(jnp.isfinite(x).all()) for x in results)
    errors = _errors(results, truth, layout)
    equal = finite and all(_within(errors[key], yardstick[key]) for key in _NAMES)
    measured(
        "equal",
        kernel=name,
        rows=layout.name,
        equal=equal,
        how=how,
        finite=finite,
        error=max(whole for whole, _ in errors.values()),
        plain_error=max(whole for whole, _ in yardstick.values()),
        slot_error=max(slot for _, slot in errors.values()),
        plain_slot_error=max(slot for _, slot in yardstick.values()),
        errors=errors,
        plain_errors=yardstick,
    )
    return equal


def _within(error: tuple[float, float], plain: tuple[float, float]) -> bool:
    whole, slot = max(_BOUND, _PLAIN_TIMES * plain[0]), max(_SLOT_BOUND, _PLAIN_SLOT_TIMES * plain[1])
    return error[0] <= whole and error[1] <= slot


def _errors(results: Any, truth: Any, layout: Layout) -> dict[str, tuple[float, float]]:
    """For each result: its error in 2-norm as a share of the truth, and that of its worst slot."""
    used = jnp.asarray(layout.batch.segment > 0)[..., None, None]
    errors = {}
    for name, result, true in zip(_NAMES, results, truth, strict=True):
        true = jnp.where(used, true, 0)
        difference = jnp.where(used, result.astype(jnp.float32) - true, 0)
        by_slot = jnp.sum(jnp.square(difference), axis=(2, 3))
        size = jnp.sum(jnp.square(true), axis=(2, 3))
        mean = size.sum() / used.sum()
        # Compared with the slot's own size, but some are 0: the gradient of a query that sees one key.
        errors[name] = (
            float(jnp.sqrt(by_slot.sum() / size.sum())),
            float(jnp.sqrt((by_slot / jnp.maximum(size, mean / 16)).max())),
        )
    return errors


def kernel(name: str, sizes: Sizes) -> None:
    """The stage of one kernel: equal on each kind of rows, and where it is, its time."""
    problems = []
    for layout, single in zip(layouts(sizes, 2), layouts(sizes, 1), strict=True):
        try:
            if name == PLAIN or check(name, layout, sizes):
                time_one(name, single, sizes)
            else:
                measured("not timed", kernel=name, rows=layout.name, reason="it is not equal to plain JAX")
        except NotHere as reason:
            measured("not timed", kernel=name, rows=layout.name, reason=str(reason))
        except Exception as error:  # the next rows may work
            problems.append(layout.name)
            measured(
                "not timed",
                kernel=name,
                rows=layout.name,
                reason=f"{type(error).__name__}: {first_line(error)}",
                traceback=traceback.format_exc(),
            )
    if problems:
        raise RuntimeError(f"{name} failed on rows {', '.join(problems)}")


def time_one(name: str, layout: Layout, sizes: Sizes) -> None:
    """Times one row, forward and backward. Measures `kernel`."""
    attend, how = attend_with(name, layout, sizes)
    arguments = (*inputs(layout, sizes, seed=1), layout.slots)
    step = forward_and_backward(attend).lower(*arguments).compile()
    calls = 1 if name == PLAIN else sizes.calls
    times = seconds_of(lambda: step(*arguments), jax.block_until_ready, calls=calls, repeats=sizes.repeats)
    timed_kernel(name, layout.name, how, times, score_pairs(layout.batch), sizes)


def timed_kernel(name: str, rows: str, how: str, times: list[float], pairs: int, sizes: Sizes) -> None:
    """Measures `kernel`: milliseconds, and operations a second of the pairs that the rule leaves."""
    milliseconds = median_ms(times)
    flops = FLOPS_PER_PAIR * sizes.heads * sizes.head_dim * pairs
    measured(
        "kernel",
        kernel=name,
        rows=rows,
        ms=milliseconds,
        tflops=flops / milliseconds / 1e9,
        how=how,
        row_length=sizes.row_length,
        score_pairs=pairs,
        all_ms=[1e3 * one for one in times],
    )


def card(sizes: Sizes) -> None:
    """What the card can do: a product of large matrices in bfloat16 and a copy, by XLA. Measures `card`."""
    device = jax.devices()[0]
    side = sizes.matrix
    x, y = (jax.random.normal(jax.random.key(seed), (side, side), jnp.bfloat16) for seed in (0, 1))
    product = jax.jit(lambda x, y: x @ y).lower(x, y).compile()
    multiply = seconds_of(lambda: product(x, y), jax.block_until_ready, calls=sizes.calls, repeats=sizes.repeats)
    many = jnp.zeros((8, side, side), jnp.bfloat16)  # 1 GiB on a card: copied in longer than a call takes to start
    copy = jax.jit(lambda x: x + 1).lower(many).compile()
    copied = seconds_of(lambda: copy(many), jax.block_until_ready, calls=sizes.calls, repeats=sizes.repeats)
    measured(
        "card",
        device=device.device_kind,
        platform=device.platform,
        matmul_tflops=2 * side**3 / median_ms(multiply) / 1e9,
        copy_tb_per_s=2 * many.nbytes / median_ms(copied) / 1e9,
        memory_bytes=(device.memory_stats() or {}).get("bytes_limit"),
    )
