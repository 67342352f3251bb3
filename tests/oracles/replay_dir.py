"""Replays a recording of another trainer, prints the worst errors: `python -m tests.oracles.replay_dir DIR`.

DIR holds config.json, init.safetensors, batches.safetensors (`step{K:03d}.{micro}.{field}`), final.safetensors and
log.json; grads.safetensors (of the first step, before clipping) where it was recorded. `recordings.py` says which
fields are read. The objective follows from them; `--objective simpo` must be said: CPO's batches look like ORPO's.
Settings come from flags alone, and those left out are the defaults of TRL 1.16.
Exits 1 beyond tolerance: loss and gradient norm 1e-4 relative at every step, final weights 1e-4 of the distance
moved, |ours - theirs| / |theirs - initial| in the 2-norm per tensor, first gradients 1e-4 of the tensor's largest
element. The largest single element of the weights is printed beside them: where a gradient is as small as Adam's eps,
g / (|g| + eps) magnifies rounding, in either framework. Exits 2 where DIR is no recording that can be replayed.
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
from pydantic import ValidationError

from janus_jax.data.padding import Padding
from janus_jax.errors import DataError, JanusError
from janus_jax.objectives import Objective
from janus_jax.objectives.dpo import DPO
from janus_jax.objectives.orpo import ORPO
from janus_jax.objectives.reward import RewardModel
from janus_jax.objectives.sft import SFT
from janus_jax.objectives.simpo import SimPO
from janus_jax.training.optimizer import AdamW, Schedule
from tests.oracles import recordings

# TRL 1.16: SFT divides by the label tokens of all microbatches, the others average microbatch means.
TRL_DEFAULTS: dict[str, Any] = {
    "sft": SFT(normaliser="global"),
    "dpo": DPO(beta=0.1, normaliser="per_microbatch"),
    "simpo": SimPO(beta=0.1, gamma=0.5, sft_weight=1.0, normaliser="per_microbatch"),
    "orpo": ORPO(beta=0.1, nll="prompt_and_response", normaliser="per_microbatch"),
    "rm": RewardModel(normaliser="per_microbatch"),
}
ARCHITECTURES = {"lm": "MistralForCausalLM", "value": "MistralForSequenceClassification"}

OF_PAIRS = {  # our metric, and the names that TRL's trainers log it under
    "rewards/chosen": ("rewards/chosen",),
    "rewards/rejected": ("rewards/rejected",),
    "rewards/margins": ("rewards/margins", "margin"),
    "logps/chosen": ("logps/chosen", "chosen_geometric_mean"),  # the latter are axolotl's
    "logps/rejected": ("logps/rejected", "rejected_geometric_mean"),
    "log_odds": ("log_odds_chosen", "log_odds"),
}
OF_TOKENS = {"nll_loss": ("nll_loss",)}


@dataclasses.dataclass(frozen=True)
class Worst:
    """Largest errors over a replay; NaN where either side holds one."""

    steps: int
    loss: float  # max over steps of |ours - theirs| / |theirs|
    grad_norm: float
    weights: float  # max over tensors of |ours - theirs| / |theirs - initial|, 2-norms
    element: float  # the same with largest absolute values
    gradients: float | None  # max over tensors of max|ours - theirs| / max|theirs|; None: not recorded
    metrics: float | None  # max over metrics of max|ours - theirs| / max|theirs| over steps; None: none compare

    def within(self, tolerance: float) -> bool:
        """True when loss, gradient norm, weights and gradients stay within the tolerance; not for NaN.

        Metrics are shown and not judged: loss and gradients follow from the same log-probs.
        """
        judged = (self.loss, self.grad_norm, self.weights, 0.0 if self.gradients is None else self.gradients)
        return all(error <= tolerance for error in judged)


def replay(
    recording: recordings.Recording,
    objective: Objective,
    schedule: Schedule,
    optimizer: AdamW,
    *,
    share_prompts: bool = True,
) -> Worst:
    """Trains from init.safetensors on the recorded batches and compares with what was recorded.

    Raises:
        DataError: the objective cannot be replayed from such batches.
    """
    from janus_jax.checkpoint.hf.read import load_hf
    from janus_jax.training import replay as entry

    directory, steps, log = recording.directory, recording.steps, recording.log
    if objective.name not in recording.objectives:
        allowed = ", ".join(recording.objectives)
        raise DataError(f"{directory}: batches of the layout {recording.layout} replay {allowed}; not {objective.name}")
    config = config_of(directory, objective)
    if objective.head == "value":
        _require_rewards_at_the_end(steps, config.get("pad_token_id"))
    layout: dict[str, Any] = {"share_prompts": share_prompts, "padding": padding_of(recording, objective)}
    with tempfile.TemporaryDirectory() as scratch:
        first, last = (as_hf(directory, name, config, Path(scratch)) for name in ("init", "final"))
        records, params = entry.run(objective, first, steps, optimizer, schedule=schedule, **layout)
        initial, final = load_hf(first)[1], load_hf(last)[1]
        gradients = None
        if (directory / "grads.safetensors").is_file():
            theirs = load_hf(as_hf(directory, "grads", config, Path(scratch)))[1]
            ours = entry.gradients(objective, first, steps[0], **layout)[1]
            gradients = _worst_tensor(lambda a, b: np.abs(a - b).max() / np.abs(b).max(), ours, theirs)

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
        metrics=_worst_metric([r.metrics for r in records], log, _comparable(steps)),
    )


def padding_of(recording: recordings.Recording, objective: Objective) -> Padding | None:
    """The padding that counts in ORPO's mean, as recorded; None where none counts."""
    kind = getattr(objective, "padding", None)
    return kind and Padding(kind, *recordings.read_padding(recording.directory))


def _require_rewards_at_the_end(steps: list[list[list[recordings.Ids]]], pad: int | None) -> None:
    """transformers reads a reward at the last token that is not `pad`, whatever the attention mask says."""
    for step, micros in enumerate(steps):
        for micro, examples in enumerate(micros):
            if any(pair[branch][-1] == pad for pair in examples for branch in ("chosen", "rejected") if pair[branch]):
                raise DataError(
                    f"step {step}, microbatch {micro}: a sequence ends with {pad}, which config.json has as "
                    "pad_token_id: its reward was read before its end"
                )


def _comparable(steps: list[list[list[recordings.Ids]]]) -> dict[str, tuple[str, ...]]:
    """Metrics that mean the same: over microbatches TRL logs the mean of their means, we the mean over pairs or tokens.

    Those over pairs agree where microbatches are even, those over tokens where there is one.
    """
    even = all(len({len(micro) for micro in step}) == 1 for step in steps)
    single = all(len(step) == 1 for step in steps)
    return (OF_PAIRS if even else {}) | (OF_TOKENS if single else {})


def config_of(directory: Path, objective: Objective) -> dict[str, Any]:
    """config.json; one without `architectures` is that of the objective's model."""
    try:
        config = json.loads((directory / "config.json").read_text())
    except ValueError as error:
        raise DataError(f"{directory / 'config.json'}: {error}") from error
    return config | {"architectures": config.get("architectures") or [ARCHITECTURES[objective.head]]}


def as_hf(directory: Path, name: str, config: dict[str, Any], scratch: Path) -> Path:
    target = scratch / name
    target.mkdir(parents=True)
    (target / "config.json").write_text(json.dumps(config))
    os.symlink((directory / f"{name}.safetensors").resolve(strict=True), target / "model.safetensors")
    return target


def _worst_tensor(error: Callable[..., Any], *trees: Any) -> float:
    import jax

    def tensor(*leaves: Any) -> float:
        return float(error(*(np.asarray(leaf, np.float64).ravel() for leaf in leaves)))

    return float(np.max(jax.tree.leaves(jax.tree.map(tensor, *trees))))  # np.max hands NaN on, max() may not


def _worst_metric(
    ours: list[dict[str, float]], log: list[dict[str, float]], names: dict[str, tuple[str, ...]]
) -> float | None:
    errors = []
    for name, logged in names.items():
        for other in logged:
            if name in ours[0] and other in log[0]:
                a, b = (np.asarray([step[key] for step in steps]) for key, steps in ((name, ours), (other, log)))
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


def objective_of(name: str, **settings: Any) -> Objective:
    """An objective as TRL has it by default, with other settings.

    Raises:
        DataError: it has no such setting, or not such a value.
    """
    default = TRL_DEFAULTS[name]
    known = sorted({*type(default).model_fields} - {"name"})
    for setting in settings:
        if setting not in known:
            raise DataError(f"{name} has no setting {setting}; it has {', '.join(known)}")
    try:
        return type(default)(**{**default.model_dump(), **settings})
    except ValidationError as error:
        details = error.errors()
        raise DataError("; ".join(": ".join([*map(str, one["loc"]), one["msg"]]) for one in details)) from error


SETTINGS: dict[str, dict[str, Any]] = {  # of objectives: how each is read from the command line
    "beta": {"type": float},
    "loss": {"choices": ["sigmoid", "ipo", "hinge", "robust"]},
    "label_smoothing": {"type": float},
    "length_normalised": {"action": argparse.BooleanOptionalAction, "help": "TRL's sigmoid_norm"},
    "sft_weight": {"type": float, "help": "of DPO's loss sft; CPO's cpo_alpha"},
    "gamma": {"type": float, "help": "CPO's simpo_gamma"},
    "nll": {"choices": ["response", "prompt_and_response"]},
    "padding": {"choices": ["trl", "axolotl"], "help": "compat.orpo_padding"},
    "center_weight": {"type": float, "help": "RewardTrainer's center_rewards_coefficient"},
    "normaliser": {"choices": ["global", "per_microbatch"]},
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--schedule", choices=["cosine", "linear", "constant"], default="cosine")
    parser.add_argument("--warmup-steps", type=int, default=3)
    parser.add_argument("--total-steps", type=int, help="default: the recorded number of steps")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--b1", type=float, default=0.9)
    parser.add_argument("--b2", type=float, default=0.999)
    parser.add_argument("--eps", type=float, default=1e-8)
    parser.add_argument("--clip-norm", type=float, default=1.0, help="0 for none")
    parser.add_argument("--share-prompts", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--objective", choices=list(TRL_DEFAULTS), help="default: what the batches usually come from")
    settings = parser.add_argument_group("settings of the objective")
    for name, how in SETTINGS.items():
        settings.add_argument(f"--{name.replace('_', '-')}", default=None, **how)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Command line; the defaults are the recorders' settings."""
    args = _parser().parse_args(arguments)
    try:
        recording = recordings.read(args.directory)
        given = {name: value for name in SETTINGS if (value := getattr(args, name)) is not None}
        objective = objective_of(args.objective or recording.objectives[0], **given)
        schedule = Schedule(
            args.learning_rate, args.total_steps or len(recording.log), args.warmup_steps, args.schedule
        )
        optimizer = AdamW(args.b1, args.b2, args.eps, args.weight_decay, args.clip_norm or None)
        worst = replay(recording, objective, schedule, optimizer, share_prompts=args.share_prompts)
    except (JanusError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    good = worst.within(args.tolerance)
    print(
        f"{args.directory.name}: {objective.name}, {worst.steps} steps, worst loss {worst.loss:.1e}, "
        f"grad norm {worst.grad_norm:.1e}, "
        f"final weights {worst.weights:.1e} of the distance moved (largest element {worst.element:.1e})"
        + ("" if worst.gradients is None else f", first gradients {worst.gradients:.1e}")
        + ("" if worst.metrics is None else f", metrics {worst.metrics:.1e}")
        + f": {'ok' if good else 'BEYOND TOLERANCE'}"
    )
    if difference := schedule_difference(schedule, recording.log):
        print(difference)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
