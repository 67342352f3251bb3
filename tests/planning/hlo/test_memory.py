"""What lies in memory at a program's peak: each rule by which it is played through, in a text made for the purpose."""

import textwrap

import pytest

from janus_jax.planning.hlo.memory import DEVICE, HOST, ON_CHIP, peak

CALLED = """
loop (b: s) -> s {
  b = (s32[]{:S(6)}, f32[256]) parameter(0)
  k = s32[]{:S(6)} get-tuple-element(b), index=0
  v = f32[256] get-tuple-element(b), index=1
  x = f32[256] make(v)
  y = f32[256] make(x)
  ROOT o = (s32[]{:S(6)}, f32[256]) tuple(k, y)
}

outer (c: s) -> s {
  c = (s32[]{:S(6)}, f32[256]) parameter(0)
  k = s32[]{:S(6)} get-tuple-element(c), index=0
  u = f32[256] get-tuple-element(c), index=1
  x2 = f32[256] make(u)
  j = (s32[]{:S(6)}, f32[256]) tuple(k, u)
  l = (s32[]{:S(6)}, f32[256]) while(j), condition=cond, body=loop
  t = f32[256] get-tuple-element(l), index=1
  h = f32[256] make(t, x2)
  ROOT o2 = (s32[]{:S(6)}, f32[256]) tuple(k, h)
}

update (x: a, y: b, at: i) -> a {
  x = f32[1024] parameter(0)
  y = f32[256] parameter(1)
  z = f32[1,256] bitcast(y)
  at = s32[]{:S(6)} parameter(2)
  ROOT u = f32[1024] dynamic-update-slice(x, z, at)
}

updates (x: a, y: b, at: i) -> c {
  x = f32[1024] parameter(0)
  y = f32[256] parameter(1)
  at = s32[]{:S(6)} parameter(2)
  u = f32[1024] dynamic-update-slice(x, y, at)
  w = f32[1024] bitcast(u)
  e = f32[256] exponential(y)
  ROOT o = (f32[256], f32[1024]) tuple(e, w)
}

sum (x: a, y: a) -> a {
  x = f32[256] parameter(0)
  y = f32[256] parameter(1)
  ROOT s = f32[256] add(x, y)
}

little (f: a) -> a {
  f = f32[256] parameter(0)
  ROOT g = f32[256] make(f)
}

much (m: t) -> a {
  m = (f32[256], f32[256]) parameter(0)
  n = f32[256] get-tuple-element(m), index=1
  o = f32[256] make(n)
  q = f32[256] make(n)
  ROOT r = f32[256] make(o, q)
}
"""

ALIASING = '"aliasing_operands":{"lists":[{"indices":["0","2"]}]}'

# How many KiB beside the argument p, of 1 KiB. An f32[256] is 1 KiB; `make` stands for any operation.
RULES = {
    "a result lives until its last use": (
        2,
        """a = f32[256] make(p)
        b = f32[256] make(a)
        c = f32[256] make(b)
        read(c)""",
    ),
    "and so does one that is used again later": (
        3,
        """a = f32[256] make(p)
        b = f32[256] make(a)
        c = f32[256] make(b)
        d = f32[256] make(a, c)
        read(d)""",
    ),
    "what nobody reads takes memory when it is made": (
        1,
        """a = f32[256] make(p)
        b = f32[256] make(p)
        read(p)""",
    ),
    "a bitcast is what it is of": (
        3,
        """a = f32[256] make(p)
        v = f32[1,256] bitcast(a)
        c = f32[256] make(p)
        d = f32[256] make(p)
        read(v, c, d)""",
    ),
    "of a tuple only the parts that are read later live on": (
        3,
        """s = (f32[256], f32[256]) make(p)
        a = f32[256] get-tuple-element(s), index=0
        b = f32[256] get-tuple-element(s), index=1
        c = f32[256] make(b)
        d = f32[256] make(c)
        read(a, d)""",
    ),
    "a tuple is the things in it, a barrier what comes to it": (
        2,
        """a = f32[256] make(p)
        s = (f32[256], f32[256]) tuple(a, p)
        t = (f32[256], f32[256]) optimization-barrier(s)
        v = f32[256] get-tuple-element(t), index=0
        c = f32[256] make(v)
        read(c)""",
    ),
    "a loop has one state, in which its body's results lie": (
        2,
        """a = f32[256] make(p)
        i = (s32[]{:S(6)}, f32[256]) tuple(n, a)
        w = (s32[]{:S(6)}, f32[256]) while(i), condition=cond, body=loop
        r = f32[256] get-tuple-element(w), index=1
        read(r)""",
    ),
    "also a loop in a loop": (
        3,
        """a = f32[256] make(p)
        i = (s32[]{:S(6)}, f32[256]) tuple(n, a)
        w = (s32[]{:S(6)}, f32[256]) while(i), condition=cond, body=outer
        r = f32[256] get-tuple-element(w), index=1
        read(r)""",
    ),
    "a slice is updated in place": (
        5,
        """a = f32[1024] make(p)
        b = f32[256] make(p)
        u = f32[1024] dynamic-update-slice(a, b, n)
        read(u)""",
    ),
    "also in a fusion": (
        5,
        """a = f32[1024] make(p)
        b = f32[256] make(p)
        u = f32[1024] fusion(a, b, n), kind=kLoop, calls=update
        read(u)""",
    ),
    "also in a fusion of several results": (
        6,
        """a = f32[1024] make(p)
        b = f32[256] make(p)
        u = (f32[256], f32[1024]) fusion(a, b, n), kind=kOutput, calls=updates
        v = f32[1024] get-tuple-element(u), index=1
        read(v)""",
    ),
    "a fusion that updates nothing makes something new": (
        3,
        """a = f32[256] make(p)
        b = f32[256] make(p)
        u = f32[256] fusion(a, b), kind=kLoop, calls=sum
        read(u)""",
    ),
    "unless the compiler says that it overwrites": (
        2,
        f"""a = f32[256] make(p)
        b = f32[256] make(p)
        u = f32[256] fusion(a, b), kind=kLoop, calls=sum, backend_config={{{ALIASING},"n":[["1"]]}}
        read(u)""",
    ),
    "operands alone that are one say nothing of the result": (
        2,
        f"""a = f32[256] make(p)
        u = f32[256] add(a, a), backend_config={{{ALIASING.replace("2", "1")}}}
        read(u)""",
    ),
    "of a conditional the larger branch counts, and the result once": (
        4,  # a, the result, o and q
        """a = f32[256] make(p)
        s = (f32[256], f32[256]) tuple(a, a)
        c = f32[256] conditional(n, a, s), branch_computations={little, much}
        read(c)""",
    ),
    "also of one by truth": (
        4,
        """a = f32[256] make(p)
        s = (f32[256], f32[256]) tuple(a, a)
        c = f32[256] conditional(n, s, a), true_computation=much, false_computation=little
        read(c)""",
    ),
    "a call is what it calls": (
        4,
        """a = f32[256] make(p)
        s = (f32[256], f32[256]) tuple(a, a)
        c = f32[256] call(s), to_apply=much
        read(c)""",
    ),
    "a copy's source lives until the copy is done": (
        3,
        """a = f32[256] make(p)
        s = (f32[256], f32[256], u32[]{:S(2)}) copy-start(a)
        b = f32[256] make(p)
        d = f32[256] copy-done(s)
        read(d, b)""",
    ),
    "and no longer": (
        2,
        """a = f32[256] make(p)
        s = (f32[256], f32[256], u32[]{:S(2)}) copy-start(a)
        d = f32[256] copy-done(s)
        b = f32[256] make(p)
        read(d, b)""",
    ),
    "a collective's result has its room from the start": (
        6,
        """a = f32[256] make(p)
        s = (f32[256], f32[1024], u32[]{:S(2)}) all-gather-start(a), dimensions={0}
        b = f32[256] make(p)
        d = f32[1024] all-gather-done(s)
        read(d, b)""",
    ),
    "also of several operands": (
        8,
        """a = f32[256] make(p)
        s = ((f32[256], f32[256]), (f32[1024], f32[512]), u32[]{:S(2)}) collective-permute-start(a, p)
        b = f32[256] make(p)
        d = (f32[1024], f32[512]) collective-permute-done(s)
        e = f32[512] get-tuple-element(d), index=1
        read(e, b)""",
    ),
    "also what is started in general": (
        6,
        """a = f32[256] make(p)
        s = ((f32[256]), f32[1024], u32[]{:S(2)}) async-start(a), calls=little
        b = f32[256] make(p)
        t = ((f32[256]), f32[1024], u32[]{:S(2)}) async-update(s)
        d = f32[1024] async-done(t)
        read(d, b)""",
    ),
    "a sum that is started names no operand": (
        2,
        """a = f32[256] make(p)
        s = f32[256] all-reduce-start(a), to_apply=sum
        d = f32[256] all-reduce-done(s)
        read(d)""",
    ),
    "a slice is updated in place at leisure": (
        5,
        """a = f32[1024] make(p)
        b = f32[256] make(p)
        s = ((f32[1024], f32[256], s32[]), f32[1024], u32[]{:S(2)}) dynamic-update-slice-start(a, b, n)
        d = f32[1024] dynamic-update-slice-done(s)
        read(d)""",
    ),
    "what is sent lives until it is gone, what is received has its room from the start": (
        3,
        """a = f32[256] make(p)
        s = (f32[256], u32[]{:S(2)}, token[]) send(a, p)
        r = (f32[256], u32[]{:S(2)}, token[]) recv(p)
        b = f32[256] make(p)
        sent = token[] send-done(s)
        t = (f32[256], token[]) recv-done(r)
        v = f32[256] get-tuple-element(t), index=0
        read(v, b)""",
    ),
    "room is allocated before anything lies in it": (
        5,
        """a = f32[1024] custom-call(), custom_call_target="AllocateBuffer"
        b = f32[256] make(p)
        u = f32[1024] dynamic-update-slice(a, b, n)
        read(u)""",
    ),
    "pieces side by side are the whole": (
        3,
        """a = f32[256] make(p)
        b = f32[256] make(p)
        c = f32[512] custom-call(a, b), custom_call_target="ConcatBitcast"
        d = f32[256] make(p)
        read(c, d)""",
    ),
    "kernels write into operands where they say so": (
        3,
        """a = f32[256] make(p)
        b = f32[256] make(p)
        c = (f32[256], f32[256]) custom-call(b, a), output_to_operand_aliasing={{1}: (0, {})}, x={}
        d = f32[256] get-tuple-element(c), index=0
        e = f32[256] get-tuple-element(c), index=1
        read(d, e)""",
    ),
    "constants lie there all the time": (
        3,
        """a = f32[256] make(p)
        b = f32[256] make(a)
        k = f32[256] constant({...})
        read(b, k)""",
    ),
    "last dimensions fill whole tiles": (
        4 * 3 * 8 * 128 * 4 // 1024,  # 2 rows of 100 in a tile
        """a = f32[2,4,3,100]{3,0,1,2:T(8,128)} make(p)
        read(a)""",
    ),
    "also a row's": (
        2,
        """a = bf16[1000]{0:T(1024)(128)(2,1)} make(p)
        read(a)""",
    ),
}


def program(body, header=""):
    """Text of a module; `read` is its end, without a result of any size."""
    lines = textwrap.dedent(f"p = f32[256] parameter(0)\nn = s32[]{{:S(6)}} partition-id()\n        {body}")
    lines = "\n".join("  " + line.strip().replace("read(", "ROOT end = f32[0] make(") for line in lines.splitlines())
    return f"HloModule m, is_scheduled=true{header}\n{CALLED}\nENTRY main (p: f32[256]) -> f32[0] {{\n{lines}\n}}\n"


@pytest.mark.parametrize("rule", RULES)
def test_a_rule(rule):
    expected, body = RULES[rule]
    result = peak(program(body))
    assert result.bytes == sum(each.bytes for each in result.buffers) == 1024 * expected


MIXED = """
a = f32[256]{0:T(256)S(1)} make(p)
b = f32[512]{0:T(512)S(1)} make(a)
c = f32[2048]{0:T(512)S(5)} make(p)
s = (f32[512]{0}, f32[512]{0:S(1)}, u32[]{:S(2)}) copy-start(b)
d = f32[512]{0} copy-done(s)
read(c, d)"""


@pytest.mark.parametrize(("memory", "expected"), [(DEVICE, 2), (ON_CHIP, 3), (HOST, 8)])
def test_memories_are_counted_apart(memory, expected):
    assert peak(program(MIXED), memory).bytes == 1024 * expected


def test_results_lie_there_from_the_beginning_unless_they_take_an_arguments_place():
    body = """a = f32[1024] make(p)
    b = f32[512] make(a)
    c = f32[256] make(b)
    d = f32[256] make(c)
    ROOT r = (f32[512], (f32[256])) tuple(b, t)"""
    body = body.replace("ROOT", "t = (f32[256]) tuple(d)\n    ROOT")
    whole = peak(program(body))
    assert (whole.fixed, whole.bytes) == (3 * 1024, (3 + 4) * 1024)
    donated = peak(program(body, ", input_output_alias={ {1,0}: (0, {}, may-alias) }, x={()->()}"))
    assert (donated.fixed, donated.bytes) == (2 * 1024, (2 + 4) * 1024)
    assert peak(program(body, ", input_output_alias={ {0}: (1, {}), {1,0}: (0, {}) }")).bytes == 4 * 1024


def test_other_buffers_lie_in_a_results_place_until_it_is_made():
    """Of r: first a, then c. Not b, which is there beside both, nor d, which r is made of."""
    body = """a = f32[512] make(p)
    b = f32[256] make(a)
    c = f32[512] make(b)
    d = f32[512] make(c)
    r = f32[512] make(d)
    e = f32[256] make(r)
    ROOT t = (f32[512]) tuple(r)"""
    result = peak(program(body))
    assert (result.fixed, result.bytes, result.op_name) == (2 * 1024, (2 + 2) * 1024, "d")


def test_the_peak_says_what_runs_and_for_what_the_memory_is():
    body = """a = f32[1024] make(p), metadata={op_name="jit(f)/a"}
    b = f32[512] make(a), metadata={op_name="jit(f)/b"}
    c = f32[256] make(b)
    read(c)"""
    result = peak(program(body))
    assert result.op_name == "jit(f)/b"
    assert [(each.bytes, each.shape, each.op_name) for each in result.buffers] == [
        (4096, "f32[1024]", "jit(f)/a"),
        (2048, "f32[512]", "jit(f)/b"),
    ]


def test_a_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        peak("HloModule m")
