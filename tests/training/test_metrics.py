"""Writers of metrics: what they write and keep, and where they cannot write."""

import sys
from unittest import mock

import pytest

from janus_jax.errors import ConfigError, StorageError
from janus_jax.training.metrics import JsonLines, MetricsLog
from janus_jax.training.run import train
from tests.support.run_configs import run_config


def test_a_full_disk_is_an_error_of_storage_that_names_the_file(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines._file.close()
    lines._file = open("/dev/full", "a")
    for act in (lambda: lines.write("train", 1, {"loss": 1.0}), lines.close):  # close writes the rest
        with pytest.raises(StorageError, match=r"metrics\.jsonl: cannot be written: No space left on device"):
            act()


def test_a_missing_package_is_found_before_data_or_weights_are_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = run_config(tmp_path, tmp_path / "run", logging={"wandb": True})  # its data does not exist
    with pytest.raises(ConfigError, match=r"logging\.wandb=true: wandb is not installed"):
        train(config, writers=())
    assert not (tmp_path / "run").exists()


def test_mfu_is_the_rate_of_tokens_times_what_a_token_takes(monkeypatch):
    written: list[dict[str, float]] = []
    clock = iter((0.0, 10.0, 10.0))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    writer = mock.Mock(write=lambda kind, step, values: written.append(dict(values)))
    log = MetricsLog([writer], mfu_per_rate=2e-5)
    log.count(50_000, waited_s=1.0)
    log.train(1, {"loss": 1.0})
    assert written == [{"loss": 1.0, "tokens_per_s": 5000.0, "data_wait": 0.1, "mfu": 0.1}]
