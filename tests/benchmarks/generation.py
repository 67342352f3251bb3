"""Speed of generation on this CPU beside transformers' `generate`, of 64 samples of one prompt, and over long texts.

    JANUS_SMOLLM2=DIR python -m tests.benchmarks.generation            # longer texts, more turns
    JANUS_SMOLLM2=DIR python -m tests.benchmarks.generation --quick    # under four minutes on two quiet cores

Greedy, float32, prompts of 64 random ids, no text ends early. The same weights are loaded by two processes, one with
JAX and one with torch, which take turns: while one works, the other waits. Both get the same cores (`--threads`), and
torch as many threads. The first turn compiles and does not count. On a busy machine compare CPU time: seconds of all
threads. Without JANUS_SMOLLM2, a Hugging Face directory of SmolLM2-135M, only a random Mistral of 58M is measured.

The parts `samples` and `long` compare this package with itself and take a random Mistral of 21M.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPT, WINDOW = 64, 256
RANDOM = {
    "vocab_size": 32000,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "sliding_window": None,
    "max_position_embeddings": 4096,
}
SMALL = RANDOM | {"vocab_size": 8192, "num_hidden_layers": 4}
"""For what is compared with ourselves: ratios, and speed over the length of a text."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What a process does in one turn."""

    model: str
    rows: int
    new: int
    prompt: int = PROMPT
    samples: int = 1
    """Of each prompt; the rows are samples of rows / samples prompts."""
    equal: bool = False
    """Whether all prompts are the same."""
    temperature: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.generation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="fewer turns and tokens")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="cores for each process")
    parser.add_argument("--only", choices=("beside", "samples", "long"), help="one of the three parts")
    parser.add_argument(
        "--child", choices=("jax", "torch"), help=argparse.SUPPRESS
    )  # what this program calls itself with
    arguments = parser.parse_args()
    if arguments.child is not None:
        child(arguments.child, arguments.threads)
        return
    with tempfile.TemporaryDirectory() as directory:
        models = {"Mistral-58M, random": random_model(Path(directory, "58M"), RANDOM)}
        small = {"Mistral-21M, random": random_model(Path(directory, "21M"), SMALL)}
        if "JANUS_SMOLLM2" in os.environ:
            models = {"SmolLM2-135M": os.environ["JANUS_SMOLLM2"]} | models
        print(
            f"{os.cpu_count()} cores, {arguments.threads} for each process, load {os.getloadavg()[0]:.1f}", flush=True
        )
        turns = 2 if arguments.quick else 3
        with Child("jax", arguments.threads) as jax, Child("torch", arguments.threads) as torch:
            for part, run in {"beside": beside, "samples": samples, "long": long}.items():
                if arguments.only in (None, part):
                    run(models if part == "beside" else small, jax, torch, turns, quick=arguments.quick)
        print(f"load {os.getloadavg()[0]:.1f}")


def random_model(directory: Path, config: dict[str, Any]) -> str:
    import torch
    import transformers

    torch.manual_seed(0)
    transformers.MistralForCausalLM(transformers.MistralConfig(**config)).save_pretrained(directory)
    return os.fspath(directory)


class Child:
    """A process that works when it is told to."""

    def __init__(self, kind: str, threads: int):
        command = [sys.executable, "-m", "tests.benchmarks.generation", "--child", kind, "--threads", str(threads)]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, env=environment, text=True, **pipes)

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def __call__(self, work: Work) -> dict[str, Any]:
        """Seconds and CPU seconds of the work, tokens that it made, and when they came."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(dataclasses.asdict(work)) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"a process ended during {work}")


def in_turns(runs: dict[str, Callable[[], dict[str, Any]]], turns: int) -> dict[str, dict[str, float]]:
    """Medians of what each run gives, tokens per second of the clock and of CPU time."""
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, run in runs.items():
            result = run()
            if turn:
                measured[name].append(result)
    return {
        name: {key: statistics.median(one["tokens"] / one[key] for one in all_) for key in ("seconds", "cpu_seconds")}
        for name, all_ in measured.items()
    }


def beside(models: dict[str, str], jax: Child, torch: Child, turns: int, *, quick: bool) -> None:
    print("\nmodel, rows: tokens/s here | transformers | ratio by the clock | by CPU time", flush=True)
    for name, model in models.items():
        for rows in (8, 32):
            work = Work(model, rows, 16 if quick else 48)
            rates = in_turns({"jax": lambda work=work: jax(work), "torch": lambda work=work: torch(work)}, turns)
            ours, theirs = rates["jax"], rates["torch"]
            ratios = [ours[key] / theirs[key] for key in ("seconds", "cpu_seconds")]
            print(
                f"{name}, {rows}: {ours['seconds']:.1f} | {theirs['seconds']:.1f} | {ratios[0]:.2f} | {ratios[1]:.2f}",
                flush=True,
            )


def samples(models: dict[str, str], jax: Child, torch: Child, turns: int, *, quick: bool) -> None:
    """64 samples that share a prefill, beside 64 requests with the same prompt."""
    [(name, model)] = models.items()
    print("\n64 samples of one prompt beside 64 requests: tokens/s | ratio by the clock | by CPU time", flush=True)
    for prompt, new in ((500, 16),) if quick else ((500, 16), (500, 32)):
        shared = Work(model, 64, new, prompt=prompt, samples=64, temperature=1.0)
        apart = dataclasses.replace(shared, samples=1, equal=True)
        rates = in_turns({"shared": lambda w=shared: jax(w), "apart": lambda w=apart: jax(w)}, 1)
        ratios = [rates["shared"][key] / rates["apart"][key] for key in ("seconds", "cpu_seconds")]
        print(
            f"{name}, prompt {prompt}, {new} new: {rates['shared']['seconds']:.1f}, {rates['apart']['seconds']:.1f} | "
            f"{ratios[0]:.2f} | {ratios[1]:.2f}",
            flush=True,
        )


def long(models: dict[str, str], jax: Child, torch: Child, turns: int, *, quick: bool) -> None:
    """Tokens per second over the length of texts."""
    [(name, model)] = models.items()
    work = Work(model, 8, 1024 if quick else 2048)
    jax(work)  # compiles for each length
    times = jax(work)["times"]
    rates = []
    for start in range(0, work.new, WINDOW):
        inside = [one for one in times if start <= one[0] <= start + WINDOW]
        (made, begun, cpu_begun), (made_last, ended, cpu_ended) = inside[0], inside[-1]
        new = work.rows * (made_last - made)
        rates.append((new / (ended - begun), new / (cpu_ended - cpu_begun)))
    for what, number in (("of the clock", 0), ("of CPU time", 1)):
        shown = ", ".join(f"{one[number]:.0f}" for one in rates)
        print(f"\n{name}, 8 rows: tokens/s {what} for each {WINDOW} tokens of a text: {shown}", flush=True)


def child(kind: str, threads: int) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    run = jax_runner() if kind == "jax" else torch_runner(threads)
    for line in sys.stdin:
        work = Work(**json.loads(line))
        begun, cpu = time.perf_counter(), time.process_time()
        times = [(made, at - begun, used - cpu) for made, at, used in run(work)]
        done = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu}
        print(json.dumps(done | {"tokens": work.rows * work.new, "times": times}), flush=True)


def prompts(work: Work, vocabulary: int) -> list[list[int]]:
    import numpy as np

    count = work.rows // work.samples
    ids = np.random.default_rng(0).integers(5, vocabulary, (1 if work.equal else count, work.prompt))
    return np.repeat(ids, count, 0).tolist() if work.equal else ids.tolist()


def jax_runner() -> Callable[[Work], list[tuple[int, float, float]]]:
    import jax.numpy as jnp

    from janus_jax.checkpoint.stored_model import open_model
    from janus_jax.generation.engine import Engine
    from janus_jax.generation.requests import Request
    from janus_jax.generation.sampling import SamplingOptions
    from janus_jax.generation.stopping import StoppingOptions

    weights: dict[str, Any] = {}

    def run(work: Work) -> list[tuple[int, float, float]]:
        """When so many tokens of the first text were there, with the CPU time."""
        if work.model not in weights:
            stored = open_model(work.model)
            weights[work.model] = Engine.stored(stored, dtype=jnp.float32)
        held = weights[work.model]
        engine = Engine(held.config, held.params, held.compute, rows=work.rows)
        stopping = StoppingOptions(max_new_tokens=work.new)
        options = {"sampling": SamplingOptions(temperature=work.temperature), "stopping": stopping}
        asked = [Request(ids, work.samples, **options) for ids in prompts(work, held.config.vocab_size)]
        made, times, tokens = 0, [], 0
        for event in engine.generate(asked):
            tokens += len(event.ids)
            if (event.request, event.sample) == (0, 0):
                made += len(event.ids)
                times.append((made, time.perf_counter(), time.process_time()))
        assert tokens == work.rows * work.new
        return times

    return run


def torch_runner(threads: int) -> Callable[[Work], list[tuple[int, float, float]]]:
    import torch
    import transformers

    torch.set_num_threads(threads)
    models: dict[str, Any] = {}

    def run(work: Work) -> list[tuple[int, float, float]]:
        if work.model not in models:
            load = transformers.AutoModelForCausalLM.from_pretrained
            models[work.model] = load(work.model, dtype=torch.float32).eval()
        model = models[work.model]
        ids = torch.tensor(prompts(work, model.config.vocab_size))
        limits = {"min_new_tokens": work.new, "max_new_tokens": work.new, "pad_token_id": 0}
        with torch.no_grad():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **limits)
        assert out.shape == (work.rows, work.prompt + work.new)
        return []

    return run


if __name__ == "__main__":
    main()
