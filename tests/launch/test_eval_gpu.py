"""The scripts of launch/eval_gpu: a rehearsal prints every line and runs nothing; for real, stand-ins are called."""

import os
import subprocess
import time

import pytest

from tests.support.repository import ROOT

SCRIPTS = ROOT / "launch/eval_gpu"


@pytest.fixture
def script(tmp_path):
    """Runs one; gcloud, janus, curl and what the machine has only write down what they are called with."""
    bin, log = tmp_path / "bin", tmp_path / "log"
    bin.mkdir()
    for name in ("gcloud", "janus", "curl", "nvidia-smi", "sudo", "python3"):
        body = f'#!/bin/bash\necho "{name} $*" >> {log}\n'
        if name == "curl":  # as for real, nothing answers through a tunnel before gcloud has begun
            body += f'until [[ -z $TUNNEL ]] || grep -q "^gcloud" {log}; do sleep 0.02; done\n'
            body += 'printf \'{"id": "mine"}\'\n'
        body += "[[ $* == *' -N '* ]] && exec sleep 60\nexit 0\n"
        (bin / name).write_text(body)
        (bin / name).chmod(0o755)

    def run(*words, **more):
        log.unlink(missing_ok=True)
        environment = {"PATH": f"{bin}:/usr/bin:/bin", "PROJECT": "p", "PAUSE": "0", "HOME": str(tmp_path)} | more
        done = subprocess.run(
            ["bash", *map(str, words)], cwd=SCRIPTS, env=environment, capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stderr, log.read_text().splitlines() if log.exists() else []

    return run


ALL = [
    ("create.sh",),
    ("serve.sh", str(SCRIPTS), "mine"),
    ("serve.sh", "someone/judge", "judge"),
    ("evaluate.sh", "answer", "b.jsonl", "mine", "a.jsonl", "--limit", "3"),
    ("evaluate.sh", "judge", "b.jsonl", "a.jsonl", "judge", "judged", "--runs", "1"),
    ("delete.sh",),
]


@pytest.mark.parametrize("words", ALL, ids=lambda words: " ".join(words[:2]).replace("/", "-"))
def test_a_rehearsal_prints_what_is_run(script, words):
    name, *rest = words
    code, output, called = script(name, "--dry-run", *rest)
    assert code == 0 and called == [], output
    code, err, called = script(*words, TUNNEL="yes" if name == "evaluate.sh" else "")
    assert code == 0, err
    printed = [line.removeprefix("+ ").replace("\\", "").removesuffix(" &") for line in output.splitlines()]
    assert [line for line in called if not line.startswith("curl")] == printed


def test_the_machine_is_bounded_in_time_and_settings_count(script):
    _, output, _ = script("create.sh", "--dry-run", MACHINE="a2-highgpu-1g", MAX_HOURS="3", PROVISIONING="SPOT")
    assert "--machine-type=a2-highgpu-1g" in output and "--provisioning-model=SPOT" in output
    assert "--max-run-duration=3h --instance-termination-action=DELETE" in output
    for words, says in (
        (("serve.sh", "x", "../mine"), "allowed: letters"),
        (("serve.sh", "x"), "a name for the model"),
        (("evaluate.sh", "judge", "b", "a", "j"), "evaluate.sh [--dry-run] judge BENCH"),
        (("on_vm.sh",), "on_vm.sh serve MODEL"),
    ):
        code, err, called = script(*words)
        assert code != 0 and says in err and called == []
    assert script("create.sh", "--dry-run", PROJECT="")[0] != 0


def test_the_machine_serves_one_model_in_place_of_another(script, tmp_path):
    assert script("on_vm.sh", "install", "vllm==1")[0] != 0  # python3 of this test makes no environment
    server = tmp_path / "vllm/bin/vllm"
    server.parent.mkdir(parents=True, exist_ok=True)
    server.write_text(f'#!/bin/bash\necho "vllm $*" >> {tmp_path / "log"}\n[[ $* == *other* ]] || exec sleep 60\n')
    server.chmod(0o755)
    pids, log = [], tmp_path / "log"
    for _ in range(2):
        code, err, _ = script("on_vm.sh", "serve", "models/mine", "mine", "8000", "4096")
        assert code == 0, err
        deadline = time.monotonic() + 60
        while "vllm serve" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        (line,) = (line for line in log.read_text().splitlines() if line.startswith("vllm serve"))
        assert "serve models/mine --served-model-name mine --host 127.0.0.1" in line
        assert line.endswith("--max-model-len 4096 --generation-config vllm")
        pids.append(int((tmp_path / "server.pid").read_text()))
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
    code, err, _ = script("on_vm.sh", "serve", "models/mine", "other", "8000", "4096")
    assert code == 1 and "vLLM does not serve other; its log is server.log" in err
