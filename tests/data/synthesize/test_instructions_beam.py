"""The step instructions on Beam writes the rows of the step without it, and what it drops, byte for byte."""

import json
import random
from pathlib import Path

import pytest

from janus_jax.data.build.beam.runner import Runner
from janus_jax.data.synthesize.config import load_synthesis
from janus_jax.data.synthesize.pipeline import Synthesis
from janus_jax.errors import ConfigError, DataError
from tests.support.beams import needs_beam
from tests.support.real_rows import real_rows
from tests.support.synthesizing import write_config

FILES = ("rows.jsonl", "dropped.jsonl")


def write_corpus(folder: Path, rows: int) -> Path:
    """Questions in three files, many of them equal or near to one of another file, some in the bench."""
    draw = random.Random(7)
    words = [f"{start}{end}" for start in ("plan", "cook", "read", "walk") for end in ("", "ing", "s", "er", "able")]
    texts = [" ".join(draw.choices(words, k=draw.randint(8, 30))) for _ in range(rows // 3)]
    (folder / "bench.jsonl").write_text("".join(json.dumps({"prompt": one, "system": "s"}) + "\n" for one in texts[:2]))
    corpus = folder / "corpus"
    corpus.mkdir()
    for number in range(3):
        with (corpus / f"train-{number:05d}-of-00003.jsonl").open("w") as file:
            for _ in range(rows // 3):
                text = draw.choice(texts)
                kind = draw.randrange(4)
                changed = {0: text, 1: text.upper() + "!", 2: f"{text} {draw.choice(words)}", 3: f"Hi. {text}"}[kind]
                record = {"prompt": changed} if draw.random() < 0.95 else {"system": 3}
                file.write(json.dumps(record) + "\n")
    return corpus


def both(tmp_path: Path, processes: int = 1, **instructions) -> dict[str, int]:
    """Requires equal files of both; returns what was dropped."""
    contents = []
    for runner in (None, Runner()):
        path = write_config(
            tmp_path, "http://h/v1", out=str(tmp_path / f"out{len(contents)}"), instructions=instructions
        )
        work = Synthesis(load_synthesis(path), runner=runner, processes=processes)
        assert work.run("instructions")
        directory = work.directories["instructions"]
        contents.append([(directory.path / name).read_bytes() for name in FILES])
        assert sorted(path.name for path in directory.path.iterdir()) == sorted([*FILES, "step.json"])
        facts = directory.facts()
    assert contents[0] == contents[1] and contents[0][0]
    return facts["dropped"]


@needs_beam
@pytest.mark.parametrize("alike", [0.8, None])
def test_rows_and_reasons_are_those_of_the_step_without_beam(tmp_path, alike):
    corpus = write_corpus(tmp_path, 300)
    sources = [{"path": str(corpus)}, {"path": str(tmp_path / "bench.jsonl")}, {"path": str(corpus), "first": 150}]
    bench = [str(tmp_path / "bench.jsonl")]
    dropped = both(tmp_path, sources=sources, contaminated_by=bench, alike=alike)
    assert dropped["duplicate"] > 150 and dropped["in_bench"] > 1 and dropped["wrong_type"] > 1
    assert (dropped.get("near_duplicate", 0) > 20) == (alike is not None)


@needs_beam
def test_a_source_that_cannot_be_read_is_named_and_nothing_is_left(tmp_path):
    (tmp_path / "bad.json").write_text('[{"prompt": "one"')
    path = write_config(tmp_path, "http://h/v1", instructions={"sources": [{"path": str(tmp_path / "bad.json")}]})
    messages = []
    for runner in (None, Runner()):
        with pytest.raises(DataError, match=r"bad\.json: ") as caught:
            Synthesis(load_synthesis(path), runner=runner).run("instructions")
        messages.append((type(caught.value), str(caught.value)))
        assert [one.name for one in (tmp_path / "out" / "steps" / "instructions").iterdir()] == []
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--processes", 2], "--beam-option, --processes: allowed: only with --runner"),
        (["--runner", "direct", "--step", "sets"], "--runner: allowed: only where the step instructions is made"),
    ],
)
def test_options_that_do_nothing_are_refused(tmp_path, janus, words, message):
    code, _, shown = janus("data", "synthesize", write_config(tmp_path, "http://h/v1"), *words)
    assert code == ConfigError.exit_code and message in " ".join(shown.split())


@needs_beam
@pytest.mark.slow
def test_real_rows_in_two_processes(tmp_path):
    rows = real_rows(tmp_path)
    if rows is None:
        pytest.skip("JANUS_REAL_DATA is not set")
    sources = [{"path": str(one)} for one in (rows.sft, rows.dpo)]
    dropped = both(tmp_path, processes=2, sources=sources, several_turns="first")
    assert dropped["duplicate"] > 0
