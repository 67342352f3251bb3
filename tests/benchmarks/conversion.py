"""Conversion of a full-size 7B model with random bfloat16 weights, there and back: memory, time, equality.

    python -m tests.benchmarks.conversion --scratch DIR             # 29 GB of disk, ten minutes on two cores
    python -m tests.benchmarks.conversion --scratch DIR --layers 4  # the same with fewer layers
    python -m tests.benchmarks.conversion --scratch DIR --before ROOT  # beside another checkout of this repository
    python -m tests.benchmarks.conversion --scratch DIR --verify none  # without the verified conversions
    python -m tests.benchmarks.conversion --scratch DIR --dtype float32  # to-hf changes the dtype; 44 GB of disk

Before each copy and each conversion the source leaves the page cache, so that both read it from the disk. Each
conversion runs in a process of its own, sampled every 50 ms: anonymous memory (what it allocated) and the largest
resident set (VmHWM, in which pages of mapped files count too). The yardstick is `cp -r` of the same bytes with `sync`,
beside each conversion.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from rich.console import Console
from rich.table import Table

from janus_jax.checkpoint.hf.keys import key_table
from janus_jax.checkpoint.hf.write import Companions, sync_tree, write_companions, write_tensors
from janus_jax.model.config import PRESETS, ModelConfig
from janus_jax.text.tokenizer import load_tokenizer
from tests.support.repository import ROOT

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SHARD_BYTES = 5 * 10**9


def random_blocks(config: ModelConfig, seed: int = 0) -> Iterator[np.ndarray]:
    """Finite weights of all magnitudes below 1: random signs and mantissas, exponents of nine sizes."""
    rng = np.random.default_rng(seed)
    for entry in key_table(config):
        bits = rng.integers(0, 1 << 16, entry.shape, np.uint16)
        exponent = (118 + (bits >> 7) % 9) << 7
        yield ((bits & 0x807F) | exponent).view(BFLOAT16)


def write_model(directory: Path, config: ModelConfig) -> int:
    """Writes a Hugging Face directory; returns its bytes."""
    directory.mkdir(parents=True)
    write_tensors(directory, config, BFLOAT16, SHARD_BYTES, random_blocks(config))
    write_companions(directory, config, BFLOAT16, Companions(load_tokenizer()))
    sync_tree(directory)
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


@dataclasses.dataclass
class Usage:
    """Of one process."""

    seconds: float = 0.0
    anonymous: int = 0  # bytes, largest sample
    resident: int = 0  # bytes, VmHWM


def evict(directory: Path) -> None:
    """The next reader gets the files below a directory from the disk."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def watched(root: Path, *arguments: str) -> Usage:
    """Runs `janus` of a checkout and samples its memory."""
    usage, began = Usage(), time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "janus_jax.cli", *arguments],
        stdout=subprocess.DEVNULL,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    status = Path(f"/proc/{process.pid}/status")

    def sample() -> None:
        while process.poll() is None:
            try:
                values = dict(line.split(":", 1) for line in status.read_text().splitlines())
                usage.anonymous = max(usage.anonymous, _bytes(values["RssAnon"]))
                usage.resident = max(usage.resident, _bytes(values["VmHWM"]))
            except (OSError, KeyError):
                pass
            time.sleep(0.05)

    thread = threading.Thread(target=sample)
    thread.start()
    code = process.wait()
    usage.seconds = time.perf_counter() - began
    thread.join()
    if code:
        raise SystemExit(f"janus {' '.join(arguments)}: exit code {code}")
    return usage


def _bytes(text: str) -> int:
    return int(text.split()[0]) * 1024


def copy_seconds(source: Path, target: Path) -> float:
    """`cp -r` and `sync` of the same bytes."""
    evict(source)
    began = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    subprocess.run(["sync"], check=True)
    seconds = time.perf_counter() - began
    shutil.rmtree(target)
    return seconds


def digests(directory: Path) -> dict[str, str]:
    """sha256 of the safetensors files."""
    sums = {}
    for path in directory.glob("*.safetensors"):
        with path.open("rb") as file:
            sums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def run(
    scratch: Path, config: ModelConfig, before: Path | None, verifications: list[str], dtype: str
) -> dict[str, Any]:
    """Makes a model, converts it there and back as often as `verifications` names; returns the figures."""
    hf, orbax, back = (scratch / name for name in ("hf", "orbax", "back"))
    size = write_model(hf, config)
    print(f"{size / 1e9:.1f} GB written", flush=True)
    figures: dict[str, Any] = {"bytes": size}
    roots = {"before, ": before.resolve()} if before is not None else {}
    for way, source, target in (("from_hf", hf, orbax), ("to_hf", orbax, back)):
        if way == "to_hf":  # room for the way back
            written = digests(hf)
            shutil.rmtree(hf)
        for verify in verifications:
            for prefix, root in (roots | {"": ROOT}).items():
                shutil.rmtree(target, ignore_errors=True)
                copied = copy_seconds(source, scratch / "copy")
                evict(source)
                command = ("convert", way.replace("_", "-"), str(source), str(target), "--verify", verify)
                command += ("--dtype", dtype) if way == "to_hf" else ()
                row = dataclasses.asdict(watched(root, *command)) | {"copy_s": copied}
                report = json.loads((target / "conversion_report.json").read_text())
                row |= {"parts": report["seconds"], "logits": report["largest_logit_difference"]}
                figures[f"{prefix}{way}, {verify}"] = row
                print(f"{prefix}{way}, {verify}: {row}", flush=True)
    figures["equal_files"] = digests(back) == written if dtype == "bfloat16" else f"not compared, {dtype} at the end"
    return figures


def table(figures: dict[str, Any]) -> Table:
    """The figures; goals: anonymous memory under 3 GB, at most 1.5 times the copy without verification."""
    rows = Table("conversion", "seconds", "cp + sync", "times", "anonymous GB", "VmHWM GB", "parts")
    for name, row in figures.items():
        if isinstance(row, dict):
            rows.add_row(
                name,
                f"{row['seconds']:.1f}",
                f"{row['copy_s']:.1f}",
                f"{row['seconds'] / row['copy_s']:.2f}",
                f"{row['anonymous'] / 1e9:.2f}",
                f"{row['resident'] / 1e9:.2f}",
                ", ".join(f"{part} {seconds:.1f} s" for part, seconds in row["parts"].items()),
            )
    rows.caption = f"{figures['bytes'] / 1e9:.1f} GB, safetensors byte-equal after both: {figures['equal_files']}"
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True, help="directory for everything, emptied at the end")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--before", type=Path, help="root of another checkout, run before ours in every row")
    parser.add_argument("--verify", nargs="+", default=["none", "logits"], help="values of `--verify` to run")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="that to-hf writes")
    arguments = parser.parse_args()
    scratch = arguments.scratch.resolve() / "conversion"  # `janus` runs in its checkout
    try:
        config = dataclasses.replace(PRESETS["mistral-7b"], num_layers=arguments.layers)
        figures = run(scratch, config, arguments.before, arguments.verify, arguments.dtype)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    Console(width=130).print(table(figures))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
