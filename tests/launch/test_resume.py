"""`run` refuses what the hosts would refuse: a configuration that a run directory's newest checkpoint is not of."""

import json
import subprocess
import sys

import pytest

from janus_jax.config.same_run import stored_config
from janus_jax.errors import ConfigError, HeldError
from launch.errors import CloudError, Kind
from launch.runs import start
from launch.runs.resume import require_same_config
from tests.support.launches import beat, context, run_record
from tests.support.run_configs import run_config

RUN = "gs://bkt/runs/demo"


def saved(store, config, step=10, **changes):
    meta = {"config": {**stored_config(config), **changes}}
    store.put(f"{RUN}/checkpoints/{step}/meta/metadata", json.dumps(meta).encode())
    store.put(f"{RUN}/checkpoints/{step}/commit_success.txt", b"")


@pytest.fixture
def config(tmp_path):
    return run_config(tmp_path, "runs/mine")


def test_a_key_that_must_stay_is_named_with_both_values_and_the_directory(store, config, tmp_path):
    saved(store, config, 9, schedule={})  # an older step, which does not count
    saved(store, config, 10)
    other = run_config(tmp_path, "runs/mine", schedule={"learning_rate": 1e-4}, batch={"rows": 16})
    with pytest.raises(ConfigError) as refused:
        require_same_config(context(store), other, RUN)
    text = str(refused.value)
    assert text.startswith(
        f"run.dir={RUN}: holds a run with batch.rows = 8, not 16; schedule.learning_rate = 0.003, no"
    )
    assert f"init.from={RUN}" in text


def test_what_may_change_may(store, config, tmp_path):
    saved(store, config)
    other = run_config(tmp_path / "elsewhere", "runs/other", eval={"every_steps": 2}, mesh={"data": 1, "fsdp": 4})
    other = other.model_copy(update={"schedule": other.schedule.model_copy(update={"epochs": 9})})
    require_same_config(context(store), other, RUN)


def test_weights_of_this_workstation_have_another_name_in_the_bucket(store, config):
    def begun_from(path):
        return config.model_copy(update={"init": config.init.model_copy(update={"from_": path})})

    saved(store, begun_from("gs://bkt/inputs/model-0123"))
    require_same_config(context(store), begun_from("models/mine"), RUN)
    with pytest.raises(ConfigError, match=r"init\.from = gs://bkt/inputs/model-0123, not gs://bkt/else"):
        require_same_config(context(store), begun_from("gs://bkt/else"), RUN)


@pytest.mark.parametrize("content", [b"{", b"{}", b"[]", b'{"config": {"schedule": {}}}', b'{"config": null}'])
def test_what_cannot_be_read_is_left_to_the_hosts(store, config, content):
    store.put(f"{RUN}/checkpoints/10/meta/metadata", content)
    store.put(f"{RUN}/checkpoints/10/commit_success.txt", b"")
    require_same_config(context(store), config, RUN)


def test_a_new_directory_and_one_that_is_not_here_say_nothing(store, config, capsys):
    require_same_config(context(store), config, RUN)
    require_same_config(context(store), config, "/mnt/shared/run")
    store.refusal = lambda call, url: CloudError(Kind.PERMISSION, "permission: no")
    require_same_config(context(store), config, RUN)
    assert f"{RUN}: not looked at; the hosts will: permission: no" in capsys.readouterr().err


def test_a_run_that_goes_on_is_the_better_reason(store):
    run = run_record()
    start.require_quiet(context(store))
    store.put("gs://bkt/launch/demo/run.json", run.dumps().encode())
    store.now += 1000
    start.require_quiet(context(store))
    beat(store, run, 0)
    with pytest.raises(HeldError, match="run demo-1 of ann@here goes on on this slice: 1 host of it sent a heartbeat"):
        start.require_quiet(context(store))


def test_the_rule_needs_no_jax():
    code = "import sys; import launch.runs.resume, janus_jax.config.same_run; assert 'jax' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
