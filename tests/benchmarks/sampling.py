"""Time of choosing tokens: top-p by a sort beside ours, and whole choices, for 64 rows of 32,000 tokens.

    python -m tests.benchmarks.sampling

All take turns; the least time of five counts. Takes half a minute on two cores. "draw" applies no filter: its time is
that of the random numbers. Sets are compared with those of transformers, whose sum torch keeps in float64.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers.generation.logits_process import TopPLogitsWarper

from janus_jax.generation.sampling import SamplingOptions, Settings, filter_logits, row_keys, sample, words

ROWS, VOCAB, ROUNDS = 64, 32000, 5
OPTIONS = {
    "greedy": SamplingOptions(temperature=0),
    "draw": SamplingOptions(),
    "top-k": SamplingOptions(top_k=50),
    "top-p": SamplingOptions(top_p=0.9),
    "all options": SamplingOptions(0.7, 50, 0.9, 0.05, 1.1),
}


def by_sort(logits: jax.Array, settings: Settings) -> jax.Array:
    """Top-p in the steps of transformers."""
    order = jnp.argsort(logits, -1)
    masses = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(logits, order, -1), -1), -1)
    out = (masses <= settings.tail[:, None]).at[:, -1].set(False)
    out = jnp.zeros_like(out).at[jnp.arange(len(out))[:, None], order].set(out)
    return jnp.where(out, -jnp.inf, logits)


def main() -> None:
    logits = 3 * jax.random.normal(jax.random.key(0), (ROWS, VOCAB))
    seen = jnp.zeros(logits.shape, bool).at[:, :500].set(True)
    numbers = np.arange(ROWS)
    keys = row_keys(np.tile(words(0), (ROWS, 1)), numbers, numbers, numbers)
    top_p = Settings.of([OPTIONS["top-p"]] * ROWS)
    filters = (jax.jit(by_sort), jax.jit(filter_logits))
    runs: dict[str, Callable[[], jax.Array]] = {
        "top-p by a sort, the filter alone": lambda: filters[0](logits, top_p),
        "top-p as ours, the filter alone": lambda: filters[1](logits, top_p, seen),
    }
    choose = jax.jit(sample)
    for name, options in OPTIONS.items():
        settings = Settings.of([options] * ROWS)
        runs[f"a whole choice: {name}"] = lambda settings=settings: choose(logits, settings, keys, seen)
    warper, scores = TopPLogitsWarper(OPTIONS["top-p"].top_p), torch.tensor(np.asarray(logits))
    expected = torch.isfinite(warper(torch.zeros(ROWS, 0, dtype=torch.long), scores)).numpy()
    wrong = [(np.isfinite(np.asarray(run())) != expected).any(-1).sum() for run in list(runs.values())[:2]]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(ROUNDS + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run().block_until_ready()
            if turn:  # the first one compiles
                times[name].append(time.perf_counter() - start)
    for name, seconds in times.items():
        print(f"{name:36}{min(seconds) * 1e3:8.1f} ms")
    print(f"rows with other sets than in transformers: by a sort {wrong[0]}, as ours {wrong[1]}, of {ROWS}")


if __name__ == "__main__":
    main()
