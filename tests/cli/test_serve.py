"""`janus serve`: what is refused before a device is used, and a whole life from start to SIGTERM."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys

import pytest
import transformers

from tests.support import quick, serving, torch_models


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return serving.directory(tmp_path_factory.mktemp("model"))[0]


@pytest.fixture
def refused(janus, model, monkeypatch):
    """Runs the command, which must refuse in one line before it starts JAX's devices; the line."""
    from janus_jax.parallel import processes

    monkeypatch.delenv("JANUS_API_KEY", raising=False)
    monkeypatch.setattr(processes, "start", lambda options: pytest.fail("devices were touched"))

    def run(*options, model=model):
        code, out, err = janus("serve", model, *options)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        return err

    return run


def test_the_port_is_taken(refused):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"--host 127.0.0.1 --port {port}: address already in use; choose another --port" in refused(
            "--port", port
        )


def test_an_open_address_needs_a_key(refused, monkeypatch):
    assert "set JANUS_API_KEY" in refused("--host", "0.0.0.0", "--port", 0)
    monkeypatch.setenv("JANUS_API_KEY", "")
    for host in ("0.0.0.0", "127.0.0.1"):
        assert "JANUS_API_KEY: is empty or has blanks" in refused("--host", host, "--port", 0)
    monkeypatch.setenv("JANUS_API_KEY", "a b")
    assert "a b" not in refused()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--host", "no.such.host.invalid"), "--host no.such.host.invalid: is no address of this machine"),
        (("--host", "192.0.2.1"), "set JANUS_API_KEY"),
        (("--window", 257), "--window 257: allowed: 2 to 256"),
        (("--name", "my model"), "--name 'my model': allowed"),
        (("--template", "alpaca"), "'alpaca'"),
        (("--step", 3), "step=3"),
        (("--timeout", "nan"), "--timeout nan: allowed: 0.1 to 1000000 seconds"),
        (("--grace", -1), "--grace -1: allowed: 0 to 1000000 seconds"),
    ],
)
def test_bad_options_are_named(refused, options, message):
    assert message in refused("--port", 0, *options)


@pytest.mark.parametrize("time", ["nan", "inf", "-1"])
def test_times_are_numbers(janus, model, time):
    for option in ("--timeout", "--grace"):
        code, _, err = janus("serve", model, option, time)
        assert code == 2 and err.startswith(f"error: {option} {time}: allowed: ") and err.count("\n") == 1


def test_other_models_are_named(refused, tmp_path, capsys):
    config = transformers.MistralConfig(**(torch_models.SMALL | {"num_labels": 1, "vocab_size": 400}))
    transformers.MistralForSequenceClassification(config).save_pretrained(tmp_path / "reward")
    capsys.readouterr()
    assert "is a reward model, which makes no text" in refused(model=tmp_path / "reward")
    assert "no such directory" in refused(model=tmp_path / "none")


def test_a_missing_package_names_the_extra(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "janus serve needs uvicorn: pip install 'janus_jax[serve]'" in refused()


def test_several_hosts_are_told_what_to_do(janus, model, monkeypatch):
    import jax

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    code, _, err = janus("serve", model, "--port", 0)
    assert (code, err.count("\n")) == (2, 1) and "janus generate" in err


def test_from_start_to_sigterm(model, tmp_path):
    environment = {**os.environ, **quick.variables(str(tmp_path)), "JANUS_API_KEY": "s3cret"}
    command = [
        sys.executable,
        "-m",
        "janus_jax.cli",
        "serve",
        str(model),
        "--port",
        "0",
        "--rows",
        "2",
        "--window",
        "64",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line == "ready\n":
                break
        assert "note: the model reads up to 256 tokens" in lines[0]
        assert "window of 64 tokens, 2 rows, 256 wait" in lines[1] and lines[1].startswith("tiny at http://127.0.0.1:")
        port = int(lines[1].split("/v1")[0].rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        body = json.dumps({"prompt": "x", "max_tokens": 2})
        connection.request("POST", "/v1/completions", body, {**serving.JSON, "Authorization": "Bearer s3cret"})
        assert json.loads(connection.getresponse().read())["usage"]["completion_tokens"] > 0
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(60) == 0 and rest == "" and "s3cret" not in "".join(lines)
