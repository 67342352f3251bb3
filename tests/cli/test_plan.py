"""The command `janus plan`: options, outputs and exit codes; tests/planning tests the plan itself."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from janus_jax.planning.search.estimate import Choice
from janus_jax.planning.search.keep import Found
from janus_jax.planning.search.suggest import Suggestion
from janus_jax.planning.search.sweep import Cell
from tests.support.plans import example_plan
from tests.support.repository import ROOT


def test_a_plan_is_printed_drawn_and_written(janus, small, tmp_path):
    result = example_plan()
    with mock.patch("janus_jax.planning.plan", autospec=True, return_value=result) as plan:
        options = "--topology v5litepod-16 --slices 2 --json plan.json --png plan.png --dump-hlo hlo"
        code, out, err = janus("plan", small, *options.split(), "batch.rows=2")
    (config, topology), named = plan.call_args
    assert (config.batch.rows, topology) == (2, "v5litepod-16")
    assert named == {"num_slices": 2, "chips": None, "dump_hlo": Path("hlo")}
    assert (code, err) == (0, "") and out.startswith("FITS: ") and "list prices of 20" in " ".join(out.split())
    assert out.endswith("wrote plan.json\nwrote plan.png\nwrote hlo\n")
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written == json.loads(json.dumps(result.to_json()))
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_what_does_not_fit_exits_with_3_and_is_written_all_the_same(janus, small, tmp_path):
    endless = dataclasses.replace(example_plan().bound, dcn_s=float("inf"), tokens_per_s=0.0)
    result = dataclasses.replace(example_plan(), fits=False, reason="too much", bound=endless)
    with mock.patch("janus_jax.planning.plan", autospec=True, return_value=result):
        code, out, err = janus("plan", small, "--topology", "v4-8", "--json", "plan.json", "--tries", 0)
    assert (code, err) == (3, "") and out.startswith("DOES NOT FIT 2 x v5litepod-16: too much\n")
    written = json.loads((tmp_path / "plan.json").read_text(), parse_constant=pytest.fail)
    assert not written["fits"] and written["bound"]["dcn_s"] is None


def test_the_search_for_remat_prints_the_change_to_make(janus, small, tmp_path):
    full, chosen = Choice("full", 1, 0.9), Choice(("attention", "up"), 2, 0.4)
    with mock.patch("janus_jax.planning.search.keep.most_kept", autospec=True) as search:
        search.return_value = Found(chosen, example_plan(), full)
        options = ("plan", small, "--topology", "v4-8", "--search-remat", 2)
        code, out, _ = janus(*options, "--json", "plan.json")
        assert code == 0 and out.startswith("remat=[attention,up]\n") and (tmp_path / "plan.json").is_file()
        assert "recomputes 40% of the forward pass, 90% with remat=full" in out
        search.return_value = None
        assert janus(*options)[0] == 3
        code, _, err = janus(*options, "--explain", "embedding")
        assert code == 2 and "--explain embedding: not allowed with --search-remat" in err


def test_what_would_fit_is_said_as_it_is_found(janus, small):
    failed = dataclasses.replace(example_plan(), fits=False, reason="too much")
    result = [Suggestion(("remat=full",), "blocks are computed a second time", example_plan())]
    with (
        mock.patch("janus_jax.planning.plan", autospec=True, return_value=failed),
        mock.patch("janus_jax.planning.search.suggest.suggestions", autospec=True) as suggestions,
    ):
        suggestions.return_value = iter(result)
        code, out, _ = janus("plan", small, "--topology", "v4-8", "--tries", 5)
        assert code == 3 and suggestions.call_args[1]["tries"] == 5
        assert "  remat=full\n" in out and out.endswith("GiB; blocks are computed a second time\n")
        suggestions.return_value = iter([])
        assert "  none: compiled 0 changes; try a larger slice" in janus("plan", small, "--topology", "v4-8")[1]

        def tried(*_, report, tries, **__):
            for number in range(tries):
                report((f"mesh.fsdp={number}",), False)
            return iter([])

        suggestions.side_effect = tried
        _, out, err = janus("plan", small, "--topology", "v4-8", "--tries", 2)
        assert "none: compiled 2 changes; try --tries 4, a larger slice" in out
        assert err == "does not fit: mesh.fsdp=0\ndoes not fit: mesh.fsdp=1\n"
        suggestions.side_effect = None
        suggestions.reset_mock()
        assert janus("plan", small, "--topology", "v4-8", "--tries", 0)[0] == 3
        suggestions.assert_not_called()


def test_a_sweep_lists_what_was_compiled_and_counts_the_rest(janus, small, tmp_path):
    common = {"mesh": {"fsdp": 8}, "rows_per_device": 1.0, "microbatches": 1, "moments": "float32"}
    compiled = json.loads(json.dumps(example_plan().to_json(), default=str))
    cells = [
        Cell(("mesh.fsdp=8",), remat="full", estimated_bytes=1, status="fits", plan=compiled, **common),
        Cell(("mesh.fsdp=4",), remat="none", estimated_bytes=9, status="too large", reason="more", **common),
        Cell(("mesh.fsdp=2",), remat="none", estimated_bytes=99, status="hopeless", reason="much more", **common),
    ]
    with mock.patch("janus_jax.planning.search.sweep.sweep", autospec=True, return_value=cells) as sweep:
        code, out, err = janus("plan", small, "--topology", "v4-8", "--sweep", 2, "--json", "sweep.json")
    assert (code, err) == (0, "") and sweep.call_args[1]["limit"] == 2
    first, second, rest, wrote = out.splitlines()
    assert (
        first.startswith("fits ") and "tokens/s at the bound, " in first and first.endswith(" in series  mesh.fsdp=8")
    )
    assert second.startswith("too large") and rest.startswith("1 more: not compiled") and wrote == "wrote sweep.json"
    assert [cell["status"] for cell in json.loads((tmp_path / "sweep.json").read_text())] == [
        "fits",
        "too large",
        "hopeless",
    ]
    listed = dataclasses.replace(cells[0], changes=("remat=[gate,up]",), remat="[gate,up]")
    with mock.patch("janus_jax.planning.search.sweep.sweep", autospec=True, return_value=[listed]):
        _, out, _ = janus("plan", small, "--topology", "v4-8", "--sweep", 2)
        assert "remat=[gate,up]\nremat=[...]: tensors that each block keeps" in out and "--search-remat N" in out
    with mock.patch("janus_jax.planning.search.sweep.sweep", autospec=True, return_value=cells[1:]):
        assert janus("plan", small, "--topology", "v4-8", "--sweep", 2)[0] == 3


def test_plan_takes_no_accelerator_of_this_machine():
    code = (
        "import sys, janus_jax.cli.main as cli\n"
        "sys.argv = 'janus plan configs/sft_65k.yaml --topology v4-8 --explain final_norm'.split()\n"
        "try:\n    cli.main()\nexcept SystemExit as done:\n    assert not done.code\n"
        "import jax\nassert jax.devices()[0].platform == 'cpu'"
    )
    env = {**os.environ, "JAX_PLATFORMS": "tpu"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("mesh data 1 x fsdp 4")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--topology, --devices: allowed: exactly one of them"),
        (("--topology", "v4-8", "--devices", 8), "--topology, --devices: allowed: exactly one of them"),
        (("--devices", "v4-8"), "--devices v4-8: allowed: cpu:N, like cpu:8"),
        (("--devices", "0"), "--devices 0: allowed: cpu:N"),
        (("--devices", 8, "--sweep", 1, "--png", "x.png"), "--png x.png: not allowed for a sweep of simulated devices"),
        (("--topology", "v5litepod-256", "--slices", 100000), "25,600,000 devices in all; allowed: at most 32,768"),
        (("--topology", "v3-32", "--slices", 2), "2 x v3-32: v3 supports a single slice only"),
        (("--topology", "v4-8", "--slices", 2), "mesh.data=1: allowed with 2 slices: a multiple of 2"),
    ],
)
def test_where_it_shall_be_planned_for_is_clear_at_once(options, message, janus, small, tmp_path):
    with mock.patch("janus_jax.planning.compile.devices", side_effect=AssertionError("asked for devices")):
        code, out, err = janus("plan", small, *options, "mesh.data=1")
    assert (code, out) == (2, "") and err.startswith("error: ") and message in err
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--explain", "embedding", "--chips", "c.yaml"), "--chips c.yaml: not allowed with --explain"),
        (("--explain", "embedding", "--tries", 0), "--tries 0: not allowed with --explain"),
        (("--sweep", 2, "--tries", 3), "--tries 3: not allowed with --sweep"),
        (("--search-remat", 2, "--tries", 3), "--tries 3: not allowed with --search-remat"),
        (("--generate", "--tries", 3), "--tries 3: not allowed with --generate"),
    ],
)
def test_options_without_effect_are_refused(options, message, janus, small):
    code, out, err = janus("plan", small, "--topology", "v4-8", *options)
    assert (code, out) == (2, "") and err.startswith("error: ") and message in err


@pytest.mark.parametrize(("given", "expected"), [("cpu:4", "cpu:4"), ("4", "cpu:4"), ("cpu-2", "cpu-2")])
def test_simulated_devices_have_an_option_of_their_own(given, expected, janus, small):
    with mock.patch("janus_jax.planning.plan", autospec=True, return_value=example_plan()) as plan:
        assert janus("plan", small, "--devices", given)[0] == 0
    assert plan.call_args[0][1] == expected


def test_a_signal_ends_a_plan_that_compiles():
    """At once, though the compiler holds the process."""
    code = (
        "import os, signal, time, janus_jax.cli.main as cli\n"
        "from janus_jax.cli.arguments import interruptibly\n"
        "signal.signal(signal.SIGTERM, cli._interrupt)\n"
        "def work():\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(600)\n"
        "begun = time.time()\n"
        "try:\n    interruptibly(work)\n"
        "except cli.Interrupted:\n    print('ended', time.time() - begun < 500, flush=True)\n"
        "os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.stdout == "ended True\n"


# Mistakes
