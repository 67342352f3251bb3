"""`ssh`: which words the user's terminal gets, and what forwards may listen on."""

import argparse
import itertools
import os
import subprocess
import types

import pytest

from janus_jax.errors import ConfigError
from launch import cloud
from launch.commands import ssh
from launch.errors import CloudError, HostError
from launch.remote import hosts
from tests.support.pods import Pod


@pytest.fixture
def pod(tmp_path, monkeypatch):
    pod = Pod(tmp_path, monkeypatch, hosts=3)
    monkeypatch.setattr(hosts, "reach", lambda context: pod.connect(dry_run=context.dry_run))
    return pod


@pytest.fixture
def become(monkeypatch):
    """The words that the command becomes."""
    words = []
    monkeypatch.setattr(os, "execvp", lambda program, line: words.extend(line))
    monkeypatch.setattr(ssh.subprocess, "call", lambda line: words.extend(line) or 0)
    return words


def command(pod, *words, **more):
    parser = argparse.ArgumentParser()
    ssh.add(parser)
    return ssh.run(pod.context(**more), parser.parse_args(words))


def options(words):
    done = subprocess.run(["/usr/bin/ssh", "-G", *words[1:]], capture_output=True, text=True, check=True)
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)


def test_a_shell_has_a_terminal_and_checked_host_keys(pod, become):
    command(pod, "--worker", "2")
    assert "-t" in become and "-T" not in become and become[-1] == "me@127.9.0.2"
    seen = options(become)
    assert (seen["hostkeyalias"], seen["stricthostkeychecking"]) == ("tpu.7-2-00", "accept-new")
    assert seen["controlmaster"] == "false"  # no connection outlives the shell


def test_words_after_the_dashes_are_quoted_and_a_single_one_is_a_line(pod, become):
    command(pod, "--", "grep", "-c", "a  b", "x")
    assert become[-2:] == ["--", "grep -c 'a  b' x"]
    become.clear()
    command(pod, "--", "df -h | tail -1")
    assert become[-2:] == ["--", "df -h | tail -1"]


def test_a_port_is_forwarded_to_this_workstation_alone(pod, become):
    command(pod, "-L", "6006:localhost:7007", "-L", "8000")
    seen = options(become)
    assert "-N" in become and seen["exitonforwardfailure"] == "yes" and seen.get("controlpath", "none") == "none"
    assert [word for before, word in itertools.pairwise(become) if before == "-L"] == [
        "127.0.0.1:6006:localhost:7007",
        "127.0.0.1:8000:localhost:8000",
    ]


@pytest.mark.parametrize("text", ["0.0.0.0:80:localhost:80", "*:80:localhost:80", "x", "0", "80:a:99999", "80:a b:80"])
def test_other_forwards_are_refused(pod, text):
    with pytest.raises(ConfigError, match="allowed: PORT or PORT:HOST:PORT"):
        command(pod, "-L", text)


def test_all_hosts_answer_with_their_numbers(pod, capsys):
    code = command(pod, "--worker", "all", "--", "echo $HOSTNAME; [[ $HOSTNAME != *.1 ]] || exit 5")
    shown = capsys.readouterr()
    assert shown.out.splitlines() == ["[0] 127.9.0.0", "[1] 127.9.0.1", "[2] 127.9.0.2"]
    assert (code, shown.err) == (5, "[1] exit code 5\n")


@pytest.mark.parametrize("code, ends", [(0, 0), (5, 5), (-15, 143)])
def test_a_command_ends_with_its_own_code(pod, monkeypatch, code, ends):
    monkeypatch.setattr(ssh.subprocess, "call", lambda line: code)
    assert command(pod, "--", "nproc") == ends


def test_a_host_that_cannot_be_reached_is_an_error_of_hosts(pod, monkeypatch, capsys):
    monkeypatch.setattr(ssh.subprocess, "call", lambda line: 255)
    with pytest.raises(HostError, match=r"worker 0.*: cannot be reached") as caught:
        command(pod, "--", "nproc")
    assert caught.value.exit_code == 17
    assert command(pod, "--worker", "all", "--", "exit 255") == 17
    assert "[1] cannot be reached" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--worker", "3"], ["--worker", "all"], ["--worker", "-1"], ["--worker", "x"]])
def test_workers_that_are_not_there_and_shells_on_all_are_refused(pod, words):
    words = [words[0] + "=" + words[1]]
    with pytest.raises(ConfigError, match="allowed: "):
        command(pod, *words)


def test_dry_run_prints_the_line(pod, become):
    assert command(pod, "--", "nproc", dry_run=True) == 0
    assert pod.printed[-1].endswith("me@127.9.0.0 -- nproc") and become == []


def test_machines_that_are_missing_or_not_ready_are_named(tmp_path, monkeypatch):
    pod = Pod(tmp_path, monkeypatch)
    seen = [None, types.SimpleNamespace(ready=False, state="SUSPENDED", health="HEALTHY", error="preempted")]
    monkeypatch.setattr(cloud, "machines", types.SimpleNamespace(find=lambda context: seen.pop(0)), raising=False)
    with pytest.raises(CloudError, match="no machines of that name; create them: python -m launch up") as caught:
        hosts.reach(pod.context())
    assert caught.value.exit_code == 16
    with pytest.raises(HostError, match="not ready: SUSPENDED, health HEALTHY preempted"):
        hosts.reach(pod.context())
