import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from launch.host import agent, log, machine, supervisor
from launch.records import Spec
from tests.support.launch_hosts import ScratchHost, a_run, until


@pytest.fixture
def host(tmp_path):
    made = ScratchHost(tmp_path / "home")
    yield made
    made.close()


def test_a_run_goes_from_start_to_its_end(host):
    odd = 'o=it\'s "$HOME"; `x`\n#é'
    run = a_run(command=["train", "c.yaml", odd, "--devices", "4"], env={"MORE": " a b'c "})
    assert host.agent("state")["state"] == "none"
    answer = host.agent("start", host.spec(run))
    assert answer["state"] in ("running", "ended")
    ended = host.wait("ended")
    assert (ended["code"], ended["step"], ended["run_id"], ended["start"]) == (0, 1234, "demo-1", 1)
    text = host.agent("tail", {"lines": 50})["text"].splitlines()
    argv = json.loads(text[0].removeprefix("argv "))
    assert argv == ["train", str(host.home / "janus/run/files/c.yaml"), odd, "--devices", "4"]
    assert json.loads(text[1].removeprefix("env ")) == {
        "JANUS_RUN_OWNER": "owner",
        "JANUS_RUN_ATTEMPT": "1",
        "MORE": " a b'c ",
    }
    assert text[-1] == 'file "a: 1\\n"'
    assert (host.home / "janus/run/spec.json").stat().st_mode & 0o777 == 0o600


def test_a_path_that_only_the_hosts_could_have_must_be_there(host, tmp_path):
    run = a_run(paths={"data.dir": str(tmp_path), "init.from": str(tmp_path / "nowhere")})
    error = host.agent("prepare", host.spec(run))["error"]
    assert error.startswith(f"init.from = {tmp_path}/nowhere: no such path on this host")
    (tmp_path / "nowhere").mkdir()
    assert "error" not in host.agent("prepare", host.spec(run))


def test_a_start_may_come_twice_and_another_run_is_refused(host):
    run = a_run("runs")
    first = host.agent("start", host.spec(run))
    again = host.agent("start", host.spec(run))  # the connection was lost after the first
    assert again["pid"] == first["pid"] and again["state"] == "running"
    other = host.agent("start", host.spec(a_run(run_id="demo-2")))
    assert other["held"] == "demo-1" and "error" in other
    assert host.agent("prepare", host.spec(a_run("runs", start=2)))["held"] == "demo-1"
    assert host.agent("clean")["held"] == "demo-1"
    assert host.agent("stop", {"run_id": "demo-2"})["state"] == "running"  # not this run


def test_the_connection_does_not_hold_the_run(host):
    host.agent("start", host.spec(a_run("runs")))
    pid = host.pids()["pid"]
    fields = machine._stat(pid)
    assert fields is not None
    assert int(fields[3]) == pid  # leads a session of its own
    assert {os.readlink(f"/proc/{pid}/fd/{n}") for n in (1, 2)} == {str(host.home / "janus/run/supervisor.log")}


def test_stop_lets_the_run_save_however_often_it_comes(host):
    host.agent("start", host.spec(a_run("runs")))
    until(lambda: "ready" in host.agent("tail", {"lines": 5})["text"])
    twice = [threading.Thread(target=host.agent, args=("stop", {"run_id": "demo-1"})) for _ in range(2)]
    for thread in twice:
        thread.start()
    for thread in twice:
        thread.join()
    state = host.agent("stop", {"run_id": "demo-1"})
    assert (state["state"], state["code"], state["was"]) == ("ended", 10, "ended")
    assert state["message"] == "stopped: runs/x: step 1234 is saved; SIGTERM ended the run"


@pytest.mark.parametrize("who", [("child", "pid"), ("pid", "child"), ("pid",), ("child", "stop"), ("pid", "stop")])
def test_a_shutdown_lets_the_run_save_whoever_gets_its_signal(host, who):
    """systemd signals supervisor and command, in any order, and not at the same moment on a busy machine."""
    host.agent("start", host.spec(a_run("saves")))
    until(lambda: "ready" in host.agent("tail", {"lines": 5})["text"])
    pids = host.pids()
    for name in who:
        if name == "stop":
            assert host.agent("stop", {"run_id": "demo-1"})["code"] == 10
        else:
            os.kill(pids[name], signal.SIGTERM)
            time.sleep(0.5)
    assert host.wait("ended")["code"] == 10


def test_a_run_that_a_person_has_stopped_is_never_started_again(host):
    run = a_run()
    host.agent("stop", {"run_id": run.run_id})  # as `watch` does before each start
    assert "error" not in host.agent("prepare", host.spec(run))
    host.agent("stop", {"run_id": run.run_id, "final": True})
    assert "stopped" in host.agent("start", host.spec(run))["error"]
    assert "error" not in host.agent("start", host.spec(a_run(run_id="demo-2")))


def test_a_run_that_does_not_end_is_killed_after_the_grace(host):
    host.agent("start", host.spec(a_run("stubborn")))
    state = host.agent("stop", {"run_id": "demo-1", "grace_s": 0.5})
    assert (state["state"], state["code"], state["killed"]) == ("ended", 137, True)


def test_a_command_of_one_host_does_not_wait_for_the_rest_of_its_slice(host):
    def bounds(command, **spec):
        run = a_run(command=[command, "x"])
        names = {"TPU_PROCESS_BOUNDS", "TPU_CHIPS_PER_PROCESS_BOUNDS"}
        return names <= set(supervisor.environment(Spec.from_json(host.spec(run, **spec))))

    assert bounds("serve", workers=4, hosts_per_slice=2) and not bounds("serve")
    assert not any(bounds(one, workers=4, hosts_per_slice=2, coordinator="h:1") for one in ("train", "generate"))


def test_a_killed_supervisor_takes_the_command_with_it_and_is_seen(host):
    host.agent("start", host.spec(a_run("child")))
    pids = host.pids()
    until(lambda: len(machine.session(pids["child"])) > 1)
    os.kill(pids["pid"], signal.SIGKILL)
    assert host.wait("dead")["run_id"] == "demo-1"
    until(lambda: machine.process_start(pids["child"]) is None)
    leftovers = machine.session(pids["child"])  # what the command itself had started
    assert leftovers
    answer = host.agent("start", host.spec(a_run(start=2)))
    assert answer["start"] == 2
    assert not machine.session(pids["child"])
    assert (host.home / "janus/run.last/spec.json").exists()


def test_a_killed_command_ends_with_its_code(host):
    host.agent("start", host.spec(a_run("runs")))
    os.kill(until(lambda: host.pids()["child"]), signal.SIGKILL)
    assert host.wait("ended")["code"] == 137


def test_the_last_words_of_a_failing_command_are_its_message(host):
    host.agent("start", host.spec(a_run("fails")))
    ended = host.wait("ended")
    assert (ended["code"], ended["message"]) == (12, "error: loss is not finite at step 7")


def test_a_process_id_that_is_used_again_is_no_supervisor(host):
    host.agent("start", host.spec(a_run("runs")))
    pids = host.pids()
    os.kill(pids["pid"], signal.SIGKILL)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        path = host.home / "janus/run/supervisor.pid"
        path.write_text(json.dumps({**pids, "pid": sleeper.pid}))
        assert host.agent("state")["state"] == "dead"
        host.agent("stop", {"run_id": "demo-1"})
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()


def test_other_commands_run_on_worker_0_alone(host):
    spec = host.spec(a_run(command=["convert", "to-hf"], files={}), worker=1, workers=2, coordinator="h:1")
    host.agent("start", spec)
    ended = host.wait("ended")
    assert (ended["code"], ended["message"]) == (0, "`janus convert` runs on worker 0 alone")


def test_several_processes_get_their_numbers(host):
    host.agent("start", host.spec(a_run(), worker=1, workers=2, coordinator="10.0.0.2:8476", hosts_per_slice=2))
    host.wait("ended")
    argv = host.agent("tail", {"lines": 99})["text"].splitlines()[0]
    assert '"train", "--coordinator", "10.0.0.2:8476", "--num-processes", "2", "--process-id", "1",' in argv


def test_what_cannot_run_is_refused(host):
    assert "no such interpreter" in host.agent("prepare", host.spec(a_run(), python="/nowhere/python"))["error"]
    assert "no such checkout" in host.agent("start", host.spec(a_run(), cwd="/nowhere"))["error"]
    outside = host.spec(a_run(files={"../../../x": "y"}))
    assert "outside" in host.agent("start", outside)["error"]
    assert "unknown command" in host.agent("nonsense")["error"]
    assert host.agent("state")["state"] == "none"


@pytest.fixture
def metadata():
    """A metadata server that answers from a dictionary."""
    values: dict[str, str] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            value = values.get(self.path.rpartition("/")[2])
            self.send_response(404 if value is None else 200)
            self.end_headers()
            self.wfile.write((value or "").encode())

        def log_message(self, format, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield values, f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_host_that_is_another_worker_by_its_metadata_refuses(host, metadata):
    values, address = metadata
    host.env["GCE_METADATA_HOST"] = address
    values["agent-worker-number"] = "1"
    spec = host.spec(a_run(), worker=2, workers=4, coordinator="h:1", hosts_per_slice=2)
    assert "it is worker 1 of its slice by its own metadata" in host.agent("prepare", spec)["error"]
    values |= {"agent-worker-number": "0", "tpu-env": "ZONE: 'z'\nMEGASCALE_SLICE_ID: '0'\n"}
    assert "in slice 0 by its own metadata (tpu-env), not 1" in host.agent("prepare", spec)["error"]
    values["tpu-env"] = "MEGASCALE_SLICE_ID: '1'"
    assert host.agent("prepare", spec)["state"] == "prepared"


def test_inputs_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("JANUS_CACHE", raising=False)
    monkeypatch.setattr(agent, "_copied_bytes", lambda url: 10**15)
    run = a_run(inputs=["gs://b/weights"]).to_json()
    assert "copies of gs://b/weights take 1000000.0 GB" in agent._too_little_disk(run)
    (tmp_path / ".cache/janus_jax/models/key").mkdir(parents=True)
    (tmp_path / ".cache/janus_jax/models/key/.url").write_text("gs://b/weights")
    assert agent._too_little_disk(run) == ""


def test_only_what_is_copied_needs_disk(bucket):
    from janus_jax.storage.bucket import Prefix

    objects = {
        "data": {"manifest.json": 2, "train/part": 100},
        "hf": {"config.json": 2, "model.safetensors": 50, "exports/9/other": 7},
        "run": {"config.yaml": 3, "checkpoints/5/params/d": 1000},  # read in place
    }
    for folder, files in objects.items():
        for name, size in files.items():
            Prefix(f"{bucket}/{folder}").write(name, b"x" * size)
    assert [agent._copied_bytes(f"{bucket}/{folder}") for folder in objects] == [102, 52, 0]


def test_left_over_holders_of_chips_are_ended(tmp_path, monkeypatch):
    chip, lock = tmp_path / "accel0", tmp_path / "lock"
    chip.touch()
    lock.touch()
    monkeypatch.setattr(machine, "CHIPS", (str(tmp_path / "accel*"),))
    monkeypatch.setattr(machine, "LOCK", str(lock))
    code = f"import time; file = open({str(chip)!r}); print(1, flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        lines = machine.free_chips()
        assert lines[0].startswith(f"ended process {holder.pid} (")
        assert lines[0].endswith(f"which held {chip}")
        assert lines[1:] == [f"removed {lock}"]
        assert holder.wait(5) == -signal.SIGTERM
        assert not lock.exists()
    finally:
        holder.kill()
        holder.stdout.close()


def test_the_log_is_bounded_and_read_by_position(tmp_path, monkeypatch):
    monkeypatch.setattr(log, "SEGMENT_BYTES", 100)
    monkeypatch.setattr(log, "SEGMENTS", 3)
    written = log.Log(tmp_path)
    lines = [f"line {number}\n" for number in range(200)]
    for line in lines:
        written.write(line.encode())
    assert len(list(tmp_path.iterdir())) == 3
    assert log.tail(tmp_path, 2) == ("line 198\nline 199\n", len("".join(lines)))
    text, end = log.since(tmp_path, 0)
    assert text.endswith("line 199\n") and end == len("".join(lines))
    assert log.since(tmp_path, end) == ("", end)
    written.write(b"half")
    assert log.since(tmp_path, end) == ("", end)
    again = log.Log(tmp_path)
    again.write(b" a line\n")
    assert log.since(tmp_path, end)[0] == "half a line\n"
    assert log.since(tmp_path, 10**9)[0].startswith("line ")  # a position in the log of an earlier start
