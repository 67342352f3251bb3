"""host/prepare.sh: the script that makes a host's environment, with a stand-in for uv and curl."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import urllib.request

import pytest

from launch.remote import environment, wheels
from launch.remote.ship import Code
from tests.support.pods import Pod
from tests.support.repository import ROOT, tracked

UV = f"""#!/bin/bash
echo "$*" >>"$HOME/uv.log"
env | grep ^UV_ | sort >"$HOME/uv.env"
if [[ $1 == venv ]]; then
  target=${{*: -1}}
  mkdir -p "$target/bin" "$target/lib"
  ln -s {sys.executable} "$target/bin/python"
else
  sleep "$(cat "$HOME/slow" 2>/dev/null || echo 0)"
fi
"""
CODE = {
    name: ((ROOT / name).read_bytes(), False)
    for name in (
        "launch/__init__.py",
        "launch/host/__init__.py",
        "launch/host/facts.py",
        wheels.RECIPE,
        "pyproject.toml",
    )
}
RECIPE = wheels.Recipe.of(Code(CODE))
TOOLS = ("bash", "awk", "cat", "chmod", "cp", "df", "env", "flock", "grep", "gzip", "ln", "mkdir", "mv", "rm", "sed",
         "sleep", "sort", "tar", "touch", "uname")  # fmt: skip


class Machine:
    """A home directory with the checkout."""

    def __init__(self, home):
        self.home = home
        self.environment = home / "janus/env/E1"
        self.path = "/usr/bin:/bin"
        for name, (content, _) in CODE.items():
            path = home / "janus/code/C1" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def bare(self):
        """Takes Python, pip and uv away; returns the only directory of programs."""
        programs = self.home / "bin"
        programs.mkdir()
        for name in TOOLS:
            os.symlink(shutil.which(name), programs / name)
        self.path = str(programs)
        return programs

    def uv(self):
        """Puts a stand-in where uv would be."""
        program = self.home / "janus/uv" / RECIPE.uv / "bin/uv"
        program.parent.mkdir(parents=True)
        self.program(program, UV)

    def program(self, path, text):
        path.write_text(text)
        path.chmod(0o755)

    def start(self, make=True, **values):
        target = environment._Target(Code(CODE), "E1", None, RECIPE)
        script = environment._script(target, make=make).decode()
        lines = {"CODE": "C1", "NEED_KB": "1", **values}
        script = script.replace("\n{\n", "\n" + "".join(f"{k}={v!r}\n" for k, v in lines.items()) + "{\n", 1)
        env = {"HOME": str(self.home), "PATH": self.path, "GCE_METADATA_HOST": "meta"}
        process = subprocess.Popen(
            ["/bin/bash", "-s"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=env, cwd=self.home, start_new_session=True,
        )  # fmt: skip
        assert process.stdin
        process.stdin.write(script)
        process.stdin.close()
        process.stdin = None
        return process

    def run(self, make=True, **values):
        out, err = (process := self.start(make, **values)).communicate(timeout=60)
        return process.returncode, out, err

    def asked(self):
        log = self.home / "uv.log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_shellcheck_finds_nothing():
    scripts = [name for name in tracked() if name.startswith("launch/") and name.endswith(".sh")]
    shellcheck = shutil.which("shellcheck", path=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    assert scripts and shellcheck, "pip install -e .[test]"
    done = subprocess.run([shellcheck, *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_is_missing_is_said_and_made_once(machine):
    machine.uv()
    assert machine.run(make=False) == (0, "missing: environment\n", "")
    code, out, err = machine.run()
    assert (code, err) == (0, "") and json.loads(out.splitlines()[-1])["code"] == "C1"
    first = machine.asked()
    assert [line.split()[0] for line in first] == ["venv", "pip"]
    words = first[1].split()
    assert words[words.index("--constraints") + 1].endswith("janus/code/C1/constraints-py311.txt")
    assert words[words.index("--extra") + 1] == "tpu"
    assert "UV_PYTHON_PREFERENCE=only-managed" in (machine.home / "uv.env").read_text()
    assert machine.run()[0] == 0 and machine.run(make=False)[0] == 0 and machine.asked() == first


def test_a_set_up_that_is_killed_leaves_nothing_that_looks_whole(machine):
    machine.uv()
    (machine.home / "slow").write_text("30")
    process = machine.start()
    while not (machine.environment / "bin/python").exists() or len(machine.asked()) < 2:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (machine.environment / "half").touch()
    assert machine.run(make=False)[1] == "missing: environment\n"
    (machine.home / "slow").write_text("0")
    assert machine.run()[0] == 0
    assert not (machine.environment / "half").exists() and (machine.environment / ".complete").exists()


def test_two_set_ups_at_once_make_it_once(machine):
    machine.uv()
    (machine.home / "slow").write_text("1")
    processes = [machine.start(), machine.start()]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert len(machine.asked()) == 2


def test_a_failing_install_is_an_error_and_no_environment(machine):
    machine.uv()
    (machine.home / "slow").write_text("no number")
    code, _, err = machine.run()
    assert code != 0 and "invalid time interval" in err and not (machine.environment / ".complete").exists()


def test_a_small_disk_is_an_error_before_anything_is_downloaded(machine):
    machine.bare()
    code, _, err = machine.run(NEED_KB=str(2**50))
    assert code == 1 and f"a new environment needs {2**30} GB" in err and "GB free in" in err
    assert not (machine.home / "janus/uv").exists()


RETRIED = """
file=/dev/stdout
while (($#)); do [[ $1 != -o ]] || file=$2; shift; done
[[ $file != /dev/stdout ]] || echo "the first bytes of a transfer that broke off"
cat "{}" >"$file"
"""
"""As `curl --retry`: it begins a file anew, but what a pipe has got stays there."""


def test_without_pip_uv_comes_from_its_releases(machine):
    packed = machine.home / "uv.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        entry = tarfile.TarInfo(f"uv-{os.uname().machine}-unknown-linux-gnu/uv")
        entry.size = len(UV)
        tar.addfile(entry, io.BytesIO(UV.encode()))
    curl = f'#!/bin/bash\necho "$*" >>"$HOME/curl.log"\n{RETRIED.format(packed)}\n'
    machine.program(machine.bare() / "curl", curl)
    code, _, err = machine.run()
    assert (code, err) == (0, "")
    assert f"/download/{RECIPE.uv}/uv-" in (machine.home / "curl.log").read_text()


CURL = f"""#!/bin/bash
echo "$*" >>"$HOME/curl.log"
case "$*" in
  *token*) echo '{{"access_token":"ya29.secret","expires_in":3599}}' ;;
  *) cat >>"$HOME/curl.stdin"
    {RETRIED.format("$HOME/staged.tar")} ;;
esac
"""


def test_without_internet_everything_comes_from_the_bucket_and_the_token_is_in_no_argument(machine):
    staged = machine.home / "staged"
    (staged / "wheels").mkdir(parents=True)
    machine.program(staged / "uv", UV)
    wheels.pack(str(staged), str(machine.home / "staged.tar"))
    machine.program(machine.bare() / "curl", CURL)
    code, _, err = machine.run(WHEELS="https://storage/b/x/o/y?alt=media")
    assert (code, err) == (0, "")
    assert (machine.home / "curl.stdin").read_text() == 'header = "Authorization: Bearer ya29.secret"\n'
    log = (machine.home / "curl.log").read_text()
    assert "https://storage/b/x/o/y?alt=media" in log and "secret" not in log and "http://meta/" in log
    words = machine.asked()[1].split()
    assert "--no-index" in words and words[words.index("--find-links") + 1].endswith("/wheels")
    mirror = [line for line in (machine.home / "uv.env").read_text().splitlines() if "MIRROR" in line]
    assert mirror == [f"UV_PYTHON_INSTALL_MIRROR=file://{machine.home}/janus/env/.staged/interpreter"]
    assert not (machine.home / "janus/env/.staged").exists()


def test_without_a_service_account_the_error_says_so(machine):
    machine.program(machine.bare() / "curl", "#!/bin/bash\nexit 22\n")
    code, _, err = machine.run(WHEELS="https://storage/x")
    assert code != 0 and "has the machine a service account?" in err


def test_wheels_are_collected_once_for_an_environment(tmp_path, monkeypatch):
    class Folder:
        url, names_there, uploads = "gs://bucket/launch/wheels", [], []

        def at(self, name):
            return self

        def names(self, pattern):
            return [name for name in self.names_there if name == pattern]

        def upload(self, source, name):
            with tarfile.open(source) as tar:
                self.uploads.append((name, tar.getnames()))
            self.names_there.append(name)

    def collect(code, folder):
        os.makedirs(f"{folder}/wheels")
        return folder

    monkeypatch.delenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE", raising=False)
    monkeypatch.setattr(wheels, "collect", collect)
    context = Pod(tmp_path, monkeypatch, bucket="gs://bucket").context()
    context.__dict__["bucket"] = Folder()
    urls = {wheels.stage(context, Code(CODE), "E1", lambda line: None) for _ in range(2)}
    assert urls == {"https://storage.googleapis.com/storage/v1/b/bucket/o/launch%2Fwheels%2FE1.tar?alt=media"}
    assert Folder.uploads == [("E1.tar", ["wheels"])]


def test_hosts_read_objects_where_the_url_says(bucket_server, monkeypatch):
    monkeypatch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE", f"{bucket_server}/storage/v1/")
    base = f"{bucket_server}/storage/v1/b"
    headers = {"Content-Type": "application/json"}
    make = urllib.request.Request(base, json.dumps({"name": "wheels-of-hosts"}).encode(), headers)
    urllib.request.urlopen(make).close()
    upload = f"{bucket_server}/upload/storage/v1/b/wheels-of-hosts/o?uploadType=media&name=a/b%20c.tar"
    urllib.request.urlopen(urllib.request.Request(upload, b"content", {"Content-Type": "a/b"})).close()
    with urllib.request.urlopen(wheels.url_of("gs://wheels-of-hosts/a/b c.tar")) as answer:
        assert answer.read() == b"content"
