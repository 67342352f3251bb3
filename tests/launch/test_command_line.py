"""The command line of `launch` on a workstation that has nothing but Python, PyYAML and pydantic."""

import signal
import subprocess
import sys
import types

import pytest

import launch.__main__ as command_line
from launch.__main__ import COMMANDS, main
from launch.commands import run
from launch.settings import Settings
from tests.support.repository import ROOT

ONLY = """
import importlib.metadata, sys
needed = {"yaml", "_yaml", "pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"}
refused = set(importlib.metadata.packages_distributions()) - needed - {"janus_jax", "launch"}
assert "numpy" in refused
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise ImportError(f"{name} is not on a workstation")
sys.meta_path.insert(0, Refuse())
from launch.__main__ import COMMANDS, main
for name in COMMANDS:
    try:
        main([name, "--help"])
    except SystemExit as end:
        assert not end.code, name
"""


NAMES = ["--name", "ada", "--project", "p", "--bucket", "gs://bkt"]
"""What launch/tpu.yaml leaves open."""


def python(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_every_command_shows_its_help_without_jax_numpy_and_tensorflow():
    done = python(ONLY)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("\n  --zone VALUE") == len(COMMANDS)


@pytest.fixture
def settings(monkeypatch):
    """The settings that commands were given, in place of commands."""
    seen = []

    class Command:
        def add(self, parser):
            pass

        def run(self, context, arguments):
            seen.append(context.settings)

    monkeypatch.setattr(command_line, "_module", lambda name: Command())
    return seen


def test_a_workstation_without_pydantic_is_told_what_to_install():
    code = "import sys; sys.modules['pydantic'] = None; from launch.__main__ import main; sys.exit(main(['status']))"
    done = python(code)
    assert done.returncode == 2
    assert done.stderr.startswith("error: pydantic is not installed here; python -m pip install PyYAML")


NOHUP = f"""
NAMES = {NAMES}
import os, signal, sys
import launch.__main__ as line
signal.signal(signal.SIGHUP, signal.SIG_IGN)
class Command:
    add = lambda self, parser: None
    run = lambda self, context, arguments: os.kill(os.getpid(), signal.SIGHUP)
line._module = lambda name: Command()
sys.exit(line.main(["watch", *NAMES]))
"""


def test_under_nohup_a_lost_terminal_ends_nothing():
    done = python(NOHUP)
    assert (done.returncode, done.stderr) == (0, "")
    done = python(NOHUP.replace("SIG_IGN", "SIG_DFL"))
    assert (done.returncode, done.stderr) == (129, "stopped\n")


THREADS = f"""
NAMES = {NAMES}
import os, signal, sys, time
from concurrent.futures import ThreadPoolExecutor
import launch.__main__ as line
from launch.cloud.gcloud import run_command
class Command:
    add = lambda self, parser: None
    def run(self, context, arguments):
        with ThreadPoolExecutor(1) as pool:
            task = pool.submit(run_command, ["sh", "-c", "sleep 0.5; kill -INT $PPID; exec sleep 600"], None, 600)
            task.result()
line._module = lambda name: Command()
sys.exit(line.main(["status", *NAMES]))
"""


def test_ctrl_c_ends_what_threads_wait_for():
    assert python(THREADS).returncode == 130  # long before the command's end, when `python` has lost its patience


def test_sigterm_ends_the_following_of_a_run_with_its_own_code():
    def agent(name, *_, **__):
        raise KeyboardInterrupt(signal.SIGTERM)

    hosts, warned = types.SimpleNamespace(hosts=[None], agent=agent), []
    assert run._follow(types.SimpleNamespace(warn=warned.append), hosts, None) == 143  # type: ignore[arg-type]
    assert "the run goes on" in warned[0]


def test_nobody_starts_with_the_names_of_the_file_that_is_shipped(capsys, settings):
    file = str(ROOT / "launch/tpu.yaml")
    assert main(["up", "--settings", file]) == 2
    text = capsys.readouterr().err
    assert f"error: {file}: 3 errors\n" in text and text.count(": put your own there") == 3
    assert main(["up", "--settings", file, *NAMES[:4]]) == 2 and not settings
    assert capsys.readouterr().err.endswith(": bucket = gs://CHANGE-ME: put your own there; see launch/README.md\n")


def test_mistakes_in_settings_come_in_one_report(tmp_path, capsys, settings):
    file = tmp_path / "tpu.yaml"
    file.write_text("name: Upper\nproject: p\nzone: us-central2\ntype: v4-8\nzonee: x\nslices: 0\n")
    assert main(["status", "--settings", str(file), "--provisioning", "free", "--iap", "maybe"]) == 2
    text = capsys.readouterr().err
    assert f"error: {file}: 6 errors" in text
    assert f"{file}:1: name = Upper: allowed: 1 to 40 lower-case letters" in text
    assert f"{file}:3: zone = us-central2: allowed: a zone, like us-central2-b" in text
    assert f"{file}:5: zonee: unknown key; did you mean 'zone'?" in text
    assert f"{file}:6: slices = 0: allowed: a whole number >= 1" in text
    assert "--provisioning free: provisioning = free: allowed: on-demand | spot | reserved" in text
    assert "--iap maybe: iap = maybe: allowed: true or false" in text and not settings


@pytest.mark.parametrize("labels", ["Team=ml", "team=ML", "a b=c", "7=x"])
def test_labels_say_which_letters_they_may_have(labels, capsys, settings):
    own = ["--name", "n", "--project", "p", "--bucket", "gs://bucket"]
    assert main(["status", "--settings", str(ROOT / "launch/tpu.yaml"), *own, "--labels", labels]) == 2
    text = capsys.readouterr().err
    assert f"--labels {labels}: labels = " in text and "allowed: keys and values of lower-case letters" in text


def test_elsewhere_the_missing_file_of_settings_is_named(tmp_path, monkeypatch, capsys, settings):
    monkeypatch.chdir(tmp_path)
    assert main(["status"]) == 2
    text = capsys.readouterr().err
    assert f"launch/tpu.yaml: does not exist in {tmp_path}; --settings FILE takes another\n" in text
    assert "launch/tpu.yaml: zone: missing" in text


@pytest.mark.parametrize(
    ("words", "key", "expected"),
    [
        (["--slices", "4"], "slices", 4),
        (["--iap"], "iap", True),
        (["--iap", "false"], "iap", False),
        (["--labels", "team=x,cost-centre=7"], "labels", {"team": "x", "cost-centre": "7"}),
        (["--network", "null"], "network", None),
        (["--name", "other"], "name", "other"),
    ],
)
def test_a_flag_wins_over_its_key(words, key, expected, settings):
    assert main(["status", "--settings", str(ROOT / "launch/tpu.yaml"), *NAMES, *words]) == 0
    assert getattr(settings[0], key) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            "export jobset --out F c.yaml a=b",
            {"platform": "jobset", "out": "F", "config": "c.yaml", "overrides": ["a=b"]},
        ),
        ("export jobset c.yaml --out F a=b", {"config": "c.yaml", "overrides": ["a=b"]}),
        ("export dockerfile --out F", {"config": None, "overrides": []}),
        ("up --config C a=b --force c=d", {"config": "C", "force": True, "overrides": ["a=b", "c=d"]}),
        ("run C --wait a.b=c --zone z d=e", {"wait": True, "set_zone": "z", "words": ["C", "a.b=c", "d=e"]}),
        ("run --env A=b C a.b=c", {"env": ["A=b"], "words": ["C", "a.b=c"]}),
        ("run --wait -- janus eval --wait x", {"wait": True, "words": ["janus", "eval", "--wait", "x"]}),
        ("ssh --worker 1 -- df -h", {"worker": "1", "words": ["df", "-h"]}),
        ("pull gs://b/r --step 5 d", {"run": "gs://b/r", "directory": "d"}),
        ("status", {"json": False}),
    ],
)
def test_flags_may_stand_anywhere(words, expected):
    given = vars(command_line._parser(words.split()).parse_args(words.split()))
    assert {key: given[key] for key in expected} == expected


def test_a_label_that_is_given_twice_is_refused(capsys, settings):
    assert main(["up", *NAMES, "--labels", "a=b,c=d,a=e"]) == 2 and not settings
    assert capsys.readouterr().err == "error: --labels a=b,c=d,a=e: labels: a is given twice\n"


@pytest.mark.parametrize("command", ["stop", "down"])
@pytest.mark.parametrize("grace", ["nan", "inf", "-1", "1e9", "x"])
def test_a_grace_that_cannot_be_waited_is_refused(command, grace, capsys):
    with pytest.raises(SystemExit):
        words = [command, f"--grace={grace}"]
        command_line._parser(words).parse_args(words)
    assert f"argument --grace: {grace}: allowed: 0 to 3600 seconds" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["run", "export nowhere", "up --wat", "status extra", "run C --env"])
def test_what_cannot_be_meant_is_refused(words, capsys):
    with pytest.raises(SystemExit) as end:
        command_line._parser(words.split()).parse_args(words.split())
    assert end.value.code == 2 and f"usage: python -m launch {words.split()[0]}" in capsys.readouterr().err


def test_every_setting_is_described():
    assert all(field.description for field in Settings.model_fields.values())
