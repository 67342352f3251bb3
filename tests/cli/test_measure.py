"""`janus measure`: files in, a table, its twins and a picture out; refusals in one line."""

import csv
import io
import json
from xml.etree import ElementTree

import pytest

from janus_jax.evaluation.bench.rows import read_bench
from tests.support.answers import answer_row
from tests.support.benches import bench_row, write_rows
from tests.support.judged import judged
from tests.support.text_models import language_model


@pytest.fixture
def answers(tmp_path):
    rows = [answer_row(f"a b c{s} {n}", f"Question {n}?", f"Be {s}.", id=f"{n}-{s}") for n in range(4) for s in "123"]
    return write_rows(tmp_path / "mine.jsonl", rows)


def outputs(path):
    return ["--json", path / "t.json", "--csv", path / "t.csv", "--plot", path / "t.svg"]


def twins(path):
    output = json.loads((path / "t.json").read_text())
    lines = list(csv.DictReader(io.StringIO((path / "t.csv").read_text())))
    assert [row["name"] for row in output["rows"]] == [line["name"] for line in lines]
    picture = ElementTree.parse(path / "t.svg")
    assert not any(
        "href" in name and not str(value).startswith("#")
        for node in picture.iter()
        for name, value in node.attrib.items()
    )
    return output, lines


def refused(janus, *arguments):
    code, out, err = janus("measure", *arguments)
    assert (code, out) == (2, "") and err.count("\n") == 1 and err.startswith("error: "), err
    return err


def test_diversity_of_two_models_with_twins_and_picture(janus, answers, tmp_path):
    same = write_rows(tmp_path / "same.jsonl", [answer_row("x", system=str(n), extra=1) for n in range(3)])
    code, out, err = janus("measure", "diversity", f"my $<model>$={answers}", f"x={same}", *outputs(tmp_path))
    assert code == 0 and err == "note: 'extra' of 3 rows: not measured\n", err
    output, lines = twins(tmp_path)
    assert (output["kind"], output["settings"]["by"], output["settings"]["answers"]["x"]) == (
        "diversity",
        "prompt, with different system messages",
        [str(same)],
    )
    assert output["rows"][1]["values"] == [1.0, 1.0, 1, 3] and lines[0]["average"] == "0.75"
    assert "my $<model>$" in out and "Janus 7B" in out and "nan" not in out.lower()


def test_answers_without_a_system_message_show_what_sampling_alone_does(janus, tmp_path):
    file = write_rows(tmp_path / "none.jsonl", [answer_row(text, id=text) for text in ("a b", "a c", "a d")])
    code, out, err = janus("measure", "diversity", f"m={file}", "--by", "prompt")
    assert code == 0 and out.splitlines()[2].split()[:2] == ["m", "0.500"], err
    assert "no instruction has two rows with different system" in refused(janus, "diversity", file)


def test_diversity_refuses_what_it_cannot_compare(janus, answers, tmp_path):
    alone = write_rows(tmp_path / "alone.jsonl", [answer_row("x"), answer_row("y", "Other?")])
    assert f"error: {alone}: no instruction has two rows" in refused(janus, "diversity", alone)
    assert f"{answers}:1: has no 'lot'; found: id" in refused(janus, "diversity", answers, "--by", "lot")
    assert "--by and --samples" in refused(janus, "diversity", answers, "--by", "id", "--samples")
    assert "ends with .svg" in refused(janus, "diversity", answers, "--plot", tmp_path / "x.png")
    assert "no such file" in refused(janus, "diversity", tmp_path / "none.jsonl").lower()
    assert f"{tmp_path}: is a directory; allowed: a file" in refused(janus, "diversity", tmp_path)
    for given in (answers, f"m={answers}"):
        read = f"--csv {answers}: is a file that this command reads"
        before = answers.read_bytes()
        assert read in refused(janus, "diversity", given, "--csv", answers) and answers.read_bytes() == before


def test_verbosity_beside_the_references_of_a_bench(janus, answers, tmp_path):
    bench = write_rows(
        tmp_path / "bench.jsonl",
        [
            bench_row(n, prompt=f"Question {n}?", system=f"Be {s}.", reference_answer="w " * 10)
            for n in range(3)
            for s in "123"
        ],
    )
    code, out, err = janus("measure", "verbosity", f"m={answers}", "--reference", bench, *outputs(tmp_path))
    assert code == 0 and err == "" and "note: m: 3 rows without a reference; they count in no ratio" in out, err
    output, _ = twins(tmp_path)
    assert [row["name"] for row in output["rows"]] == ["reference", "m"] and output["settings"]["unit"] == "words"
    values = dict(zip(output["columns"], output["rows"][1]["values"], strict=True))
    assert (values["mean"], values["of reference"], values["cut"]) == (4, 0.4, 0)
    other = write_rows(tmp_path / "other.jsonl", [bench_row(9, id="n")])
    assert "m: 12 rows and 1 reference share no id" in refused(janus, "verbosity", f"m={answers}", "--reference", other)
    assert "no such directory" in refused(janus, "verbosity", answers, "--tokenizer", tmp_path / "none")


def test_effect_of_the_system_message_with_a_judge_and_log_probs(janus, tmp_path):
    rows = read_bench(write_rows(tmp_path / "bench.jsonl", [bench_row(n) for n in range(3)]))
    files = []
    for name, message in (("none", ""), ("own", "Be 1.")):
        lines = [answer_row("of three words", row.prompt, message, id=row.id) for row in rows]
        files.append(f"{name}={write_rows(tmp_path / f'{name}.jsonl', lines)}")
        judged(tmp_path / f"judged_{name}", rows, lambda n, k, r, better=name == "own": 2 + better)
    verdicts = [part for name in ("none", "own") for part in ("--judged", f"{name}={tmp_path}/judged_{name}")]
    model = language_model(tmp_path / "lm")
    code, out, err = janus("measure", "system-effect", *files, *verdicts, "--model", model, *outputs(tmp_path))
    assert code == 0 and "own: judge" not in out and "none: judge j, 3 runs" in out, err
    output, _ = twins(tmp_path)
    assert output["columns"] == ["rows", "ROUGE-L", "words", "score", "log-prob of a token"]
    assert [row["name"] for row in output["rows"]] == ["none", "own", "own - none"]
    assert output["rows"][2]["values"][:4] == [3, 1.0, 0.0, 1.0] and output["rows"][2]["values"][4] != 0
    assert output["settings"]["log_probs_of"] == "own"


def test_system_effect_refuses_what_does_not_belong_together(janus, answers, tmp_path):
    other = write_rows(tmp_path / "other.jsonl", [answer_row("x", "Other?", id="n")])
    assert "is one condition" in refused(janus, "system-effect", answers)
    assert "a and b: share no id: 12 rows of a, 1 row of b" in refused(
        janus, "system-effect", f"a={answers}", f"b={other}"
    )
    assert "--step: is of the model, but --model is not given" in refused(
        janus, "system-effect", f"a={answers}", f"b={other}", "--step", 3
    )
    for wrong in ("c=x", "a", "a="):
        assert "allowed: NAME=DIR, once for each of a, b" in refused(
            janus, "system-effect", f"a={answers}", f"b={other}", "--judged", wrong
        )
