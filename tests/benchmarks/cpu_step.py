"""Time of a train step on CPUs: ours beside transformers with torch and, if asked, MaxText and Tunix; the same shapes.

    python -m tests.benchmarks.cpu_step                                     # ours and torch, two minutes on two cores
    python -m tests.benchmarks.cpu_step --maxtext VENV --tunix VENV         # and both peers in JAX, about six minutes
    python -m tests.benchmarks.cpu_step --maxtext VENV --all-settings --repeat 1     # MaxText with each setting

The model is a Mistral of 57.9M parameters: width 512, 8 layers, 8 heads, 4 key heads, head_dim 64, feed-forward 1536,
vocabulary 32,000. A step is 4 rows of 512 random tokens in float32: forward, backward, clipping and AdamW. Fresh
processes take turns; printed is the median of all steps but the first of each. A step ends when all its outputs are
computed. All sides begin with the same weights, which we export, and must have as many parameters and the same loss.

Each VENV has Python 3.12, one with `maxtext[tpu]==0.2.5`, the other with `google-tunix==0.1.7`; `cpu_peers` runs there.
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
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.repository import ROOT

ROWS, LENGTH, STEPS = 4, 512, 4
SHAPE = {"preset": "mistral-7b", "hidden_size": 512, "intermediate_size": 1536, "num_layers": 8}
SHAPE |= {"num_heads": 8, "num_kv_heads": 4, "head_dim": 64}
TOLERANCE = 1e-5
"""Of the first loss, beside ours."""

SETTINGS = {
    "maxtext": [
        f"remat_policy={remat} scan_layers={scan}"
        for remat, scan in (("minimal_with_context", False), ("none", False), ("none", True))
    ],
    "tunix": [f"remat_config={remat}" for remat in ("BLOCK", "NONE")],
}
"""Of peers; the first is taken unless all are asked for. docs/speed.md has their times."""

KEEP_FREED_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
"""What ours asks of glibc (`keep_freed_memory`); peers in JAX get it too."""


def _tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 32000, (ROWS, LENGTH + 1)).astype(np.int32)


def ours(weights: Path) -> dict[str, Any]:
    """Seconds of each step and its loss, in this process; writes the weights it begins with, unless they are there."""
    import jax

    from janus_jax.batch import empty_batch
    from janus_jax.checkpoint.hf.write import save_hf
    from janus_jax.config.run import RunConfig
    from janus_jax.model.mistral import init_params
    from janus_jax.objectives import build_objective
    from janus_jax.parallel import environment
    from janus_jax.parallel import mesh as meshes
    from janus_jax.training.program import build_program, build_schedule
    from janus_jax.training.setup import model_to_train

    environment.keep_freed_memory()  # as `prepare` does
    config = RunConfig.model_validate(
        {
            "run": {"dir": "none"},
            "data": {"dir": "none"},
            "model": SHAPE,
            "batch": {"rows": ROWS, "row_length": LENGTH, "max_sequence_length": LENGTH},
            "objective": {"name": "sft"},
            "schedule": {"name": "constant", "learning_rate": 1e-4, "steps": 100},
            "precision": {"compute": "float32"},
            "remat": "none",
        }
    )
    objective = build_objective(config)
    model = model_to_train(config, None, objective)
    mesh, rules = meshes.build_mesh(config.mesh.shape), meshes.merge_rules(config.sharding)
    schedule = build_schedule(config, 100)
    program = build_program(config, model, objective, mesh, rules, schedule, shared_slots=0, max_segments=1)
    init = jax.jit(lambda key: init_params(model, key), out_shardings=program.state_shardings.params)
    params = init(jax.random.key(0))
    if not weights.exists():
        save_hf(params, model, weights)
    state = program.init(params)
    ids, ones = _tokens(), np.ones((ROWS, LENGTH), np.int32)
    batch = dataclasses.replace(
        empty_batch(ROWS, LENGTH, 1),
        tokens=ids[:, :-1],
        targets=ids[:, 1:],
        weights=ones.astype(np.float32),
        segment=ones,
        branch=ones,
        position=np.cumsum(ones, 1, np.int32) - 1,
        example_id=np.arange(ROWS, dtype=np.int32)[:, None],
        valid=np.ones((ROWS, 1), bool),
    )
    batch = jax.device_put(jax.tree.map(lambda x: x[None], batch), program.batch_shardings)
    seconds, losses = [], []
    for _ in range(STEPS + 1):
        begun = time.perf_counter()
        state, scalars, _ = jax.block_until_ready(program.train(state, batch))
        seconds.append(time.perf_counter() - begun)
        losses.append(float(scalars["loss"]))
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return {"seconds": seconds[1:], "losses": losses, "parameters": count, "version": f"jax {jax.__version__}"}


def torch_step(weights: Path) -> dict[str, Any]:
    """The same with transformers and torch: attention by `sdpa`, AdamW fused."""
    import torch
    import transformers

    model = transformers.MistralForCausalLM.from_pretrained(weights, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    ids = torch.from_numpy(_tokens()).long()
    seconds, losses = [], []
    for _ in range(STEPS + 1):
        begun = time.perf_counter()
        optimizer.zero_grad()
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seconds.append(time.perf_counter() - begun)
        losses.append(loss.item())
    count = sum(parameter.numel() for parameter in model.parameters())
    return {"seconds": seconds[1:], "losses": losses, "parameters": count, "version": f"torch {torch.__version__}"}


def measure(side: str, venvs: dict[str, Path], scratch: Path) -> dict[str, Any]:
    """One process of `ours`, `torch`, or a peer with its settings, as in `maxtext scan_layers=False`."""
    name, *settings = side.split()
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(scratch / name)}
    weights, tokens = str(scratch / "weights"), scratch / "tokens.npy"
    command = [sys.executable, "-m", "tests.benchmarks.cpu_step", "--measure", name, "--weights", weights]
    if name in venvs:
        if not tokens.exists():
            np.save(tokens, _tokens())
        script = str(ROOT / "tests" / "benchmarks" / "cpu_peers.py")
        command = [str(venvs[name].absolute() / "bin" / "python"), script, name, weights, str(tokens), *settings]
        environment = {key: value for key, value in environment.items() if key != "PYTHONPATH"} | KEEP_FREED_MEMORY
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=2, help="rounds; in each, every side is a fresh process")
    parser.add_argument("--maxtext", type=Path, metavar="VENV")
    parser.add_argument("--tunix", type=Path, metavar="VENV")
    parser.add_argument("--all-settings", action="store_true", help="peers with each of their settings")
    parser.add_argument("--measure", choices=["ours", "torch"], help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps({"ours": ours, "torch": torch_step}[given.measure](given.weights)))
        return
    venvs = {name: venv for name in SETTINGS if (venv := getattr(given, name)) is not None}
    sides = ["ours", "torch"]
    for name in venvs:
        settings = SETTINGS[name] if given.all_settings else SETTINGS[name][:1]
        sides += [f"{name} {setting}" for setting in settings]
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(given.repeat):
            for side in sides:
                runs[side].append(measure(side, venvs, Path(folder)))
                print(side, [round(second, 2) for second in runs[side][-1]["seconds"]], file=sys.stderr, flush=True)
    medians = {
        side: statistics.median(second for run in results for second in run["seconds"])
        for side, results in runs.items()
    }
    for side, seconds in medians.items():
        first, every = runs[side][0], [round(second, 2) for run in runs[side] for second in run["seconds"]]
        print(
            f"{seconds:.2f} s a step, {seconds / medians['ours']:.2f} of ours: {side} ({first['version']}), "
            f"{first['parameters']:,} parameters, first loss {first['losses'][0]:.6f}; s {every}"
        )
        ours_first = runs["ours"][0]
        if first["parameters"] != ours_first["parameters"]:
            raise SystemExit("the numbers of parameters differ")
        if abs(first["losses"][0] - ours_first["losses"][0]) > TOLERANCE:
            raise SystemExit("the first losses differ")


if __name__ == "__main__":
    main()
