"""`janus generate` in two processes of four devices: process 0 alone has prompts and output, and all end alike."""

import json
import signal
import subprocess
import sys
import time

import pytest

from janus_jax.text.chat_format import ChatFormat
from janus_jax.text.template import CHATML
from janus_jax.text.tokenizer import load_tokenizer, save_hf_tokenizer
from tests.support import processes, torch_models
from tests.support.tokenizers import byte_level

ROWS = [{"id": n, "prompt": f"Why {n}?"} for n in range(100)]
OPTIONS = ("--n", 2, "--seed", 3, "--log-probs", "--rows", 8, "--max-new-tokens", 6)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    root = tmp_path_factory.mktemp("model")
    tokenizer = load_tokenizer(byte_level(root / "t", ("<|im_start|>", "<|im_end|>"), bos="<s>"))
    torch_models.mistral(vocab_size=400).save_pretrained(root / "hf")
    save_hf_tokenizer(tokenizer, root / "hf", chat_template=ChatFormat(CHATML, tokenizer).chat_template)
    return root / "hf"


def commands(model, directory, *options, own=((), ())):
    """Of both processes. Each has a directory of its own, `own` are its own options."""
    port = processes.free_port()
    for number in range(2):
        here = directory / f"host{number}"
        here.mkdir(exist_ok=True)
        files = ["--prompts", here / "p.jsonl", "--out", here / "a.jsonl", *options, *own[number]]
        where = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", 2, "--process-id", number, "--devices", 4]
        yield ["-m", "janus_jax.cli", "generate", model, *files, *where]


def test_two_hosts_end_together_and_write_what_one_writes(janus, model, tmp_path):
    (tmp_path / "host0").mkdir()
    prompts = tmp_path / "host0" / "p.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    first, second = (
        subprocess.Popen([sys.executable, *map(str, command)], env=processes.environment())
        for command in commands(model, tmp_path, *OPTIONS)
    )
    part, until = tmp_path / "host0" / "a.jsonl.part", time.monotonic() + 300
    while time.monotonic() < until and not (part.exists() and part.read_bytes().count(b"\n") > 3):
        time.sleep(0.01)
    second.send_signal(signal.SIGTERM)
    assert (second.wait(120), first.wait(120)) == (143, 13)
    assert 0 < part.read_bytes().count(b"\n") < len(ROWS)

    ended = processes.launch(*commands(model, tmp_path, *OPTIONS))
    assert [code for code, _ in ended] == [0, 0], ended
    assert "of 100 prompts are answered" in ended[0][1] and "wrote" in ended[0][1] and ended[1][1] == ""
    lines = (tmp_path / "host0" / "a.jsonl").read_text().splitlines()
    assert sorted(path.name for path in (tmp_path / "host0").iterdir()) == ["a.jsonl", "p.jsonl"]
    assert list((tmp_path / "host1").iterdir()) == []
    assert janus("generate", model, "--prompts", prompts, "--out", tmp_path / "a.jsonl", *OPTIONS)[0] == 0
    for ours, theirs in zip(lines, (tmp_path / "a.jsonl").read_text().splitlines(), strict=True):
        one, other = json.loads(ours), json.loads(theirs)
        assert one["id"] == other["id"]
        assert [text["token_ids"] for text in one["answers"]] == [text["token_ids"] for text in other["answers"]]


def test_two_hosts_are_refused_alike(model, tmp_path):
    (tmp_path / "host0").mkdir()
    (tmp_path / "host0" / "p.jsonl").write_text('{"prompt": "Why?"}\n{"prompt": ""}\n')
    for own, message in (((), "p.jsonl:2: "), ((("--seed", 1), ("--seed", 2)), "--seed is 2 in process 1")):
        ended = processes.launch(*commands(model, tmp_path, own=own or ((), ())))
        assert [code for code, _ in ended] == [2, 2], ended
        for _, output in ended:
            assert output.startswith("error: ") and output.count("\n") == 1 and message in output, ended
        (tmp_path / "host0" / "p.jsonl").write_text('{"prompt": "Why?"}\n')
    assert [path.name for path in (tmp_path / "host0").iterdir()] == ["p.jsonl"]
