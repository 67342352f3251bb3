"""A run is prepared on the workstation: its words, configuration, directory and inputs."""

import dataclasses

import pytest
import yaml

from janus_jax.errors import ConfigError
from launch.__main__ import main
from launch.cloud.gcloud import Result
from launch.records import Run
from launch.runs import inputs, start
from tests.support.started import SETTINGS, Ready


def prepared(context, *words, **options) -> Run:
    return start.prepare(context, words, workers=options.pop("workers", 2), ready=Ready(), **options)


def test_a_training_is_prepared_whole(context, config):
    odd = "a 'b' \"c\" $d `e`; #f\nnew: line"
    run = prepared(context, config, f"data.eval_split={odd}")
    assert run.command == ["train", "mine.yaml"]
    values = yaml.safe_load(run.files["mine.yaml"])
    assert values["data"]["eval_split"] == odd
    assert values["run"]["dir"] == run.run_dir == "gs://bucket/runs/demo"
    (url,) = run.inputs
    assert url.startswith("gs://bucket/inputs/data-") and values["data"]["dir"] == url
    assert context.calls[0][:5] == ["gcloud", "storage", "rsync", "--recursive", "--no-ignore-symlinks"]
    assert any(line.startswith("run.dir: gs://bucket/runs/demo (instead of runs/mine") for line in context.printed)
    assert (run.attempt, run.start, run.code, run.environment) == (1, 1, "c1", "e1")
    assert context.bucket.uploaded[-1][1] == f"gs://bucket/launch/demo/code/{Ready().source.identity}.tar.gz"


def test_large_inputs_are_named_before_they_are_read(context, config, monkeypatch, tmp_path):
    monkeypatch.setattr(inputs, "_LARGE_BYTES", 5)
    monkeypatch.setattr(inputs, "_digest", lambda local: len(context.printed) and "d1")
    prepared(context, config)
    assert f"data.dir: reading {tmp_path}/data (2 files, 5 bytes) for its checksum" in context.printed


def test_what_is_in_the_bucket_is_not_uploaded_again(context, config, tmp_path):
    first = prepared(context, config).inputs
    assert prepared(context, config).inputs == first
    assert len(context.calls) == 1
    (tmp_path / "data/train/part").write_bytes(b"abd")
    assert prepared(context, config).inputs != first


def test_an_upload_that_broke_off_counts_for_nothing(context, config):
    context.__dict__["runner"] = lambda words, stdin, timeout_s: Result(1, "", "ERROR: HTTPError 503")
    context.__dict__.pop("gcloud", None)
    with pytest.raises(Exception, match="503"):
        prepared(context, config)
    assert not context.bucket.objects


def test_inputs_that_cannot_be_uploaded_are_refused(context, config, tmp_path):
    (tmp_path / "data/gone").symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r"data.dir: .*gone: cannot be read"):
        prepared(context, config)
    (tmp_path / "data/gone").unlink()
    (tmp_path / "data/linked").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="link to a directory"):
        prepared(context, config)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty directory"):
        prepared(context, config, "data.dir=empty")


def test_paths_that_are_not_here_are_paths_of_the_hosts(context, config):
    run = prepared(context, config, "data.dir=/mnt/data", "data.eval_dir=gs://other/eval")
    assert yaml.safe_load(run.files["mine.yaml"])["data"]["dir"] == "/mnt/data"
    assert run.inputs == ["gs://other/eval"] and run.paths == {"data.dir": "/mnt/data"}
    assert "data.dir: /mnt/data is not on this workstation; taken as a path on the hosts" in context.printed


def test_every_key_that_names_data_or_weights_is_staged(context, config, tmp_path):
    for name in ("model", "part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    parts = "data={mixture: [{dir: data, weight: 2.0}, {dir: part, weight: 1.0}]}"
    rest = ("objective={name: dpo}", "reference.from=part", parts, "samples.prompts=model/config.json")
    run = prepared(context, config, "model=null", "init.from=model", *rest)
    values = yaml.safe_load(run.files["mine.yaml"])
    staged = [values["init"]["from"], values["reference"]["from"], *(part["dir"] for part in values["data"]["mixture"])]
    assert [url.rpartition("/")[2].rpartition("-")[0] for url in staged] == ["model", "part", "data", "part"]
    prompts = values["samples"]["prompts"]
    assert sorted(run.inputs) == sorted([*staged, prompts]) and prompts.endswith("/config.json")
    assert [part["weight"] for part in values["data"]["mixture"]] == [2.0, 1.0]
    assert len(context.calls) == 3  # `part` once; a file is no call


@pytest.mark.parametrize(
    ("words", "workers", "provisioning", "mount", "expected"),
    [
        (["run.dir=runs/x"], 2, "on-demand", None, "2 hosts would write"),
        (["run.dir=/mnt/runs/x"], 2, "on-demand", "/mnt/run", "2 hosts would write"),
        (["run.dir=runs/x"], 1, "spot", None, "a preemption deletes"),
        (["run.dir=/mnt/runs/x"], 2, "spot", "/mnt/runs", None),
        (["run.dir=gs://b/x"], 2, "spot", None, None),
        (["run.dir=runs/x"], 1, "on-demand", None, None),
    ],
)
def test_a_run_directory_on_one_host_is_refused(context, config, words, workers, provisioning, mount, expected):
    context.settings = context.settings.model_copy(update={"provisioning": provisioning})
    if expected is None:
        run = prepared(context, config, *words, workers=workers, shared_mount=mount)
        assert run.run_dir == words[0].removeprefix("run.dir=")
    else:
        with pytest.raises(ConfigError, match=expected):
            prepared(context, config, *words, workers=workers, shared_mount=mount)


def test_the_same_run_directory_keeps_its_owner(context, config):
    first = prepared(context, config)
    context.records.write("run.json", dataclasses.replace(first, attempt=3).to_json())
    again = prepared(context, config, "schedule.steps=9")
    assert (again.owner, again.attempt) == (first.owner, 4) and again.run_id != first.run_id
    assert f"changed since {first.run_id}: schedule.steps = 9, not 5" in context.printed[-1]
    assert prepared(context, config, "run.dir=gs://b/else").owner != first.owner
    with pytest.raises(ConfigError, match=r"with objective sft, not dpo; .*run.dir=gs://bucket/runs/demo-dpo"):
        prepared(context, config, "objective={name: dpo}")


def test_other_commands_go_the_same_way(context, config, tmp_path):
    (tmp_path / "records.jsonl").write_text("{}\n")
    (tmp_path / "sft").mkdir()
    words = ["janus", "data", "build", "--source", "records.jsonl", "--kind", "sft", "--out", "data"]
    run = prepared(context, *words)
    url = run.inputs[0]
    assert run.command == ["data", "build", "--source", url, "--kind", "sft", "--out", "data"]
    assert url.endswith("/records.jsonl") and run.run_dir is None
    assert "--kind: sft is left as it is; ./sft would upload what is here" in context.printed
    timed = prepared(context, "janus", "time-step", "--devices", "4", config, "--json", "data", "batch.rows=8")
    assert timed.command == ["time-step", "mine.yaml", "--devices", "4", "--json", "data"]
    assert yaml.safe_load(timed.files["mine.yaml"])["batch"]["rows"] == 8


def test_options_of_janus_are_known():
    import typer.main

    from janus_jax.cli.main import app
    from launch import records
    from launch.runs import command

    known = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    many = {name for name, one in known.items() if any(p.name == "num_processes" for p in one.params)}
    assert many == set(records.MANY) and set(command.WITH_CONFIG) <= many
    for name in command.WITH_CONFIG:
        options = {o for p in known[name].params if p.param_type_name == "option" for o in p.opts} - {"--help"}
        assert options == options & {*command._VALUED, *command._OURS}


@pytest.mark.parametrize("pair", ["WANDB_API_KEY=x", "HF_TOKEN=x", "JANUS_RUN_OWNER=x", "novalue", "9A=b"])
def test_variables_that_must_not_travel_are_refused(pair):
    with pytest.raises(ConfigError, match=f"--env {pair.partition('=')[0]}"):
        start.commands.environment([pair])


def test_harmless_variables_travel():
    assert start.commands.environment(["TOKENIZERS_PARALLELISM=a=b c", "X="]) == {
        "TOKENIZERS_PARALLELISM": "a=b c",
        "X": "",
    }
    with pytest.raises(ConfigError, match="--env A: given twice"):
        start.commands.environment(["A=1", "A=2"])


def test_mistakes_end_with_code_2_before_anything_is_touched(context, config, capsys, tmp_path):
    flags = [word for key, value in SETTINGS.items() for word in (f"--{key}", value)]
    (tmp_path / "settings.yaml").write_text("")
    flags += ["--settings", str(tmp_path / "settings.yaml")]
    assert main(["run", *flags, "mine.yaml", "batch.rowz=4"]) == 2
    assert "batch.rowz" in capsys.readouterr().err
    assert main(["run", *flags, "--", "janus", "train", "mine.yaml", "--process-id", "1"]) == 2
    assert "--process-id" in capsys.readouterr().err
    assert main(["run", *flags, "--shared-mount", "/mnt", "--", "janus", "doctor"]) == 2
    assert "--shared-mount /mnt: `janus doctor` has no run directory" in capsys.readouterr().err
