import argparse
import dataclasses
import sys
import types

import pytest
import yaml

from janus_jax.errors import ConfigError, HeldError
from launch.__main__ import main
from launch.cloud.gcloud import Result
from launch.commands import run as run_command
from launch.commands import stop as stop_command
from launch.context import Context
from launch.errors import HostError
from launch.records import Run
from launch.remote import ship
from launch.runs import inputs, start
from launch.settings import load
from tests.support.launch_hosts import Records, ScratchHost, ScratchHosts, a_run, until
from tests.support.repository import ROOT

CONFIG = """
run: {dir: runs/mine}
model: {preset: tiny}
data: {dir: %s}
batch: {rows: 4, row_length: 256, max_sequence_length: 256}
objective: {name: sft}
schedule: {name: cosine, learning_rate: 1.0e-4, steps: 5}
"""
SETTINGS = {"name": "demo", "project": "p", "zone": "us-central2-b", "type": "v4-16", "bucket": "gs://bucket"}


@dataclasses.dataclass
class Ready:
    code: str = "c1"
    environment: str = "e1"
    python: str = ""
    cwd: str = str(ROOT)
    source: ship.Code = dataclasses.field(default_factory=lambda: ship.Code({"a": (b"", False)}))


@pytest.fixture
def context(tmp_path, monkeypatch):
    """Of a launch whose bucket is in memory, and whose gcloud notes what it is asked."""
    monkeypatch.chdir(tmp_path)
    made = Context(load("/dev/null", SETTINGS), say=(said := []).append)
    calls: list[list[str]] = []

    def gcloud(words, stdin, timeout_s):
        calls.append(list(words))
        return Result(0, "", "")

    made.runner = gcloud
    bucket = Records("gs://bucket")
    made.__dict__ |= {"bucket": bucket, "records": bucket.at("launch", "demo"), "said": said, "calls": calls}
    monkeypatch.setattr(made, "warn", said.append)
    return made


@pytest.fixture
def config(tmp_path):
    (tmp_path / "data/train").mkdir(parents=True)
    (tmp_path / "data/manifest.json").write_text("{}")
    (tmp_path / "data/train/part").write_bytes(b"abc")
    (tmp_path / "mine.yaml").write_text(CONFIG % "data")
    return "mine.yaml"


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
    assert any(line.startswith("run.dir: gs://bucket/runs/demo (instead of runs/mine") for line in context.said)
    assert (run.attempt, run.start, run.code, run.environment) == (1, 1, "c1", "e1")
    assert context.bucket.uploaded[-1][1] == f"gs://bucket/launch/demo/code/{Ready().source.identity}.tar.gz"


def test_large_inputs_are_named_before_they_are_read(context, config, monkeypatch, tmp_path):
    monkeypatch.setattr(inputs, "_LARGE_BYTES", 5)
    monkeypatch.setattr(inputs, "_digest", lambda local: len(context.said) and "d1")
    prepared(context, config)
    assert f"data.dir: reading {tmp_path}/data (2 files, 5 bytes) for its checksum" in context.said


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
    assert "data.dir: /mnt/data is not on this workstation; taken as a path on the hosts" in context.said


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
    assert f"changed since {first.run_id}: schedule.steps = 9, not 5; docs/" in "\n".join(context.said)
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
    assert "--kind: sft is left as it is; ./sft would upload what is here" in context.said
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
    assert many == set(records.MANY) == set(command.WITH_CONFIG)
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


@pytest.fixture
def hosts(tmp_path):
    made = ScratchHosts([ScratchHost(tmp_path / f"host{number}", number) for number in range(2)])
    yield made
    for host in made.hosts:
        host.close()


@pytest.fixture
def ready(hosts):
    return Ready(python="~/python")


def test_all_hosts_start_together_and_end_together(context, hosts, ready):
    run = a_run("runs")
    start.start(context, hosts, ready, run, address="10.0.0.2")
    start.start(context, hosts, ready, run, address="10.0.0.2")  # once more, as after a lost connection
    assert context.records.read("run.json").value == run.to_json()
    assert hosts.calls[:3] == ["state", "prepare", "start"]
    with pytest.raises(HeldError, match="run demo-1 is running on this slice"):
        start.start(context, hosts, ready, a_run(run_id="demo-2"), address="10.0.0.2")
    for host in hosts.hosts:
        until(lambda host=host: "ready" in host.agent("tail", {"lines": 5})["text"])
        assert (
            f'"10.0.0.2:8476", "--num-processes", "2", "--process-id", "{host.number}"'
            in host.agent("tail", {"lines": 50})["text"]
        )
    assert [state["code"] for state in start.end(context, hosts, "demo-1")] == [10, 10]


def test_no_half_run_is_left(context, hosts, ready, monkeypatch):
    real = hosts.hosts[1].agent
    fails = lambda name, message=None: {"error": "no luck"} if name == "start" else real(name, message)  # noqa: E731
    monkeypatch.setattr(hosts.hosts[1], "agent", fails)
    with pytest.raises(HostError, match=r"worker 1 \(node\): no luck"):
        start.start(context, hosts, ready, a_run("runs"), address="h")
    assert hosts.hosts[0].agent("state")["state"] == "ended"


def test_two_workstations_do_not_start_at_once(context, hosts, ready):
    seen = start.previous(context)
    context.records.write("run.json", a_run(run_id="theirs", by="you@there").to_json())
    with pytest.raises(HeldError, match="run theirs of you@there"):
        start.start(context, hosts, ready, a_run(), address="h", before=seen)
    assert hosts.hosts[0].agent("state")["state"] == "none"


def test_a_stopped_run_is_not_started_again(context, hosts, ready):
    context.records.write("stop.json", {"run_id": "demo-1", "by": "me", "at_s": 0.0})
    with pytest.raises(HeldError, match="was stopped by me"):
        start.start(context, hosts, ready, start.next_attempt(a_run()), address="h")
    assert hosts.hosts[0].agent("state")["state"] == "none"


@dataclasses.dataclass
class Worker:
    number: int
    internal: str = "10.0.0.2"


@dataclasses.dataclass
class Machines:
    workers: tuple[Worker, ...]
    ours: bool = True
    ready: bool = True
    state: str = "ACTIVE"


@pytest.fixture
def cloud(monkeypatch, hosts, ready):
    """Stands for the modules of machines, hosts and environment."""
    from launch import cloud, remote

    machines = types.SimpleNamespace(find=lambda context: machines.now, now=Machines((Worker(0), Worker(1))))
    stands = {
        (cloud, "machines"): machines,
        (remote, "environment"): types.SimpleNamespace(bring=lambda *_, **more: vars(machines).update(more) or ready),
        (remote, "hosts"): types.SimpleNamespace(connect=lambda context, machines: hosts),
    }
    for (package, name), module in stands.items():
        monkeypatch.setitem(sys.modules, f"{package.__name__}.{name}", module)
        monkeypatch.setattr(package, name, module, raising=False)
    return machines


def arguments(command, *words):
    parser = argparse.ArgumentParser()
    command.add(parser)
    return parser.parse_args(words)


def test_run_follows_to_the_end_and_exits_with_the_run_s_code(context, config, cloud, monkeypatch):
    monkeypatch.setattr(run_command, "_LOOK_S", 0.1)
    given = arguments(run_command, config, "--wait", "--env", "MODE=fails", "--revision", "v1")
    assert run_command.run(context, given) == 12 and cloud.revision == "v1"
    failure = "worker 1 (node): exit code 12: error: loss is not finite at step 7"
    assert {"code:    c1, revision v1", "train  1,234/5,000  loss 1.5", failure} <= set(context.said)
    assert any(line.startswith("run:     demo-") for line in context.said)


def test_a_dry_run_changes_nothing(context, config, cloud, hosts, monkeypatch):
    context.dry_run = True
    monkeypatch.setattr(hosts, "agent", lambda name, message=None, **_: hosts.calls.append(name) or [{}, {}])
    monkeypatch.setattr(Records, "write", lambda *_, **__: None)  # the real one prints
    assert run_command.run(context, arguments(run_command, config, "--wait")) is None
    assert hosts.calls == ["prepare", "start"]
    assert any(line.startswith("gcloud storage rsync") for line in context.said)
    assert not context.calls


def test_run_needs_machines(context, config, cloud):
    for now, text in ((None, "no such machines"), (Machines((), ready=False, state="CREATING"), "are CREATING")):
        cloud.now = now
        with pytest.raises(Exception, match=text):
            run_command.run(context, arguments(run_command, config))
    cloud.now = Machines((Worker(0),), ours=False)
    with pytest.raises(ConfigError, match="not of this launch"):
        run_command.run(context, arguments(run_command, config))


def test_run_needs_all_hosts(context, config, cloud, hosts, ready):
    cloud.now = Machines((Worker(0),))
    text = "demo: Google Cloud lists 1 host, but 1 slice of v4-16 have 2"
    with pytest.raises(HostError, match=text):
        run_command.run(context, arguments(run_command, config))
    hosts.hosts = hosts.hosts[:1]
    with pytest.raises(HostError, match=text):
        start.start(context, hosts, ready, a_run(), address="h")


def test_stop_ends_the_run_on_the_slices_that_are_left(context, cloud, hosts, ready):
    start.start(context, hosts, ready, a_run("runs"), address="h")
    for host in hosts.hosts:
        until(lambda host=host: "ready" in host.agent("tail", {"lines": 5})["text"])
    cloud.now = Machines((Worker(1), Worker(2)), ready=False, state="PREEMPTED")
    assert stop_command.run(context, arguments(stop_command)) == 0
    assert [host.agent("state")["code"] for host in hosts.hosts] == [10, 10]
    assert "run demo-1: the machines are PREEMPTED: ending it on the hosts that are left" in context.said


def test_stop_says_what_is_saved(context, config, cloud, hosts):
    assert stop_command.run(context, arguments(stop_command)) == 0
    assert context.said[-1] == "demo: nothing to stop, no run was started"
    run_command.run(context, arguments(run_command, config, "--env", "MODE=runs"))
    for host in hosts.hosts:
        until(lambda host=host: "ready" in host.agent("tail", {"lines": 5})["text"])
    assert stop_command.run(context, arguments(stop_command, "--reason", "enough")) == 0
    saved = "exit code 10: stopped: runs/x: step 1234 is saved; SIGTERM ended the run"
    assert context.said[-2] == f"worker 0 (node), worker 1 (node): {saved}"
    record = context.records.read("stop.json").value
    assert (record["run_id"], record["reason"]) == (context.records.read("run.json").value["run_id"], "enough")
    stop_command.run(context, arguments(stop_command))
    assert context.said[-2] == f"worker 0 (node), worker 1 (node): had ended already, {saved}"


def test_stop_without_its_hosts_leaves_the_record(context, cloud, hosts):
    context.records.write("run.json", a_run().to_json())
    hosts.down = {1}
    assert stop_command.run(context, arguments(stop_command)) == 17
    assert "worker 1 (node): cannot be reached, so the run may go on there: Connection timed out" in context.said
    cloud.now = None
    context.records.write("stop.json", {})
    assert stop_command.run(context, arguments(stop_command)) == 0
    assert context.records.read("stop.json").value["run_id"] == "demo-1"
