"""`janus bench export` in two processes of four devices: both make both turns, and process 0 alone has the files."""

import pytest

from tests.support import processes
from tests.support.chat_models import chat_model
from tests.support.official import mt_question, read_answers, write_questions

OPTIONS = ("--for", "mt_bench", "--name", "m", "--max-new-tokens", 4, "--system", "default", "--system", "none")


@pytest.mark.slow
def test_two_hosts_write_what_one_writes(janus, tmp_path):
    model = chat_model(tmp_path, max_position_embeddings=256)
    port, commands = processes.free_port(), []
    questions = [mt_question(number, "math") for number in range(3)]
    for number in range(2):
        here = tmp_path / f"host{number}"
        here.mkdir()
        files = ["--prompts", here / "q.jsonl", "--out", here / "out"]
        where = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", 2, "--process-id", number, "--devices", 4]
        commands.append(["-m", "janus_jax.cli", "bench", "export", model, *files, *OPTIONS, *where])
    alone = write_questions(tmp_path / "host0" / "q.jsonl", questions)
    ended = processes.launch(*commands)
    assert [code for code, _ in ended] == [0, 0], ended
    assert list((tmp_path / "host1").iterdir()) == [] and ended[1][1] == ""
    assert janus("bench", "export", model, "--prompts", alone, "--out", tmp_path / "out", *OPTIONS)[0] == 0
    for name in ("m-default", "m-none"):
        one, other = (
            [row["choices"] for row in read_answers("mt_bench", directory / "model_answer" / f"{name}.jsonl")]
            for directory in (tmp_path / "host0" / "out", tmp_path / "out")
        )
        assert one == other and len(one) == 3
