"""Embedding and head on every way to shard them: values and gradients of the plain formulas on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from janus_jax.model import head as head_module
from janus_jax.model import head_on_cpus
from janus_jax.model.head import token_logps
from janus_jax.model.vocabulary import TOKENS, embed, scatter_sum, vocab_axes
from janus_jax.parallel.mesh import DEFAULT_RULES, NOWHERE, MeshShape, Placement, build_mesh
from tests.support.tolerances import assert_within, float32_bound

ROWS, LENGTH, WIDTH, VOCAB = 8, 24, 16, 48
TOLERANCE = float32_bound(WIDTH + VOCAB + ROWS * LENGTH)  # products, softmax, and gradients summed over slots

PLACES = {
    "one device": None,
    "rows and widths": ((1, 8, 1, 1), {}),
    "replicas": ((2, 4, 1, 1), {}),
    "vocabulary": ((1, 2, 4, 1), {}),
    "length": ((1, 2, 2, 2), {}),
    "every parameter whole": ((2, 2, 2, 1), {"embed": (), "vocab": ()}),
    "widths over devices that share tokens": ((1, 2, 4, 1), {"embed": ("tensor",), "vocab": ()}),
    "widths over both kinds": ((1, 2, 4, 1), {"embed": ("fsdp", "tensor"), "vocab": ()}),
    "vocabulary over devices with different tokens": ((2, 2, 2, 1), {"embed": ("tensor",), "vocab": ("fsdp",)}),
    "vocabulary over both kinds": ((1, 2, 2, 2), {"embed": (), "vocab": ("tensor", "fsdp")}),
    "widths over length": ((1, 2, 2, 2), {"embed": ("context", "fsdp")}),
}


DISTINCT = ("one device", "vocabulary", "length", "vocabulary over both kinds")
"""Places whose code differs; dtypes and sizes of chunks change nothing in the others."""


@pytest.fixture(params=PLACES)
def place(request):
    if PLACES[request.param] is None:
        return NOWHERE
    sizes, rules = PLACES[request.param]
    return Placement(build_mesh(MeshShape(*sizes)), {**DEFAULT_RULES, **rules})


@pytest.fixture(scope="module")
def numbers():
    rng = np.random.default_rng(0)
    return {
        "hidden": rng.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32),
        "head": rng.normal(size=(WIDTH, VOCAB)).astype(np.float32),
        "table": rng.normal(size=(VOCAB, WIDTH)).astype(np.float32),
        "ids": rng.integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32),
        "weights": rng.normal(size=(ROWS, LENGTH)).astype(np.float32),
        "cotangent": rng.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32),
    }


def put(place, array, *axes):
    return jnp.asarray(array) if place.mesh is None else jax.device_put(array, place.sharding(axes))


@pytest.mark.parametrize(
    ("place", "slots", "tile"),
    [
        *((place, 5, tile) for tile in (3, VOCAB) for place in PLACES),
        *((place, 1000, VOCAB) for place in DISTINCT),
        ("one device", 8, VOCAB),
    ],
    indirect=["place"],
)
def test_log_probs_and_their_gradients_are_those_of_whole_logits(place, numbers, slots, tile, monkeypatch):
    """In chunks of 5 (padded) and 8 slots, and in one; gradients in tiles of 3 ids, where devices allow that."""
    monkeypatch.setattr(head_module, "_chunk", lambda place, rows, vocab: slots)
    monkeypatch.setattr(head_module, "tiles", lambda slots, width, vocab: max(1, vocab // tile))
    ids, weights = numbers["ids"], numbers["weights"]

    def whole(hidden, head):
        logps = jax.nn.log_softmax(hidden @ head)
        return (weights * _pick(logps, ids)).sum()

    expected = jax.value_and_grad(whole, argnums=(0, 1))(numbers["hidden"], numbers["head"])
    hidden = put(place, numbers["hidden"], "batch", "length", None)
    head = put(place, numbers["head"], "embed", "vocab")
    targets = put(place, ids, "batch", "length")

    def loss(hidden, head, targets):
        return (token_logps(hidden, head, targets, place=place) * weights).sum()

    result = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(hidden, head, targets)
    assert_within(result, expected, TOLERANCE)
    assert result[1][1].sharding.is_equivalent_to(head.sharding, 2)


def _summed(jaxpr):
    """Elements of a device that it sums with other devices, in all turns of loops."""
    total = 0
    for each in jaxpr.eqns:
        if each.primitive.name.startswith("psum"):
            total += sum(out.aval.size for out in each.outvars)
        inner = sum(map(_summed, jaxprs_in_params(each.params)))
        total += inner * each.params.get("length", 1)
    return total


@pytest.mark.parametrize("place", ["vocabulary", "length"], indirect=True)
def test_tiles_are_summed_over_the_devices_of_a_vocabulary_only_once(place, numbers, monkeypatch):
    """Of the cotangents of hidden states devices exchange as much as without tiles."""
    monkeypatch.setattr(head_module, "_chunk", lambda place, rows, vocab: 4)
    monkeypatch.setattr(Placement, "platform", "tpu")
    sizes = []
    for count in (1, 3):
        monkeypatch.setattr(head_module, "tiles", lambda *_, count=count: count)
        gradient = jax.grad(lambda *args: token_logps(*args, place=place).sum())  # a new function, so traced anew
        sizes.append(_summed(jax.make_jaxpr(gradient)(*(numbers[name] for name in ("hidden", "head", "ids")))))
    assert sizes[0] == sizes[1] > 0


@pytest.mark.parametrize("place", DISTINCT, indirect=True)
def test_slots_that_do_not_count_are_left_out(place, numbers, monkeypatch):
    """Of log-probs and gradients, wherever they stand; logits are large, and one row has no slot that counts."""
    monkeypatch.setattr(head_on_cpus, "_MANY", 1)
    ids, hidden, head = numbers["ids"], numbers["hidden"] * 9, numbers["head"]

    @jax.jit
    def whole(hidden, head, weights):
        logps = _pick(jax.nn.log_softmax(hidden @ head), ids)
        return (weights * logps).sum(), logps

    def loss(hidden, head, targets, counted, weights):
        logps = token_logps(hidden, head, targets, counted=counted, place=place)
        return (logps * weights).sum(), logps

    args = put(place, hidden, "batch", "length", None), put(place, head, "embed", "vocab")
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    alone = jax.jit(lambda *args: loss(*args)[1])  # without a gradient nothing is kept
    for share in (0, 0.1, 0.6, 1):
        counted = np.random.default_rng(1).random((ROWS, LENGTH)) < share
        counted[2] = False
        weights = numbers["weights"] * counted
        slots = tuple(put(place, array, "batch", "length") for array in (ids, counted, weights))
        expected, all_logps = jax.grad(whole, argnums=(0, 1), has_aux=True)(hidden, head, weights)
        result, logps = gradients(*args, *slots)
        assert_within(result, expected, TOLERANCE)
        for some in (logps, alone(*args, *slots)):
            assert_within(some * counted, all_logps * counted, TOLERANCE)
            assert place.mesh is None or not np.asarray(some)[~counted].any()


def _pick(logps, ids):
    return jnp.take_along_axis(logps, ids[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize(
    ("place", "dtype"),
    [*((place, "float32") for place in PLACES), *((place, "bfloat16") for place in DISTINCT)],
    indirect=["place"],
)
def test_looked_up_rows_and_their_gradients_are_those_of_indexing(place, numbers, dtype):
    """Cotangents that bfloat16 holds exactly, summed in float32."""
    ids, cotangent = numbers["ids"], np.asarray(jnp.asarray(numbers["cotangent"], dtype), np.float32)
    expected = np.zeros((VOCAB, WIDTH), np.float32)
    np.add.at(expected, ids, cotangent)
    table, tokens = put(place, numbers["table"], "vocab", "embed"), put(place, ids, "batch", "length")
    out, vjp = jax.vjp(jax.jit(lambda table, tokens: embed(table, tokens, dtype=dtype, place=place)), table, tokens)
    np.testing.assert_array_equal(out, jnp.asarray(numbers["table"], dtype)[ids])
    gradient = vjp(jnp.asarray(cotangent, dtype))[0]
    assert_within(gradient, expected, TOLERANCE)
    assert gradient.dtype == jnp.float32


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("place", [name for name in PLACES if PLACES[name]], indirect=True)
def test_sums_over_devices_are_those_of_numpy(place, platform, monkeypatch):
    """CPUs and TPUs take different collectives. Small integers, so that every order of summing is exact."""
    monkeypatch.setattr(Placement, "platform", platform)
    rng, axes = np.random.default_rng(0), ("embed", "vocab")
    wide = (*TOKENS, "vocab" if vocab_axes(place) else None)
    hidden, other = (rng.integers(-4, 5, (ROWS, LENGTH, size)).astype(np.float32) for size in (WIDTH, VOCAB))

    def local(hidden, other):
        return scatter_sum(jnp.einsum("bld,blv->dv", hidden, other), place, axes)

    summed = jax.jit(place.map(local, ((*TOKENS, None), wide), axes))(hidden, other)
    np.testing.assert_array_equal(summed, np.einsum("bld,blv->dv", hidden, other))


@pytest.mark.parametrize(
    ("slots", "width", "vocab", "tiles"),
    [
        (8192, 4096, 32000, 1),
        (2048, 4096, 32000, 5),
        (1, 4096, 32000, 5),
        (1, 4096, 8000, 1),
        (1, 512, 32000, 1),
        (8192, 4096, 128256, 6),
        (8192, 4096, 64128, 3),
        (2048, 4096, 128256, 16),
        (8192, 4096, 151936, 8),
        (8192, 4096, 50257, 29),
        (8192, 4096, 151937, 1),
    ],
)
def test_tiles_are_the_fewest_that_divide_the_vocabulary(slots, width, vocab, tiles):
    """Of 128 MiB or four ids a slot, and of whole vectors of 128 ids if the vocabulary has such; 151,937 is a prime."""
    assert head_module.tiles(slots, width, vocab) == tiles


@pytest.mark.parametrize(
    ("rows", "length", "vocab", "slots"),
    [
        (1, 2048, 32000, 512),
        (1, 2048, 6400, 2048),  # a fifth of them: all slots of a row, not the 2560 that there is room for
        (1, 300, 50257, 256),
        (2, 512, 21376, 256),  # not 384, which would leave a quarter empty
        (1, 128, 152064, 64),
        (4, 1000, 32000, 125),
    ],
)
def test_chunks_are_no_longer_than_they_need_be(rows, length, vocab, slots):
    """Slots that fill a chunk up are multiplied like the others."""
    x, head = jax.ShapeDtypeStruct((rows, length, 8), "float32"), jax.ShapeDtypeStruct((8, vocab), "float32")
    chunks = jax.eval_shape(lambda x, head: head_module._split(x, head_module._chunk_here(x, head)), x, head)
    assert chunks.shape == (-(-length // slots), rows, slots, 8)


def test_gradients_of_the_head_are_summed_in_float32(numbers):
    """In bfloat16 many small chunks' sums would stop growing."""
    hidden = jnp.ones((1, 2048, 4), jnp.bfloat16)
    head, targets = jnp.zeros((4, 2), jnp.float32), jnp.zeros((1, 2048), jnp.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_module, "_chunk", lambda place, rows, vocab: 2)
        gradient = jax.grad(lambda head: token_logps(hidden, head, targets).sum())(head)
    np.testing.assert_array_equal(gradient, np.full((4, 2), [1024.0, -1024.0]))
