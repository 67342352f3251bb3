"""Configurations of runs: the smallest file, a run of the tiny model, and those in configs/."""

import pytest

from janus_jax.config.run import RunConfig, load_config
from janus_jax.errors import ConfigError
from tests.support.repository import ROOT

CONFIGS = ROOT / "configs"
BASES = sorted(CONFIGS.glob("base_*.yaml"))
RUNS = sorted(set(CONFIGS.glob("*.yaml")) - set(BASES))

SMALLEST_YAML = """\
run: {dir: out}
model: {preset: tiny}
data: {dir: data/sft}
batch:
  rows: 8
  row_length: 256
  max_sequence_length: 128
objective: {name: sft}
schedule: {name: cosine, learning_rate: 5e-6, epochs: 1}
"""

TINY_MODEL = {
    "preset": "tiny",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "head_dim": 8,
}
"""`TINY` of training_examples.py as a configuration writes it."""
ONE_LAYER = TINY_MODEL | {"num_layers": 1}
SIX_STEPS = {"epochs": None, "steps": 6}  # tests that share it compile it once


def run_config(root, run, kind="sft", **changes) -> RunConfig:
    """A run of `TINY` on the data set root/kind in the directory `run`; sections in `changes` are merged in."""
    values = {
        "run": {"dir": str(run), "seed": 3},
        "model": TINY_MODEL,
        "data": {"dir": str(root / kind)},
        "batch": {"rows": 8, "row_length": 64, "max_sequence_length": 32, "microbatches": 2},
        "objective": {"name": kind},
        "schedule": {"name": "cosine", "learning_rate": 3e-3, "warmup_steps": 2, "epochs": 3},
        "mesh": {"data": 2, "fsdp": 2, "tensor": 2},
        "precision": {"compute": "float32"},
        "eval": {"every_steps": 4},
        "logging": {"tensorboard": False, "curves": False},
    }
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) and key in values else value
    return RunConfig.model_validate(values)


def recipe(name="sft_65k", *overrides) -> RunConfig:
    """A file of configs/ with overrides as on the command line."""
    return load_config(ROOT / f"configs/{name}.yaml", overrides)


def complaint(path, *overrides) -> str:
    """The message with which a configuration is refused."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)
