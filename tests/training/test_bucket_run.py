"""A run whose data lie in a bucket is the run on a local copy of them."""

import shutil
import subprocess
import sys

import pytest
import yaml

from janus_jax.checkpoint.convert import from_hf, to_hf
from janus_jax.checkpoint.stored_model import open_model
from janus_jax.errors import ConfigError
from janus_jax.storage.bucket import Prefix
from janus_jax.training.run import train
from tests.support import processes
from tests.support.repository import ROOT
from tests.support.run_configs import SIX_STEPS, run_config
from tests.support.runs import assert_equal_trees, final_params, metric_lines
from tests.support.training_examples import random_examples, write_dataset


def measured(run):
    """Records without their clocks."""
    return [{k: v for k, v in line.items() if k not in ("tokens_per_s", "data_wait")} for line in metric_lines(run)]


def test_a_run_on_a_bucket_is_bit_for_bit_the_local_one(bucket, tmp_path, monkeypatch):
    splits = {"train": random_examples(60, pairs=False, seed=1), "validation": random_examples(9, pairs=False, seed=2)}
    local = write_dataset(tmp_path / "sft", splits, kind="sft")
    names = [path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file()]
    url = f"{bucket}/data/sft"
    Prefix(url).upload(local, names)

    train(run_config(tmp_path, tmp_path / "local", schedule=SIX_STEPS), writers=())
    changed = {"schedule": SIX_STEPS, "data": {"dir": url}}
    stopped = train(run_config(tmp_path, tmp_path / "far", **changed), until_step=3, writers=())
    resumed = train(run_config(tmp_path, tmp_path / "far", **changed), writers=())
    assert (stopped.step, resumed.resumed_from, resumed.step) == (3, 3, 6)
    assert measured(tmp_path / "far") == measured(tmp_path / "local")
    assert_equal_trees(final_params(tmp_path / "far"), final_params(tmp_path / "local"))
    assert yaml.safe_load((tmp_path / "far" / "config.yaml").read_text())["data"]["dir"] == url
    assert (tmp_path / "far" / "tokenizer" / "tokenizer.model").is_file()
    shutil.rmtree(tmp_path / "far" / "tokenizer")
    with monkeypatch.context() as away:  # a run that is opened for its weights does not ask for its data
        away.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
        assert open_model(tmp_path / "far").tokenizer_directory is None
    with pytest.raises(ConfigError, match=rf"^data\.dir={url}: .* --tokenizer {url}/tokenizer --out {url}_joint$"):
        train(run_config(tmp_path, tmp_path / "other", compat={"token_boundary": "joint"}, **changed), writers=())


def test_wrong_data_end_the_command_in_one_line_that_names_the_url(bucket, tmp_path):
    local = write_dataset(tmp_path / "dpo", {"train": random_examples(9, pairs=True)}, kind="dpo")
    tokens = "train/tokens-00000-of-00001.array_record"
    whole = (local / tokens).read_bytes()
    (local / tokens).write_bytes(whole[:-10])
    url = f"{bucket}/data/dpo"
    names = [path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file()]
    Prefix(url).upload(local, names)
    for directory, code, message in (
        (url, 2, f"error: {url}/train: manifest, lengths.npy, margins and token files disagree"),
        (
            f"{bucket}/none",
            14,
            f"error: {bucket}/none/manifest.json: cannot be read: no such object; `janus data build",
        ),
    ):
        command = ["train", "configs/demo_sft.yaml", f"data.dir={directory}", f"run.dir={tmp_path}/run"]
        done = subprocess.run(
            [sys.executable, "-m", "janus_jax.cli", *command, "--devices", "8"],
            cwd=ROOT,
            env=processes.environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == code and done.stderr.startswith(message), done.stderr
        assert done.stderr.count(directory) == 1 and done.stderr.count(f"{tmp_path}/cache/data/") == (code == 2)
        assert done.stderr.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["hf", "converted"])
def test_a_run_from_weights_in_a_bucket_is_the_run_from_local_ones(kind, bucket, tmp_path):
    local = write_dataset(tmp_path / "sft", {"train": random_examples(30, pairs=False, seed=1)}, kind="sft")
    few = {"data": {"dir": str(local)}, "schedule": {"epochs": None, "steps": 2}, "eval": {"every_steps": None}}
    train(run_config(tmp_path, tmp_path / "first", **few), writers=())
    to_hf(tmp_path / "first", tmp_path / "hf", verify="none")
    convert = {"hf": to_hf, "converted": from_hf}[kind]
    convert(tmp_path / "hf", f"{bucket}/weights", verify="none")
    for name, start in (("local", str(tmp_path / "hf")), ("far", f"{bucket}/weights")):
        train(run_config(tmp_path, tmp_path / name, **few, model=None, init={"from": start}), writers=())
    assert measured(tmp_path / "far") == measured(tmp_path / "local")
    assert_equal_trees(final_params(tmp_path / "far"), final_params(tmp_path / "local"))
    copied = [path.name for path in (tmp_path / "cache").rglob("*.safetensors")]
    assert len(copied) == (kind == "hf")
