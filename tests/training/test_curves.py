"""Curves from metrics.jsonl: what is drawn, and what a broken file gets."""

import json
import signal

import numpy as np
import pytest
from matplotlib.figure import Figure

from janus_jax.errors import Interrupted, StorageError
from janus_jax.training import curves
from janus_jax.training.curves import draw, draw_run, read_curves, smooth


def write_run(directory, *, pairs=False, steps=20, held_out=True, objective=None):
    records = []
    for step in range(1, steps + 1):
        values = {"loss": None if step == 3 else 1 / step, "learning_rate": 1e-3, "grad_norm": 2.0, "examples": 8}
        values |= {"rewards/accuracies": 0.5, "rewards/ties": 0.25, "rewards/margins": 0.1 * step} if pairs else {}
        records.append({"kind": "train", "step": step, **values, "tokens_per_s": 1000.0})
        if held_out and step % 5 == 0:
            records.append({"kind": "eval", **{k: v for k, v in records[-1].items() if k != "kind"}, "examples": 50})
    directory.mkdir(parents=True)
    if objective:
        (directory / "config.yaml").write_text(f"objective: {objective}\n")
    (directory / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return directory


def titles(runs, path, monkeypatch):
    """First lines of the titles of the drawn panels."""
    drawn = []
    real = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (drawn.append(self), real(self, *a, **k))[1])
    draw(runs, path)
    return [axis.get_title(loc="left").split("\n")[0] for axis in drawn[0].axes if axis.axison], drawn[0]


def test_a_panel_for_each_metric_that_a_run_has(tmp_path, monkeypatch):
    sft = read_curves(write_run(tmp_path / "sft"))
    shown, _ = titles([sft], tmp_path / "a.png", monkeypatch)
    assert shown == ["loss", "learning rate", "gradient norm, before clipping", "tokens/s"]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_runs_are_overlaid_with_a_legend_of_their_names(tmp_path, monkeypatch):
    runs = [read_curves(write_run(tmp_path / name, pairs=name == "dpo"), name) for name in ("sft", "dpo")]
    shown, figure = titles(runs, tmp_path / "a.svg", monkeypatch)
    assert "reward margin" in shown and "accuracy, a tie counts as wrong" in shown
    assert [text.get_text() for text in figure.legends[0].get_texts()][-2:] == ["sft", "dpo"]
    assert "share of ties" in [text.get_text() for text in figure.legends[0].get_texts()]
    loss = figure.axes[0]
    assert len(loss.lines) == 6  # of each run: batches, smoothed, held out


def test_runs_of_other_objectives_have_panels_of_their_own(tmp_path, monkeypatch):
    objectives = {"a": "{name: sft}", "b": "{name: rm}", "c": "{name: dpo, loss: ipo}", "d": "{name: rm}"}
    runs = [
        read_curves(write_run(tmp_path / name, pairs=name != "a", objective=text), name)
        for name, text in objectives.items()
    ]
    shown, figure = titles(runs, tmp_path / "a.svg", monkeypatch)
    assert shown[:3] == ["loss, sft", "loss, rm", "loss, dpo ipo"]
    assert [len(axis.lines) for axis in figure.axes[:3]] == [3, 6, 3]
    assert "reward margin, rm" in shown and "reward margin, sft" not in shown and "learning rate" in shown
    assert len(figure.axes) > len(shown) and all(not axis.axison for axis in figure.axes[len(shown) :])
    same, _ = titles([runs[1], runs[3]], tmp_path / "b.svg", monkeypatch)
    assert "loss" in same and "loss, rm" not in same


def test_an_accuracy_is_the_recorded_one_and_the_band_is_wilsons(tmp_path):
    run = read_curves(write_run(tmp_path / "dpo", pairs=True))
    assert set(run.points("eval", "rewards/accuracies")[1]) == {0.5}
    steps, low, high = run.interval()
    # Wilson 1927 by hand: (0.5 + 0.0384 +- 1.96 * 0.0733) / 1.0768
    assert steps.tolist() == [5, 10, 15, 20]
    assert (low[0], high[0]) == pytest.approx((0.3665, 0.6335), abs=2e-4)
    assert len(read_curves(write_run(tmp_path / "alone", pairs=True, held_out=False)).interval()[0]) == 20


def test_smoothing_averages_neighbours_and_skips_what_is_not_finite():
    assert smooth(np.asarray([1.0, 2.0])).tolist() == [1, 2]
    line = np.arange(100.0)
    np.testing.assert_allclose(smooth(line)[10:-10], line[10:-10])
    line[50] = np.nan
    assert np.isfinite(smooth(line)).all()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none", None, "none: no such directory"),
        ("data", "", "data: holds no metrics.jsonl, so it is no run"),
        (
            "cut",
            '{"kind": "train", "step": 1, "loss": 2.0}\n{"kind": "tr',
            "metrics.jsonl:2: is cut short or no record",
        ),
        ("list", "[1]\n", "metrics.jsonl:1: is cut short or no record"),
        ("words", '{"kind": "train", "step": 1, "loss": "high"}\n', "metrics.jsonl:1: "),
        ("huge", '{"kind": "train", "step": 1e999, "loss": 2}\n', "metrics.jsonl:1: "),
        ("blank", "\n", "metrics.jsonl:1: "),
        ("other", '{"kind": "train", "step": 1, "speed": 2}\n', "holds no numbers to draw"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(janus, tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).mkdir()
        (tmp_path / name / ("metrics.jsonl" if text else "manifest.json")).write_text(text)
    code, _, err = janus("runs", "plot", tmp_path / name, "--out", tmp_path / "a.png")
    assert code == 2 and message in err and err.count("\n") == 1 and not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("out", "message"),
    [("a.gif", "--out a.gif: allowed: a name that ends in .png"), ("no/a.png", "no is not a directory")],
)
def test_a_picture_that_cannot_be_written_is_refused_before_any_run_is_read(janus, tmp_path, monkeypatch, out, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = janus("runs", "plot", "nowhere", "--out", out)
    assert code == 2 and message in err


def test_the_command_names_runs_by_what_differs(janus, tmp_path):
    names = ["a$b_$", "_b\n", "名"]
    runs = [write_run(tmp_path / name / "run", steps=2) for name in names]
    code, out, err = janus("runs", "plot", *runs, "--out", tmp_path / "a.svg")
    assert code == 0 and err == "" and " ".join(out.split()).startswith(f"{tmp_path / 'a.svg'}: curves of ")
    assert max(map(len, out.splitlines())) <= 100
    comments = (tmp_path / "a.svg").read_text()  # matplotlib writes each text as one, besides its outlines
    assert "<!-- a$b_$/run -->" in comments.replace("\\$", "$") and "_b?/run -->" in comments
    code, _, err = janus("runs", "plot", runs[0], runs[0])
    assert code == 2 and "is given twice" in err


def test_a_picture_that_fails_is_reported_and_ends_nothing(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from janus_jax.checkpoint.run_dir import RunDir

    lines: list[str] = []
    run = SimpleNamespace(fills=[1.0], dir=RunDir(write_run(tmp_path / "run")), print=lines.append)
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: 1 / 0)
    draw_run(run)
    assert lines == [f"note: {tmp_path / 'run' / 'curves.png'} could not be drawn: ZeroDivisionError: division by zero"]
    assert not (tmp_path / "run" / "curves.png").exists()


@pytest.mark.parametrize(
    ("error", "drawn"),
    [(None, 1), (ValueError(), 1), (Interrupted(signal.SIGINT), 1), (Interrupted(signal.SIGTERM), 0)],
)
def test_every_end_but_sigterm_draws(monkeypatch, error, drawn):
    runs = []
    monkeypatch.setattr(curves, "draw_run", runs.append)
    curves.draw_last(["run"], error)
    assert len(runs) == drawn


def test_a_full_disk_is_an_error_of_storage(tmp_path):
    run = read_curves(write_run(tmp_path / "run"))
    with pytest.raises(StorageError, match=r"a\.png"):
        draw([run], tmp_path / "gone" / "a.png")
