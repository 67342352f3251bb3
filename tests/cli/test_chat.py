"""`janus chat` behind pipes, and what it refuses."""

import io
from unittest import mock

import pytest
import transformers

from tests.support import torch_models
from tests.support.chat_models import chat_model

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def talk(janus, model, monkeypatch):
    """Runs the command on lines of standard input."""

    def run(lines, *options, model=model):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
        return janus("chat", model, "--max-new-tokens", 6, "--min-new-tokens", 6, *options)

    return run


def test_each_line_of_a_pipe_is_a_question(talk):
    code, out, err = talk("Why?\n\n/system be brief\nWhy, 世界?\n/quit\nnever\n".encode(), "--seed", 3)
    assert code == 0 and "system: be brief" in err
    cut = "note: Cut after max_new_tokens = 6; /set max_new_tokens 12 and /retry give more."
    assert err.count(cut) == 2 and out.endswith("\n")
    assert all(character.isprintable() or character == "\n" for character in out)
    code, again, _ = talk(b"Why?\n", "--seed", 3)
    assert code == 0 and out.startswith(again)


def test_two_answers_of_a_pipe_stand_one_below_the_other(talk):
    code, out, err = talk(b"Why?", "--both", "be brief | be brief")
    assert code == 0, err
    left, right = out.split("\n\n[right: be brief]\n")
    assert left.removeprefix("[left: be brief]\n") == right.removesuffix("\n")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b"\n" + b"why " * 200, "standard input:2: 818 tokens are too many; the model reads at most 127"),
        (b"/set top_p 2\n", "standard input:1: top_p = 2"),
        (b"\x00\xff\xfe\n", "standard input:1: bytes that are not UTF-8"),
        (b"/nothing\n", "standard input:1: /nothing: no such command"),
    ],
)
def test_a_line_that_cannot_be_answered_ends_the_command(talk, lines, message):
    code, out, err = talk(lines)
    assert (code, out) == (2, "") and err.startswith(f"error: {message}") and err.count("\n") == 1, err


def test_bad_options_and_models_are_refused_before_a_device_is_used(talk, model, tmp_path, capsys):
    reward = transformers.MistralConfig(**(torch_models.SMALL | {"num_labels": 1, "vocab_size": 400}))
    transformers.MistralForSequenceClassification(reward).save_pretrained(tmp_path / "reward")
    capsys.readouterr()  # what transformers says
    with mock.patch("janus_jax.parallel.processes.start", side_effect=AssertionError):
        for options, message in (
            (("--temperature", -1), "temperature = -1.0"),
            (("--both", "brief"), "--both: has no ' | '"),
            (("--both", "a | b", "--system", "c"), "--system, --both: allowed: at most one"),
            (("--system", "why " * 200), "--system: 828 tokens are too many"),
            (("--template", "alpaca"), "'alpaca'"),
        ):
            code, _, err = talk(b"Why?\n", *options)
            assert (code, err.count("\n")) == (2, 1) and message in err, err
        for name, message in (("none", "no such directory"), ("reward", "is a reward model")):
            code, _, err = talk(b"Why?\n", model=tmp_path / name)
            assert (code, err.count("\n")) == (2, 1) and message in err, err


def test_the_command_explains_itself_with_an_example(janus):
    code, out, _ = janus("chat", "--help")
    assert code == 0 and "Example: janus chat" in " ".join(out.split())


def test_several_hosts_are_refused(talk):
    with mock.patch("jax.process_count", return_value=2):
        code, out, err = talk(b"Why?\n")
    assert (code, out) == (2, "")
    assert err == "error: janus chat runs on one host; on a slice of several, use `janus generate`\n"
