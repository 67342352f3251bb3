"""`setup`: what is brought to the hosts, how often, and which host is named when one fails or differs."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile

import pytest

from janus_jax.errors import ConfigError
from launch.errors import HostError
from launch.remote import environment, ship, wheels
from launch.remote.ship import Code
from launch.watching.steps import Steps
from tests.support.launches import FakeBucket, Store, run_record
from tests.support.pods import Pod
from tests.support.repository import ROOT

NEEDED = ("launch/__init__.py", "launch/host/__init__.py", "launch/host/facts.py", wheels.RECIPE, "pyproject.toml")


@pytest.fixture
def pod(tmp_path, monkeypatch):
    code = {name: ((ROOT / name).read_bytes(), False) for name in (*NEEDED, "constraints-py311.txt")}
    answer = 'import json, os, sys\nprint(json.dumps({"words": sys.argv[1:], "cwd": os.getcwd()}))\n'
    code["launch/host/agent.py"] = (answer.encode(), False)
    monkeypatch.setattr(ship, "read", lambda root, revision=None: Code(code))
    pod = Pod(tmp_path, monkeypatch, hosts=3)
    pod.code = code
    return pod


def bring(pod, **more):
    with pod.connect() as reached:
        return environment.bring(pod.context(), reached, notify=pod.printed.append, **more), reached


def own_python(pod, number, script=""):
    """An interpreter in the home directory of a host; setup is told to use it."""
    pod.settings = pod.settings.model_copy(update={"python": "~/python"})
    path = pod.home(number) / "python"
    path.write_text(f'#!/bin/bash\n{script}\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)


def test_all_hosts_get_code_and_agent_and_a_second_time_is_one_round(pod):
    ready, reached = bring(pod)
    assert pod.printed == ["sending the code to 3 hosts"]
    assert ready.cwd == f"~/janus/code/{ready.code}" and ready.python == sys.executable
    calls = len(pod.calls())
    assert calls == 9  # look, send, make
    assert bring(pod)[0] == ready
    assert len(pod.calls()) == calls + 3
    answers = reached.agent("state")
    assert [item["words"] for item in answers] == [["state"]] * 3
    assert [item["cwd"] for item in answers] == [f"{pod.home(n)}/janus/code/{ready.code}" for n in range(3)]
    current = json.loads((pod.home(2) / "janus/current.json").read_text())
    assert current["code"] == ready.code


def test_new_code_goes_only_to_hosts_that_lack_it(pod):
    first, _ = bring(pod)
    pod.code["launch/more.py"] = (b"more = 1\n", True)
    second, _ = bring(pod)
    assert second.code != first.code and second.environment == first.environment
    path = pod.home(1) / "janus/code" / second.code
    assert os.access(path / "launch/more.py", os.X_OK)
    shutil.rmtree(path)
    before = len(pod.calls())
    bring(pod)
    assert len(pod.calls()) == before + 3 + 1 + 1


def test_old_code_goes_but_not_that_of_the_run_that_is_there(pod):
    codes = []
    for number in range(4):
        pod.code["launch/more.py"] = (b"a = %d\n" % number, False)
        codes.append(bring(pod)[0].code)
        if number == 0:
            (pod.home(0) / "janus/run/spec.json").write_text(json.dumps({"cwd": f"/x/janus/code/{codes[0]}"}))
    assert set(os.listdir(pod.home(0) / "janus/code")) == {codes[0], codes[2], codes[3]}
    assert set(os.listdir(pod.home(1) / "janus/code")) == {codes[2], codes[3]}


def test_half_a_checkout_never_looks_whole(pod, monkeypatch):
    whole = Code.archive
    monkeypatch.setattr(Code, "archive", lambda self: whole(self)[:-200])
    with pytest.raises(HostError, match="the checkout did not arrive whole"):
        bring(pod)
    assert os.listdir(pod.home(0) / "janus/code") == []


def test_what_broken_transfers_have_left_goes(pod):
    for name in ("old", "new"):  # the new one may be under way
        (pod.home(0) / f"janus/code/.new-{name}/x").mkdir(parents=True)
    os.utime(pod.home(0) / "janus/code/.new-old", (0, 0))
    bring(pod)
    assert [name for name in os.listdir(pod.home(0) / "janus/code") if name.startswith(".")] == [".new-new"]


def test_a_host_that_is_down_is_named_and_the_others_are_set_up(pod):
    pod.fail(1, "down")
    with pytest.raises(HostError, match=r"^setup: worker 1 \(pod\): .*timed out"):
        bring(pod)
    for number in (0, 2):
        assert (pod.home(number) / "janus/agent").exists()
    os.remove(f"{pod.home(1)}.down")
    bring(pod)
    assert (pod.home(1) / "janus/agent").exists()


def test_a_connection_that_is_lost_once_does_no_harm(pod):
    pod.fail(2, "drop", "0")
    bring(pod)
    assert (pod.home(2) / "janus/agent").exists()


def test_another_version_on_one_host_is_named(pod):
    info = pod.scratch / "other/jax-0.9.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: jax\nVersion: 0.9.9\n")
    for number in range(3):
        own_python(pod, number, f"export PYTHONPATH={info.parent}" if number == 1 else "")
    with pytest.raises(HostError) as caught:
        bring(pod)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2 and lines[1].startswith("  worker 1 (pod): jax 0.9.9; most have ")


def test_a_clock_that_is_off_is_named(pod):
    late = pod.scratch / "late"
    late.mkdir()
    (late / "sitecustomize.py").write_text("import time\nreal = time.time\ntime.time = lambda: real() - 300\n")
    for number in range(3):
        own_python(pod, number, f"export PYTHONPATH={late}" if number == 2 else "")
    with pytest.raises(HostError, match=r"worker 2 \(pod\): its clock is (299|300|301) s behind the others") as caught:
        bring(pod)
    assert len(str(caught.value).splitlines()) == 2


def test_a_full_disk_is_named_with_what_is_free_and_what_is_needed(pod, monkeypatch):
    monkeypatch.setattr(environment, "FREE_BYTES", 2**60)
    with pytest.raises(HostError, match=r"worker 0 \(pod\): disk too small: [\d.]+ GB free in /.*, 1073741824.0 GB"):
        bring(pod)


def test_missing_chips_are_named_unless_the_hosts_say_that_they_run_without(pod, monkeypatch):
    monkeypatch.setenv("SHIM_PASS", "")
    with pytest.raises(HostError, match=r"worker 1 \(pod\): 0 TPU chips, a v4-16 has 4 a host"):
        bring(pod)


def test_an_interpreter_that_is_too_old_is_named(pod):
    for number in range(3):
        own_python(pod, number, "echo Python 3.10.12; exit 1" if number == 0 else "")
    with pytest.raises(HostError, match=r"^setup: worker 0 \(pod\): .*is Python 3.10.12; 3.11 or newer is needed"):
        bring(pod)


def test_dry_run_prints_one_line_a_host(pod):
    environment.bring(pod.context(dry_run=True), pod.connect(dry_run=True))
    assert [line.endswith("-- 'bash -s'") for line in pod.printed[1:]] == [True] * 3 and pod.calls() == []


def test_the_environment_depends_on_requirements_alone(pod):
    before = environment.environment_identity(Code(pod.code))
    pod.code["launch/more.py"] = (b"", False)
    assert environment.environment_identity(Code(pod.code)) == before
    pins = pod.code["constraints-py311.txt"][0].replace(b"libtpu==0.0.42.1", b"libtpu==0.0.42")
    pod.code["constraints-py311.txt"] = (pins, False)
    assert environment.environment_identity(Code(pod.code)) != before


def test_the_repository_ships_what_a_run_needs_in_the_same_bytes():
    code = ship.read(str(ROOT))
    assert {"janus_jax/cli/__main__.py", "launch/host/prepare.sh", "constraints-py311.txt"} <= set(code.files)
    assert not [name for name in code.files if name.startswith(("tests/", "docs/"))]
    packed = code.archive()
    assert packed == ship.read(str(ROOT)).archive()
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        assert {entry.name: entry.size for entry in tar} == {name: len(text) for name, (text, _) in code.files.items()}


@pytest.fixture
def checkout(tmp_path):
    def git(*words):
        own = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", "-C", tmp_path, *own, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    (tmp_path / "launch").mkdir()
    (tmp_path / "launch/a.py").write_text("a = 1\n")
    (tmp_path / ".gitignore").write_text("*.big\n")
    (tmp_path / "private.txt").write_text("not for hosts\n")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "first")
    (tmp_path / "launch/a.py").write_text("a = 2\n")
    (tmp_path / "launch/new ä.py").write_text("new\n")
    (tmp_path / "launch/x.big").write_text("data\n")
    return str(tmp_path)


def test_the_checkout_as_it_is_or_a_revision(checkout):
    assert ship.read(checkout).files == {"launch/a.py": (b"a = 2\n", False), "launch/new ä.py": (b"new\n", False)}
    assert ship.read(checkout, "HEAD").files == {"launch/a.py": (b"a = 1\n", False)}
    os.remove(f"{checkout}/launch/a.py")
    assert set(ship.read(checkout).files) == {"launch/new ä.py"}


@pytest.mark.parametrize("revision", ["nowhere", "--output=x", ""])
def test_a_revision_that_does_not_exist_is_a_mistake(checkout, revision):
    with pytest.raises(ConfigError, match="allowed: a commit, branch or tag"):
        ship.read(checkout, revision)
    assert not os.path.exists(f"{checkout}/x")


def test_data_among_the_code_is_refused(checkout, monkeypatch):
    monkeypatch.setattr(ship, "LARGEST_BYTES", 3)
    with pytest.raises(ConfigError, match=r"launch/.*allowed"):
        ship.read(checkout)


def test_a_revision_without_launch_is_a_mistake(pod, monkeypatch):
    monkeypatch.setattr(ship, "read", lambda root, revision: Code({"pyproject.toml": (b"", False)}))
    with pytest.raises(ConfigError, match="--revision old: has no"):
        bring(pod, revision="old")


@pytest.fixture
def records(pod, tmp_path):
    """The pod's context, with a bucket in memory that another workstation sees too."""
    store = Store()
    made = pod.context()
    made.__dict__["records"] = FakeBucket("gs://bkt/launch/pod", store)
    return made


def test_a_run_starts_again_with_its_own_code_whatever_the_checkout_is_now(pod, records):
    pod.code["launch/more.py"] = (b"a = 1\n", True)
    first, _ = bring(pod)
    ship.keep(records.records, first.source)
    ship.keep(records.records, first.source)
    assert [url for url in records.records.store.objects] == [f"gs://bkt/launch/pod/code/{first.code}.tar.gz"]
    assert ship.kept(records, first.code) == first.source and "download" not in str(records.records.store.calls)
    pod.code["launch/more.py"] = (b"a = 2\n", True)
    pod.code["pyproject.toml"] = (b'[project]\ndependencies = ["other"]\n', False)
    for number in range(3):
        shutil.rmtree(pod.home(number) / "janus")  # other machines
    run = run_record(code=first.code, environment=first.environment)
    with pod.connect() as reached:
        again = Steps(records).setup(reached, run, pod.printed.append)
    assert again == first
    path = pod.home(1) / "janus/code" / first.code / "launch/more.py"
    assert path.read_bytes() == b"a = 1\n" and os.access(path, os.X_OK)


def test_code_that_is_nowhere_is_not_replaced_by_another(pod, records):
    with pytest.raises(ConfigError, match=r"code/gone.tar.gz: is not there, and this checkout is another"):
        ship.kept(records, "gone")
    records.records.store.put("gs://bkt/launch/pod/code/torn.tar.gz", Code({"a": (b"", False)}).archive()[:20])
    with pytest.raises(ConfigError, match=r"torn.tar.gz: cannot be read"):
        ship.kept(records, "torn")
    records.records.store.put("gs://bkt/launch/pod/code/other.tar.gz", Code({"a": (b"", False)}).archive())
    with pytest.raises(ConfigError, match=r"other.tar.gz: holds "):
        ship.kept(records, "other")


def test_the_environment_is_made_as_the_run_s_code_says(pod):
    before = environment.environment_identity(Code(pod.code))
    recipe = {"python": "3.12", "uv": "0.1", "constraints": "constraints-py311.txt", "extras": ["tpu"]}
    pod.code["launch/host/environment.json"] = (json.dumps(recipe).encode(), False)
    code = Code(pod.code)
    assert environment.environment_identity(code) != before
    script = environment._script(environment._Target(code, "e", None, wheels.Recipe.of(code)), make=True)
    assert b"UV_VERSION=0.1\n" in script and b"PYTHON_VERSION=3.12\n" in script
