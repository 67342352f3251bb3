"""Files for other platforms: their schemas hold, and they start a run as `launch` does."""

import json
import re
import shlex
import subprocess
import tomllib

import jsonschema
import pytest
import yaml

from janus_jax.config.run import load_config
from launch.__main__ import main
from launch.platforms import docker, jobset, skypilot
from launch.settings import Settings
from tests.support.repository import ROOT, tracked

CONFIG = "configs/sft_65k.yaml"
GIVE_UP = [2, 3, 11, 12, 16, 141]
"""Of docs/training.md; a run of them starts again with the same end."""


def settings(**changes) -> Settings:
    values = {"name": "ada", "project": "p", "zone": "us-central2-b", "type": "v5litepod-16", "bucket": "gs://buck"}
    return Settings.model_validate({**values, **changes})


@pytest.fixture(scope="module")
def strict_schema():
    """The schema of the resource; Kubernetes drops fields that it does not know, here they are faults."""

    def closed(node):
        if isinstance(node, list):
            return [closed(item) for item in node]
        if not isinstance(node, dict):
            return node
        node = {key: closed(value) for key, value in node.items()}
        if node.get("type") == "object" and isinstance(node.get("properties"), dict):
            node.setdefault("additionalProperties", False)
        return node

    schema = closed(json.loads((ROOT / "tests/launch/assets/jobset.schema.json").read_text()))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize(
    ("changes", "label", "topology", "pods", "chips"),
    [
        ({}, "tpu-v5-lite-podslice", "4x4", 4, 4),
        ({"type": "v5litepod-8"}, "tpu-v5-lite-podslice", "2x4", 2, 4),
        ({"type": "v6e-4"}, "tpu-v6e-slice", "2x2", 1, 4),
        ({"type": "v4-32", "slices": 3, "provisioning": "spot"}, "tpu-v4-podslice", "2x2x4", 4, 4),
        ({"type": "v5p-16"}, "tpu-v5p-slice", "2x2x2", 2, 4),
        ({"labels": {"team": "x"}, "network": "net"}, "tpu-v5-lite-podslice", "4x4", 4, 4),
    ],
)
def test_a_jobset_fits_its_schema_and_its_slices(strict_schema, changes, label, topology, pods, chips):
    chosen = settings(**changes)
    made = jobset.manifest(chosen, CONFIG, [], "image")
    strict_schema.validate(made)
    [job] = made["spec"]["replicatedJobs"]
    assert job["replicas"] == chosen.slices
    spec, pod = job["template"]["spec"], job["template"]["spec"]["template"]["spec"]
    assert (spec["parallelism"], spec["completions"], spec["completionMode"]) == (pods, pods, "Indexed")
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == label
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology
    assert ("cloud.google.com/gke-spot" in pod["nodeSelector"]) == (chosen.provisioning == "spot")
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}


def test_the_schema_of_the_test_refuses_a_slip_of_the_pen(strict_schema):
    made = jobset.manifest(settings(), CONFIG, [], "image")
    made["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["nodeSelectors"] = {}
    with pytest.raises(jsonschema.ValidationError, match="nodeSelectors"):
        strict_schema.validate(made)


def test_a_jobset_ends_where_starting_again_does_not_help_and_restarts_otherwise():
    spec = jobset.manifest(settings(), CONFIG, [], "image")["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    assert job["backoffLimit"] == 0 and job["template"]["spec"]["restartPolicy"] == "Never"
    [rule] = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == GIVE_UP
    [whole] = spec["failurePolicy"]["rules"]  # without it, the JobSet would start such a job again
    assert (whole["action"], whole["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert spec["failurePolicy"]["maxRestarts"] > 0


def test_every_pod_of_a_jobset_has_another_process_number(tmp_path):
    chosen = settings(type="v4-16", slices=2)
    pod = jobset.manifest(chosen, CONFIG, ["run.tags=[a b]"], "image")
    [container] = pod["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    (tmp_path / "janus").write_text('#!/bin/sh\nfor word; do printf "%s\\n" "$word"; done\n')
    (tmp_path / "janus").chmod(0o755)
    numbers = []
    for slice_number in range(2):
        for index in range(2):
            environment = {"SLICE": str(slice_number), "JOB_COMPLETION_INDEX": str(index), "PATH": f"{tmp_path}:/bin"}
            out = subprocess.run(container["command"], env=environment, capture_output=True, text=True, check=True)
            words = out.stdout.splitlines()
            numbers.append(words[words.index("--process-id") + 1])
    assert numbers == ["0", "1", "2", "3"]
    assert words[: words.index("--process-id")] == [
        *("train", CONFIG, "run.tags=[a b]", "run.dir=gs://buck/runs/ada"),
        *("--coordinator", "ada-slice-0-0.ada:8476", "--num-processes", "4"),
    ]


def test_settings_without_a_counterpart_are_named_and_the_rest_is_yaml():
    text = jobset.text(settings(network="net", iap=True), CONFIG, [], "image")
    assert "left out: iap, network." in text
    assert yaml.safe_load(text)["kind"] == "JobSet"
    assert "left out" not in skypilot.text(settings(), CONFIG, []).replace("left out: project", "")


def test_a_skypilot_task_names_the_machines_and_the_exit_codes():
    task = yaml.safe_load(skypilot.text(settings(provisioning="spot"), CONFIG, ["batch.rows=4"]))
    resources = task["resources"]
    assert resources["accelerators"] == "tpu-v5litepod-16" and resources["use_spot"] is True
    assert resources["infra"] == "gcp/us-central2/us-central2-b"
    assert resources["accelerator_args"] == {"runtime_version": "v2-alpha-tpuv5-lite"}
    assert set(resources["job_recovery"]["recover_on_exit_codes"]) == {10, 13, 14, 15, 17}
    last = shlex.split(task["run"].splitlines()[-1])
    assert last[2:] == ["train", CONFIG, "batch.rows=4", "run.dir=gs://buck/runs/ada"]
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n", "-c", task[part]], check=True)


def test_the_dockerfile_copies_what_is_there_and_installs_what_is_pinned():
    text, files = docker.text(), tracked()
    sources = [name for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in line.split()]
    assert sources and [name for name in sources if not any(f"{file}/".startswith(f"{name}/") for file in files)] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(re.findall(r"\.\[(\w+)\]", text)) <= set(project["optional-dependencies"])
    needed = {"pyproject.toml", "constraints-py311.txt", "janus_jax", project["readme"], *project["license-files"]}
    before_install = text.partition("\nRUN pip")[0]
    assert [name for name in needed if name not in before_install] == [] and "FROM python:3.11-slim" in text


def test_the_default_configuration_of_the_examples_is_there():
    assert load_config(CONFIG, []).objective.name == "sft"


SETTINGS = ["--name=ada", "--project=p", "--zone=us-central2-b", "--type=v4-16", "--bucket=gs://buck"]


def test_the_command_writes_the_file(tmp_path, capsys):
    out = tmp_path / "ada.yaml"
    assert main(["export", "jobset", str(ROOT / CONFIG), "batch.rows=4", f"--out={out}", *SETTINGS]) == 0
    made = yaml.safe_load(out.read_text())
    assert f"train {CONFIG} batch.rows=4" in str(made) and "wrote" in capsys.readouterr().out
    assert main(["export", "dockerfile", *SETTINGS]) == 0
    assert capsys.readouterr().out == docker.text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["jobset"], "jobset: needs CONFIG"),
        (["jobset", "none.yaml"], "CONFIG none.yaml: allowed: a file in"),
        (["jobset", "/etc/hosts"], "CONFIG /etc/hosts: allowed: a file in"),
        (["dockerfile", CONFIG], "dockerfile: takes no CONFIG"),
        (["skypilot", CONFIG, "--slices=2"], "slices 2: allowed: 1"),
        (["skypilot", CONFIG, "--provisioning=reserved"], "provisioning 'reserved': allowed"),
        (["jobset", CONFIG, "--bucket=null"], "bucket: missing"),
        (["jobset", CONFIG, "--out=/no/such/file"], "--out /no/such/file: No such file"),
    ],
)
def test_what_cannot_be_exported_says_why(words, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["export", *words[:2], *SETTINGS, *words[2:]]) == 2
    assert message in capsys.readouterr().err
