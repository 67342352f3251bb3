"""Two processes of four devices generate what one device does, with a copy of weights that they have read.

tests/cli/test_generate_on_hosts.py and test_scores_on_hosts.py do so with the stored weights."""

import json

import jax
import numpy as np

from janus_jax.checkpoint.stored_model import open_model
from janus_jax.generation.engine import Engine
from tests.support import generating, processes, torch_models


def test_two_processes_say_what_one_says(tmp_path):
    torch_models.mistral(sliding_window=7).save_pretrained(tmp_path / "hf")
    port = processes.free_port()
    processes.run(*(["-m", "tests.support.generating", port, number, tmp_path] for number in range(2)))
    engine = Engine.stored(open_model(tmp_path / "hf"), devices=jax.devices()[:1], rows=6, steps_per_call=4)
    expected = generating.told(engine)
    assert len(expected["texts"]) == 10
    for number in range(2):
        made = json.loads((tmp_path / f"{number}.json").read_text())
        assert made["texts"] == expected["texts"]
        for ours, theirs in zip(made["log_probs"], expected["log_probs"], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)
