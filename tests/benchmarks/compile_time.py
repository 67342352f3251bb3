"""Seconds to trace, lower and compile the programs of a 7B run for a TPU slice: train, evaluate, reference.

    JAX_PLATFORMS=cpu python -m tests.benchmarks.compile_time                      # SFT on v5e-16; needs libtpu
    JAX_PLATFORMS=cpu python -m tests.benchmarks.compile_time --only train --xla xla_tpu_enable_x=false
    JAX_PLATFORMS=cpu python -m tests.benchmarks.compile_time --together           # all at once, in threads
    JAX_PLATFORMS=cpu python -m tests.benchmarks.compile_time --lower-only         # what a second start pays

Compare runs that follow one another: what else the machine does hardly changes CPU seconds (of all threads), but they
grow too when the machine itself is slow.
"""

import argparse
import concurrent.futures
import functools
import resource
import time
from collections.abc import Callable
from typing import Any

CHANGES = ["batch.rows=16", "batch.microbatches=1", "batch.row_length=8192", "batch.max_sequence_length=8192"]
"""One row a chip, as in `step_memory`."""


def clock() -> tuple[float, float]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter(), used.ru_utime + used.ru_stime


def seconds(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, wall and CPU seconds."""
    wall, cpu = clock()
    result = work()
    later, used = clock()
    return result, later - wall, used - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/sft_65k.yaml")
    parser.add_argument("--topology", default="v5litepod-16")
    parser.add_argument("--only", action="append", choices=["train", "evaluate", "reference"])
    parser.add_argument("--xla", action="append", default=[], metavar="FLAG=VALUE", help="an option of the compiler")
    parser.add_argument("--together", action="store_true")
    parser.add_argument("--lower-only", action="store_true")
    parser.add_argument("changes", nargs="*", default=[], help="a.b=c of the configuration")
    given = parser.parse_args()

    from janus_jax.config.run import load_config
    from janus_jax.planning.chips import gpus
    from janus_jax.planning.chips.slices import devices, find_slice
    from janus_jax.planning.compile import program_of, resolve_mesh
    from janus_jax.planning.inputs import find_inputs

    changes = CHANGES if given.config == parser.get_default("config") else []
    config = load_config(given.config, [*changes, *given.changes])
    target = find_slice(given.topology)
    config, mesh = resolve_mesh(config, devices(target, 1), None)
    inputs = find_inputs(config, target.devices)
    program, build_wall, build_cpu = seconds(lambda: program_of(config, inputs, mesh))
    state, batch = program.abstract_state(), program.abstract_batch(inputs.shape)
    arguments = {"train": (state, batch), "evaluate": (state.params, batch), "reference": (state.params, batch)}
    options = dict(flag.split("=", 1) for flag in given.xla)
    print(f"{'':<12}{'wall s':>10}{'CPU s':>10}")
    print(f"{'build':<12}{build_wall:10.2f}{build_cpu:10.2f}", flush=True)

    def compiled(name: str, lowered: Any) -> None:
        executable, wall, cpu = seconds(lambda: lowered.compile(compiler_options=options))
        memory = executable.memory_analysis()
        peak = (memory.argument_size_in_bytes, memory.temp_size_in_bytes, memory.peak_memory_in_bytes)
        cpu_text = "" if given.together else f"{cpu:10.2f}"
        print(
            f"  {'compile':<10}{wall:10.2f}{cpu_text}  {name}: arguments, temp, peak GiB "
            + ", ".join(f"{size / 2**30:.3f}" for size in peak),
            flush=True,
        )

    lowered = {}
    with gpus.lowering_for(mesh.devices.flat[0]):
        for name in given.only or arguments:
            print(name)
            traced, wall, cpu = seconds(functools.partial(getattr(program, name).trace, *arguments[name]))
            print(f"  {'trace':<10}{wall:10.2f}{cpu:10.2f}")
            lowered[name], wall, cpu = seconds(traced.lower)
            size = len(lowered[name].as_text())
            print(f"  {'lower':<10}{wall:10.2f}{cpu:10.2f}  {size / 1e6:.1f} MB of StableHLO", flush=True)
            if not (given.together or given.lower_only):
                compiled(name, lowered[name])
    if given.together:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            _, wall, cpu = seconds(lambda: list(pool.map(compiled, lowered, lowered.values())))
        print(f"{'together':<12}{wall:10.2f}{cpu:10.2f}")


if __name__ == "__main__":
    main()
