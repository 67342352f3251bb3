"""A plan with figures that are easy to recognise."""

from janus_jax.planning.chips.roofline import Bound, StepFlops
from janus_jax.planning.chips.slices import find_slice
from janus_jax.planning.hlo.collectives import Collective
from janus_jax.planning.hlo.findings import Finding
from janus_jax.planning.hlo.memory import Buffer
from janus_jax.planning.result import Memory, Parameter, Plan

GIB = 2**30


PARAMETERS = {  # Mistral-7B over fsdp 16
    "embedding": Parameter((32000, 4096), (32000, 256)),
    "final_norm": Parameter((4096,), (256,)),
    "layers.attention.q": Parameter((32, 4096, 32, 128), (32, 256, 32, 128)),
    "layers.attention_norm": Parameter((32, 4096), (32, 256)),
    "layers.mlp.down": Parameter((32, 14336, 4096), (32, 14336, 256)),
    "layers.mlp.gate": Parameter((32, 4096, 14336), (32, 256, 14336)),
}


INSIDE = "jit(train)/while/body/transpose(jvp(head))/while/body/checkpoint"


BUFFERS = (
    Buffer(2 * GIB, "bf16[32,1,8192,4096]", "broadcast.434"),
    Buffer(GIB, "f32[32,256,14336]", ""),
    Buffer(GIB // 2, "bf16[32,256,14336]", "jit(train)/convert_element_type"),
    Buffer(GIB // 2, "bf16[32,14336,256]", "state.params[\\'layers\\'][\\'mlp\\'][\\'down\\']"),
    Buffer(GIB // 4, "bf16[32,256,14336]", "broadcast.448"),
    Buffer(GIB // 4, "bf16[8192,14336,1]", f"{INSIDE}/mlp/blf,fd->bld/dot_general"),
    Buffer(GIB // 4, "bf16[1,8192,14336]", ""),
    Buffer(GIB // 8, "bf16[1,4096,14336]", f"{INSIDE}/jit(dynamic_index_in_dim)/squeeze"),
    Buffer(GIB // 8, "bf16[1,4096,14336]", f"{INSIDE}/attention/blnh,nhd->bld/dot_general"),
    Buffer(GIB // 16, "bf16[32,8192,128]", f"{INSIDE}/attention/shard_map/splash_mha_fwd"),
    Buffer(GIB // 16, "f32[128,32000]", "jit(train)/while/body/jvp(head)/shard_map/dot_general"),
    Buffer(GIB // 16, "bf16[1,8192,4096]", "jit(train)/while/body/jvp(head)/convert_element_type"),
    Buffer(0, "f32[32,256,14336]", "shares another's memory"),
)


COLLECTIVES = (
    Collective("all-gather", ("fsdp",), 64, 6 * GIB, 3 * GIB, True, False, "a"),
    Collective("all-gather", ("fsdp",), 2, 2 * GIB, GIB, False, False, "b"),
    Collective("all-reduce", ("data",), 1, GIB, GIB // 2, False, True, "c", count_is_certain=False),
)


def example_plan() -> Plan:
    """Figures that are easy to recognise."""
    arguments = {"parameters": 2 * GIB, "moments": 4 * GIB, "batch": 3 << 20}
    temporaries = 6 * GIB - (3 << 20)
    return Plan(
        target=find_slice("v5litepod-16"),
        num_slices=2,
        mesh={"data": 2, "fsdp": 16, "tensor": 1, "context": 1},
        objective="sft",
        remat="full",
        moments="float32",
        rows=64,
        row_length=8192,
        microbatches=2,
        row_shards=32,
        attention="splash kernel",
        assumed=("the data are not on this machine [at all]",),
        notes=("model.vocab_size is [large]",),
        fits=True,
        reason=None,
        memory=Memory(
            usable=round(15.75 * GIB),
            arguments=arguments,
            peak=6 * GIB + (3 << 20) + temporaries,
            temporaries=BUFFERS,
            estimated_temporaries=sum(buffer.bytes for buffer in BUFFERS),
        ),
        collectives=COLLECTIVES,
        findings=(Finding("padding", 64 << 20, "jit(train)/mlp/dot", "f32[7] is filled up to f32[8]"),),
        flops=StepFlops(1.2e16, 0.3e16),
        bound=Bound(4.0, 0.125, 0.5, 1.0, 0.8, 64000.0),
        tokens_per_step=256000.0,
        steps_per_epoch=900,
        usd_per_hour=38.4,
        compile_s=61.0,
        program_sha256="0123456789abcdef",
        versions={"jax": "0.12.0", "libtpu": "0.0.50"},
        parameters=PARAMETERS,
    )
