"""What a run has left: its metrics, its parameters and its summary."""

import json

import jax
import numpy as np

from janus_jax.checkpoint.stored_model import open_model
from janus_jax.training.run import Summary


def metric_lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run):
    return {line["step"]: line["loss"] for line in metric_lines(run) if line["kind"] == "train"}


def final_params(run):
    return open_model(run).load_host()


def ended(**changes) -> Summary:
    """The summary of a finished run of nine steps."""
    values = {
        "train": {},
        "evaluation": {},
        "best": {},
        "examples": 1,
        "overlong": {},
        "left_out": {},
        "held_out": {},
        "ended": "finished",
        "tokens_per_s": 1.0,
        "fill": 1.0,
        "failed_saves": 0,
        "skipped": 0,
        "goodput": {},
    }
    values |= {"run_dir": "run", "step": 9, "total_steps": 9, "resumed_from": None, "export_dir": None}
    values |= {"failed_uploads": 0}
    return Summary(**{**values, "seconds": 3725.0, "tokens": 12345, **changes})


def assert_equal_trees(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
