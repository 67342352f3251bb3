"""Memory of a 7B SFT step beside MaxText's, by the same compiler: v5e-16, one row of 8192 a chip, full remat.

    python -m tests.benchmarks.step_memory                       # ours; needs libtpu, a minute or two
    python -m tests.benchmarks.step_memory --maxtext VENV        # and MaxText's, at its best setting

VENV has Python 3.12 and `maxtext[tpu]==0.2.5`; install the jax and libtpu there that this environment has. Weights and
moments are float32, activations bfloat16. Compared is the compiler's peak: its temp figure is not additive.
"""

import argparse
import os
import re
import subprocess
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

GIB = 2**30
PROGRAM = """
import os, runpy, sys
import jax, maxtext
read = jax.stages.Compiled.memory_analysis
def told(self):
    found = read(self)
    print("PEAK", found.argument_size_in_bytes, found.peak_memory_in_bytes, flush=True)
    return found
jax.stages.Compiled.memory_analysis = told
base = os.path.join(os.path.dirname(maxtext.__file__), "configs", "base.yml")
sys.argv = ["train_compile", base, *sys.argv[1:]]
runpy.run_module("maxtext.trainers.pre_train.train_compile", run_name="__main__")
"""
SETTINGS = (
    "compile_topology=v5e-16 compile_topology_num_slices=1 model_name=mistral-7b per_device_batch_size=1 "
    "max_target_length=8192 remat_policy=full attention=flash dataset_type=synthetic enable_checkpointing=False "
    "run_name=aot weight_dtype=float32 dtype=bfloat16 num_vocab_tiling=16"
)


def ours() -> tuple[int, int]:
    """Bytes of arguments, and of all at the peak."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    from janus_jax.config.run import load_config
    from janus_jax.planning import plan

    changes = ["batch.rows=16", "batch.microbatches=1", "batch.row_length=8192", "batch.max_sequence_length=8192"]
    memory = plan(load_config("configs/sft_65k.yaml", changes), "v5litepod-16").memory
    assert memory.peak is not None
    return sum(memory.arguments.values()), memory.peak


def maxtext(venv: Path, gradients: str) -> tuple[int, int]:
    """The same of MaxText, with gradients in this dtype."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    with tempfile.TemporaryDirectory() as scratch:
        options = [*SETTINGS.split(), f"grad_dtype={gradients}", f"base_output_directory={scratch}"]
        command = [str(venv / "bin" / "python"), "-c", PROGRAM, *options]
        done = subprocess.run(command, env=environment, cwd=scratch, capture_output=True, text=True)
    found = re.search(r"PEAK (\d+) (\d+)", done.stdout)
    if found is None:
        raise SystemExit(f"MaxText: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return int(found[1]), int(found[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maxtext", type=Path, metavar="VENV")
    venv = parser.parse_args().maxtext
    rows = {"ours": ours()}
    if venv is not None:
        rows |= {f"MaxText, {dtype} gradients": maxtext(venv, dtype) for dtype in ("float32", "bfloat16")}
    table = Table("step", "arguments GiB", "peak GiB", "peak of ours")
    for name, (arguments, peak) in rows.items():
        table.add_row(name, f"{arguments / GIB:.3f}", f"{peak / GIB:.3f}", f"{peak / rows['ours'][1]:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
