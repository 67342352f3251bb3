"""`doctor`: each check says what is wrong and what to do."""

import argparse
import json
import subprocess
import types

import pytest

import launch
from launch.cloud.gcloud import Result, run_command
from launch.commands import doctor
from launch.errors import CloudError, Kind
from tests.support.pods import Pod

DENIED = "ERROR: (gcloud.x) PERMISSION_DENIED: Permission tpu.acceleratorTypes.get denied."
GOOD = {
    "version": "Google Cloud SDK 528.0.0\nalpha 2025.07.25\n",
    "auth": json.dumps([{"account": "ada@example.com"}]),
    "accelerator-types": "{}",
    "versions": json.dumps([{"version": "tpu-ubuntu2204-base"}, {"name": "projects/p/x/v2-alpha-tpuv5"}]),
}


def make_key(path, passphrase=""):
    path.unlink(missing_ok=True)
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", path]
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)


@pytest.fixture
def pod(tmp_path, monkeypatch):
    kind = types.SimpleNamespace(name="v4-16", runtime="tpu-ubuntu2204-base")
    monkeypatch.setattr(launch, "capacity", types.SimpleNamespace(of=lambda settings: kind), raising=False)
    pod = Pod(tmp_path, monkeypatch)
    make_key(tmp_path / "key")
    pod.answers = dict(GOOD)

    def gcloud(words, stdin, timeout_s):
        if words[0] != "gcloud":
            return run_command(words, stdin, timeout_s)
        answer = next(answer for name, answer in pod.answers.items() if name in words)
        return answer if isinstance(answer, Result) else Result(0, answer, "")

    pod.gcloud = gcloud
    return pod


def run(pod):
    code = doctor.run(pod.context(), argparse.Namespace())
    return code, pod.printed


def test_a_workstation_that_is_ready_lacks_only_the_bucket(pod):
    code, lines = run(pod)
    assert [line for line in lines if line.startswith("problem")] == ["problem  bucket: none in the settings"]
    assert code == 1 and lines[-1] == "1 problem" and "8476" in lines[-2]
    assert any(line == "ok       accelerator type: v4-16 is offered in us-central2-b of p" for line in lines)


@pytest.mark.parametrize(
    ("name", "answer", "line", "remedy"),
    [
        ("version", "Google Cloud SDK 400.0.0\n", "gcloud: Google Cloud SDK 400.0.0", "gcloud components update"),
        ("auth", "[]", "account: none is active", "gcloud auth login"),
        ("accelerator-types", Result(1, "", DENIED), "accelerator type in the zone: permission", "TPU Admin"),
        ("versions", Result(1, "", DENIED), "runtime version in the zone: permission", "check project and zone"),
        (
            "accelerator-types",
            Result(1, "", "ERROR: (gcloud.x) NOT_FOUND: Resource 'v4-16' was not found"),
            "v4-16 is not offered in us-central2-b",
            "accelerator-types list --zone=us-central2-b",
        ),
        ("versions", '[{"version": "other"}]', "runtime: tpu-ubuntu2204-base is not offered", "allowed: other"),
    ],
)
def test_a_problem_has_a_remedy(pod, name, answer, line, remedy):
    pod.answers[name] = answer
    lines = run(pod)[1]
    at = next(number for number, text in enumerate(lines) if line in text)
    assert lines[at].startswith("problem  ") and lines[at + 1].startswith("         -> ") and remedy in lines[at + 1]


def test_what_is_not_installed_is_named_with_its_own_remedy(pod, tmp_path, monkeypatch):
    pod.gcloud = run_command
    monkeypatch.setenv("PATH", str(tmp_path))
    lines = run(pod)[1]
    for name, remedy in (("gcloud", "https://cloud.google.com/sdk/docs/install"), ("ssh", "install it with your")):
        at = next(number for number, text in enumerate(lines) if text.startswith(f"problem  {name}: {name}: "))
        assert f"is not installed on this workstation: {remedy}" in lines[at]
        assert lines[at + 1] == "         -> install it, or put its directory on PATH"


def test_a_key_that_others_can_read_is_a_problem(pod, tmp_path):
    (tmp_path / "key").chmod(0o644)
    assert f"         -> chmod 600 {tmp_path}/key" in run(pod)[1]


def test_a_passphrase_that_no_agent_knows_is_a_problem(pod, tmp_path, monkeypatch):
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    make_key(tmp_path / "key", "secret")
    assert f"         -> ssh-add {tmp_path}/key" in run(pod)[1]


def test_a_bucket_is_written_and_read_and_nothing_stays(pod):
    earlier: list[str] = []

    class Bucket:
        url, kept = "gs://bucket", {}

        def at(self, name):
            return self

        def write(self, name, value):
            self.kept[name] = value

        def read(self, name):
            assert name not in ("doctor.json", *earlier)
            earlier.append(name)
            return types.SimpleNamespace(value=self.kept[name])

        def remove(self, name):
            del self.kept[name]
            if len(earlier) > 1:
                raise CloudError(Kind.PERMISSION, name, "may not delete")

    context = pod.context()
    pod.settings = context.settings = context.settings.model_copy(update={"bucket": "gs://bucket"})
    context.__dict__["bucket"] = Bucket()
    for _ in range(2):
        assert doctor.run(context, argparse.Namespace()) == 0 and not Bucket.kept
    assert pod.printed[-1] == "all is well" and "ok       bucket: gs://bucket can be written and read" in pod.printed


def test_iap_needs_the_alpha_commands(pod):
    pod.settings = pod.settings.model_copy(update={"iap": True})
    assert any(line == "ok       gcloud: Google Cloud SDK 528.0.0" for line in run(pod)[1])
    pod.answers["version"] = "Google Cloud SDK 528.0.0\nbeta 2025.07.25\n"
    assert "         -> gcloud components install alpha" in run(pod)[1]
