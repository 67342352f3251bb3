"""The demo's claims: measured on what the runs left on disk, with intervals and baselines beside them."""

import dataclasses
import itertools
import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from janus_jax.checkpoint.hf import load_hf
from janus_jax.checkpoint.source import open_source
from janus_jax.config import RunConfig
from janus_jax.data.dataset import TokenizedDataset
from janus_jax.data.sample import sample_rows
from janus_jax.model.attention import Layout
from janus_jax.model.mistral import Compute, logits
from janus_jax.training.run import Summary, train
from janus_jax.training.setup import prepare

LOGITS_TOLERANCE = 1e-4
_TRAINING_BATCHES = 8
"""Batches of training pairs that are scored again at the end, spread over the epoch: what a model saw last, or with the
highest learning rate, it remembers best."""


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """How often the chosen response is preferred, with a 95 % Wilson interval; and how often it is the longer one."""

    right: int
    pairs: int
    longer_wins: float

    @property
    def value(self) -> float:
        return self.right / self.pairs

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Wilson 1927."""
        n, p = self.pairs, self.value
        centre = p + z * z / (2 * n)
        spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)


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

    sft: Summary
    dpo: Summary
    unigram: Unigram
    accuracies: dict[str, Accuracy]
    resumed: bool
    export_errors: dict[str, float]
    picture: Path
    seconds: float


def unigram(config: RunConfig) -> Unigram:
    """Fitted on the training split of an SFT data set; add-k smoothing with the k that suits the held-out text best."""
    counts, held = (
        np.bincount(_responses(config.data.dir, split)) for split in (config.data.split, config.data.eval_split)
    )
    tokenizer = TokenizedDataset(config.data.dir, config.data.split).manifest.tokenizer
    full = np.zeros((2, tokenizer["vocab_size"]))
    full[0, : len(counts)], full[1, : len(held)] = counts, held
    own = full[0][full[0] > 0] / full[0].sum()

    def cross_entropy(k: float) -> float:
        logp = np.log(full[0] + k) - np.log((full[0] + k).sum())
        return float(-(full[1] * logp).sum() / full[1].sum())

    best = min(cross_entropy(k) for k in np.geomspace(1e-4, 10, 40))
    return Unigram(entropy=float(-(own * np.log(own)).sum()), held_out=best)


def _responses(directory: str, split: str) -> np.ndarray:
    dataset = TokenizedDataset(directory, split)
    return np.concatenate([example.chosen for example in dataset.read(range(len(dataset)))])


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
    weights = (jax.tree.leaves(open_source(run).load_host()) for run in (scratch, original))
    equal = all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))
    return bool(ours) and all(theirs[at] == loss for at, loss in ours.items()) and equal


def _losses(run: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records if record["kind"] == "train"}


def pair_accuracies(
    config: RunConfig, trained_steps: int, *, held_out_batches: int | None = None
) -> dict[str, Accuracy]:
    """Reward accuracy of the trained policy against the reference, on pairs of the first epoch's `trained_steps` and on
    kinds of held-out pairs: all of them, or those of `held_out_batches`."""
    setup = prepare(config.model_copy(update={"eval": config.eval.model_copy(update={"every_steps": 1})}))
    score = jax.jit(setup.functions.reference)
    policy = open_source(config.run.dir).load(dtype=jnp.float32, shardings=setup.state_shardings.params)
    reference = setup.reference_params(setup.reference_step)
    found: dict[str, Accuracy] = {}
    assert setup.eval_loader is not None and reference is not None
    for split, loader in (("training", setup.loader), ("held out", setup.eval_loader)):
        margins: dict[int, float] = {}
        steps = range(loader.steps(0))
        if split == "training":
            steps = steps[:trained_steps]
        most = _TRAINING_BATCHES if split == "training" else held_out_batches or len(steps)
        steps = steps[:: -(-len(steps) // most)]
        for number, loaded in enumerate(itertools.islice(loader.epoch(), steps[-1] + 1)):
            if number not in steps:
                continue
            batch = loaded.batch
            rewards = jax.device_get(score(policy, batch) - score(reference, batch))
            valid = jax.device_get(batch.valid)
            ids = jax.device_get(batch.example_id)[valid].tolist()
            margins.update(zip(ids, (rewards[..., 0] - rewards[..., 1])[valid].tolist(), strict=True))
        lengths = loader.dataset.lengths
        if split == "training":
            found["training pairs"] = _accuracy(margins, lengths, list(margins))
        else:
            recurring = _recurring_pairs(len(lengths))
            chosen = {"recurring preferences": recurring, "unseen preferences": ~recurring}
            for name, mask in chosen.items():
                found[f"unseen instructions, {name}"] = _accuracy(margins, lengths, np.flatnonzero(mask).tolist())
    return {name: accuracy for name, accuracy in found.items() if accuracy.pairs}


def _accuracy(margins: dict[int, float], lengths: np.ndarray, ids: list[int]) -> Accuracy:
    ids = [example for example in ids if example in margins]
    longer = [np.sign(int(lengths[example, 1]) - int(lengths[example, 2])) / 2 + 0.5 for example in ids]
    return Accuracy(sum(margins[example] > 0 for example in ids), len(ids), float(np.mean(longer or [0])))


def _recurring_pairs(pairs: int) -> np.ndarray:
    """True for held-out pairs of instructions whose preferences all occur in training."""
    known = {p["preference"] for row in sample_rows("train") for p in row["preference_set"]}
    rows = sample_rows("validation")
    seen: dict[str, bool] = {}
    for row in rows:
        every = all(p["preference"] in known for p in row["preference_set"])
        seen[row["prompt"]] = seen.get(row["prompt"], True) and every
    mask = np.repeat([seen[prompt] for prompt in seen], 6)  # six ordered pairs a prompt, prompts in their order
    assert len(mask) == pairs
    return mask


def compare_export(config: RunConfig) -> float:
    """Largest difference of logits between a run's last checkpoint and its exported directory, on held-out rows."""
    source = open_source(config.run.dir)
    exported = sorted((Path(config.run.dir) / "exports").iterdir(), key=lambda path: int(path.name))[-1]
    model, theirs = load_hf(exported)
    dataset = TokenizedDataset(config.data.dir, config.data.eval_split)
    example = dataset.read([0])[0]
    tokens = jnp.asarray(np.concatenate([example.prompt, example.chosen]))[None]
    layout = Layout(jnp.ones_like(tokens), jnp.ones_like(tokens), jnp.arange(tokens.shape[1], dtype=jnp.int32)[None])
    run = jax.jit(lambda params: logits(model, params, tokens, layout, Compute(dtype=jnp.float32)))
    return float(jnp.abs(run(source.load(dtype=jnp.float32)) - run(theirs)).max())


def show(console: Console, results: Results, out: Path, devices: int) -> None:
    """The closing table, where everything lies, and what to type next."""
    table = Table("claim", "measured", "beside it", title="janus demo", title_justify="left", show_lines=False)
    sft, dpo, uni = results.sft, results.dpo, results.unigram
    loss = sft.evaluation["loss"]
    table.add_row(
        "SFT held-out loss, nats a token",
        f"{loss:.3f}",
        f"unigram fitted on training responses: {uni.held_out:.3f} on held-out ({loss - uni.held_out:+.3f}), "
        f"{uni.entropy:.3f} its own entropy ({loss - uni.entropy:+.3f})",
    )
    for name, accuracy in results.accuracies.items():
        low, high = accuracy.interval()
        table.add_row(
            f"DPO accuracy, {name}",
            f"{accuracy.value:.3f}",
            f"n {accuracy.pairs}, 95 % {low:.2f}-{high:.2f}; longer wins {accuracy.longer_wins:.2f}; "
            "response alone 0.50",
        )
    table.add_row("DPO reward margin", f"{dpo.train['rewards/margins']:+.3f}", "last batch; 0 at the start")
    table.add_row("resumed run", "bit-equal" if results.resumed else "DIFFERS", "losses and final weights")
    worst = max(results.export_errors.values())
    table.add_row(
        "exported logits",
        f"{worst:.1e}",
        f"largest difference from the run, both stages; allowed {LOGITS_TOLERANCE:.0e}",
    )
    table.add_row("packing fill", f"{sft.fill:.2f} / {dpo.fill:.2f}", "SFT / DPO, slots of rows that hold tokens")
    table.add_row("tokens/s", f"{sft.tokens_per_s:,.0f} / {dpo.tokens_per_s:,.0f}", "SFT / DPO, median step, this CPU")
    table.add_row("time", f"{results.seconds:.0f} s", "everything, imports and compiling included")
    console.print(table)
    places = Table.grid(padding=(0, 2))
    for path, what in (
        (out / "data", "token ids, TFDS rows, tokenizer"),
        (out / "sft", "run: config.yaml, metrics.jsonl, tensorboard/, checkpoints/ (Orbax), exports/ (Hugging Face)"),
        (out / "dpo", "the same for DPO"),
        (results.picture, "curves"),
        (out / "summary.json", "this table as JSON"),
    ):
        places.add_row(str(path), what)
    console.print(places)
    console.print(
        "\n[bold]Next[/bold]\n"
        f"  janus config show {out / 'dpo' / 'config.yaml'}\n"
        f"  janus train {out / 'sft' / 'config.yaml'} run.dir={out / 'mine'} schedule.epochs=2 schedule.steps=null "
        f"--devices {devices}\n"
        f"  janus convert to-hf {out / 'dpo'} {out / 'hf'} --dtype bfloat16\n"
        "  janus data build --kind sft --source YOUR_ROWS.jsonl --out data/mine\n"
        "  janus demo --model A_MISTRAL_OR_LLAMA_DIRECTORY",
        highlight=False,
        soft_wrap=True,
    )
