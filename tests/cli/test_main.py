"""The `janus` command: what it loads, what it hands on, and how a user's mistakes are told."""

import dataclasses
import os
import re
import subprocess
import sys
from unittest import mock

import pytest
import typer

from janus_jax import __version__
from janus_jax.checkpoint.conversion_report import Report
from janus_jax.cli import arguments
from janus_jax.cli.demo.stages import STAGES
from janus_jax.cli.main import app
from tests.support.repository import ROOT
from tests.support.runs import ended

HEAVY = ["jax", "tensorflow", "torch", "transformers", "orbax", "flax"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["data", "inspect", "--help"],
        ["plan", "--help"],
        ["runs", "plot", "--help"],
        ["config", "show", "configs/demo_dpo.yaml"],
    ],
)
def test_help_and_config_load_no_heavy_module(arguments):
    code = (
        "import sys\n"
        "from janus_jax.cli.main import main\n"
        f"sys.argv = ['janus', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert not done.code\n"
        f"assert not set({HEAVY!r}) & set(sys.modules), set({HEAVY!r}) & set(sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}  # JAX checks them
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL, env=environment)


def commands(group=None, *names):
    """All that --help shows, as `data build`; not `launch`, which is a program of its own."""
    parts = typer.main.get_command(app) if group is None else group
    for name, part in parts.commands.items():
        if hasattr(part, "commands"):
            yield from commands(part, *names, name)
        elif name != "launch" and not part.hidden:
            yield " ".join((*names, name))


@pytest.mark.parametrize("command", list(commands()))
def test_every_command_explains_itself_with_an_example(janus, command):
    code, out, _ = janus(*command.split(), "--help")
    assert code == 0 and re.search(f"Example[^:]*: janus {command}", " ".join(out.split()))


def test_version(janus):
    assert janus("--version") == (0, f"janus_jax {__version__}\n", "")


def test_config_show_prints_the_resolved_configuration(janus, small):
    code, out, err = janus("config", "show", small, "batch.rows=3", "mesh.fsdp=-1")
    assert code == 0 and "rows: 3" in out and "clip_norm: 1.0" in out and err == ""


def test_advice_goes_to_stderr_so_that_stdout_stays_yaml(janus, small):
    code, out, err = janus("config", "show", small, "objective.name=dpo", "batch.max_sequence_length=256")
    assert code == 0 and err.startswith("note: batch.row_length = 256") and "note" not in out


# What is handed on: the doubles have the signatures of the real functions


def test_train_gets_the_configuration_and_the_processes(janus, small):
    with (
        mock.patch("janus_jax.training.run.train", autospec=True, return_value=ended()) as train,
        mock.patch("janus_jax.parallel.processes.start", autospec=True) as start,
        mock.patch("janus_jax.parallel.processes.supervise", autospec=True),  # it forks
    ):
        arguments = ["--coordinator", "h:81", "--num-processes", 2, "--process-id", 1, "--devices", 4]
        assert janus("train", small, "batch.rows=2", *arguments)[0] == 0
    (config,), _ = train.call_args
    assert config.batch.rows == 2
    (options,), _ = start.call_args
    assert (options.coordinator, options.num_processes, options.process_id, options.devices) == ("h:81", 2, 1, 4)


def test_a_coordinator_without_a_port_has_the_one_that_firewalls_leave_open():
    for host, expected in (("h-0.local", "h-0.local:8476"), ("[::1]", "[::1]:8476"), ("h:1", "h:1")):
        assert arguments.runtime_options(host, 2, 0, None).coordinator == expected


def test_build_gets_one_source_or_one_for_each_split(janus, tmp_path):
    from janus_jax.data.build.derive import Derivation
    from janus_jax.data.build.ratings import Ratings

    out = tmp_path / "out"
    with (
        mock.patch("janus_jax.data.build.pipeline.build", autospec=True) as build,
        mock.patch("janus_jax.cli.data._print_manifest"),
    ):
        assert janus("data", "build", "--kind", "sft", "--source", "a.jsonl", "--out", out)[0] == 0
        assert build.call_args.args == ("a.jsonl", str(out))
        expected = {
            "kind": "sft",
            "tokenizer": None,
            "template": "mistral-inst",
            "boundary": "separate",
            "bos": True,
            "skip_bad": False,
            "derive": None,
            "ratings": Ratings(),
            "dedupe": False,
            "validation_fraction": None,
            "validation_seed": 0,
            "processes": None,
            "runner": None,
            "progress": mock.ANY,
        }
        assert build.call_args.kwargs == expected
        assert janus(*f"data build --kind dpo --source a --validation-source b --out {out} --skip-bad".split())[0] == 0
        assert build.call_args.args[0] == {"train": "a", "validation": "b"} and build.call_args.kwargs["skip_bad"]
        assert janus(*f"data build --kind dpo --source a --boundary joint --out {out}".split())[0] == 0
        assert build.call_args.kwargs["boundary"] == "joint"
        assert janus(*f"data build --kind dpo --source a --boundary apart --out {out}".split())[0] == 2
        words = "--validation-fraction 0.1 --seed 3 --dedupe"
        assert janus(*f"data build --kind dpo --source a {words} --out {out}".split())[0] == 0
        given = build.call_args.kwargs
        assert (given["validation_fraction"], given["validation_seed"], given["dedupe"]) == (0.1, 3, True)
        for words, derive in {
            "": Derivation(0, False),
            "--seed 7": Derivation(7, False),
            "--all-pairs": Derivation(0, True),
        }.items():
            assert janus(*f"data build --derive orpo {words} --source a --out {out}".split())[0] == 0
            assert (build.call_args.kwargs["kind"], build.call_args.kwargs["derive"]) == ("orpo", derive)


def test_build_prints_what_was_kept_and_what_was_dropped(janus, tmp_path):
    from janus_jax.data.dataset import Manifest, Split

    manifest = {field.name: "x" for field in dataclasses.fields(Manifest)}
    places = {"dropped": {"empty_field": ["a:1", "a:5"]}, "notes": {"control_characters": ["a:2"]}}
    places["unread"] = {"score": ["a:3"], "id": ["a:1"]}
    counts = {
        "notes": {"prompt_in_train": 3, "control_characters": 1},
        "places": places,
        "unread": {"score": 1200, "id": 1234, "source": 1234},
    }
    manifest["splits"] = {"train": Split(examples=1234, tokens=5678901, dropped={"empty_field": 7}, **counts)}
    manifest["unread_files"], manifest["file_sets"] = {"of type .csv": 2}, None
    manifest["served"] = {"checked": 256, "merged": 0, "control_text": 1, "control_places": ["a:9"], "example": None}

    def build(*_: object, progress, **__: object) -> Manifest:
        progress("train", "read", 5, None)
        progress("train", "tokenize", 3, 5)
        return Manifest(**manifest)

    with mock.patch("janus_jax.data.build.pipeline.build", build):
        code, out, err = janus(*f"data build --kind sft --source a --out {tmp_path / 'out'}".split())
    assert code == 0 and err == "" and "no split train" not in out
    assert all(text in out for text in ("train", "1,234", "5,678,901", "7 empty_field"))
    assert out.splitlines()[-7:] == [
        "256 conversations checked: an export's chat template gives every prompt the ids of training",
        "texts that spell a control token: in 1 example, first in a:9; training reads text, a server the token",
        "files not read: 2 of type .csv",
        "dropped from split train: 7 empty_field (a:1, a:5 and 5 more)",
        "columns not read: `id`, `source` (1,234 records), `score` (1,200 records, from a:3 on)",
        "note: 3 of 1,234 records of split train have a prompt that split train has too",
        "note: 1 of 1,234 records of split train (a:2) holds control characters such as NUL, which are trained as text",
    ]
    manifest |= {"source": "rows_test.jsonl", "splits": {"test": manifest["splits"]["train"]}}
    with mock.patch("janus_jax.data.build.pipeline.build", build):
        _, out, _ = janus(*f"data build --kind sft --source a --out {tmp_path / 'out'}".split())
    assert "no split train: names in rows_test.jsonl say test; to train on it, give --source train=FILE\n" in out


def test_conversions_get_their_options(janus, tmp_path):
    done, out = Report("run", 7, {}, "float32", "bfloat16", "digest"), str(tmp_path / "o")
    options = ["--dtype", "bfloat16", "--step", 7, "--verify", "digest", "--layout", "openrlhf"]
    with mock.patch("janus_jax.checkpoint.convert.to_hf", autospec=True, return_value=done) as to_hf:
        assert janus("convert", "to-hf", "run", out, *options)[:2] == (
            0,
            f"{out}: written in bfloat16; every tensor compared\n",
        )
    given = {"dtype": "bfloat16", "max_shard_size": "5GB", "step": 7, "verify": "digest", "layout": "openrlhf"}
    to_hf.assert_called_once_with("run", out, **given)
    done = dataclasses.replace(done, verify="logits", largest_logit_difference=0.0)
    with mock.patch("janus_jax.checkpoint.convert.from_hf", autospec=True, return_value=done) as from_hf:
        code, lines, _ = janus("convert", "from-hf", "hf", out)
        assert (code, lines) == (
            0,
            f"{out}: written in bfloat16; every tensor compared, "
            "largest difference of logits 0 (both computed by janus_jax)\n",
        )
    from_hf.assert_called_once_with("hf", out, verify="logits")


def test_a_comparison_exits_with_2_where_models_differ(janus):
    from janus_jax.checkpoint.digest import TensorDifference

    result = [TensorDifference(f"tensor.{number}", 0.5, number / 100) for number in range(30)]
    with mock.patch("janus_jax.checkpoint.convert.check", autospec=True) as check:
        check.return_value = []
        assert janus("convert", "check", "a", "b")[:2] == (0, "a and b: the same model, bit for bit\n")
        check.return_value = result
        code, out, err = janus("convert", "check", "a", "b")
    assert (code, err) == (2, "error: a and b: 30 tensors differ\n")
    first, second, *_, last = out.splitlines()
    assert first == "30 of 30 different tensors: more than half a step of bfloat16 apart"
    assert second == "tensor.29: largest difference 0.5, 0.29 of the largest value"
    assert last == "... and 10 that differ less" and len(out.splitlines()) == 22


def test_demo_gets_its_options(janus, tmp_path):
    with mock.patch("janus_jax.cli.demo.run", autospec=True) as run:
        assert janus("demo", "--model", tmp_path, "--steps", 3, "--out", tmp_path / "o", "--devices", 2)[0] == 0
        run.assert_called_once_with(
            model=tmp_path, steps=3, out=tmp_path / "o", devices=2, objective="dpo", importing=mock.ANY
        )
        assert janus("demo", "--objective", "rm", "--out", tmp_path / "o")[0] == 0
    assert run.call_args.kwargs["objective"] == "rm"


def test_the_demo_offers_the_stages_that_it_has(janus):
    code, out, err = janus("demo", "--objective", "ppo")
    assert (code, out) == (2, "")
    lines = " ".join(err.replace("\u2502", " ").split())
    allowed = ", ".join(f"'{name}'" for name in STAGES)
    assert "Invalid value for '--objective'" in lines and f"'ppo' is not one of {allowed}." in lines


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("plan small.yaml --topology v4-8 batch.rows=0", "override 'batch.rows=0': batch.rows = 0: allowed: a whole"),
        ("train none.yaml", "none.yaml: cannot be read: No such file or directory"),
        (
            "train small.yaml --process-id 0",
            "--coordinator, --num-processes and --process-id: allowed: all three or none",
        ),
        ("train small.yaml --coordinator h: --num-processes 1 --process-id 0", "--coordinator h:: allowed: HOST or"),
        ("train small.yaml --coordinator h:0 --num-processes 1 --process-id 0", "--coordinator h:0: allowed: HOST or"),
        ("train small.yaml --coordinator h:1 --num-processes 2 --process-id 2", "--process-id 2: allowed: 0 to 1"),
        (
            "train small.yaml run.dir=small.yaml/run",
            "run.dir small.yaml/run: cannot be written: {tmp}/small.yaml is a file",
        ),
        (
            "data build --kind sft --source x --out full",
            "--out full: exists and is not empty; choose another directory",
        ),
        ("data build --source x --out new", "--kind, --derive: allowed: exactly one of them"),
        ("data build --kind dpo --derive dpo --source x --out new", "--kind, --derive: allowed: exactly one of them"),
        (
            "data build --kind dpo --seed 0 --source x --out new",
            "--seed: allowed: only with --derive or --validation-fraction",
        ),
        (
            "data build --kind dpo --validation-fraction 1 --source x --out new",
            "--validation-fraction 1: allowed: more than 0 and less than 1",
        ),
        (
            "data build --kind dpo --validation-fraction .1 --validation-source y --source x --out new",
            "--validation-fraction, --validation-source: allowed: at most one of them",
        ),
        ("data build --kind dpo --all-pairs --source x --out new", "--all-pairs: allowed: only with --derive"),
        ("data build --kind sft --source x --out small.yaml", "--out small.yaml: cannot be written"),
        ("data build --kind sft --source x --out /proc/janus/x", "--out /proc/janus/x: cannot be written: /proc"),
        ("convert from-hf hf full", "DST full: exists and is not empty"),
        ("convert to-hf run new --max-shard-size huge", "--max-shard-size huge: allowed: a size like 5GB or 500MB"),
        ("plan small.yaml --topology v5litepod-15", "slice 'v5litepod-15': v5e has no slice of that size; nearest"),
        ("plan none.yaml --topology v4-8", "none.yaml: cannot be read"),
        ("plan small.yaml --topology v4-8 --json full", "--json full: is a directory"),
        ("plan small.yaml --topology v4-8 --png no/plan.png", "--png no/plan.png: no is not a directory"),
        ("plan small.yaml --topology v4-8 --png plan.jpg", "--png plan.jpg: allowed: a name that ends with .png"),
        ("plan small.yaml --topology v4-8 --dump-hlo small.yaml", "--dump-hlo small.yaml: cannot be written"),
        ("plan small.yaml --topology v4-8 --chips no.yaml", "no.yaml: cannot be read"),
        ("plan small.yaml --topology v4-8 --explain x --json y", "--json y: not allowed with --explain"),
        (
            "plan small.yaml --topology cpu:8 --explain final_nrom",
            "--explain final_nrom: unknown parameter; did you mean fin",
        ),
        ("demo --model nowhere", "--model nowhere: is no directory; allowed: a Hugging Face model directory"),
    ],
)
def test_a_mistake_is_one_line_exit_2_and_leaves_nothing_behind(janus, small, tmp_path, arguments, expected):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    before = sorted(tmp_path.rglob("*"))
    code, out, err = janus(*arguments.split())
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.startswith(f"error: {expected.format(tmp=tmp_path)}")
    assert sorted(tmp_path.rglob("*")) == before


def test_usage_mistakes_exit_2(janus):
    assert janus("data", "build", "--kind", "ppo", "--source", "x", "--out", "y")[0] == 2
    assert janus("train")[0] == 2
    assert janus("plan", "x.yaml")[0] == 2  # of which slice?
    assert janus("plan", "x.yaml", "--topology", "v4-8", "--slices", 0)[0] == 2
