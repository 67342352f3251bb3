"""The examples and the rows of a configuration. Files are read, no device is asked for."""

import dataclasses
import re
import shlex
from typing import Any

from janus_jax.config.run import RunConfig
from janus_jax.data import fetch
from janus_jax.data.dataset import Dataset, TokenizedDataset
from janus_jax.data.epoch import BatchSettings, PackedEpochs
from janus_jax.data.mixture import Mixture
from janus_jax.data.rows import FittedExamples
from janus_jax.errors import ConfigError
from janus_jax.objectives import build_objective


def open_training(config: RunConfig) -> Dataset:
    """What is trained on: `data.dir`, or the parts of `data.mixture`.

    Raises:
        DataError: something is not a built data set, or does not go with the others.
        StorageError: data on gs:// that cannot be copied here.
        ConfigError: it was built with another token boundary than `compat.token_boundary`.
    """
    data = config.data
    if data.dir is not None:
        return _open("data.dir", data.dir, data.split, config)
    assert data.mixture is not None
    parts = [_open("data.mixture", part.dir, data.split, config) for part in data.mixture]
    weights = [part.weight for part in data.mixture if part.weight is not None]
    return Mixture(parts, weights or None, data.examples)


def open_held_out(config: RunConfig) -> Dataset | None:
    """What is evaluated on; None without evaluation. Raises as `open_training`."""
    data = config.data
    if config.eval.every_steps is None:
        return None
    if data.eval_dir is not None or data.mixture is None:
        directory = data.eval_dir or data.dir
        assert directory is not None
        return _open("data.eval_dir", directory, data.eval_split, config)
    return Mixture([_open("data.mixture", part.dir, data.eval_split, config) for part in data.mixture])


def batch_settings(config: RunConfig) -> BatchSettings:
    """The batch unit, with the policy for over-long examples that `compat` may change."""
    policy = "zero_grad" if config.compat.overlong_pairs == "zero_grad" else config.batch.overlong
    return dataclasses.replace(BatchSettings(**config.batch.model_dump()), overlong=policy)


def eval_batch_settings(config: RunConfig, training_rows: int) -> BatchSettings:
    """The batch unit of evaluation: one microbatch of `eval.rows` rows, or of as many as training's microbatches have.

    Args:
        training_rows: rows of a training batch, all microbatches together.
    """
    settings = batch_settings(config)
    rows = config.eval.rows or training_rows // settings.microbatches
    return dataclasses.replace(settings, rows=rows, examples=None, microbatches=1, keep_together=1)


def packed_epochs(config: RunConfig, *, row_shards: int = 1) -> PackedEpochs:
    """The rows of a run's training split. Where a batch is a number of examples, how many rows it takes depends on
    the mesh; without devices it is the fewest.

    Raises:
        ConfigError, DataError: as training would.
    """
    objective = build_objective(config)
    return PackedEpochs(
        open_training(config),
        batch_settings(config),
        branches=objective.branches,
        head=objective.head,
        seed=config.run.seed,
        epochs=config.schedule.epochs or 0,
        steps=config.schedule.steps or 0,
        row_shards=row_shards,
    )


def overlong_lines(fitted: FittedExamples) -> list[str]:
    """What the over-long policy did to the training split, where it did something."""
    counts = {"dropped": fitted.dropped, "truncated": fitted.truncated, "left without responses": fitted.zeroed}
    total = len(fitted.index) + fitted.dropped
    return [
        f"batch.max_sequence_length, batch.row_length: {count:,} of {total:,} training examples are over-long and "
        f"{what}; `janus data inspect` shows their lengths"
        for what, count in counts.items()
        if count
    ]


def describe(part: TokenizedDataset) -> dict[str, Any]:
    """What an exported model says of a data set that it was trained on."""
    manifest = part.manifest
    told = {name: getattr(manifest, name) for name in ("source", "kind", "template", "boundary", "derived")}
    return {**told, "fingerprint": part.fingerprint, "examples": len(part)}


def _open(key: str, directory: str, split: str, config: RunConfig) -> TokenizedDataset:
    dataset = TokenizedDataset(fetch.dataset(directory, split), split)
    _check_boundary(key, dataset, config)
    return dataset


def _check_boundary(key: str, dataset: TokenizedDataset, config: RunConfig) -> None:
    """Ids that are cut differently are other data: nothing converts them, so the message says how to build them."""
    wanted, manifest, directory = config.compat.token_boundary, dataset.manifest, dataset.directory
    if manifest.boundary == wanted:
        return
    held_out = re.fullmatch(r"train=(.*), validation=(.*)", manifest.source)
    train, *others = held_out.groups() if held_out else (manifest.source,)
    derived = manifest.derived
    options = {"kind": manifest.kind} if derived is None else {"derive": manifest.kind, "seed": str(derived["seed"])}
    options |= {"source": train, "template": manifest.template, "boundary": wanted}
    options |= {"tokenizer": f"{directory}/tokenizer", "out": f"{directory}_{wanted}"}
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    arguments += ["--all-pairs"] * bool(derived and derived["all_pairs"])
    arguments += ["--skip-bad"] * any(split.dropped for split in manifest.splits.values())
    arguments += [part for source in others for part in ("--validation-source", source)]
    command = shlex.join(["janus", "data", "build", *arguments])
    raise ConfigError(
        f"{key}={directory}: was built with token boundary {manifest.boundary}, but compat.token_boundary={wanted}; "
        f"set that to {manifest.boundary}, or build the data anew: {command}"
    )
