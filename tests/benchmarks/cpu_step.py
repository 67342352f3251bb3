"""Time of a train step on CPUs: ours beside transformers with torch and, if asked, MaxText; the same shapes.

    python -m tests.benchmarks.cpu_step                     # ours and torch, about two minutes on two quiet cores
    python -m tests.benchmarks.cpu_step --maxtext VENV      # and MaxText, at the default settings of its step

The model is a Mistral of 57.9M parameters: width 512, 8 layers, 8 heads, 4 key heads, head_dim 64, feed-forward 1536,
vocabulary 32,000. A step is 4 rows of 512 random tokens in float32: forward, backward, clipping and AdamW. Fresh
processes take turns; printed is the median of all steps but the first. Ours and torch begin with the same weights,
which we export, and must begin with the same loss. VENV has Python 3.12 and `maxtext[tpu]==0.2.5`.
"""

import argparse
import dataclasses
import itertools
import json
import os
import re
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
"""Of the first loss, beside torch's."""

MAXTEXT = (
    "run_name=cpu hardware=cpu skip_jax_distributed_system=True dataset_type=synthetic enable_checkpointing=False "
    "decoder_block=mistral base_emb_dim=512 base_num_query_heads=8 base_num_kv_heads=4 head_dim=64 base_mlp_dim=1536 "
    "base_num_decoder_layers=8 mlp_activations=[silu,linear] vocab_size=32000 logits_via_embedding=False dtype=float32 "
    "weight_dtype=float32 matmul_precision=highest attention=dot_product enable_tensorboard=False "
    f"per_device_batch_size={ROWS} max_target_length={LENGTH} steps={STEPS + 1}"
)
FIND_MAXTEXT = "import maxtext, os; print(os.path.join(os.path.dirname(maxtext.__file__), 'configs', 'base.yml'))"


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
    return {"seconds": seconds[1:], "losses": losses}


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
    return {"seconds": seconds[1:], "losses": losses}


def maxtext(venv: Path, scratch: Path) -> dict[str, Any]:
    """Seconds between the ends of MaxText's steps."""
    python = str(venv / "bin" / "python")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(scratch / "maxtext")}
    found = subprocess.run([python, "-c", FIND_MAXTEXT], env=environment, capture_output=True, text=True, check=True)
    base = found.stdout.splitlines()[-1]
    options = [*MAXTEXT.split(), f"base_output_directory={scratch}", f"jax_cache_dir={scratch / 'maxtext'}"]
    command = [python, "-m", "maxtext.trainers.pre_train.train", base, *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=scratch)
    # It reports how long it took to start a step; a line appears when the step's loss is there.
    clock = re.findall(r" (\d\d):(\d\d):([\d.]+) .*completed step: \d+,", done.stdout + done.stderr)
    ends = [3600 * int(hours) + 60 * int(minutes) + float(rest) for hours, minutes, rest in clock]
    seconds = [(after - before) % 86400 for before, after in itertools.pairwise(ends)]
    if len(seconds) != STEPS:
        raise SystemExit(f"MaxText: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return {"seconds": seconds, "losses": []}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--maxtext", type=Path, metavar="VENV")
    parser.add_argument("--measure", choices=["ours", "torch"], help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps({"ours": ours, "torch": torch_step}[given.measure](given.weights)))
        return
    results: dict[str, list[dict[str, Any]]] = {"ours": [], "torch": []}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(scratch / "ours")}
        for _ in range(given.repeat):
            for name in ("ours", "torch"):
                command = [sys.executable, "-m", "tests.benchmarks.cpu_step", "--measure", name]
                command += ["--weights", str(scratch / "weights")]
                done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(f"{name}: exit code {done.returncode}\n{done.stderr[-2000:]}")
                results[name].append(json.loads(done.stdout.splitlines()[-1]))
            if given.maxtext is not None:
                results.setdefault("MaxText", []).append(maxtext(given.maxtext.absolute(), scratch))
    first = {name: results[name][0]["losses"][0] for name in ("ours", "torch")}
    print(f"first loss: ours {first['ours']:.6f}, torch {first['torch']:.6f}")
    if abs(first["ours"] - first["torch"]) > TOLERANCE:
        raise SystemExit("the first losses differ")
    medians = {
        name: statistics.median(second for run in runs for second in run["seconds"]) for name, runs in results.items()
    }
    for name, seconds in medians.items():
        print(f"{name:8} {seconds:.2f} s a step, {seconds / medians['ours']:.2f} of ours")


if __name__ == "__main__":
    main()
