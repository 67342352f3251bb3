"""What a run has left: its metrics and its parameters."""

import json

import jax
import numpy as np

from janus_jax.checkpoint.stored_model import open_model


def metric_lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run):
    return {line["step"]: line["loss"] for line in metric_lines(run) if line["kind"] == "train"}


def final_params(run):
    return open_model(run).load_host()


def assert_equal_trees(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
