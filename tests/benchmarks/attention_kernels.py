"""Attention compiled for TPUs on any machine: temporary memory and time to compile, forward and backward.

    pip install 'jax[tpu]' && python -m tests.benchmarks.attention_kernels
    pip install tokamax==0.0.17 && python -m tests.benchmarks.attention_kernels   # Python 3.12: its kernels beside

One layer of Mistral-7B (32 query heads, 8 key heads of 128, bfloat16), one row a chip on four chips, output and the
gradients of q, k and v. Nothing runs: this says what compiles and what memory it takes, not how quick or how exact it
is. `rule` is model/attention.py, `splash` is model/kernels/splash.py. tokamax's dot_product_attention takes the whole
mask as an array, its splash kernel the same copies and ids as ours.
"""

import argparse
import functools
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
for _name, _value in (
    ("TPU_ACCELERATOR_TYPE", "v5litepod-16"),  # without these two libtpu complains of the missing host at length
    ("TPU_WORKER_HOSTNAMES", "localhost"),
    ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ("TPU_LOG_DIR", tempfile.gettempdir()),
):
    os.environ.setdefault(_name, _value)

import jax  # noqa: E402 (reads the environment)
import jax.numpy as jnp  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from janus_jax.model.attention import Slots, attention, visible  # noqa: E402
from janus_jax.model.kernels import splash  # noqa: E402
from janus_jax.parallel.mesh import DEFAULT_RULES, MeshShape, Placement, build_mesh  # noqa: E402

HEADS, KV_HEADS, HEAD_DIM, CHIPS = 32, 8, 128, 4
TOPOLOGIES = {
    "v4": {"topology_name": "v4:2x2x1", "chip_config_name": "megacore"},  # otherwise a device is a core, half a chip
    "v5e": {"topology_name": "v5e:2x2"},
    "v5p": {"topology_name": "v5p:2x2x1"},
    "v6e": {"topology_name": "v6e:2x2"},
}
SHAPES = ((4096, 1024), (4096, 2048), (8192, 0))
"""Slots of a row, copies of shared prompts."""

Attend = Callable[..., Any]


def rule(q: Any, k: Any, v: Any, layout: Slots, *, copies: int, place: Placement) -> Any:
    """The reference: the rule in XLA, in blocks."""
    return attention(q, k, v, layout, shards=place.shards("batch"))


def ours(q: Any, k: Any, v: Any, layout: Slots, *, copies: int, place: Placement) -> Any:
    """The kernel that training uses on TPUs."""
    return splash.splash_attention(q, k, v, layout, window=None, copies=copies, place=place)


def tokamax_attention(
    q: Any, k: Any, v: Any, layout: Slots, *, copies: int, place: Placement, implementation: str
) -> Any:
    """tokamax's public function with the rule as a mask."""
    import tokamax

    def local(q: Any, k: Any, v: Any, layout: Slots) -> Any:
        mask = visible(layout, layout, None)[:, None]
        return tokamax.dot_product_attention(q, k, v, mask=mask, implementation=implementation)

    slots = ("batch", None)
    x = (*slots, None, None)
    return place.map(local, in_axes=(x, x, x, Slots(slots, slots, slots)), out_axes=x)(q, k, v, layout)


def tokamax_splash(q: Any, k: Any, v: Any, layout: Slots, *, copies: int, place: Placement) -> Any:
    """tokamax's splash kernel, which is not public, in the place of jax's."""
    from tokamax._src.ops.experimental.tpu.splash_attention import base
    from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_kernel as kernels
    from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_mask as masks

    length, block = q.shape[1], 512
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute")
    config = kernels.SplashConfig(**{f"block_{name}": block for name in names})
    mask = masks.CausalMask((length, copies + length), offset=copies)
    kernel = kernels.make_splash_mha(mask, config=config, q_seq_shards=1)

    def local(q: Any, k: Any, v: Any, segment: Any, branch: Any) -> Any:
        ids = key_ids = splash._ids(segment, branch)
        if copies:
            taken, rank, copy_ids, _ = splash._copies(segment, branch, copies)
            k, v = (splash._extend(x, taken, rank) for x in (k, v))
            key_ids = jnp.concatenate([copy_ids, key_ids], axis=1)
        q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q * HEAD_DIM**-0.5, k, v))
        return jnp.swapaxes(jax.vmap(kernel)(q, k, v, base.SegmentIds(ids, key_ids)), 1, 2)

    slots = ("batch", None)
    x = (*slots, None, None)
    return place.map(local, in_axes=(x, x, x, slots, slots), out_axes=x)(q, k, v, layout.segment, layout.branch)


KERNELS: dict[str, Attend] = {
    "rule": rule,
    "splash": ours,
    "tokamax mosaic_tpu": functools.partial(tokamax_attention, implementation="mosaic_tpu"),
    "tokamax xla_chunked": functools.partial(tokamax_attention, implementation="xla_chunked"),
    "tokamax splash": tokamax_splash,
}


def compiled(attend: Attend, place: Placement, length: int, copies: int) -> tuple[float | None, float, str]:
    """(GiB of temporaries or None, seconds to compile, what the compiler said instead)."""

    def array(shape: tuple[int, ...], axes: tuple[str | None, ...], dtype: Any = jnp.bfloat16) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place.sharding(axes))

    slots = ("batch", "length")
    q = array((CHIPS, length, HEADS, HEAD_DIM), (*slots, "q_heads", None))
    kv = array((CHIPS, length, KV_HEADS, HEAD_DIM), (*slots, "kv_heads", None))
    field = array((CHIPS, length), slots, jnp.int32)

    def step(q: Any, k: Any, v: Any, cotangent: Any, layout: Slots) -> Any:
        out, pull = jax.vjp(lambda *qkv: attend(*qkv, layout, copies=copies, place=place), q, k, v)
        return out, *pull(cotangent)

    begun = time.perf_counter()
    try:
        program = jax.jit(step).lower(q, kv, kv, q, Slots(field, field, field)).compile()
    except Exception as error:  # a kernel that does not compile is a row of the table
        return None, time.perf_counter() - begun, f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"
    return program.memory_analysis().temp_size_in_bytes / 2**30, time.perf_counter() - begun, ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", nargs="+", choices=TOPOLOGIES, default=list(TOPOLOGIES))
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS))
    arguments = parser.parse_args()
    chosen = {name: KERNELS[name] for name in arguments.kernels}
    try:
        import tokamax
    except ImportError:
        tokamax = None
        chosen = {name: kernel for name, kernel in chosen.items() if not name.startswith("tokamax")}
    table = Table("chip", "row", "copies", "kernel", "temp, GiB", "compile, s", title=f"jax {jax.__version__}")
    for chip in arguments.chips:
        topology = topologies.get_topology_desc(platform="tpu", **TOPOLOGIES[chip])
        place = Placement(build_mesh(MeshShape(), list(topology.devices)), DEFAULT_RULES)
        for length, copies in SHAPES:
            for name, attend in chosen.items():
                if tokamax is not None and name.startswith("tokamax"):
                    # Both: otherwise it takes the machine that compiles for the one that runs, and another kernel.
                    with tokamax.config.cross_compile(True), jax.set_mesh(place.mesh):
                        gib, seconds, text = compiled(attend, place, length, copies)
                else:
                    gib, seconds, text = compiled(attend, place, length, copies)
                memory = text if gib is None else f"{gib:.3f}"
                table.add_row(chip, f"{length:,}", f"{copies:,}", name, memory, f"{seconds:.1f}")
                print(f"{chip} {length} + {copies} {name}: {memory}, {seconds:.1f} s", flush=True)
        table.add_section()
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
