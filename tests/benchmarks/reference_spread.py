"""How far precomputed reference log-probs are from online ones when rows are packed otherwise, by compute dtype.

    python -m tests.benchmarks.reference_spread

Scores the demo's training pairs under random weights of the tiny preset, once in rows of the first epoch and once in
those of the second, and prints the largest and the median difference, absolute and relative to the largest log-prob.
"""

import json
import tempfile
from pathlib import Path

import numpy as np

_BATCHES = 16
"""Of each epoch; pairs that are in both count."""


def main() -> None:
    from janus_jax.parallel import processes

    processes.start(processes.RuntimeOptions(devices=8))
    import jax

    from janus_jax.config.run import load_config
    from janus_jax.data.build.pipeline import build
    from janus_jax.data.epoch import Position
    from janus_jax.data.sample import write_sample
    from janus_jax.training.setup import prepare

    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        build(write_sample("dpo", Path(scratch) / "rows"), data, kind="dpo")
        for dtype in ("float32", "bfloat16"):
            changes = {"data.dir": str(data), "run.dir": str(Path(scratch) / "run"), "precision.compute": dtype}
            overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
            overrides += ["init.from=null", "model={preset: tiny}", "mesh={data: 2, fsdp: 2, tensor: 2}"]
            overrides += ["eval.every_steps=null", "schedule.epochs=2"]
            setup = prepare(load_config("janus_jax/cli/demo/dpo.yaml", overrides))
            # Layers of six times the usual weights: those of a fresh model hardly change what they are given.
            params = jax.tree.map(lambda leaf: 6 * leaf if leaf.ndim > 2 else leaf, setup.initial_params(dtype))
            score = jax.jit(setup.program.functions.reference)
            logps = np.full((2, len(setup.loader.dataset), 2), np.nan, np.float32)
            for epoch in range(2):
                for loaded in setup.loader.batches(Position(epoch, 0), _BATCHES):
                    batch = jax.device_get(loaded.batch)
                    result = jax.device_get(score(params, loaded.batch))
                    logps[epoch, batch.example_id[batch.valid]] = result[batch.valid]
            both = ~np.isnan(logps).any((0, 2))
            difference = np.abs(logps[0] - logps[1])[both]
            largest = np.abs(logps[0][both]).max()
            print(
                f"{dtype}: {both.sum()} pairs in two packings: differences up to {difference.max():.1e} nats, median "
                f"{np.median(difference):.1e}; {difference.max() / largest:.1e} of the largest log-prob, {largest:.0f}"
            )


if __name__ == "__main__":
    main()
