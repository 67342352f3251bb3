"""The demo's claims, measured on the files of its runs, with intervals and baselines."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from janus_jax.checkpoint.hf.read import load_hf
from janus_jax.checkpoint.stored_model import open_model
from janus_jax.cli.demo.stages import Stage
from janus_jax.config.run import RunConfig
from janus_jax.data.dataset import TokenizedDataset
from janus_jax.data.sample import sample_records
from janus_jax.evaluation.pairs import Accuracy
from janus_jax.model.attention import Slots
from janus_jax.model.config import ModelConfig
from janus_jax.model.mistral import Compute, Params, logits, token_values
from janus_jax.training.run import Summary, train

EXPORT_TOLERANCE = 1e-4
_COMPARED_EXAMPLES = 3
"""Held-out examples to compare checkpoint and export on."""


@dataclasses.dataclass(frozen=True)
class Unigram:
    """Nats per response token of the unigram model fitted on the training responses."""

    entropy: float  # of the training responses themselves
    held_out: (
        float  # cross-entropy of the held-out responses, smoothed so that unseen tokens cost as little as possible
    )


@dataclasses.dataclass(frozen=True)
class Results:
    """What the closing table shows."""

    stage: Stage
    sft: Summary
    preference: Summary
    unigram: Unigram
    accuracies: dict[str, Accuracy]
    resumed: bool
    export_errors: dict[str, float]
    picture: Path
    seconds: float

    def as_json(self) -> str:
        """The results as JSON, each stage under its name."""
        values = dataclasses.asdict(self)
        del values["stage"]
        stages = {"sft": values.pop("sft"), self.stage.name: values.pop("preference")}
        return json.dumps({**stages, **values}, indent=1, default=str) + "\n"

    @property
    def exports_equal(self) -> bool:
        """Whether all exports agree with their runs; False for NaN."""
        return all(error <= EXPORT_TOLERANCE for error in self.export_errors.values())


def unigram(config: RunConfig) -> Unigram:
    """Fits a unigram model on the training split, with add-k smoothing and the k that is best on the held-out split."""
    splits = [_open(config, split) for split in (config.data.split, config.data.eval_split)]
    train_counts, held_out_counts = (np.bincount(_responses(dataset)) for dataset in splits)
    full = np.zeros((2, splits[0].manifest.tokenizer["vocab_size"]))
    full[0, : len(train_counts)], full[1, : len(held_out_counts)] = train_counts, held_out_counts
    shares = full[0][full[0] > 0] / full[0].sum()

    def cross_entropy(k: float) -> float:
        logp = np.log(full[0] + k) - np.log((full[0] + k).sum())
        return float(-(full[1] * logp).sum() / full[1].sum())

    best = min(cross_entropy(k) for k in np.geomspace(1e-4, 10, 40))
    return Unigram(entropy=float(-(shares * np.log(shares)).sum()), held_out=best)


def _open(config: RunConfig, split: str) -> TokenizedDataset:
    assert config.data.dir is not None, "the demo reads one data set"
    return TokenizedDataset(config.data.dir, split)


def _responses(dataset: TokenizedDataset) -> np.ndarray:
    return np.concatenate([example.chosen for example in dataset.read(range(len(dataset)))])


def held_out_kinds() -> dict[str, np.ndarray]:
    """Masks of the held-out pairs by whether all preferences of their instruction occur in training."""
    known = {p["preference"] for row in sample_records("train") for p in row["preference_set"]}
    rows = sample_records("validation")
    seen: dict[str, bool] = {}
    for row in rows:
        known_here = all(p["preference"] in known for p in row["preference_set"])
        seen[row["prompt"]] = seen.get(row["prompt"], True) and known_here
    mask = np.repeat([seen[prompt] for prompt in seen], 6)  # six ordered pairs per prompt, in the order of prompts
    return {"unseen instructions, recurring preferences": mask, "unseen instructions, unseen preferences": ~mask}


def prove_resume(config: RunConfig, step: int, scratch: Path) -> bool:
    """Resumes a copy of the run from `step`; returns whether losses and final weights are bit-equal to the run's."""
    original = Path(config.run.dir)
    shutil.copytree(original / "checkpoints" / str(step), scratch / "checkpoints" / str(step))
    changed = {
        "run": config.run.model_copy(update={"dir": str(scratch)}),
        "export": config.export.model_copy(update={"hf": False}),
        "eval": config.eval.model_copy(update={"every_steps": None}),
        "logging": config.logging.model_copy(update={"tensorboard": False, "curves": False}),
    }
    train(config.model_copy(update=changed), writers=[], preemptible=False)
    ours, theirs = (_losses(run) for run in (scratch, original))
    weights = (jax.tree.leaves(open_model(run).load_host()) for run in (scratch, original))
    equal = all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))
    return bool(ours) and all(theirs[at] == loss for at, loss in ours.items()) and equal


def _losses(run: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records if record["kind"] == "train"}


def compare_export(config: RunConfig) -> float:
    """Largest difference between a run's last checkpoint and its export on held-out responses: in logits, or in the
    reward at the last token."""
    source = open_model(config.run.dir)
    exported = sorted((Path(config.run.dir) / "exports").iterdir(), key=lambda path: int(path.name))[-1]
    model, theirs = load_hf(exported)
    ours = source.load(dtype=jnp.float32)
    dataset = _open(config, config.data.eval_split)
    examples = dataset.read(np.linspace(0, len(dataset) - 1, _COMPARED_EXAMPLES, dtype=int).tolist())
    rows = [np.concatenate([e.prompt, r]) for e in examples for r in (e.chosen, e.rejected) if r is not None]
    length = config.batch.max_sequence_length  # the same in all stages: compiled once
    position = np.arange(length, dtype=np.int32)[None]
    errors = []
    for row in (row[:length] for row in rows):
        tokens = jnp.asarray(np.pad(row, (0, length - len(row)))[None], jnp.int32)
        present = (position < len(row)).astype(np.int32)
        layout = Slots(*map(jnp.asarray, (present, present, position)))
        a, b = (jax.device_get(_outputs(model, params, tokens, layout)) for params in (ours, theirs))
        last = len(row) - 1 if model.head == "value" else slice(None)
        errors.append(np.abs(a[0, last] - b[0, last]).max())
    return float(np.max(errors))  # NaN stays NaN


@functools.partial(jax.jit, static_argnums=0)
def _outputs(model: ModelConfig, params: Params, tokens: jax.Array, layout: Slots) -> jax.Array:
    """Logits [B, L, V], or values [B, L] of a reward model."""
    outputs = token_values if model.head == "value" else logits
    return outputs(model, params, tokens, layout, Compute(dtype=jnp.float32))


def show(console: Console, results: Results, out: Path, devices: int) -> None:
    """Prints the table, the directories, and commands to try next."""
    table = Table("claim", "measured", "for comparison", title="janus demo", title_justify="left", show_lines=False)
    stage, sft, preference, uni = results.stage, results.sft, results.preference, results.unigram
    loss = sft.evaluation["loss"]
    table.add_row(
        "SFT held-out loss, nats per token",
        f"{loss:.3f}",
        f"unigram model of the training responses: {uni.held_out:.3f} on held-out ones ({loss - uni.held_out:+.3f}), "
        f"entropy {uni.entropy:.3f} ({loss - uni.entropy:+.3f})",
    )
    for name, accuracy in results.accuracies.items():
        low, high = accuracy.interval()
        start = ""
        if accuracy.at_start is not None:
            start = f"at the start {accuracy.at_start:.2f}, margin grew in {accuracy.margin_grew:.2f}; "
        table.add_row(
            f"{stage.label} accuracy, {name}",
            f"{accuracy.value:.3f}",
            f"n {accuracy.pairs}, 95 % interval {low:.2f}-{high:.2f}; {start}"
            f"baselines: longer response {accuracy.longer_wins:.2f}, response alone 0.50",
        )
    if (after := preference.evaluation.get("nll_loss")) is not None:
        table.add_row(
            f"{stage.label} held-out loss, nats per token",
            f"{after:.3f}",
            f"on the chosen responses, as in SFT: {after - loss:+.3f} since SFT",
        )
    metric, title, start = stage.margin
    table.add_row(f"{stage.label} {title}", f"{preference.train[metric]:+.3f}", f"last batch; {start}")
    table.add_row("resumed run", "bit-equal" if results.resumed else "DIFFERS", "losses and final weights of SFT")
    table.add_row(
        f"exported {stage.exported}",
        f"{max(results.export_errors.values()):.1e}",
        f"largest difference from the run, both stages; allowed: {EXPORT_TOLERANCE:.0e}",
    )
    pair = f"SFT / {stage.label}"
    table.add_row(
        "packing fill", f"{sft.fill:.2f} / {preference.fill:.2f}", f"{pair}, share of slots that hold a token"
    )
    speeds = f"{sft.tokens_per_s:,.0f} / {preference.tokens_per_s:,.0f}"
    table.add_row("tokens/s", speeds, f"{pair}, median step, this CPU")
    table.add_row("time", f"{results.seconds:.0f} s", "in total, with imports and compilation")
    console.print(table)
    places = Table.grid(padding=(0, 2))
    for path, content in (
        (out / "data", "token ids, TFDS records, tokenizer"),
        (out / "sft", "run: config.yaml, metrics.jsonl, tensorboard/, checkpoints/ (Orbax), exports/ (Hugging Face)"),
        (out / stage.name, f"the same for {stage.label}"),
        (results.picture, "curves"),
        (out / "summary.json", "this table as JSON"),
    ):
        places.add_row(str(path), content)
    console.print(places)
    console.print(
        "\n[bold]Next[/bold]\n"
        f"  janus config show {out / stage.name / 'config.yaml'}\n"
        f"  janus train {out / 'sft' / 'config.yaml'} run.dir={out / 'mine'} schedule.epochs=2 schedule.steps=null "
        f"--devices {devices}\n"
        f"  janus convert to-hf {out / stage.name} {out / 'hf'} --dtype bfloat16\n"
        "  janus data build --kind sft --source YOUR_RECORDS.jsonl --out data/mine\n"
        "  janus demo --model A_MISTRAL_OR_LLAMA_DIRECTORY",
        highlight=False,
        soft_wrap=True,
    )
