"""The hosts over ssh: how they are reached, what is asked again, what errors say."""

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import stat
import subprocess
import time

import pytest

from launch.cloud.gcloud import end_those_of_threads, interrupted
from launch.errors import CloudError, HostError
from launch.remote import hosts, lines
from tests.support.pods import Pod, machines

ODD = ["a  b", "it's", '"x"', "$HOME `id` $(id)", "*", "-n", "ä\n;&|<>#!", ""]


@pytest.fixture
def pod(tmp_path, monkeypatch):
    return Pod(tmp_path, monkeypatch)


def effective(words):
    """The options that the real ssh takes from a line."""
    done = subprocess.run(["/usr/bin/ssh", "-G", *words[1:]], capture_output=True, text=True, check=True)
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)


def test_the_real_ssh_keeps_what_gcloud_asks_for_and_checks_host_keys(pod):
    for host in pod.connect().hosts:
        options = effective(host.words)
        assert options["hostkeyalias"] == f"tpu.7-{host.number}-00"
        assert options["stricthostkeychecking"] == "accept-new"
        assert options["userknownhostsfile"] == f"{pod.scratch}/known"
        assert (options["identitiesonly"], options["batchmode"]) == ("yes", "yes")
        assert (options["hostname"], options["user"]) == (f"127.9.0.{host.number}", "me")
        assert options["controlmaster"] == "auto" and options["controlpath"] == host.socket
        assert 0 < int(options["controlpersist"]) <= 120 and int(options["connecttimeout"]) <= 30


def test_workers_are_numbered_over_the_slices_whatever_the_order_of_the_lines(tmp_path, monkeypatch):
    reached = Pod(tmp_path, monkeypatch, hosts=2, slices=2).connect().hosts
    names = [host.name for host in reached]
    assert names == ["worker 0 (pod-0)", "worker 1 (pod-0)", "worker 2 (pod-1)", "worker 3 (pod-1)"]
    assert [host.words[-1] for host in reached] == [f"me@127.9.0.{number}" for number in range(4)]
    assert [(host.slice, host.index) for host in reached] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_gcloud_is_asked_once_for_each_creation_of_the_machines(pod):
    pod.connect()
    assert [("--dry-run" in words, "--worker=all" in words) for words in pod.asked] == [(False, False), (True, True)]
    assert f"--ssh-key-file={pod.settings.ssh_key}" in pod.asked[0]
    pod.connect()
    assert len(pod.asked) == 2
    pod.machines = machines(token="t2")
    pod.connect()
    assert len(pod.asked) == 4
    folder = pod.scratch / "cache/janus-launch"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()] == [0o600]


def test_other_addresses_or_a_missing_key_file_ask_gcloud_again(pod):
    pod.connect()
    os.rename(pod.settings.ssh_key, pod.scratch / "gone")
    pod.connect()
    assert len(pod.asked) == 4


def test_a_new_key_that_a_machine_does_not_know_yet_is_tried_again(pod):
    refused = "ERROR: (gcloud.compute.tpus.tpu-vm.ssh) [/usr/bin/ssh] exited with return code [255]."
    pod.refusals = [refused] * 2
    assert len(pod.connect().hosts) == 2
    pod.machines, pod.refusals = machines(token="t2"), [refused] * 9
    with pytest.raises(HostError, match=r"worker 0 \(pod\): cannot be reached"):
        pod.connect()
    assert len(pod.refusals) == 6


def test_a_refused_permission_is_not_tried_again(pod):
    pod.refusals = ["ERROR: (gcloud) PERMISSION_DENIED: Permission tpu.nodes.update denied."] * 9
    with pytest.raises(CloudError, match="permission"):
        pod.connect()
    assert len(pod.refusals) == 8


def test_a_key_that_is_refused_later_is_pushed_again_by_the_next_command(pod, monkeypatch):
    monkeypatch.setenv("SHIM_PATH", "/usr/bin:/bin")
    pod.connect().each("echo 'me@host: Permission denied (publickey).' >&2; exit 255")
    pod.connect()
    assert len(pod.asked) == 4


def test_after_a_signal_gcloud_is_asked_nothing_more(tmp_path, monkeypatch):
    pod = Pod(tmp_path, monkeypatch, hosts=1, slices=6)
    monkeypatch.setattr("launch.remote.lines.PAUSE_S", 30.0)
    refused, real = "ERROR: (gcloud.compute.tpus.tpu-vm.ssh) [/usr/bin/ssh] exited with return code [255].", pod.gcloud

    def gcloud(words, stdin, timeout_s):
        pod.refusals = [refused]
        answer = real(words, stdin, timeout_s)
        end_those_of_threads()
        return answer

    monkeypatch.setattr(pod, "gcloud", gcloud)
    began = time.monotonic()
    with pytest.raises(HostError, match="stopped"):
        pod.connect()
    interrupted.clear()
    assert len(pod.asked) <= 4 and time.monotonic() - began < 10


def test_of_machines_that_are_not_ready_the_hosts_that_are_left_are_reached(tmp_path, monkeypatch, capsys):
    pod = Pod(tmp_path, monkeypatch, hosts=1, slices=3)
    gone, *left = pod.machines.workers
    pod.machines = dataclasses.replace(pod.machines, state="PREEMPTED", workers=(*left,))
    pod.refusals = ["ERROR: (gcloud) PERMISSION_DENIED: Permission tpu.nodes.update denied."]
    assert [host.name for host in pod.connect().hosts] == ["worker 2 (pod-2)"]
    assert "pod-1: cannot be reached, so the run may go on there: permission" in capsys.readouterr().err
    pod.machines = dataclasses.replace(pod.machines, workers=(dataclasses.replace(gone, internal=""),))
    with pytest.raises(HostError, match="is PREEMPTED, and no host has an address"):
        pod.connect()


def test_sockets_lie_in_a_private_short_directory_or_there_are_none(pod, monkeypatch, tmp_path):
    folder = lines.sockets()
    assert folder and stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    host = pod.connect().hosts[0]
    assert host.socket.startswith(folder) and len(host.socket) + 17 < 104
    os.chmod(folder, 0o755)
    assert pod.connect().hosts[0].socket is None
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    host = pod.connect().hosts[0]
    assert host.socket is None and "ControlMaster" not in shlex.join(host.words)


def test_at_most_sixteen_connections_at_once(tmp_path, monkeypatch):
    pod = Pod(tmp_path, monkeypatch, hosts=20)
    answers = pod.connect().each("sleep 0.3; echo $HOSTNAME")
    assert [answer.out.strip() for answer in answers] == [f"127.9.0.{number}" for number in range(20)]
    moments = sorted((event["at"], 1 if "words" in event else -1) for event in pod.log())
    open_now, most = 0, 0
    for _, change in moments:
        open_now += change
        most = max(most, open_now)
    assert 8 <= most <= 16


def test_a_lost_connection_is_tried_again_and_only_so_often(pod):
    pod.fail(1, "drop", "0")
    answers = pod.connect().each("sleep 0.2; echo done", tries=2)
    assert [(answer.code, answer.out) for answer in answers] == [(0, "done\n"), (0, "done\n")]
    pod.fail(0, "down")
    before = len(pod.calls())
    answers = pod.connect().each("echo done", tries=3)
    assert [answer.code for answer in answers] == [255, 0] and len(pod.calls()) == before + 4
    with pytest.raises(HostError, match=r"^greet: worker 0 \(pod\): ssh: connect to host .* timed out$"):
        hosts.require(answers, "greet")


def test_a_command_that_fails_is_not_tried_again(pod):
    answers = pod.connect().each("echo first >&2; echo last >&2; exit 3", only=[1], tries=3)
    assert [(answer.host.number, answer.code) for answer in answers] == [(1, 3)] and len(pod.calls()) == 1
    with pytest.raises(HostError, match="last") as caught:
        hosts.require(answers, "x")
    assert caught.value.exit_code == 17


def test_a_command_without_end_ends(pod):
    answers = pod.connect().each("sleep 4", only=[0], timeout_s=0.5)
    assert answers[0].code == 124 and "no answer within" in answers[0].last()


def test_an_error_names_a_few_hosts_and_counts_the_others(tmp_path, monkeypatch):
    pod = Pod(tmp_path, monkeypatch, hosts=8)
    answers = [hosts.Answer(host, 1, "", f"e{host.number}", 0.0) for host in pod.connect().hosts]
    with pytest.raises(HostError) as caught:
        hosts.require(answers, "set-up")
    text = str(caught.value)
    assert "8 of 8 hosts failed" in text and "worker 4 (pod): e4" in text and "and 3 more" in text


@pytest.mark.parametrize("body", [b"", b"\0\xff\n\r bytes", b"x" * 300_000])
def test_bodies_arrive_whole(pod, body):
    answers = pod.connect().each("sha256sum; cat >/dev/null", stdin=lambda host: body + str(host.number).encode())
    sums = [subprocess.run(["sha256sum"], input=body + end, capture_output=True).stdout for end in (b"0", b"1")]
    assert [answer.out.encode() for answer in answers] == sums


def test_odd_words_reach_the_host_as_they_are(pod):
    answers = pod.connect().each(shlex.join(["printf", "%s|", *ODD]), only=[0])
    assert answers[0].out == "".join(f"{word}|" for word in ODD)


def agent(pod, number, body):
    path = pod.home(number) / "janus/agent"
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/bash\n" + body)
    path.chmod(0o755)


def test_the_agent_reads_a_message_by_host_and_answers_with_its_last_line(pod):
    for number in (0, 1):
        agent(pod, number, 'echo noise; echo "{\\"name\\": \\"$1\\", \\"got\\": $(cat)}"')
    answers = pod.connect().agent("start", lambda host: {"worker": host.number, "secret": "hunter2"})
    assert answers == [{"name": "start", "got": {"worker": number, "secret": "hunter2"}} for number in (0, 1)]
    assert "hunter2" not in json.dumps(pod.calls())


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('echo \'{"error": "another run"}\'', "another run"),
        ("echo oops >&2; exit 4", "oops"),
        ("echo no json", "no json"),
        (None, "is not set up; python -m launch setup"),
    ],
)
def test_an_agent_that_does_not_answer_is_named(pod, body, says):
    agent(pod, 0, "echo '{}'")
    if body is not None:
        agent(pod, 1, body)
    with pytest.raises(HostError, match=rf"^state: worker 1 \(pod\): .*{says}"):
        pod.connect().agent("state")


def test_ctrl_c_ends_every_connection_at_once(pod):
    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    reached = pod.connect()
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    start = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            reached.each("sleep 6", tries=5)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - start < 5
    pids = [event["pid"] for event in pod.log() if "words" in event]
    assert len(pids) == 2
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
            pytest.fail(f"ssh {pid} is still there")


def test_dry_run_prints_the_lines_and_runs_none(pod):
    reached = pod.connect(dry_run=True)
    assert pod.printed[0].startswith("gcloud compute tpus tpu-vm ssh pod --worker=0")
    assert [answer.code for answer in reached.each("echo 'a b'")] == [0, 0]
    assert [shlex.split(line)[-2:] for line in pod.printed[1:]] == [["--", "echo 'a b'"]] * 2
    assert reached.agent("state") == [{}, {}] and pod.calls() == []
    assert not list((pod.scratch / "cache").iterdir())


def test_through_iap_gcloud_connects_to_each_worker(tmp_path, monkeypatch):
    pod = Pod(tmp_path, monkeypatch, iap=True)
    host = pod.connect().hosts[1]
    line = host.line("nproc", options=["-t"])
    assert line[:6] == ["gcloud", "alpha", "compute", "tpus", "tpu-vm", "ssh"] and pod.asked == []
    assert {"pod", "--worker=1", "--tunnel-through-iap", "--ssh-flag=-t", "--command=nproc"} <= set(line)
