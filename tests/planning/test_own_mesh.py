"""The example of docs/slices.md does what it says: it is run as it stands, for simulated devices and a small model."""

import re

import pytest

import janus_jax.config.run
from tests.support.repository import ROOT
from tests.support.run_configs import run_config

PAGE = ROOT / "docs" / "slices.md"


def test_the_example_of_a_mesh_of_ones_own_runs(data, tmp_path, monkeypatch, capsys):
    lines = re.findall(r"^ {4}(.*)$|^()$", PAGE.read_text(encoding="utf-8").split("## A mesh of your own")[1], re.M)
    code = "\n".join(first for first, _ in lines).split("janus time-step")[0]
    assert 15 <= len(code.strip().splitlines()) <= 22
    seen = []

    def load(path, changes):
        seen.append((path, tuple(changes)))
        rules = dict(change.removeprefix("sharding.").split("=") for change in changes)
        one_at_a_time = {"batch": {"microbatches": 1}, "eval": {"every_steps": None}}
        return run_config(data, tmp_path / "run", "sft", sharding=dict.fromkeys(rules), **one_at_a_time)

    monkeypatch.setattr(janus_jax.config.run, "load_config", load)
    for real, simulated in (('"v5litepod-16"', '"cpu:8"'), ("reshape(4, 4)", "reshape(4, 2)"), ("chips.T", "chips")):
        assert real in code
        code = code.replace(real, simulated)
    exec(compile(code, str(PAGE), "exec"), {})
    out = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in out] == [
        f"{mesh}, {rule}" for mesh in ("rows", "columns") for rule in ("usual", "whole vocabulary")
    ]
    sent = [float(re.search(r"; (\d+) bytes, ([\d.]+) sent", line)[2]) for line in out]
    assert all(sent) and sent[0] == pytest.approx(sent[2]) and len(set(seen)) == 2
