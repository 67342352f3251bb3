"""Replays a recording of TRL's trainers, prints the worst errors: `python -m tests.oracles.replay_dir DIR`.

DIR holds config.json, init.safetensors, batches.safetensors (`step{K:03d}.{micro}.{field}`), final.safetensors and
log.json; grads.safetensors (of the first step, before clipping) where it was recorded. SFT batches have `labels`
[B, L]; DPO batches have `completion_mask` [2B, L], chosen above rejected.
Exits 1 beyond tolerance: loss and gradient norm 1e-4 relative at every step, final weights 1e-4 of the distance
moved, |ours - theirs| / |theirs - initial| in the 2-norm per tensor, first gradients 1e-4 of the tensor's largest
element. The largest single element of the weights is printed beside them: where a gradient is as small as Adam's eps,
g / (|g| + eps) magnifies rounding, in either framework. Exits 2 where DIR is no recording that can be replayed.
"""

import argparse
import dataclasses
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from janus_jax.errors import DataError, JanusError
from janus_jax.objectives import DPO, SFT, Objective
from janus_jax.training.optimizer import AdamW, Schedule

KEPT_METRICS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected")

Fields = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Worst:
    """Largest errors over a replay; NaN where either side holds one."""

    steps: int
    loss: float  # max over steps of |ours - theirs| / |theirs|
    grad_norm: float
    weights: float  # max over tensors of |ours - theirs| / |theirs - initial|, 2-norms
    element: float  # the same with largest absolute values
    gradients: float | None  # max over tensors of max|ours - theirs| / max|theirs|; None: not recorded
    metrics: float | None  # max over KEPT_METRICS of max|ours - theirs| / max|theirs| over steps; None: see replay

    def within(self, tolerance: float) -> bool:
        """True when loss, gradient norm, weights and gradients stay within the tolerance; not for NaN.

        Metrics are shown and not judged: loss and gradients follow from the same log-probs.
        """
        judged = (self.loss, self.grad_norm, self.weights, 0.0 if self.gradients is None else self.gradients)
        return all(error <= tolerance for error in judged)


def read_steps(batches: Fields) -> tuple[str, list[list[list[dict[str, list[int]]]]]]:
    """The recorded kind (sft or dpo) and its steps -> microbatches -> examples.

    Raises:
        DataError: not such a recording; names the step, the microbatch and what is wrong.
    """
    grouped: dict[int, dict[int, Fields]] = {}
    for key, value in batches.items():
        match = re.fullmatch(r"step(\d+)\.(\d+)\.(\w+)", key)
        if not match:
            raise DataError(f"batches.safetensors: key {key!r}; step000.0.input_ids is expected")
        grouped.setdefault(int(match[1]), {}).setdefault(int(match[2]), {})[match[3]] = value
    _require_whole("steps", grouped)
    kinds = {_kind(fields) for micros in grouped.values() for fields in micros.values()}
    if len(kinds) != 1:
        raise DataError(f"batches.safetensors mixes {' and '.join(sorted(kinds))}")
    kind = kinds.pop()
    steps = []
    for step in sorted(grouped):
        _require_whole(f"step {step}: microbatches", grouped[step])
        steps.append([])
        for micro, fields in sorted(grouped[step].items()):
            try:
                steps[-1].append(_read_sft(fields) if kind == "sft" else _read_dpo(fields))
            except (ValueError, KeyError) as error:
                what = f"field {error} is missing" if isinstance(error, KeyError) else error
                raise DataError(f"step {step}, microbatch {micro}: {what}") from error
    return kind, steps


def _require_whole(what: str, numbered: dict[int, Any]) -> None:
    if sorted(numbered) != list(range(len(numbered))) or not numbered:
        raise DataError(f"{what} are numbered {sorted(numbered)}; 0, 1, 2 and on are expected")


def _kind(fields: Fields) -> str:
    if "labels" in fields:
        return "sft"
    if "completion_mask" in fields:
        return "dpo"
    raise DataError(f"fields {sorted(fields)} are of no known kind: SFT has labels, DPO has completion_mask")


def _split(ids: np.ndarray, attention: np.ndarray, completion: np.ndarray) -> tuple[list[int], list[int]]:
    """Prompt and completion of one padded sequence, told apart by the masks alone."""
    ids, completion = ids[attention.astype(bool)], completion[attention.astype(bool)].astype(bool)
    if not len(ids):
        raise ValueError("a sequence is all padding")
    start = int(np.argmax(completion)) if completion.any() else len(ids)
    if not completion[start:].all():
        raise ValueError("a completion must reach to the end of its sequence")
    start = max(start, 1)  # nothing precedes the first token, so no trainer can score it
    return ids[:start].tolist(), ids[start:].tolist()


def _read_sft(micro: Fields) -> list[dict[str, list[int]]]:
    rows = zip(micro["input_ids"], micro["attention_mask"], micro["labels"] != -100, strict=True)
    split = [_split(*row) for row in rows]
    return [{"prompt": prompt, "chosen": response} for prompt, response in split]


def _read_dpo(micro: Fields) -> list[dict[str, list[int]]]:
    rows = list(zip(micro["input_ids"], micro["attention_mask"], micro["completion_mask"], strict=True))
    half, odd = divmod(len(rows), 2)
    if odd:
        raise ValueError(f"{len(rows)} sequences cannot be pairs")
    pairs = [(_split(*rows[i]), _split(*rows[half + i])) for i in range(half)]
    if not all(c[0] == r[0] for c, r in pairs):
        raise ValueError("chosen and rejected must share their prompt")
    return [{"prompt": c[0], "chosen": c[1], "rejected": r[1]} for c, r in pairs]


def read_log(directory: Path) -> list[dict[str, float]]:
    """The logged training steps, in order."""
    return [entry for entry in json.loads((directory / "log.json").read_text()) if "loss" in entry]


def replay(directory: Path, schedule: Schedule, optimizer: AdamW, beta: float) -> Worst:
    """Trains from init.safetensors on the recorded batches and compares with what was recorded.

    Metrics are compared for DPO with even microbatches: TRL logs the mean of their means, we the mean over pairs.

    Raises:
        DataError: the files are no recording, or not of one run.
    """
    from janus_jax.checkpoint.hf import load_hf
    from janus_jax.training import replay as entry

    kind, steps = read_steps(load_file(directory / "batches.safetensors"))
    log = read_log(directory)
    if len(log) != len(steps):
        raise DataError(f"{directory}: log.json has {len(log)} steps, batches.safetensors {len(steps)}")
    # TRL 1.16: SFT divides by the label tokens of all microbatches, DPO averages microbatch means.
    objective: Objective = SFT() if kind == "sft" else DPO(beta=beta, normaliser="per_microbatch")
    with tempfile.TemporaryDirectory() as scratch:
        first, last = (_as_hf(directory, name, Path(scratch)) for name in ("init", "final"))
        records, params = entry.run(objective, first, steps, optimizer, schedule=schedule)
        initial, final = load_hf(first)[1], load_hf(last)[1]
        gradients = None
        if (directory / "grads.safetensors").is_file():
            theirs = load_hf(_as_hf(directory, "grads", Path(scratch)))[1]
            ours = entry.gradients(objective, first, steps[0])[1]
            gradients = _worst_tensor(lambda a, b: np.abs(a - b).max() / np.abs(b).max(), ours, theirs)

    even = all(len({len(micro) for micro in step}) == 1 for step in steps)

    def relative(ours: list[float], name: str) -> float:
        theirs = np.asarray([entry[name] for entry in log])
        return float(np.max(np.abs(np.asarray(ours) - theirs) / np.abs(theirs)))

    def moved(norm: Callable[[np.ndarray], Any]) -> float:
        return _worst_tensor(lambda start, a, b: norm(a - b) / norm(b - start), initial, params, final)

    return Worst(
        steps=len(records),
        loss=relative([r.loss for r in records], "loss"),
        grad_norm=relative([r.grad_norm for r in records], "grad_norm"),
        weights=moved(np.linalg.norm),
        element=moved(lambda x: np.abs(x).max()),
        gradients=gradients,
        metrics=_worst_metric([r.metrics for r in records], log) if even else None,
    )


def _as_hf(directory: Path, name: str, scratch: Path) -> Path:
    target = scratch / name
    target.mkdir()
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    config.setdefault("architectures", ["MistralForCausalLM"])
    (target / "config.json").write_text(json.dumps(config))
    os.symlink((directory / f"{name}.safetensors").resolve(), target / "model.safetensors")
    return target


def _worst_tensor(error: Callable[..., Any], *trees: Any) -> float:
    import jax

    def tensor(*leaves: Any) -> float:
        return float(error(*(np.asarray(leaf, np.float64).ravel() for leaf in leaves)))

    return float(np.max(jax.tree.leaves(jax.tree.map(tensor, *trees))))  # np.max hands NaN on, max() may not


def _worst_metric(ours: list[dict[str, float]], log: list[dict[str, float]]) -> float | None:
    errors = []
    for name in KEPT_METRICS:
        if name in ours[0] and name in log[0]:
            a, b = (np.asarray([step[name] for step in source]) for source in (ours, log))
            errors.append(np.abs(a - b).max() / np.abs(b).max())
    return float(np.max(errors)) if errors else None


def schedule_difference(schedule: Schedule, log: list[dict[str, float]]) -> str | None:
    """A line naming the first step whose logged learning rate is not ours; None where all agree.

    It explains a failing replay, and changes nothing: the schedule that is replayed is the one that was asked for.
    """
    for step, entry in enumerate(log):
        ours, theirs = float(schedule(step)), entry.get("learning_rate")
        if theirs is not None and abs(ours - theirs) > 1e-5 * schedule.learning_rate:
            return (
                f"step {step}: log.json has learning rate {theirs:.3e}, this replay {ours:.3e}: it was recorded with "
                "another schedule; see --schedule, --learning-rate, --warmup-steps and --total-steps"
            )
    return None


def main(arguments: list[str] | None = None) -> int:
    """Command line; the defaults are the recorders' settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--schedule", choices=["cosine", "linear", "constant"], default="cosine")
    parser.add_argument("--warmup-steps", type=int, default=3)
    parser.add_argument("--total-steps", type=int, help="default: the recorded number of steps")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--clip-norm", type=float, default=1.0, help="0 for none")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    args = parser.parse_args(arguments)
    try:
        log = read_log(args.directory)
        schedule = Schedule(args.learning_rate, args.total_steps or len(log), args.warmup_steps, args.schedule)
        optimizer = AdamW(weight_decay=args.weight_decay, clip_norm=args.clip_norm or None)
        worst = replay(args.directory, schedule, optimizer, args.beta)
    except (JanusError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    good = worst.within(args.tolerance)
    print(
        f"{args.directory.name}: {worst.steps} steps, worst loss {worst.loss:.1e}, grad norm {worst.grad_norm:.1e}, "
        f"final weights {worst.weights:.1e} of the distance moved (largest element {worst.element:.1e})"
        + ("" if worst.gradients is None else f", first gradients {worst.gradients:.1e}")
        + ("" if worst.metrics is None else f", rewards and log-probs {worst.metrics:.1e}")
        + f": {'ok' if good else 'BEYOND TOLERANCE'}"
    )
    if difference := schedule_difference(schedule, log):
        print(difference)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
