"""`janus launch` hands every word to `python -m launch`, and ends as that does."""

import os
import subprocess
import sys

import pytest

from janus_jax.cli import launch
from tests.support.repository import ROOT


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--help"], 0, "usage: python -m launch"),
        ([], 0, "usage: python -m launch"),
        (["export", "--help"], 0, "--service-account"),
        (["export", "dockerfile", "--name=UP", "--project=p", "--type=v4-8"], 2, "--name UP"),
        (["export", "dockerfile", "-x"], 2, "unrecognized arguments: -x"),
    ],
)
def test_words_reach_the_other_command(words, code, says, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "janus_jax.cli", "launch", *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert says in done.stdout + done.stderr


def test_without_the_packages_of_janus_it_says_so_in_one_line():
    code = "import sys; sys.modules['typer'] = None; from janus_jax.cli.__main__ import run; run()"
    done = subprocess.run([sys.executable, "-c", code, "launch", "up"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert (
        done.stderr.startswith("error: typer is not installed here") and "python -m launch` needs less" in done.stderr
    )


def test_an_installation_without_the_checkout_says_what_it_needs(janus, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "CHECKOUT", tmp_path)
    code, _, err = janus("launch", "up")
    assert code == 2 and len(err.splitlines()) == 1
    assert f"{tmp_path} has no launch/" in err and "pip install -e ." in err


def test_the_list_of_commands_names_it(janus):
    assert "Cloud TPU VMs" in janus("--help")[1]
