"""A corpus of the published size, built, planned, read and resumed, with the figures of each as a table.

    python -m tests.benchmarks.full_size                       # 200,000 rows, about ten minutes on two cores
    python -m tests.benchmarks.full_size --rows 20000 --keep DIR
    pip install grain && python -m tests.benchmarks.full_size  # grain's packer beside ours

Rows are those of corpus.py. Memory is that of the whole process tree (proportional set size: pages that processes share
count once), sampled every 0.5 s. Each reading stage runs in a process of its own, whose clock starts after its imports.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tests.benchmarks.corpus import write_parquet

ROW_LENGTH, BATCH_ROWS, EPOCHS = 8192, 32, 4
_SAMPLE_EVERY_S = 0.5  # each sample walks the page tables of all processes; ten a second took a fifth of a core


@dataclasses.dataclass
class Peak:
    """Largest memory in bytes that a process held, and that it held with its children."""

    bytes: int = 0
    own: int = 0


def peak_of(command: list[str]) -> tuple[float, Peak, str]:
    """Runs a command: seconds, peak memory of its process tree, standard output."""
    peak, started = Peak(), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def watch() -> None:
        while process.poll() is None:
            sizes = [_proportional_bytes(pid) for pid in _tree(process.pid)] or [0]
            peak.bytes, peak.own = max(peak.bytes, sum(sizes)), max(peak.own, sizes[0])
            time.sleep(_SAMPLE_EVERY_S)

    thread = threading.Thread(target=watch)
    thread.start()
    output, _ = process.communicate()
    thread.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return time.perf_counter() - started, peak, output


def _tree(pid: int) -> list[int]:
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []
    return [pid, *(one for child in children for one in _tree(child))]


def _proportional_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


# --- Stages in processes of their own


def plan_and_read(directory: str, batches: int) -> dict[str, Any]:
    """Opens the data set, plans all epochs, reads batches as a host of one process does."""
    from janus_jax.data.dataset import TokenizedDataset
    from janus_jax.data.epoch import START, BatchSettings, PackedEpochs, Position

    clock = time.perf_counter()
    dataset = TokenizedDataset(directory)
    opened = time.perf_counter() - clock
    settings = BatchSettings(row_length=ROW_LENGTH, max_sequence_length=ROW_LENGTH, rows=BATCH_ROWS)
    clock = time.perf_counter()
    plan = PackedEpochs(dataset, settings, branches=1, epochs=EPOCHS)
    steps = plan.total_steps(EPOCHS)
    planned = time.perf_counter() - clock

    members = [plan.members(position) for position, _ in zip(plan.positions(START), range(batches), strict=False)]
    plan.read(members[0])
    clock, tokens = time.perf_counter(), 0
    for rows in members:
        tokens += int((plan.read(rows).segment > 0).sum())
    seconds = time.perf_counter() - clock

    first = [Position(0, step * BATCH_ROWS) for step in range(plan.steps(0))]
    rows = [row for position in first for row in plan.members(position) if len(row)]
    lengths = np.array([plan.fitted.slots[row].mean() for row in rows])
    return {
        "open_s": opened,
        "plan_s": planned,
        "steps": steps,
        "fill": float(plan.fitted.slots.sum()) / (len(rows) * ROW_LENGTH),
        "correlation": float(np.corrcoef(np.arange(len(rows)), lengths)[0, 1]),
        "read_tokens_per_s": tokens / seconds,
        "dropped": plan.fitted.counts["dropped"],
    }


def resume(directory: str) -> dict[str, Any]:
    """What a resumed run does before its first step: open, plan, bring one batch of the third epoch to devices."""
    from janus_jax.data.dataset import TokenizedDataset
    from janus_jax.data.epoch import BatchSettings, Position
    from janus_jax.data.loader import Loader
    from janus_jax.parallel.mesh import DEFAULT_RULES, MeshShape, build_mesh

    mesh = build_mesh(MeshShape())
    state = json.dumps({"epoch": 2, "row": BATCH_ROWS * 100})
    clock = time.perf_counter()
    settings = BatchSettings(row_length=ROW_LENGTH, max_sequence_length=ROW_LENGTH, rows=BATCH_ROWS)
    loader = Loader(TokenizedDataset(directory), settings, mesh=mesh, rules=DEFAULT_RULES, branches=1, epochs=EPOCHS)
    loader.total_steps(EPOCHS)  # the schedule asks for it
    ready = time.perf_counter() - clock
    batches = loader.batches(Position(**json.loads(state)))
    next(batches)
    first = time.perf_counter() - clock
    count, tokens, clock = 30, 0, time.perf_counter()
    for _ in range(count):
        tokens += next(batches).tokens
    loaded = tokens / (time.perf_counter() - clock)
    batches.close()
    return {"state_bytes": len(state), "resume_s": ready, "first_batch_s": first, "load_tokens_per_s": loaded}


def grain_pack(directory: str, batches: int) -> dict[str, Any]:
    """grain's first-fit packer over the same examples in random order, read from the same files."""
    try:
        from grain import MapDataset
        from grain.experimental import FirstFitPackIterDataset
    except ImportError:
        return {}
    from janus_jax.data.dataset import TokenizedDataset

    dataset = TokenizedDataset(directory)

    class Source:
        def __len__(self) -> int:
            return len(dataset)

        def __getitem__(self, index: int) -> dict[str, np.ndarray]:
            example = dataset.read([index])[0]
            ids = np.concatenate([example.prompt, example.chosen])[:-1]
            return {"tokens": ids[:ROW_LENGTH]}

    packed = FirstFitPackIterDataset(
        MapDataset.source(Source()).shuffle(seed=0).to_iter_dataset(),
        length_struct={"tokens": ROW_LENGTH},
        num_packing_bins=BATCH_ROWS,
    )
    iterator = iter(packed)
    clock = time.perf_counter()
    next(iterator)
    first = time.perf_counter() - clock
    clock, tokens, rows = time.perf_counter(), 0, batches * BATCH_ROWS
    for _ in range(rows):
        tokens += int((next(iterator)["tokens_segment_ids"] > 0).sum())
    seconds = time.perf_counter() - clock
    return {
        "read_tokens_per_s": tokens / seconds,
        "fill": tokens / (rows * ROW_LENGTH),
        "first_row_s": first,
        "state_bytes": len(json.dumps(iterator.get_state())),
    }


STAGES = {"plan_and_read": plan_and_read, "resume": resume, "grain_pack": grain_pack}


def _stage(name: str, *arguments: Any) -> tuple[dict[str, Any], Peak]:
    code = (
        "import json, sys; from tests.benchmarks.full_size import STAGES; import jax\n"
        "import janus_jax.data.loader; print(json.dumps(STAGES[sys.argv[1]](*json.loads(sys.argv[2]))))"
    )
    _, peak, output = peak_of([sys.executable, "-c", code, name, json.dumps(arguments)])
    return json.loads(output.splitlines()[-1]), peak


def run(rows: int, scratch: Path, batches: int) -> dict[str, Any]:
    """All stages; returns the figures."""
    clock = time.perf_counter()
    size = write_parquet(scratch / "raw", rows)
    print(f"{rows:,} rows, {size / 1e9:.2f} GB of columns, written in {time.perf_counter() - clock:.0f} s", flush=True)
    data, processes = scratch / "data", len(os.sched_getaffinity(0))
    command = [sys.executable, "-m", "janus_jax.cli", "data", "build", "--kind", "sft", "--source", scratch / "raw"]
    seconds, peak, _ = peak_of([*map(str, command), "--out", str(data), "--processes", str(processes)])
    split = json.loads((data / "manifest.json").read_text())["splits"]["train"]
    built = {"build_s": seconds, "build_peak_bytes": peak.bytes, "stored_bytes": sum(split["files"].values())}
    built |= {name: split[name] for name in ("examples", "tokens")}
    print(f"built in {seconds:.0f} s", flush=True)
    read, read_peak = _stage("plan_and_read", str(data), batches)
    resumed, resume_peak = _stage("resume", str(data))
    grain, grain_peak = _stage("grain_pack", str(data), batches)
    return {
        "columns_bytes": size,
        "processes": processes,
        **built,
        **read,
        **resumed,
        "read_peak_bytes": read_peak.bytes,
        "resume_peak_bytes": resume_peak.bytes,
        "grain": grain and {**grain, "peak_bytes": grain_peak.bytes},
    }


def table(figures: dict[str, Any]) -> Table:
    """The figures, with the goal of each beside it."""
    result = Table("figure", "measured", "goal", title=f"{figures['examples']:,} rows, {figures['tokens']:,} tokens")
    minutes, gb, million = figures["build_s"] / 60, 1e9, 1e6
    result.add_row("build, minutes", f"{minutes:.1f}", "")
    result.add_row("build, tokens/s", f"{figures['tokens'] / figures['build_s'] / million:.2f} M", "")
    result.add_row("build, peak memory of all processes", f"{figures['build_peak_bytes'] / gb:.2f} GB", "< 2 GB")
    result.add_row("stored ids and lengths", f"{figures['stored_bytes'] / gb:.2f} GB", "")
    result.add_row(f"open, plan {EPOCHS} epochs", f"{figures['open_s']:.2f} s, {figures['plan_s']:.2f} s", "")
    result.add_row("fill of rows of 8192", f"{figures['fill']:.4f}", ">= 0.98")
    result.add_row("correlation of row number and mean length", f"{figures['correlation']:+.4f}", "0")
    result.add_row("read and pack, tokens/s", f"{figures['read_tokens_per_s'] / million:.1f} M", ">= 1 M")
    result.add_row("read, pack and place, tokens/s", f"{figures['load_tokens_per_s'] / million:.1f} M", ">= 1 M")
    result.add_row("reading process, peak memory", f"{figures['resume_peak_bytes'] / gb:.2f} GB", "")
    result.add_row("state of the reader", f"{figures['state_bytes']} bytes", "< 100")
    result.add_row("resume: ready", f"{figures['resume_s']:.2f} s", "< 3 s")
    result.add_row("resume: first batch on devices", f"{figures['first_batch_s']:.2f} s", "< 5 s")
    if grain := figures["grain"]:
        result.add_section()
        result.add_row("grain: read and pack, tokens/s", f"{grain['read_tokens_per_s'] / million:.2f} M", "")
        result.add_row("grain: fill", f"{grain['fill']:.4f}", "")
        result.add_row("grain: first row", f"{grain['first_row_s']:.2f} s", "")
        result.add_row("grain: state", f"{grain['state_bytes']} bytes", "")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--batches", type=int, default=60, help="batches that are read")
    parser.add_argument("--keep", type=Path, help="directory for everything; without it a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        figures = run(arguments.rows, arguments.keep or Path(temporary), arguments.batches)
    Console(width=110).print(table(figures))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
