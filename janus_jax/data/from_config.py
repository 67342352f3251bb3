"""The data sets and packed rows of a configuration. Reads files, uses no devices."""

import dataclasses
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from janus_jax.config.run import RunConfig
from janus_jax.data import fetch
from janus_jax.data.dataset import Dataset, TokenizedDataset
from janus_jax.data.epoch import BatchSettings, PackedEpochs
from janus_jax.data.mixture import Mixture
from janus_jax.data.rows import FittedExamples
from janus_jax.errors import ConfigError, DataError, counted
from janus_jax.objectives import build_objective

DEMO = "janus-demo"
"""Where `janus demo` writes, unless told otherwise; its configurations read their data there."""


def open_training(config: RunConfig) -> Dataset:
    """The training data: `data.dir`, or the mixture of the parts of `data.mixture`.

    Raises:
        DataError: a directory is not a built data set, or the parts do not match.
        StorageError: data on gs:// cannot be copied to this machine.
        ConfigError: the data was built with another token boundary than `compat.token_boundary`, or with or without
            BOS contrary to `compat.bos`.
    """
    data = config.data
    if data.dir is not None:
        return _open("data.dir", data.dir, data.split, config)
    assert data.mixture is not None
    parts = [_open("data.mixture", part.dir, data.split, config) for part in data.mixture]
    weights = [part.weight for part in data.mixture if part.weight is not None]
    return Mixture(parts, weights or None, data.examples)


def open_held_out(config: RunConfig) -> Dataset | None:
    """The evaluation data; None without evaluation. Raises the errors of `open_training`."""
    data = config.data
    if config.eval.every_steps is None:
        return None
    if data.eval_dir is not None or data.mixture is None:
        directory = data.eval_dir or data.dir
        assert directory is not None
        return _open("data.eval_dir", directory, data.eval_split, config)
    return Mixture([_open("data.mixture", part.dir, data.eval_split, config) for part in data.mixture])


def batch_settings(config: RunConfig) -> BatchSettings:
    """The batch unit; `compat.overlong_pairs` may change its policy for over-long examples, `compat.orpo_padding` adds
    slots of padding."""
    policy = "zero_grad" if config.compat.overlong_pairs == "zero_grad" else config.batch.overlong
    settings = BatchSettings(**config.batch.model_dump())
    return dataclasses.replace(settings, overlong=policy, padding=config.compat.orpo_padding)


def eval_batch_settings(config: RunConfig, training_rows: int) -> BatchSettings:
    """The batch unit of evaluation: one microbatch of `eval.rows` rows, or of as many as training's microbatches have.

    Args:
        training_rows: rows of a training batch, all microbatches together.
    """
    settings = batch_settings(config)
    rows = config.eval.rows or training_rows // settings.microbatches
    return dataclasses.replace(settings, rows=rows, examples=None, microbatches=1, keep_together=1)


def packed_epochs(config: RunConfig, *, row_shards: int = 1) -> PackedEpochs:
    """The packed rows of a run's training split.

    If a batch is a number of examples, its number of rows is a multiple of `row_shards`, which depends on the mesh.

    Raises:
        ConfigError, DataError: the errors that training would raise.
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


_OUTCOMES = {
    "dropped": "{} over-long and dropped; `janus data inspect` shows their lengths",
    "truncated": "{} over-long and truncated; `janus data inspect` shows their lengths",
    "zeroed": "{} over-long and left without responses; `janus data inspect` shows their lengths",
    "equal_pairs": "{} dropped: chosen and rejected have the same tokens, as they are read",
    "keep_together": "{} dropped: a neighbour in their block is",
}


def fit_counts(fitted: FittedExamples) -> dict[str, Any]:
    """How many examples of a split are read, and what became of the over-long ones and of others left out."""
    groups = {"overlong": ("dropped", "truncated", "zeroed"), "left_out": ("equal_pairs", "keep_together")}
    counts = {group: {name: fitted.counts[name] for name in names} for group, names in groups.items()}
    return {"examples": len(fitted.index), **counts}


def _are(count: int, total: int, role: str) -> str:
    return f"{count:,} of {counted(total, f'{role} example')} {'is' if count == 1 else 'are'}"


def fit_lines(role: str, examples: int, overlong: Mapping[str, int], left_out: Mapping[str, int]) -> list[str]:
    """One line for each count of `fit_counts` that is not zero.

    Args:
        role: `training` or `held-out`.
    """
    total = examples + overlong["dropped"] + sum(left_out.values())
    keys = dict.fromkeys(overlong, "batch.max_sequence_length, batch.row_length") | {
        "equal_pairs": "equal pairs",
        "keep_together": "batch.keep_together",
    }
    return [
        f"{keys[what]}: {_OUTCOMES[what].format(_are(count, total, role))}"
        for what, count in {**overlong, **left_out}.items()
        if count
    ]


def describe(part: TokenizedDataset) -> dict[str, Any]:
    """The facts about a training data set that an exported model states."""
    names = ("source", "kind", "template", "boundary", "bos", "marks", "derived")
    facts = {name: getattr(part.manifest, name) for name in names}
    records = sum(split.examples for split in part.manifest.splits.values())
    spelled = (part.manifest.served or {}).get("control_text")  # of all splits; None: not counted
    return {
        **facts,
        "fingerprint": part.fingerprint,
        "examples": len(part),
        "records": records,
        "control_text": spelled,
    }


def _open(key: str, directory: str, split: str, config: RunConfig) -> TokenizedDataset:
    first, *rest = Path(directory).parts
    if first == DEMO and not Path(directory).exists():
        flag = f" --objective {rest[-1]}" if rest and rest[-1] in ("orpo", "rm") else ""
        raise DataError(
            directory, f"no such directory; `janus demo{flag}` makes it, and other data are named by {key}=DIR"
        )
    dataset = TokenizedDataset(fetch.dataset(directory, split), split)
    dataset.name = directory  # and not that of a copy
    built, required = dataset.manifest.boundary, config.compat.token_boundary
    if built != required:  # nothing converts ids from one boundary to the other
        raise ConfigError(
            f"{key}={directory}: was built with token boundary {built}, but compat.token_boundary={required}; "
            f"set that to {built}, or build the data again: {_build_command(dataset, required, config.compat.bos)}"
        )
    if dataset.manifest.bos != config.compat.bos:
        was = "with" if dataset.manifest.bos else "without"
        raise ConfigError(
            f"{key}={directory}: was built {was} BOS, but compat.bos={str(config.compat.bos).lower()}; set that to "
            f"{str(dataset.manifest.bos).lower()}, or build the data again: "
            f"{_build_command(dataset, required, config.compat.bos)}"
        )
    return dataset


def _build_command(dataset: TokenizedDataset, boundary: str, bos: bool) -> str:
    """The command that builds the same data set with this token boundary, and with or without BOS."""
    manifest, directory, derived = dataset.manifest, dataset.name, dataset.manifest.derived
    drawn = manifest.validation_seed if manifest.validation_fraction else None
    sources = re.fullmatch(r"(.*?)(?:, validation=(.*))?", manifest.source, re.DOTALL)
    assert sources is not None
    options = {
        "--kind" if derived is None else "--derive": manifest.kind,
        "--seed": str(derived["seed"]) if derived else (None if drawn is None else str(drawn)),
        "--source": sources[1],
        "--validation-source": sources[2],
        "--validation-fraction": manifest.validation_fraction and str(manifest.validation_fraction),
        "--min-margin": None if (least := (manifest.ratings or {}).get("min_margin")) is None else str(least),
        "--template": manifest.template,
        "--boundary": boundary,
        "--tokenizer": f"{directory}/tokenizer",
        "--out": f"{directory}_{boundary}{'' if bos else '_no_bos'}",
    }
    flags = {
        "--no-bos": not bos,
        "--all-pairs": derived is not None and derived["all_pairs"],
        "--margin-from-ratings": bool(manifest.ratings and manifest.ratings["as_margin"]),
        "--dedupe": manifest.dedupe,
        "--skip-bad": any(split.dropped for split in manifest.splits.values()),
    }
    words = [word for name, value in options.items() if value is not None for word in (name, value)]
    return shlex.join(["janus", "data", "build", *words, *(name for name, given in flags.items() if given)])
