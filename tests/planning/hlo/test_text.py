"""Every form in which compilers write groups, loops and asynchronous collectives, in texts made for the purpose."""

import math

import pytest

from janus_jax.planning.hlo.collectives import MeshPositions, collectives
from janus_jax.planning.hlo.text import parse, shape_memory, shape_tree, tiled_bytes
from tests.support.hlo import all_reduce_text, module_text


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", ("tensor",)),
        ("{{0,2,4,6},{1,3,5,7}}", ("fsdp",)),
        ("{}", ("fsdp", "tensor")),
        ("[4,2]<=[8]", ("tensor",)),
        ("[2,4]<=[4,2]T(1,0)", ("fsdp",)),
        ("[1,8]<=[8]", ("fsdp", "tensor")),
        ("mesh['a'=4,'b'=2] {'b'}", ("tensor",)),
        ("mesh['a'=4,'b'=2] {'a'}", ("fsdp",)),
        ("mesh['a'=4,'b'=2] {'a','b'}", ("fsdp", "tensor")),
        ("mesh['a'=8] {'a':(4)2}", ("tensor",)),
        ("mesh['a'=8] {'a':(1)4}", ("fsdp",)),
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)<=[8]) {'a'}", None),
        ("mesh['a'=2,'b'=4], device_ids=([8]<=[4,2]T(1,0)) {'a'}", ("tensor",)),
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}", ("tensor",)),
    ],
)
def test_groups_are_read_in_every_syntax(groups, axes):
    text, positions = module_text(all_reduce_text(groups)), MeshPositions({"fsdp": 4, "tensor": 2})
    if axes is None:
        with pytest.raises(ValueError, match="unknown form"):
            collectives(text, positions)
        return
    (result,) = collectives(text, positions)
    size = math.prod(positions.axes[axis] for axis in axes)
    assert (result.axes, result.wire_bytes) == (axes, 2 * 256 * (size - 1) // size)


def loop(condition, step, start):
    return (
        "%cond (c: (s32[], s32[])) -> pred[] {\n  %c = (s32[], s32[]) parameter(0)\n"
        "  %i = s32[] get-tuple-element(%c), index=0\n  %k = s32[] constant(12)\n"
        f"  ROOT %t = pred[] compare(%i, %{condition[0]}), direction={condition[1]}\n}}\n\n"
        "%body (b: (s32[], s32[])) -> (s32[], s32[]) {\n  %b = (s32[], s32[]) parameter(0)\n"
        "  %i2 = s32[] get-tuple-element(%b), index=0\n  %n = s32[] get-tuple-element(%b), index=1\n"
        f"  %one = s32[] constant({step})\n  %p = f32[64]{{0}} constant({{...}})\n{all_reduce_text('{}', root=False)}\n"
        f"  %next = s32[] add(%i2, %one)\n  ROOT %out = (s32[], s32[]) tuple(%next, %n)\n}}\n",
        f"  %from = s32[] {start}\n  %limit = s32[] constant(30)\n  %s = (s32[], s32[]) tuple(%from, %limit)\n"
        "  %w = (s32[], s32[]) while(%s), condition=%cond, body=%body\n"
        "  ROOT %z = f32[64]{0} copy(%p)",
    )


@pytest.mark.parametrize(
    ("condition", "step", "start", "expected"),
    [
        (("k", "LT"), 1, "constant(0)", (12, True)),
        (("k", "LT"), 1, "constant(1)", (11, True)),  # the first iteration is peeled off
        (("k", "LT"), 2, "constant(0)", (6, True)),
        (("k", "LE"), 5, "constant(0)", (3, True)),
        (("k", "GT"), -1, "constant(20)", (8, True)),
        (("k", "NE"), 3, "constant(0)", (4, True)),
        (("k", "LT"), 1, "constant(12)", (0, True)),
        (("k", "LT"), 1, "custom-call()", (12, False)),  # starts at something that depends on data
    ],
)
def test_loops_run_as_often_as_their_counters_say(condition, step, start, expected):
    computations, body = loop(condition, step, start)
    (result,) = collectives(module_text(body, computations=computations), MeshPositions({"fsdp": 8}))
    assert (result.count, result.count_is_certain) == expected


def test_a_limit_that_comes_from_outside_the_loop_is_found():
    computations, body = loop(("k", "LT"), 1, "constant(0)")
    computations = computations.replace("%k = s32[] constant(12)", "%k = s32[] get-tuple-element(%c), index=1")
    (result,) = collectives(module_text(body, computations=computations), MeshPositions({"fsdp": 8}))
    assert (result.count, result.count_is_certain) == (30, True)


def test_a_stated_trip_count_goes_first():
    computations, body = loop(("k", "LT"), 1, "custom-call()")
    body = body.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
    (result,) = collectives(module_text(body, computations=computations), MeshPositions({"fsdp": 8}))
    assert (result.count, result.count_is_certain) == (7, True)


KERNEL = """  %splash = f32[64]{0} custom-call(%p), custom_call_target="tpu_custom_call", frontend_attributes={m={
"xprof_metadata":"{\\"block_q\\": 512, \\"block_kv\\": 512}"
}}, metadata={op_name="jit(f)/splash"}, backend_config={"custom_call_config":{"body":"TUzv="},"n":[{"m":["0","1"]}]}
"""


def test_a_kernels_metadata_with_line_breaks_is_part_of_its_instruction():
    """Splash attention's is; one of its lines begins like the end of a computation."""
    computations, body = loop(("k", "LT"), 1, "constant(0)")
    sent = all_reduce_text("{}", root=False)
    computations = computations.replace(sent, f'{KERNEL}{sent}, metadata={{op_name="jit(f)/psum"}}')
    text = module_text(body, computations=computations)
    (result,) = collectives(text, MeshPositions({"fsdp": 8}))
    assert (result.count, result.count_is_certain, result.op_name) == (12, True, "jit(f)/psum")
    kernel = parse(text).computations["body"].instructions["splash"]
    assert (kernel.op_name, kernel.attribute("custom_call_target")) == ("jit(f)/splash", '"tpu_custom_call"')
    assert (kernel.attribute("backend_config") or "").endswith('{"m":["0","1"]}]}')


def test_arrays_take_whole_tiles_of_their_memory():
    shape = "(bf16[4,100]{1,0:T(8,128)(2,1)S(1)}, (f32[100,4]{0,1:T(4,128)}, pred[]), /*index=2*/s4[3]{0:S(5)})"
    tiled, (turned, scalar), plain = shape_tree(shape)
    assert [tiled_bytes(each) for each in (tiled, turned, scalar, plain)] == [2 * 8 * 128, 4 * 4 * 128, 1, 2]
    assert [shape_memory(each) for each in (tiled, turned, scalar, plain)] == [1, 0, 0, 5]
    assert shape_tree("()") == ()


def test_of_a_conditional_the_branch_that_sends_most_counts():
    branches = "".join(
        f"%{name} (p{name}: f32[64]) -> f32[64] {{\n  %p = f32[64]{{0}} parameter(0)\n{all_reduce_text(groups)}\n}}\n\n"
        for name, groups in (("few", "{{0,1},{2,3},{4,5},{6,7}}"), ("many", "{}"))
    )
    body = "  ROOT %c = f32[64]{0} conditional(%p, %p, %p), branch_computations={%few, %many}"
    (result,) = collectives(module_text(body, computations=branches), MeshPositions({"fsdp": 4, "tensor": 2}))
    assert (result.axes, result.count) == (("fsdp", "tensor"), 1)


def chain(part, chain_id):
    attributes = f'channel_id=5, replica_groups={{}}, dimensions={{0}}, frontend_attributes={{chain_id="{chain_id}"}}'
    return (
        f"%{part} (q{part}: f32[64]) -> f32[512] {{\n  %q = f32[64]{{0}} parameter(0)\n"
        f"  ROOT %g = f32[512]{{0}} all-gather(%q), {attributes}\n}}\n\n"
    )


def fusions(parts):
    return "\n".join(
        f"  %{name} = f32[512]{{0}} fusion(%p), kind=kCustom, calls=%{called}" for name, called in parts.items()
    )


def test_parts_of_an_asynchronous_gather_are_one_and_another_gather_is_another():
    chains = {"start": "0", "async_collective_fusion.1": "0", "done": "0", "second": "1", "plain": "0"}
    names = ["async-collective-start", "fusion", "async-collective-done", "async-collective-start.1", "fusion.2"]
    text = module_text(
        fusions(dict(zip(names, chains, strict=True))) + "\n  ROOT %z = f32[64]{0} copy(%p)",
        computations="".join(chain(part, chain_id) for part, chain_id in chains.items()),
    )
    result = collectives(text, MeshPositions({"fsdp": 8}))
    assert {each.is_async: (each.count, each.wire_bytes) for each in result} == {
        True: (2, 2 * 7 * 256),
        False: (1, 7 * 256),  # a fusion of its own, not of a chain
    }


@pytest.mark.parametrize(("started", "count"), [(True, 1), (False, 12)])
def test_parts_inside_a_loop_belong_to_the_start_outside_of_it(started, count):
    """Without a start anywhere the loop's part stands for it, once in each iteration."""
    computations, body = loop(("k", "LT"), 1, "constant(0)")
    part = "  %fusion.3 = f32[512]{0} fusion(%p), kind=kOutput, calls=%async_collective_fusion.3\n"
    part += "  %fusion.4 = f32[512]{0} fusion(%p), kind=kOutput, calls=%async_collective_fusion.4"
    computations = computations.replace(all_reduce_text("{}", root=False), part)
    names = ["async_collective_fusion.3", "async_collective_fusion.4", *(["start"] if started else [])]
    computations = "".join(chain(name, "7") for name in names) + computations
    if started:
        body = fusions({"async-collective-start.5": "start"}) + "\n" + body
    (result,) = collectives(module_text(body, computations=computations), MeshPositions({"fsdp": 8}))
    assert (result.kind, result.count, result.is_async) == ("all-gather", count, True)


def test_an_all_reduce_that_is_fused_with_its_slice_is_a_reduce_scatter():
    fused = (
        f"%all-reduce-scatter.1 (p: f32[64]) -> f32[8] {{\n  %p = f32[64]{{0}} parameter(0)\n"
        f"{all_reduce_text('{}', root=False)}\n  %o = s32[] constant(0)\n"
        "  ROOT %d = f32[8]{0} dynamic-slice(%r, %o), dynamic_slice_sizes={8}\n}\n\n"
    )
    body = "  %f = f32[8]{0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1\n  ROOT %z = f32[64]{0} copy(%p)"
    (result,) = collectives(module_text(body, computations=fused), MeshPositions({"fsdp": 8}))
    assert (result.kind, result.result_bytes, result.wire_bytes) == ("reduce-scatter", 32, 7 * 32)


def test_ragged_and_generic_asynchronous_forms():
    inner = (
        "%inner (a: f32[64], b: f32[128]) -> f32[128] {\n  %a = f32[64]{0} parameter(0)\n"
        "  %b = f32[128]{0} parameter(1)\n  %n = s32[8]{0} constant({...})\n"
        "  ROOT %x = f32[128]{0} ragged-all-to-all(%a, %b, %n, %n, %n, %n), replica_groups={{0,1,2,3,4,5,6,7}}\n}\n\n"
    )
    body = (
        "  %o = f32[128]{0} broadcast(%p)\n"
        "  %s = ((f32[64], f32[128]), f32[128]{0}, u32[]) async-start(%p, %o), calls=%inner\n"
        "  %e = f32[128]{0} async-done(%s), calls=%inner\n"
        "  %rs = (f32[64]{0}, f32[64]{0}) all-reduce-start(%p), replica_groups=[2,4]<=[8], to_apply=%add\n"
        "  ROOT %z = f32[64]{0} all-reduce-done(%rs)"
    )
    result = collectives(module_text(body, computations=inner), MeshPositions({"fsdp": 2, "tensor": 4}))
    assert [(each.kind, each.result_bytes, each.wire_bytes, each.is_async) for each in result] == [
        ("all-reduce", 256, 2 * 256 * 3 // 4, True),
        ("ragged-all-to-all", 512, 256, True),
    ]


def test_a_gpus_fusion_that_is_started_apart_holds_one_collective():
    fused = f"%fused_psum (p: f32[64]) -> f32[64] {{\n  %p = f32[64]{{0}} parameter(0)\n{all_reduce_text('{}')}\n}}\n\n"
    body = (
        "  %s = ((f32[64]{0}), f32[64]{0}) fusion-start(%p), kind=kCustom, calls=%fused_psum\n"
        "  ROOT %d = f32[64]{0} fusion-done(%s)"
    )
    (result,) = collectives(module_text(body, computations=fused), MeshPositions({"fsdp": 8}))
    assert (result.kind, result.count, result.wire_bytes, result.is_async) == ("all-reduce", 1, 2 * 256 * 7 // 8, True)


def test_a_mesh_of_another_size_is_refused():
    with pytest.raises(ValueError, match="for 8 devices"):
        collectives(module_text(all_reduce_text("{}")), MeshPositions({"fsdp": 4}))
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives("HloModule m", MeshPositions({"fsdp": 8}))
