"""The demo's claims: measured on what the runs left on disk, with intervals and baselines beside them."""

import dataclasses
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
from janus_jax.model.attention import Layout
from janus_jax.model.mistral import Compute, Params, logits, token_values
from janus_jax.training.run import Summary, train

EXPORT_TOLERANCE = 1e-4
_COMPARED_EXAMPLES = 3
"""Held-out examples on which checkpoint and export are compared."""


@dataclasses.dataclass(frozen=True)
class Unigram:
    """Nats per response token of the unigram model fitted on the training responses."""

    entropy: float  # of the training responses themselves
    held_out: (
        float  # cross-entropy of the held-out responses, smoothed so that unseen tokens cost as little as possible
    )


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything that the closing table shows."""

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
        """The table as JSON, the stages under their names."""
        values = dataclasses.asdict(self)
        del values["stage"]
        stages = {"sft": values.pop("sft"), self.stage.name: values.pop("preference")}
        return json.dumps({**stages, **values}, indent=1, default=str) + "\n"

    @property
    def exports_equal(self) -> bool:
        """False for NaN too."""
        return all(error <= EXPORT_TOLERANCE for error in self.export_errors.values())


def unigram(config: RunConfig) -> Unigram:
    """Fitted on the training split of an SFT data set; add-k smoothing with the k that suits the held-out text best."""
    splits = [_open(config, split) for split in (config.data.split, config.data.eval_split)]
    counts, held = (np.bincount(_responses(dataset)) for dataset in splits)
    full = np.zeros((2, splits[0].manifest.tokenizer["vocab_size"]))
    full[0, : len(counts)], full[1, : len(held)] = counts, held
    own = full[0][full[0] > 0] / full[0].sum()

    def cross_entropy(k: float) -> float:
        logp = np.log(full[0] + k) - np.log((full[0] + k).sum())
        return float(-(full[1] * logp).sum() / full[1].sum())

    best = min(cross_entropy(k) for k in np.geomspace(1e-4, 10, 40))
    return Unigram(entropy=float(-(own * np.log(own)).sum()), held_out=best)


def _open(config: RunConfig, split: str) -> TokenizedDataset:
    assert config.data.dir is not None, "the demo reads one data set"
    return TokenizedDataset(config.data.dir, split)


def _responses(dataset: TokenizedDataset) -> np.ndarray:
    return np.concatenate([example.chosen for example in dataset.read(range(len(dataset)))])


def held_out_kinds() -> dict[str, np.ndarray]:
    """The held-out pairs by whether all preferences of their instruction occur in training."""
    known = {p["preference"] for row in sample_records("train") for p in row["preference_set"]}
    rows = sample_records("validation")
    seen: dict[str, bool] = {}
    for row in rows:
        every = all(p["preference"] in known for p in row["preference_set"])
        seen[row["prompt"]] = seen.get(row["prompt"], True) and every
    mask = np.repeat([seen[prompt] for prompt in seen], 6)  # six ordered pairs a prompt, prompts in their order
    return {
        "unseen instructions, recurring preferences": mask,
        "unseen instructions, unseen preferences": ~mask,
    }


def prove_resume(config: RunConfig, step: int, scratch: Path) -> bool:
    """Resumes a copy of the run from `step` and compares losses and final weights bit for bit with the original."""
    original = Path(config.run.dir)
    shutil.copytree(original / "checkpoints" / str(step), scratch / "checkpoints" / str(step))
    changed = {
        "run": config.run.model_copy(update={"dir": str(scratch)}),
        "export": config.export.model_copy(update={"hf": False}),
        "eval": config.eval.model_copy(update={"every_steps": None}),
    }
    train(config.model_copy(update=changed), writers=[])
    ours, theirs = (_losses(run) for run in (scratch, original))
    weights = (jax.tree.leaves(open_model(run).load_host()) for run in (scratch, original))
    equal = all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))
    return bool(ours) and all(theirs[at] == loss for at, loss in ours.items()) and equal


def _losses(run: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records if record["kind"] == "train"}


def compare_export(config: RunConfig) -> float:
    """Largest difference between a run's last checkpoint and its exported directory on held-out responses: of logits,
    or of rewards, which stand at the last token."""
    source = open_model(config.run.dir)
    exported = sorted((Path(config.run.dir) / "exports").iterdir(), key=lambda path: int(path.name))[-1]
    model, theirs = load_hf(exported)
    ours = source.load(dtype=jnp.float32)
    compute = Compute(dtype=jnp.float32)

    @jax.jit
    def says(params: Params, tokens: jax.Array, layout: Layout, last: jax.Array) -> jax.Array:
        if model.head == "value":
            return token_values(model, params, tokens, layout, compute)[0, last]
        return logits(model, params, tokens, layout, compute)

    dataset = _open(config, config.data.eval_split)
    examples = dataset.read(np.linspace(0, len(dataset) - 1, _COMPARED_EXAMPLES, dtype=int).tolist())
    rows = [np.concatenate([e.prompt, r]) for e in examples for r in (e.chosen, e.rejected) if r is not None]
    length = max(map(len, rows))
    errors = []
    for row in rows:
        tokens = jnp.asarray(np.pad(row, (0, length - len(row))))[None]  # one length: compiled once
        there = (jnp.arange(length, dtype=jnp.int32) < len(row)).astype(jnp.int32)[None]
        layout = Layout(there, there, jnp.arange(length, dtype=jnp.int32)[None])
        a, b = (says(params, tokens, layout, jnp.int32(len(row) - 1)) for params in (ours, theirs))
        errors.append(jnp.abs(a - b).max())
    return float(np.max(errors))  # NaN stays NaN


def show(console: Console, results: Results, out: Path, devices: int) -> None:
    """The closing table, where everything lies, and what to type next."""
    table = Table("claim", "measured", "beside it", title="janus demo", title_justify="left", show_lines=False)
    stage, sft, preference, uni = results.stage, results.sft, results.preference, results.unigram
    loss = sft.evaluation["loss"]
    table.add_row(
        "SFT held-out loss, nats a token",
        f"{loss:.3f}",
        f"unigram fitted on training responses: {uni.held_out:.3f} on held-out ({loss - uni.held_out:+.3f}), "
        f"{uni.entropy:.3f} its own entropy ({loss - uni.entropy:+.3f})",
    )
    for name, accuracy in results.accuracies.items():
        low, high = accuracy.interval()
        start = ""
        if accuracy.at_start is not None:
            start = f"at the start {accuracy.at_start:.2f}, margin grew on {accuracy.margin_grew:.2f}; "
        table.add_row(
            f"{stage.label} accuracy, {name}",
            f"{accuracy.value:.3f}",
            f"n {accuracy.pairs}, 95 % {low:.2f}-{high:.2f}; {start}longer wins {accuracy.longer_wins:.2f}; "
            "response alone 0.50",
        )
    if (after := preference.evaluation.get("nll_loss")) is not None:
        table.add_row(
            f"{stage.label} held-out loss, nats a token",
            f"{after:.3f}",
            f"chosen responses, which are those of SFT: {after - loss:+.3f} since",
        )
    metric, what, beside = stage.margin
    table.add_row(f"{stage.label} {what}", f"{preference.train[metric]:+.3f}", f"last batch; {beside}")
    table.add_row("resumed run", "bit-equal" if results.resumed else "DIFFERS", "losses and final weights of SFT")
    table.add_row(
        f"exported {stage.exported}",
        f"{max(results.export_errors.values()):.1e}",
        f"largest difference from the run, both stages; allowed {EXPORT_TOLERANCE:.0e}",
    )
    pair = f"SFT / {stage.label}"
    table.add_row("packing fill", f"{sft.fill:.2f} / {preference.fill:.2f}", f"{pair}, slots of rows that hold tokens")
    speeds = f"{sft.tokens_per_s:,.0f} / {preference.tokens_per_s:,.0f}"
    table.add_row("tokens/s", speeds, f"{pair}, median step, this CPU")
    table.add_row("time", f"{results.seconds:.0f} s", "everything, imports and compiling included")
    console.print(table)
    places = Table.grid(padding=(0, 2))
    for path, what in (
        (out / "data", "token ids, TFDS rows, tokenizer"),
        (out / "sft", "run: config.yaml, metrics.jsonl, tensorboard/, checkpoints/ (Orbax), exports/ (Hugging Face)"),
        (out / stage.name, f"the same for {stage.label}"),
        (results.picture, "curves"),
        (out / "summary.json", "this table as JSON"),
    ):
        places.add_row(str(path), what)
    console.print(places)
    console.print(
        "\n[bold]Next[/bold]\n"
        f"  janus config show {out / stage.name / 'config.yaml'}\n"
        f"  janus train {out / 'sft' / 'config.yaml'} run.dir={out / 'mine'} schedule.epochs=2 schedule.steps=null "
        f"--devices {devices}\n"
        f"  janus convert to-hf {out / stage.name} {out / 'hf'} --dtype bfloat16\n"
        "  janus data build --kind sft --source YOUR_ROWS.jsonl --out data/mine\n"
        "  janus demo --model A_MISTRAL_OR_LLAMA_DIRECTORY",
        highlight=False,
        soft_wrap=True,
    )
