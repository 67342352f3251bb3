"""Variables for JAX on the CPUs of this machine, to be set before it starts: quick compiling, shared by processes."""

from importlib.metadata import version

_FLAGS = (
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    # Tests compile more than they run: these two flags make them take a third of the time.
    "--xla_backend_optimization_level=0",
    "--xla_cpu_prefer_vector_width=128",
)
if version("jaxlib").startswith("0.10."):  # later versions abort at a flag that they do not know
    _FLAGS += ("--xla_cpu_use_fusion_emitters=false",)  # compiling takes 0.6 of the time
    _FLAGS += ("--xla_cpu_parallel_codegen_split_count=1",)  # 0.6 to 0.8: LLVM sees one module, not many small ones


def variables(compiled: object, *flags: str) -> dict[str, str]:
    """The variables.

    Args:
        compiled: directory for what was compiled.
        flags: more flags of XLA.
    """
    return {
        "XLA_FLAGS": " ".join([*flags, *_FLAGS]),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # to read a small one takes less than half as long
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
