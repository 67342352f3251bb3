"""Memory of a training step beside MaxText's, by the same compiler, for steps ("cells") of your choice.

    python -m tests.benchmarks.step_memory                       # ours; needs libtpu, a minute or two for each cell
    python -m tests.benchmarks.step_memory --maxtext VENV        # and MaxText's, at its best setting
    python -m tests.benchmarks.step_memory --maxtext VENV --cell v5p-8,rows=2,length=4096,tensor=2 --cell v6e-16

A cell is a slice, then any of: `model` (mistral-7b, llama2-7b, llama3-8b), `rows` on a chip (less than 1 where chips
share one), `length` of a row, `tensor` (the other chips split rows and weights), `remat` (ours), `policy` (MaxText's).
VENV has Python 3.12 and `maxtext[tpu]==0.2.5`; install the jax and libtpu there that this environment has. Weights and
moments are float32, activations bfloat16. MaxText runs with gradients in both dtypes; our gradients of blocks are
bfloat16, of embedding and head float32. Compared is the compiler's peak: its temp figure is not additive.
"""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

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
    "compile_topology_num_slices=1 attention=flash dataset_type=synthetic enable_checkpointing=False "
    "run_name=aot weight_dtype=float32 dtype=bfloat16 num_vocab_tiling=16"
)
MODELS: dict[str, dict[str, Any]] = {
    "mistral-7b": {},
    "llama2-7b": {"num_kv_heads": 32, "intermediate_size": 11008},
    "llama3-8b": {"vocab_size": 128256},
}
"""By MaxText's name: what differs from our preset mistral-7b."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One step."""

    slice: str
    model: str = "mistral-7b"
    rows: float = 1
    length: int = 8192
    tensor: int = 1
    remat: str = "full"
    policy: str = "full"

    @classmethod
    def parse(cls, text: str) -> "Cell":
        name, *settings = re.split(r",(?![^\[]*\])", text)  # no comma in brackets, as in remat=[gate,up]
        types = {field.name: field.type for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {"slice": name}
        for setting in settings:
            key, equals, value = setting.partition("=")
            if not equals or key not in types:
                raise argparse.ArgumentTypeError(f"{setting}: allowed: {', '.join(f'{key}=...' for key in types)}")
            try:
                values[key] = types[key](value)
            except ValueError:
                raise argparse.ArgumentTypeError(f"{setting}: {value} is no number") from None
        if values.get("model", "mistral-7b") not in MODELS:
            raise argparse.ArgumentTypeError(f"model={values['model']}: allowed: {', '.join(MODELS)}")
        return cls(**values)

    def __str__(self) -> str:
        mesh = f", tensor {self.tensor}" if self.tensor > 1 else ""
        return f"{self.model}, {self.slice}, {self.rows:g} x {self.length}{mesh}"


CELLS = (
    Cell("v5e-16"),
    Cell("v5p-8", rows=2),
    Cell("v6e-8"),
    Cell("v4-16", length=4096, rows=2),
    Cell("v5e-16", rows=0.25, tensor=4),
    Cell("v6e-16", tensor=4),
)


def ours(cell: Cell) -> tuple[int, int]:
    """Bytes of arguments, and of all at the peak."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    from janus_jax.config.run import load_config
    from janus_jax.planning import plan
    from janus_jax.planning.chips.slices import find_slice

    topology = cell.slice.replace("v5e", "v5litepod")
    rows = cell.rows * find_slice(topology).devices
    model = {"preset": "mistral-7b"} | MODELS[cell.model]
    changes = [
        "init.from=null",
        f"model={json.dumps(model)}",
        f"batch={{rows: {rows:g}, row_length: {cell.length}, max_sequence_length: {cell.length}}}",
        f"mesh={{fsdp: -1, tensor: {cell.tensor}}}",
        f"remat={cell.remat}",
    ]
    planned = plan(load_config("configs/sft_65k.yaml", changes), topology)
    if planned.memory.peak is None:
        raise SystemExit(f"{cell}: {planned.reason}")
    return sum(planned.memory.arguments.values()), planned.memory.peak


def maxtext(cell: Cell, venv: Path, gradients: str) -> tuple[int, int]:
    """The same of MaxText, with gradients in this dtype."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    environment.pop("PYTHONPATH", None)  # it may name our packages, of another Python
    with tempfile.TemporaryDirectory() as scratch:
        options = [
            *SETTINGS.split(),
            f"compile_topology={cell.slice.replace('v5litepod', 'v5e')}",
            f"model_name={cell.model}",
            f"per_device_batch_size={cell.rows:g}",
            f"max_target_length={cell.length}",
            f"ici_tensor_parallelism={cell.tensor}",
            f"remat_policy={cell.policy}",
            f"grad_dtype={gradients}",
            f"base_output_directory={scratch}",
        ]
        command = [str(venv.absolute() / "bin" / "python"), "-c", PROGRAM, *options]
        done = subprocess.run(command, env=environment, cwd=scratch, capture_output=True, text=True)
    result = re.search(r"PEAK (\d+) (\d+)", done.stdout)
    if result is None:
        raise SystemExit(f"{cell}: MaxText: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return int(result[1]), int(result[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maxtext", type=Path, metavar="VENV")
    parser.add_argument("--cell", type=Cell.parse, action="append", metavar="SLICE[,KEY=VALUE...]")
    parser.add_argument("--gradients", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    arguments = parser.parse_args()
    table = Table("step", "program", "arguments GiB", "peak GiB", "peak of ours")
    for cell in arguments.cell or CELLS:
        own = ours(cell)
        rows = {"janus_jax": own}
        if arguments.maxtext is not None:
            rows |= {f"MaxText, {dtype}": maxtext(cell, arguments.maxtext, dtype) for dtype in arguments.gradients}
        for name, (held, peak) in rows.items():
            label = str(cell) if name == "janus_jax" else ""
            table.add_row(label, name, f"{held / GIB:.3f}", f"{peak / GIB:.3f}", f"{peak / own[1]:.2f}")
            print(f"{cell}: {name}: {held / GIB:.3f} {peak / GIB:.3f} {peak / own[1]:.2f}", flush=True)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
