"""How the `janus` command ends: with which exit code, and what of a message."""

import os
import subprocess
import sys
from unittest import mock

import pytest

from janus_jax.errors import DataError, LostPeerError
from tests.support.repository import ROOT


def test_an_error_ends_with_its_own_exit_code_and_no_traceback(janus, small, monkeypatch):
    for error in (DataError("rows.jsonl:3: no 'output'"), LostPeerError("barrier: time-out")):
        monkeypatch.setattr("janus_jax.config.run.load_config", mock.Mock(side_effect=error))
        assert janus("config", "show", small) == (error.exit_code, "", f"error: {error}\n")


def test_ctrl_c_ends_with_130_and_leaves_nothing_half_written(tmp_path):
    """While it builds: the directory that is being filled goes away."""
    out = tmp_path / "out"
    code = (
        "import os, signal, janus_jax.data.build.pipeline as b, janus_jax.cli.main as cli\n"
        "from janus_jax.storage.local import atomic_directory\n"
        "def build(sources, out, **_):\n"
        "    with atomic_directory(out) as directory:\n"
        "        (directory / 'part').touch()\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "b.build = build\n"
        "cli.main()\n"
    )
    (tmp_path / "rows.jsonl").touch()
    command = [
        sys.executable,
        "-c",
        code,
        "data",
        "build",
        "--kind",
        "sft",
        "--source",
        "rows.jsonl",
        "--out",
        str(out),
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize("command", ["demo --out out", "train SMALL"])
def test_ctrl_c_while_modules_are_imported_raises_no_exception_in_them(command, small, tmp_path):
    """C extensions crash the interpreter if one is raised while they are imported."""
    code = (
        "import importlib.abc, os, signal, sys\nfrom janus_jax.cli import main as cli\n"
        "class Stop(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'jax':\n"
        "            try: os.kill(os.getpid(), signal.SIGINT)\n"
        "            except BaseException: os._exit(9)\n"
        "sys.meta_path.insert(0, Stop())\ncli.main()"
    )
    arguments = [sys.executable, "-c", code, *command.replace("SMALL", small).split()]
    done = subprocess.run(
        arguments, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize(
    "work",
    [
        "try:\n  stop()\n except BaseException: raise ImportError('multiarray failed to import')",  # as C extensions do
        "try: stop()\n except BaseException: pass",
        *(
            pytest.param(work, marks=pytest.mark.slow)
            for work in (
                "try: 1 / 0\n except ZeroDivisionError: stop()",
                "try: stop()\n except BaseException: raise JanusError('a process ended on its own')",
                "signal.signal(14, lambda *_: stop()); signal.setitimer(signal.ITIMER_REAL, .1); time.sleep(9)",
            )
        ),
        "atexit.register(stop)",  # the work is done, and Python goes down
    ],
)
def test_sigterm_gives_143_whatever_becomes_of_its_exception(work):
    code = (
        "import atexit, os, signal, sys, time\nfrom janus_jax.cli import main as cli\n"
        "from janus_jax.errors import JanusError\n"
        "def stop(): os.kill(os.getpid(), signal.SIGTERM)\n"
        f"def work():\n {work}\ncli.app.command('work')(work)\nsys.argv = ['janus', 'work']\ncli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stderr) == (143, "" if "atexit" in work else "terminated\n")


def test_an_unexpected_error_shows_its_traceback_and_exits_1(small):
    code = (
        "import sys, janus_jax.config.run as config\n"
        "from janus_jax.cli import main as cli\n"
        "config.load_config = lambda *_, **__: 1 / 0\n"
        "sys.argv = ['janus', 'config', 'show', 'small.yaml']\n"
        "cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 1 and "Traceback" in done.stderr and done.stderr.endswith("division by zero\n")


@pytest.mark.parametrize(
    "shown",
    [
        "print('x' * 10)",  # meets the closed pipe at the end, when the buffer is written
        "Console().print('x\\n' * 9999, soft_wrap=True)",
        *(pytest.param(shown, marks=pytest.mark.slow) for shown in ("print('x' * 10**5)", "typer.echo('x' * 10**5)")),
    ],
)
def test_a_reader_that_has_gone_ends_the_command_without_a_message(shown):
    """As `janus ... | head` does."""
    code = (
        "import sys, typer\nfrom rich.console import Console\nfrom janus_jax.cli import main as cli\n"
        f"cli.app.command('shown')(lambda: {shown})\n"
        "sys.argv = ['janus', 'shown']\ncli.main()"
    )
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
