"""A recorded run of a real small model behind llama.cpp's server comes out again, from its journals alone."""

import json
import shutil

import pytest

from janus_jax.data.build.readers import read_records
from janus_jax.data.synthesize.pipeline import Synthesis
from tests.data.synthesize.recording import RECORDED, configuration, results

pytest.importorskip("openai")


def test_the_recorded_run_comes_out_again_without_a_server(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = configuration(tmp_path)
    shutil.copytree(RECORDED / "steps", tmp_path / "out/steps")
    assert Synthesis(config).run()  # nobody listens: a request that is in no journal would end it
    for journal in RECORDED.glob("steps/*/replies.jsonl"):
        assert (tmp_path / "out" / journal.relative_to(RECORDED)).read_bytes() == journal.read_bytes()
    made = results(tmp_path / "out")
    assert made == results(RECORDED)
    yields = {row["what"]: (row["wanted"], row["made"]) for row in json.loads(made["report.json"])["yields"]}
    assert yields["system messages"] == (30, 25) and yields["responses"] == (25, 11)
    assert yields["rubrics"] == (20, 0) and yields["rows of the collection and the bench"] == (30, 6)
    rejected = {"copied_example": 11, "copied_form": 21, "repeated_text": 21, "too_short": 1, "truncated": 6}
    assert json.loads((tmp_path / "out/steps/rubrics/step.json").read_text())["rejected"] == rejected
    records = list(read_records(tmp_path / "out/collection/train.parquet", "sft"))
    assert len(records) == 6 and all(len(record.preference_set) == 4 for record in records)
