"""`janus generate`: answers in the order of the prompts, gone on with after a kill, refusals in one line."""

import fcntl
import json
import shutil
import subprocess
import sys

import pytest
import transformers

from janus_jax.text.chat_format import ChatFormat
from janus_jax.text.template import CHATML
from janus_jax.text.tokenizer import load_tokenizer, save_hf_tokenizer
from tests.support import torch_models
from tests.support.tokenizers import byte_level

pytestmark = pytest.mark.usefixtures("one_device")

ROWS = [
    {"id": "a", "prompt": "Why?", "system": "be brief"},
    {"messages": [{"role": "user", "content": "naïve 世界"}], "source": "koala"},
    {"prompt": "the quick brown fox jumps"},
    {"prompt": "Why?"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    root = tmp_path_factory.mktemp("model")
    tokenizer = load_tokenizer(byte_level(root / "t", ("<|im_start|>", "<|im_end|>"), bos="<s>"))
    torch_models.mistral(vocab_size=400).save_pretrained(root / "hf")
    save_hf_tokenizer(tokenizer, root / "hf", chat_template=ChatFormat(CHATML, tokenizer).chat_template)
    return root / "hf"


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


@pytest.fixture
def ask(janus, model, prompts, tmp_path):
    """Runs the command on the prompts; (code, stderr, path of the output)."""

    def run(*options, model=model, prompts=prompts, out=tmp_path / "answers.jsonl"):
        code, _, err = janus(
            "generate", model, "--prompts", prompts, "--out", out, "--rows", 3, "--max-new-tokens", 12, *options
        )
        return code, err, out

    return run


def test_answers_come_in_order_and_go_on_after_a_kill(ask, tmp_path, monkeypatch):
    from janus_jax.generation import journal, progress

    monkeypatch.setattr(progress, "EVERY_S", 0)  # from the first event on, when no prompt is finished
    options = ("--n", 2, "--seed", 3, "--log-probs")
    code, err, out = ask(*options)
    assert code == 0, err
    assert "note: 'source' of 1 row " in err and "0 of 4 prompts" in err and "4 of 4 prompts" in err
    content = out.read_text()
    lines = [json.loads(line) for line in content.splitlines()]
    assert [line["messages"][-1]["content"] for line in lines] == ["Why?", "naïve 世界", ROWS[2]["prompt"], "Why?"]
    assert (lines[0]["id"], lines[1]["source"]) == ("a", "koala")
    assert lines[0]["messages"][0] == {"role": "system", "content": "be brief"}
    for line in lines:
        first, second = line["answers"]
        assert first["token_ids"] != second["token_ids"]
        for one in (first, second):
            assert one["tokens"] == len(one["token_ids"]) == len(one["token_log_probs"]) <= 12
            assert one["finish_reason"] == ("length" if one["tokens"] == 12 else "stop")
            assert one["log_prob"] == pytest.approx(sum(one["token_log_probs"]))
    assert lines[2]["answers"] != lines[3]["answers"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.jsonl", "prompts.jsonl"]
    assert ask(*options)[:2] == (2, f"error: --out {out}: exists; remove it, or choose another name\n")

    # As a kill leaves it: two prompts are answered, the third line is cut.
    calls = []
    with monkeypatch.context() as patched:
        patched.setattr(journal.Journal, "finish", lambda one: calls.append(one.path.read_bytes()))
        out.unlink()
        assert ask(*options)[0] == 0
    part = out.with_name("answers.jsonl.part")
    whole = calls[0].splitlines(keepends=True)
    part.write_bytes(b"".join(whole[:3]) + whole[3][:20])
    assert "holds answers to other prompts" in ask("--n", 3)[1]
    code, err, _ = ask(*options)
    assert code == 0 and "2 of 4 prompts are answered" in err and "2 of 2 prompts" in err
    again = [json.loads(line) for line in out.read_text().splitlines()]
    assert [[one["token_ids"] for one in line["answers"]] for line in again] == [
        [one["token_ids"] for one in line["answers"]] for line in lines
    ]
    assert not part.exists()


def test_two_commands_do_not_write_one_file(ask, tmp_path):
    with (tmp_path / "answers.jsonl.part").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, err, out = ask()
    assert code == 2 and "another command writes" in err and not out.exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"prompt": "Why?"}\n{"prompt": ""}', ":2: "),
        ('{"prompt": "' + "why " * 400 + '"}', ":1: has "),
        ('{"prompt": "Why?", "answers": ["gold"]}', ":1: column 'answers' would be lost"),
        ("", "is empty"),
        ("{", ":1: "),
    ],
    ids=["no prompt", "too long", "lost", "no rows", "no JSON"],
)
def test_bad_prompts_are_named(ask, tmp_path, row, message):
    file = tmp_path / "bad.jsonl"
    file.write_text(row)
    code, err, _ = ask(prompts=file)
    assert (code, err.count("\n")) == (2, 1) and f"{file}" in err and message in err, err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "prompts.jsonl"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--temperature", -1), "temperature = -1.0"),
        (("--min-new-tokens", 13), "min_new_tokens = 13"),
        (("--stop", ""), "stop has ''"),
        (("--template", "alpaca"), "'alpaca'"),
        (("--step", 3), "step=3"),
    ],
)
def test_bad_options_are_named(ask, options, message):
    code, err, out = ask(*options)
    assert (code, err.count("\n")) == (2, 1) and message in err, err
    assert not out.exists()


def test_bad_models_are_named(ask, model, tmp_path, capsys):
    transformers.MistralForSequenceClassification(
        transformers.MistralConfig(**(torch_models.SMALL | {"num_labels": 1, "vocab_size": 400}))
    ).save_pretrained(tmp_path / "reward")
    bare = tmp_path / "bare"
    shutil.copytree(model, bare)
    (bare / "tokenizer.json").unlink()
    capsys.readouterr()  # what transformers says
    for name, message in (("none", "no such directory"), ("reward", "is a reward model"), ("bare", "has no tokenizer")):
        code, err, _ = ask(model=tmp_path / name)
        assert (code, err.count("\n")) == (2, 1) and message in err, err


@pytest.mark.parametrize("out", ["gs://bucket/a.jsonl", "-"])
def test_an_output_that_is_no_file_is_named(ask, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    code, err, _ = ask(out=out)
    assert (code, err.count("\n")) == (2, 1) and err.startswith(f"error: --out {out}: "), err
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_a_closed_standard_input_is_empty(model, tmp_path):
    asked = f"{sys.executable} -m janus_jax.cli generate {model} --prompts - --out {tmp_path}/a.jsonl <&-"
    done = subprocess.run(["sh", "-c", asked], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (2, "error: stdin: is empty; at least one prompt is needed\n")
