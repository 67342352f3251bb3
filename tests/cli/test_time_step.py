"""The command `janus time-step`, on the devices of the tests. On two hosts: test_on_hosts.py."""

import json

import jax
import pytest

from janus_jax.planning import timing


def test_a_step_is_timed_beside_its_plan(janus, small, tmp_path):
    small_model = ("model.vocab_size=96", "batch.row_length=64", "batch.max_sequence_length=32")
    options = ("--devices", 8, "--steps", 2, "--json", "times.json", "--trace", "trace", *small_model)
    code, out, err = janus("time-step", small, *options)
    assert (code, err) == (0, "") and out.startswith("MEASURED on 8 x cpu: ")
    words = " ".join(out.split())
    assert "median of 2 steps" in words and "the compiler's" in words and "no figures for cpu:8" in words
    assert out.endswith("wrote times.json\nwrote trace\n") and list(tmp_path.glob("trace/**/*.xplane.pb"))
    result = json.loads((tmp_path / "times.json").read_text())
    assert len(result["seconds"]) == 2 and result["devices"] == 8 == result["plan"]["target"]["chips"]
    assert result["tokens_per_s"] == pytest.approx(result["tokens_per_step"] / result["median_s"])
    assert result["flops_per_s"] == pytest.approx(result["plan"]["flops"]["model"] / 8 / result["median_s"])
    assert result["mfu"] is None and result["plan"]["memory"]["needed"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--coordinator", "10.0.0.2:1"), "--coordinator, --num-processes and --process-id: allowed: all three"),
        (("--trace", "small.yaml/trace"), "--trace small.yaml/trace: cannot be written"),
        (("--json", "none/times.json"), "--json none/times.json: none is not a directory"),
        (("batch.rows=0",), "batch.rows = 0"),
        (("mesh.fsdp=3",), "needs"),
        (("--chips", "none.yaml"), "none.yaml"),
    ],
)
def test_mistakes_are_told_before_anything_runs(arguments, message, janus, small, monkeypatch):
    monkeypatch.setattr(timing, "compile_step", pytest.fail)
    code, out, err = janus("time-step", small, "--devices", 8, *arguments)
    assert (code, out) == (2, "") and err.startswith("error: ") and message in err


def test_too_little_memory_says_so(janus, small, monkeypatch):
    def too_much(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\nand a list")

    monkeypatch.setattr(timing, "init_params", too_much)
    code, out, err = janus("time-step", small, "--devices", 8)
    assert (code, out) == (11, "") and err.startswith("error: weights and moments on cpu:8: RESOURCE_EXHAUSTED: ")
    assert err.endswith("Out of memory allocating 99 bytes.; to find what fits: janus plan CONFIG --topology SLICE\n")
