"""How often a trained model prefers the chosen response, on training pairs and on held-out pairs."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from janus_jax.batch import Batch
from janus_jax.checkpoint.stored_model import open_model
from janus_jax.config.run import RunConfig
from janus_jax.data.statistics import wilson_interval
from janus_jax.errors import ConfigError
from janus_jax.objectives import PairObjective, branch_scores
from janus_jax.training.reference import open_stores
from janus_jax.training.setup import Setup, prepare

_TRAINING_BATCHES = 8
"""Batches of training pairs to score, spread over the epoch: a model remembers best what it saw last, or with the
highest learning rate."""


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """How often the chosen response is preferred, with baselines on the same pairs in which ties count half."""

    right: int
    pairs: int
    longer_wins: float
    """How often the chosen response is the longer one."""
    at_start: float | None
    """Accuracy of the weights that training began from; None if they are the reference, whose margins are all 0."""
    margin_grew: float | None
    """How often the margin is larger than that of those weights."""

    @property
    def value(self) -> float:
        return self.right / self.pairs

    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        return wilson_interval(self.right, self.pairs)


def pair_accuracies(
    config: RunConfig,
    trained_steps: int,
    *,
    kinds: Mapping[str, Bool[np.ndarray, " E"]] | None = None,
    held_out_batches: int | None = None,
) -> dict[str, Accuracy]:
    """Accuracy of a run's last weights, by the margins of its objective. Log-probs of the reference that the run has
    stored are read, others are computed.

    Args:
        trained_steps: number of steps of the first epoch whose pairs count as training pairs.
        kinds: name of a group of held-out pairs -> mask of its pairs; None for one group, "held-out pairs".
        held_out_batches: limit of held-out batches to score; None for all.
    Raises:
        ConfigError: the run counts padding as axolotl does.
    Returns:
        "training pairs", then the groups with at least one scored pair.
    """
    setup = prepare(config.model_copy(update={"eval": config.eval.model_copy(update={"every_steps": 1})}))
    objective = setup.objective
    assert isinstance(objective, PairObjective) and setup.eval_loader is not None
    if config.compat.orpo_padding == "axolotl":  # its margins also read log-probs of prompts
        raise ConfigError("compat.orpo_padding = axolotl: pairs are not scored with it; allowed: trl | null")

    @jax.jit
    def margins_of(sums: Float[Array, "M B S 2"], batch: Batch) -> Float[Array, "M B S"]:
        def margins(args: tuple[Array, Batch]) -> Array:
            sums, micro = args
            scores = branch_scores(jnp.zeros(micro.tokens.shape, jnp.float32), micro)
            return objective.margins(dataclasses.replace(scores, sums=sums), micro)

        return jax.lax.map(margins, (sums, batch))

    stored = _stored_logps(setup)
    reference = functools.cache(lambda: setup.reference_params(setup.reference_step))
    weights = {
        "trained": open_model(config.run.dir).load(dtype=jnp.float32, shardings=setup.program.state_shardings.params)
    }
    if not objective.needs_reference:
        weights["at start"] = setup.initial_params(jnp.float32)
    accuracies: dict[str, Accuracy] = {}
    for split, loader in (("train", setup.loader), ("eval", setup.eval_loader)):
        margins: dict[str, dict[int, float]] = {name: {} for name in weights}
        steps = range(loader.steps(0))
        if split == "train":
            steps = steps[:trained_steps]
        limit = _TRAINING_BATCHES if split == "train" else held_out_batches or len(steps)
        steps = steps[:: -(-len(steps) // limit)]
        batches = loader.epoch(reference_logps=stored.get(split))
        for step, loaded in enumerate(itertools.islice(batches, steps[-1] + 1)):
            if step not in steps:
                continue
            batch = loaded.batch
            if objective.needs_reference and split not in stored:
                logps = setup.program.reference(reference(), batch)
                batch = dataclasses.replace(batch, reference_logps=logps)
            valid = jax.device_get(batch.valid)
            ids = jax.device_get(batch.example_id)[valid].tolist()
            for name, params in weights.items():
                sums = setup.program.reference(params, batch)  # a program that a run with a reference has compiled
                margins[name].update(zip(ids, jax.device_get(margins_of(sums, batch))[valid].tolist(), strict=True))
        lengths = loader.dataset.lengths
        if split == "train":
            accuracies["training pairs"] = _accuracy(margins, lengths, list(margins["trained"]))
        else:
            for name, mask in (kinds or {"held-out pairs": np.ones(len(lengths), bool)}).items():
                accuracies[name] = _accuracy(margins, lengths, np.flatnonzero(mask).tolist())
    return {name: accuracy for name, accuracy in accuracies.items() if accuracy.pairs}


def _stored_logps(setup: Setup) -> dict[str, np.ndarray]:
    """[E, 2] float32 of the splits of which the run has scored all that it reads."""
    if not setup.objective.needs_reference or setup.config.reference.mode == "online":
        return {}
    return {store.name: store.logps for store in open_stores(setup) if not store.missing()}


def _accuracy(margins: dict[str, dict[int, float]], lengths: np.ndarray, ids: list[int]) -> Accuracy:
    trained, start = margins["trained"], margins.get("at start")
    ids = [example for example in ids if example in trained]
    return Accuracy(
        right=sum(trained[example] > 0 for example in ids),
        pairs=len(ids),
        longer_wins=_share([int(lengths[example, 1]) - int(lengths[example, 2]) for example in ids]),
        at_start=None if start is None else _share([start[example] for example in ids]),
        margin_grew=None if start is None else _share([trained[example] - start[example] for example in ids]),
    )


def _share(differences: list[int] | list[float]) -> float:
    """How often a difference is positive; ties count half."""
    return float(np.mean(np.sign(differences or [0]) / 2 + 0.5))
