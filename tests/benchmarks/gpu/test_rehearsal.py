"""The GPU benchmark on tiny shapes on a CPU: what it writes, that a failing stage ends alone, what it imports."""

import json
import math
import os
import subprocess
import sys

import pytest

from janus_jax.training.speed import PEAK_BF16_FLOPS
from tests.benchmarks.gpu import stages as stages_of
from tests.benchmarks.gpu.stages import Stage, attention_of, run_all, stages
from tests.benchmarks.gpu.supervise import MARK, Results, run_stage
from tests.support.repository import ROOT

ABSENT = ("tensorflow", "seqio", "tensorflow_datasets", "array_record", "gcsfs", "google.cloud")
"""What a bare machine lacks, of what the package depends on."""

BLOCK = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if any(name == absent or name.startswith(absent + ".") for absent in {ABSENT}):
            raise ImportError(name + " is absent")
sys.meta_path.insert(0, Absent())
"""


def rehearse(out, *arguments, timeout=600):
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--out", str(out), "--rehearse", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((out / "results.json").read_text())


def states(results):
    return {stage["name"]: stage["state"] for stage in results["stages"]}


def measurements(results, what):
    return [one for stage in results["stages"] for one in stage["measurements"] if one["what"] == what]


def report_of(out):
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--report", str(out)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_a_failing_stage_ends_alone_and_the_steps_get_plain_jax(tmp_path):
    chosen = ("card", "kernel-splash", "sft-2b", "kernel-plain", "sft-2b-second")
    failures = ("--fail", "card:hang", "--fail", "kernel-splash:crash", "--fail", "kernel-plain")
    results = rehearse(tmp_path, "--stages", *chosen, *failures)
    expected = ["timeout", "crashed", "ok", "failed", "skipped"]
    assert states(results) == dict(zip(chosen, expected, strict=True))
    stage = {stage["name"]: stage for stage in results["stages"]}
    crashed, failed = stage["kernel-splash"], stage["kernel-plain"]
    assert crashed["reason"] == "ended by signal SIGABRT"
    assert failed["reason"] == "RuntimeError: a failure on purpose" and "Traceback" in failed["traceback"]
    (step,) = measurements(results, "step")
    assert step["attention_key"] == "reference" and math.isclose(step["loss"], math.log(64), rel_tol=0.05)
    assert step["tokens_per_s"] > 0 and step["model"]["head_dim"] == 64 and len(step["seconds"]) == 2
    report = report_of(tmp_path)
    assert "A rehearsal on a CPU" in report and "- kernel-splash: crashed: ended by signal SIGABRT" in report


@pytest.mark.slow
def test_decoding_is_measured_beside_its_bound(tmp_path):
    results = rehearse(tmp_path, "--stages", "decode-7b")
    assert states(results) == {"decode-7b": "ok"}, results
    measured = measurements(results, "decode")
    assert [one["rows"] for one in measured] == [2, 4] and all(one["tokens_per_s"] > 0 for one in measured)
    assert all(
        one["bound_tokens_per_s"] is None and len(one["seconds"]) == 1 for one in measured
    )  # no figures of a CPU
    on_card = dict(measured[1], bound_tokens_per_s=8000.0, tokens_per_s=4000.0, ms=1.0)
    theirs = {"what": "decode", "with_": "transformers", "rows": 4, "tokens_per_s": 1000.0, "ms": 4.0}
    results["stages"][0]["measurements"] = [measured[0], on_card, theirs]
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert "| 4 | 4,000 | 1.00 | 8,000 | 50.0 % | 1,000 | 4.00 |" in report_of(tmp_path)


def test_a_decoding_call_reads_one_bucket():
    """Otherwise it is compiled while it is timed."""
    from tests.benchmarks.gpu.decode import _attended
    from tests.benchmarks.gpu.sizes import ON_A_CARD, REHEARSAL

    assert (_attended(ON_A_CARD.decode), _attended(REHEARSAL.decode)) == (768, 64)


def test_the_steps_get_the_quickest_equal_kernel(tmp_path):
    def timed(kernel, rows, ms):
        return {"what": "kernel", "kernel": kernel, "rows": rows, "ms": ms}

    measured = [timed("a", "sft", 3.0), timed("b", "sft", 2.0), timed("b", "pairs", 9.0), timed("torch", "sft", 1.0)]
    results = Results(tmp_path, {}, [{"measurements": [*measured, timed("reference", "sft", 0.5)]}])
    attention = {
        (subject, wanted): attention_of(Stage("any", "step", 1, subject, wanted), results)
        for subject in ("sft-2b", "dpo-2b")
        for wanted in ("best", "second", "reference")
    }
    assert list(attention.values()) == ["b,a,reference", "a", "reference", "b,reference", None, "reference"]
    assert attention_of(Stage("any", "step", 1, "dpo-2b", "best"), Results(tmp_path, {}, [])) == "reference"


def test_a_step_whose_kernel_breaks_the_card_gets_the_next_in_a_new_process(tmp_path, monkeypatch):
    outcome = {"b": "crashed", "a": "timeout", "reference": "ok"}
    asked = []

    def run_stage(results, name, command, **_):
        attention = command[command.index("--attention") + 1]
        asked.append((name, attention))
        results.stages.append({"name": name, "state": outcome[attention], "seconds": 1.0, "measurements": []})

    monkeypatch.setattr(stages_of, "run_stage", run_stage)
    kernel = {"what": "kernel", "rows": "sft"}
    measured = [{**kernel, "kernel": "a", "ms": 3.0}, {**kernel, "kernel": "b", "ms": 2.0}]
    results = Results(tmp_path, {}, [{"measurements": measured}])
    settings = {"rehearse": False, "failures": {}, "attention": None}
    chosen = [Stage("sft-2b", "step", 110, "sft-2b", "best")]
    run_all(results, chosen, budget_s=lambda: 400.0, **settings)
    assert asked == [("sft-2b", "b"), ("sft-2b-with-a", "a"), ("sft-2b-with-reference", "reference")]
    asked.clear()
    outcome["b"] = "ok"
    run_all(results, chosen, budget_s=lambda: 400.0, **settings)
    assert asked == [("sft-2b", "b")]


def test_what_was_measured_before_a_cut_stays(tmp_path):
    code = f'import time; print(\'{MARK}{{"what": "card", "x": 1}}\', flush=True); time.sleep(60)'
    results = Results(tmp_path, {"form": 1})
    run_stage(results, "one", [sys.executable, "-c", code], limit_s=3, environment=dict(os.environ))
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["stages"][0]["measurements"] == [{"what": "card", "x": 1}]
    assert written["stages"][0]["state"] == "timeout"


def test_an_unequal_kernel_is_not_timed(monkeypatch, capsys):
    """Here one that takes segments 1 and 2 for one, 3 and 4 for another."""
    from janus_jax.model import attention as rule
    from tests.benchmarks.gpu import kernels
    from tests.benchmarks.gpu.sizes import REHEARSAL

    layout = kernels.layouts(REHEARSAL, 1)[0]

    def wrong(q, k, v, slots, *, window=None):
        return rule.attention(q, k, v, slots._replace(segment=(slots.segment + 1) // 2), window=window)

    whole = kernels.attend_with
    monkeypatch.setattr(
        kernels, "attend_with", lambda name, *rest: (wrong, "wrong") if name == "wrong" else whole(name, *rest)
    )
    monkeypatch.setattr(kernels, "layouts", lambda *_: [layout])
    kernels.kernel("wrong", REHEARSAL)
    measured = [json.loads(line.removeprefix(MARK)) for line in capsys.readouterr().out.splitlines()]
    assert [one["what"] for one in measured] == ["equal", "not timed"]
    assert not measured[0]["equal"] and measured[0]["error"] > 0.1 and measured[0]["plain_error"] < 0.01


def test_score_pairs_are_those_that_the_rule_leaves():
    from janus_jax.model.attention import visible
    from tests.benchmarks.gpu import kernels
    from tests.benchmarks.gpu.rows import score_pairs
    from tests.benchmarks.gpu.sizes import REHEARSAL

    for layout in kernels.layouts(REHEARSAL, 2):
        slots = layout.slots
        assert score_pairs(layout.batch) == int(visible(slots, slots, None).sum())


def test_a_bare_machine_can_import_all_stages_of_jax():
    code = BLOCK + "import tests.benchmarks.gpu.__main__, tests.benchmarks.gpu.kernels, tests.benchmarks.gpu.steps"
    code += ", janus_jax.generation.engine, janus_jax.planning.chips.slices"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_cards_that_are_meant_have_a_peak():
    assert {"NVIDIA H100 80GB HBM3", "NVIDIA H200"} <= PEAK_BF16_FLOPS.keys()


@pytest.mark.slow
def test_the_whole_rehearsal(tmp_path):
    results = rehearse(tmp_path, "--budget", "3000", timeout=3600)
    trl = [stage.name for stage in stages((), rehearse=True) if stage.kind == "torch_step"]
    assert {name for name, state in states(results).items() if state != "ok"} <= {*trl}
    assert all(one["equal"] for one in measurements(results, "equal"))
    assert len(measurements(results, "kernel")) == 12  # three kinds of rows by two kernels, plain JAX and torch
    assert {one["case"] for one in measurements(results, "step")} == {"sft-2b", "dpo-2b", "sft-7b"}
    assert [one["with_"] for one in measurements(results, "decode")] == ["janus_jax"] * 2 + ["transformers"] * 2
    assert "| triton | pairs that share prompts | yes |" in report_of(tmp_path)
