"""What a run prints: short lines, and commands that can be copied."""

import io
import shlex
import subprocess

import pytest

from janus_jax.training.console import WIDTH, Console, _epochs, closing, command, record_line, wrapped
from tests.support.runs import ended

LONG = "/".join(["a-directory-with-a-rather-long-name"] * 9)
PAIRS = {
    "loss": 0.693147,
    "logps/chosen": -33.3,
    "rewards/accuracies": 0.5625,
    "rewards/margins": -4.19e-05,
    "grad_norm": 1234.5678,
    "learning_rate": 5.4321e-7,
    "epoch": 123.456,
    "fill": 0.97,
    "tokens": 496,
    "examples": 38,
    "tokens_per_s": 1234567.8,
    "data_wait": 0.0377,
    "mfu": 0.4321,
}


def test_a_record_is_one_short_line_of_the_numbers_that_matter():
    line = record_line("train", 123456, 123456, PAIRS)
    assert len(line) <= WIDTH and line.startswith("train 123456/123456  loss 0.6931  acc 0.56  grad 1235  rate 5.4e-07")
    short = record_line("train", 3, 12, PAIRS)
    assert short.endswith("tok/s 1,234,568  epoch 123.46  MFU 0.43") and short.startswith("train  3/12  ")
    assert record_line("eval", 3, 12, PAIRS) == "eval   3/12  loss 0.6931  acc 0.56  margin -4.2e-05  n 38"
    ties = PAIRS | {"rewards/ties": 0.25, "left_out": 2}
    assert record_line("eval", 3, 12, ties).endswith("acc 0.56  ties 0.25  margin -4.2e-05  n 38  left out 2")
    assert record_line("eval", 3, 12, PAIRS | {"rewards/ties": 0.0, "left_out": 0}).endswith("margin -4.2e-05  n 38")
    assert "loss nan" in record_line("train", 3, 12, {"loss": float("nan"), "learning_rate": 0.0})
    assert record_line("train", 3, 12, {"learning_rate": 0.0}).endswith("rate 0")


def test_a_long_path_is_broken_and_a_long_command_still_runs():
    lines = wrapped(f"{LONG}: written; every tensor compared")
    assert max(map(len, lines)) <= WIDTH and "".join(line.strip() for line in lines).startswith(LONG)
    words = ["printf", "%s\n", LONG, "two words", LONG + "-hf"]
    lines = command(words)
    assert len(lines) > 4 and max(map(len, lines)) <= WIDTH
    assert subprocess.run(["sh", "-c", "\n".join(lines)], capture_output=True, text=True).stdout.split("\n") == [
        *words[2:],
        "",
    ]


@pytest.mark.parametrize(
    ("total", "steps", "output"),
    [
        (4, 11, "part of an epoch, which has 11 steps"),
        (11, 11, "1 epoch of 11 steps"),
        (25, 11, "2.27 epochs of 11 steps"),
        (3, 1, "3 epochs of 1 step"),
    ],
)
def test_a_length_in_epochs_is_a_number_that_one_can_read(total, steps, output):
    assert _epochs(total, steps) == output


def test_a_run_with_metrics_says_how_to_compare_its_curves(tmp_path, monkeypatch):
    """Places below the working directory are named from there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()
    lines = closing(ended(run_dir=str(tmp_path / "run")), "lm")
    assert lines[0].startswith("run: step 9 of 9")
    assert lines[1:3] == ["to compare its curves with those of another run:", "  janus runs plot run OTHER"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_and_a_log_file_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    terminal, log = Terminal(), io.StringIO()
    for file in (terminal, log):
        console = Console(file)
        console.begin(total=12, done=4)
        console.write("eval", 5, {"loss": 1.0})
        console.write("train", 6, PAIRS)
        console.close()
    assert (
        log.getvalue() == record_line("eval", 5, 12, {"loss": 1.0}) + "\n" + record_line("train", 6, 12, PAIRS) + "\n"
    )
    shown = terminal.getvalue()
    assert "eval   5/12  loss 1" in shown and "6/12" in shown and "ETA" in shown and "wait 4%" in shown
    assert "train  6/12" not in shown


def test_the_end_says_how_it_went_and_what_to_do_next(monkeypatch, tmp_path):
    best = {"step": 4, "loss": 0.5, "rewards/accuracies": 0.75, "examples": 9}
    lines = closing(ended(run_dir="runs/x", best=best), "lm")
    assert lines == [
        "runs/x: step 9 of 9, 1 h 2 min, 12,345 tokens in all",
        "smallest held-out loss: step 4, loss 0.5  acc 0.75  n 9",
        "next:",
        "  janus convert to-hf runs/x runs/x-hf",
    ]
    exported = closing(ended(run_dir="runs/x", export_dir="runs/x/exports/9"), "lm")
    assert exported[-2:] == ["next:", "  vllm serve runs/x/exports/9"]
    monkeypatch.setattr("janus_jax.training.console.place", lambda path: tmp_path)  # no bucket is asked
    far = {"run_dir": "gs://b/x", "export_dir": "gs://b/x/exports/9"}
    copy = "  gcloud storage cp --recursive gs://b/x/exports/9 ."
    assert closing(ended(**far), "lm")[-3:] == ["next:", copy, "  vllm serve ./9"]
    assert closing(ended(**far), "value")[-3:-1] == ["next:", copy]
    monkeypatch.undo()
    assert "AutoModelForSequenceClassification" in closing(ended(export_dir="e"), "value")[-1]
    assert "next:" not in closing(ended(step=5, ended="interrupted"), "lm")
    assert max(map(len, closing(ended(run_dir=LONG, export_dir=LONG), "lm"))) <= WIDTH
    long = closing(ended(run_dir=LONG), "lm")
    joined = "\n".join(long[long.index("next:") + 1 :]).replace("\\\n", "")
    assert shlex.split(joined) == ["janus", "convert", "to-hf", LONG, f"{LONG}-hf"]
