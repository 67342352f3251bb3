"""Memory and time of a build without Beam and on Beam's direct runner, for two sizes of a corpus, and whether the
files are equal.

    python -m tests.benchmarks.beam_build                       # 100,000 and 400,000 rows
    python -m tests.benchmarks.beam_build --rows 50000 1000000 --processes 4 -- --dedupe

Needs the extra `beam`. Rows are short, so that their number counts and not their text: 25 to 75 words. Memory is the
proportional set size of the command's own process, and of it with all its workers, sampled every 0.5 s.
"""

import argparse
import filecmp
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.benchmarks.full_size import peak_of

_FILES = 8
_WORDS = 4_000


def write_rows(directory: Path, rows: int) -> int:
    """Writes JSONL files of so many rows; returns their bytes."""
    directory.mkdir(parents=True)
    rng = np.random.default_rng(rows)
    words = np.array(["".join(rng.choice(list("abcdefghijklmnopqrst"), rng.integers(2, 9))) for _ in range(_WORDS)])
    for number in range(_FILES):
        with (directory / f"train-{number:05d}-of-{_FILES:05d}.jsonl").open("w") as file:
            for row in range(rows * number // _FILES, rows * (number + 1) // _FILES):
                prompt, output = (" ".join(words[rng.integers(0, _WORDS, rng.integers(5, 16))]) for _ in range(2))
                file.write(json.dumps({"prompt": f"{row} {prompt}", "output": f"{output} {prompt}"}) + "\n")
    return sum(path.stat().st_size for path in directory.iterdir())


def differences(one: Path, other: Path) -> list[str]:
    """Files that only one directory has, or that differ; the manifest in any case, if it is missing."""
    names = {path.relative_to(root).as_posix() for root in (one, other) for path in root.rglob("*") if path.is_file()}
    names.add("manifest.json")
    return [
        name
        for name in sorted(names)
        if not (one / name).is_file()
        or not (other / name).is_file()
        or not filecmp.cmp(one / name, other / name, False)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 400_000])
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("options", nargs="*", help="of both builds, after --")
    arguments = parser.parse_args()
    print(f"{'rows':>10} {'MB':>6} {'build':>6} {'seconds':>8} {'CPU s':>7} {'own MB':>7} {'all MB':>7}")
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as temporary:
            source, seconds = Path(temporary, "raw"), {}
            size = write_rows(source, rows)
            for name, more in (("plain", []), ("beam", ["--runner", "direct"])):
                command = [sys.executable, "-m", "janus_jax.cli", "data", "build", "--kind", "sft"]
                command += ["--source", str(source), "--out", f"{temporary}/{name}", *more, *arguments.options]
                before = os.times()
                seconds[name], peak, _ = peak_of([*command, "--processes", str(arguments.processes)])
                after = os.times()
                cpu = after.children_user + after.children_system - before.children_user - before.children_system
                print(
                    f"{rows:>10,} {size / 1e6:>6.0f} {name:>6} {seconds[name]:>8.1f} {cpu:>7.1f} "
                    f"{peak.own / 1e6:>7.0f} {peak.bytes / 1e6:>7.0f}",
                    flush=True,
                )
            different = differences(Path(temporary, "plain"), Path(temporary, "beam"))
            ratio = seconds["beam"] / seconds["plain"]
            print(
                f"{rows:>10,} time x {ratio:.2f}; {'files differ: ' + str(different) if different else 'equal files'}"
            )
            if different:
                raise SystemExit(1)


if __name__ == "__main__":
    main()
