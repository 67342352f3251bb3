"""The short rehearsal: the real gcloud, machines that are directories, a training, a preemption, and no orphan.

It takes one core for a minute and a half, so `.ci/run` runs it beside an installation:

    pytest -n 0 -m slow tests/launch/test_rehearsal.py

The long one is `python -m tests.benchmarks.rehearsal`.
"""

import json
import shutil
import time

import pytest

from janus_jax.config.run import to_yaml
from tests.support.cloud import BUCKET, alone, cloud, needs_gcloud
from tests.support.run_configs import ONE_LAYER, run_config
from tests.support.training_examples import random_examples, write_dataset

STEPS, EVERY = 30, 10
PATIENCE_S = 240


@pytest.mark.slow
@needs_gcloud
def test_a_training_goes_from_the_workstation_through_a_preemption_to_its_export(tmp_path):
    with alone(), cloud(tmp_path / "cloud") as place:
        place.settings()
        place.tpu.polls = 0  # operations are done when gcloud asks for the first time
        config = tmp_path / "tiny.yaml"
        config.write_text(tiny(tmp_path))
        run = place.buckets / BUCKET.removeprefix("gs://") / "runs/janus"

        assert "2 hosts" in place.launch("up").stdout
        assert "2 hosts ready" in place.launch("setup").stdout
        assert f"{BUCKET}/runs/janus" in place.launch("run", config, f"run.dir={BUCKET}/runs/janus").stdout
        until(lambda: [*run.glob("checkpoints/*/commit_success.txt")], place)
        hosts = place.hosts("janus")
        place.preempt("janus")
        shutil.rmtree(place.scratch / "home/.cache")  # another workstation has nothing either
        place.launch("watch", "--once")
        assert len(place.hosts("janus")) == 2 and not set(place.hosts("janus")) & set(hosts)
        until((run / "summary.json").exists, place)

        parts = [part.read_text().splitlines() for part in sorted(run.glob("metrics/*.jsonl"))]
        steps = [line["step"] for part in parts for line in map(json.loads, part) if line["kind"] == "train"]
        assert {*steps} == {*range(1, STEPS + 1)}
        summary = json.loads((run / "summary.json").read_text())
        assert summary["step"] == STEPS and summary["resumed_from"] >= EVERY
        record = json.loads((run.parents[1] / "launch/janus/run.json").read_text())
        assert (record["attempt"], record["run_dir"]) == (2, f"{BUCKET}/runs/janus")

        assert f"{STEPS}" in place.launch("status").stdout
        place.launch("pull", f"{BUCKET}/runs/janus", tmp_path / "pulled")
        assert [*(tmp_path / "pulled").glob("**/*.safetensors")]
        place.launch("down")
        assert place.most_at_once() <= 16
        shown = (tmp_path / "cloud/ssh.jsonl").read_text() + (tmp_path / "cloud/requests.jsonl").read_text()
        assert "a-token-of-the-rehearsal" not in shown


def tiny(directory) -> str:
    """A run of a model of one layer."""
    splits = {name: random_examples(count, pairs=False) for name, count in (("train", 64), ("validation", 8))}
    write_dataset(directory / "sft", splits, kind="sft")
    changes = {"model": ONE_LAYER, "schedule": {"epochs": None, "steps": STEPS}, "eval": {"every_steps": STEPS}}
    changes |= {"checkpoint": {"every_steps": EVERY, "keep": 2}, "batch": {"microbatches": 1}}
    changes |= {"logging": {"every_steps": 1}, "export": {"hf": True}}
    return to_yaml(run_config(directory, f"{BUCKET}/runs/janus", **changes))


def until(holds, place) -> None:
    """Waits; shows what the hosts printed if it is in vain, or if the run has ended without it."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        beats = [place.home(address) / "janus/run/heartbeat.json" for address in place.hosts("janus")]
        ended = all(beat.exists() and '"ended"' in beat.read_text() for beat in beats) and not holds()
        logs = place.scratch.glob("hosts/*/janus/run/log*")
        assert not ended and time.monotonic() < deadline, "\n".join(log.read_text()[-2000:] for log in logs)
        time.sleep(0.1)
