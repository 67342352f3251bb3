"""Replays a recording of TRL's trainers, prints the worst errors: `python -m tests.oracles.replay_dir DIR`.

DIR holds config.json, init.safetensors, batches.safetensors (`step{K:03d}.{micro}.{field}`), final.safetensors and
log.json. SFT batches have `labels` [B, L]; DPO batches have `completion_mask` [2B, L], chosen above rejected.
Exits 1 beyond tolerance: loss and gradient norm 1e-4 relative at every step, final weights 1e-4 of the distance
moved, |ours - theirs| / |theirs - initial| in the 2-norm per tensor. The largest single element is printed beside it:
where a gradient is as small as Adam's eps, g / (|g| + eps) magnifies rounding, in either framework.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from janus_jax.objectives import DPO, SFT, Objective
from janus_jax.training.optimizer import AdamW, Schedule


@dataclasses.dataclass(frozen=True)
class Worst:
    """Largest errors over a replay."""

    loss: float  # max over steps of |ours - theirs| / |theirs|
    grad_norm: float
    weights: float  # max over tensors of |ours - theirs| / |theirs - initial|, 2-norms
    element: float  # the same with largest absolute values
    steps: int

    def within(self, tolerance: float) -> bool:
        """True when loss, gradient norm and weights stay within the tolerance; not for NaN."""
        return all(error <= tolerance for error in (self.loss, self.grad_norm, self.weights))


def read_steps(batches: dict[str, np.ndarray]) -> tuple[str, list[list[list[dict[str, list[int]]]]]]:
    """The recorded kind (sft or dpo) and its steps -> microbatches -> examples."""
    grouped: dict[int, dict[int, dict[str, np.ndarray]]] = {}
    for key, value in batches.items():
        step, micro, field = key.split(".")
        grouped.setdefault(int(step.removeprefix("step")), {}).setdefault(int(micro), {})[field] = value
    first = grouped[min(grouped)][0]
    if "labels" in first:
        kind, read = "sft", _read_sft
    elif "completion_mask" in first:
        kind, read = "dpo", _read_dpo
    else:
        raise SystemExit(f"fields {sorted(first)} are of no known kind: SFT has labels, DPO has completion_mask")
    return kind, [[read(grouped[step][micro]) for micro in sorted(grouped[step])] for step in sorted(grouped)]


def _split(ids: np.ndarray, attention: np.ndarray, completion: np.ndarray) -> tuple[list[int], list[int]]:
    ids, completion = ids[attention.astype(bool)], completion[attention.astype(bool)].astype(bool)
    start = int(np.argmax(completion)) if completion.any() else len(ids)
    assert completion[start:].all(), "a completion must reach to the end of its sequence"
    return ids[:start].tolist(), ids[start:].tolist()


def _read_sft(micro: dict[str, np.ndarray]) -> list[dict[str, list[int]]]:
    rows = zip(micro["input_ids"], micro["attention_mask"], micro["labels"] != -100, strict=True)
    split = [_split(*row) for row in rows]
    return [{"prompt": prompt, "chosen": response} for prompt, response in split]


def _read_dpo(micro: dict[str, np.ndarray]) -> list[dict[str, list[int]]]:
    rows = list(zip(micro["input_ids"], micro["attention_mask"], micro["completion_mask"], strict=True))
    half = len(rows) // 2
    pairs = [(_split(*rows[i]), _split(*rows[half + i])) for i in range(half)]
    assert all(c[0] == r[0] for c, r in pairs), "chosen and rejected must share their prompt"
    return [{"prompt": c[0], "chosen": c[1], "rejected": r[1]} for c, r in pairs]


def replay(directory: Path, schedule: Schedule, optimizer: AdamW, beta: float) -> Worst:
    """Trains from init.safetensors on the recorded batches and compares with log.json and final.safetensors."""
    from janus_jax.checkpoint.hf import load_hf
    from janus_jax.training import replay as entry

    kind, steps = read_steps(load_file(directory / "batches.safetensors"))
    # TRL 1.16: SFT divides by the label tokens of all microbatches, DPO averages microbatch means.
    objective: Objective = SFT() if kind == "sft" else DPO(beta=beta, normaliser="per_microbatch")
    with tempfile.TemporaryDirectory() as scratch:
        first, last = (_as_hf(directory, name, Path(scratch)) for name in ("init", "final"))
        records, params = entry.run(objective, first, steps, optimizer, schedule=schedule)
        initial, final = load_hf(first)[1], load_hf(last)[1]
    log = [entry for entry in json.loads((directory / "log.json").read_text()) if "loss" in entry]
    assert len(log) == len(records), f"{len(log)} logged steps, {len(records)} replayed"
    return Worst(
        loss=max(abs(r.loss - e["loss"]) / abs(e["loss"]) for r, e in zip(records, log, strict=True)),
        grad_norm=max(abs(r.grad_norm - e["grad_norm"]) / e["grad_norm"] for r, e in zip(records, log, strict=True)),
        weights=_worst_weight(initial, params, final, np.linalg.norm),
        element=_worst_weight(initial, params, final, lambda x: np.abs(x).max()),
        steps=len(records),
    )


def _as_hf(directory: Path, name: str, scratch: Path) -> Path:
    target = scratch / name
    target.mkdir()
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    config.setdefault("architectures", ["MistralForCausalLM"])
    (target / "config.json").write_text(json.dumps(config))
    os.symlink((directory / f"{name}.safetensors").resolve(), target / "model.safetensors")
    return target


def _worst_weight(initial: Any, ours: Any, theirs: Any, norm: Callable[[np.ndarray], Any]) -> float:
    import jax

    def error(*leaves: Any) -> float:
        start, a, b = (np.asarray(leaf, np.float64).ravel() for leaf in leaves)
        return float(norm(a - b) / norm(b - start))

    return max(jax.tree.leaves(jax.tree.map(error, initial, ours, theirs)))


def main(arguments: list[str] | None = None) -> int:
    """Command line; the defaults are the recorders' settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--schedule", choices=["cosine", "linear", "constant"], default="cosine")
    parser.add_argument("--warmup-steps", type=int, default=3)
    parser.add_argument("--total-steps", type=int, help="default: the recorded number of steps")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--clip-norm", type=float, default=1.0)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    args = parser.parse_args(arguments)
    log = [entry for entry in json.loads((args.directory / "log.json").read_text()) if "loss" in entry]
    schedule = Schedule(args.learning_rate, args.total_steps or len(log), args.warmup_steps, args.schedule)
    optimizer = AdamW(weight_decay=args.weight_decay, clip_norm=args.clip_norm)
    worst = replay(args.directory, schedule, optimizer, args.beta)
    good = worst.within(args.tolerance)
    print(
        f"{args.directory.name}: {worst.steps} steps, worst loss {worst.loss:.1e}, grad norm {worst.grad_norm:.1e}, "
        f"final weights {worst.weights:.1e} of the distance moved (largest element {worst.element:.1e}): "
        f"{'ok' if good else 'BEYOND TOLERANCE'}"
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
