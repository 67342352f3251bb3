"""A recorded run of a real small model comes out again, offline; the embedded sample goes through the same steps."""

import json
import os
import shutil
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet
import pytest

from janus_jax.data.sample import SPLITS, sample_records
from janus_jax.data.synthesize.collection import COLLECTION, schemas
from janus_jax.data.synthesize.config import load_synthesis
from janus_jax.data.synthesize.pipeline import Synthesis
from tests.data.synthesize.recording import QUESTIONS, RECORDED, STEPS, configuration, counts, record, rows
from tests.support.endpoint_server import said
from tests.support.synthesizing import write_config

pytest.importorskip("openai")


def test_a_recorded_run_is_made_again_from_its_journals_alone(tmp_path):
    config = configuration(tmp_path)
    for step in STEPS:
        directory = tmp_path / "out/steps" / step
        directory.mkdir(parents=True)
        shutil.copy(RECORDED / f"{step}.jsonl", directory / "replies.jsonl")
    before = {step: (RECORDED / f"{step}.jsonl").read_bytes() for step in STEPS}
    assert Synthesis(config).run()  # a request that is not in a journal would not be answered: nobody listens
    assert {step: (tmp_path / "out/steps" / step / "replies.jsonl").read_bytes() for step in STEPS} == before
    assert rows(tmp_path / "out") == json.loads((RECORDED / "rows.json").read_text())
    assert counts(tmp_path / "out") == json.loads((RECORDED / "counts.json").read_text())


@pytest.mark.slow
@pytest.mark.skipif("JANUS_GGUF" not in os.environ, reason="JANUS_GGUF names no file of a model")
def test_a_real_model_goes_through_all_steps(tmp_path):
    """JANUS_GGUF=FILE pytest -n0 -m slow -s tests/data/synthesize/test_recorded.py; about 20 minutes."""
    pytest.importorskip("mistralrs")
    out = record(Path(os.environ["JANUS_GGUF"]), tmp_path)
    counted = counts(out)
    print(json.dumps(counted, indent=1))
    made = rows(out)
    assert {row["prompt"] for row in made["collection"] + made["bench"]} <= set(QUESTIONS)
    asked = sum(counted["systems"]["dropped"].values()) + counted["systems"]["counts"]["rows"]
    assert asked == 3 * len(QUESTIONS) and len(made["collection"]) >= 10


def test_the_embedded_sample_passes_all_gates_and_comes_out_as_it_is(tmp_path):
    """Its texts were written by hand, and its preference sets chosen: here they are answers to what the steps ask."""
    sample = [row for split in SPLITS for row in sample_records(split)]
    groups = defaultdict(list)
    for row in sample:
        groups[row["prompt"]].append(row)
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps({"prompt": one}) + "\n" for one in groups))
    seeds = {json.dumps(one): one for row in sample for one in row["preference_set"]}
    (tmp_path / "seeds.json").write_text(json.dumps(list(seeds.values())))
    config = load_synthesis(
        write_config(
            tmp_path,
            "http://127.0.0.1:9/v1",
            hierarchy={"seeds": [str(tmp_path / "seeds.json")], "subdimensions": 0, "preferences": 0, "alike": 1.0},
            instructions={"alike": None},
            systems={"min_chars": 100, "alike": 0.9},
            bench={"instructions": 0},
        )
    )
    for step in ("hierarchy", "instructions", "sets"):
        assert Synthesis(config).run(step)
    ids = {
        row["prompt"]: row["id"]
        for row in map(json.loads, (tmp_path / "out/steps/instructions/rows.jsonl").read_text().splitlines())
    }
    assert ids.keys() == groups.keys()
    texts = {}
    with (tmp_path / "out/steps/sets/rows.jsonl").open("w") as sets:  # edited, as a person may
        for prompt, group in groups.items():
            for number, row in enumerate(group):
                one = {"id": f"{ids[prompt]}-{number}", "instruction": ids[prompt]}
                sets.write(json.dumps({**one, "preferences": row["preference_set"]}) + "\n")
                texts["\n".join(f"- {p['description']}" for p in row["preference_set"])] = row["system"]
                texts[row["system"], prompt] = row["output"]
    for step in ("systems", "responses"):
        assert not Synthesis(config, batch=True).run(step)
        (requests,) = (tmp_path / "out/steps" / step / "batch").glob("requests-*.jsonl")
        with (tmp_path / "answers.jsonl").open("w") as answers:
            for request in map(json.loads, requests.read_text().splitlines()):
                asked = [one["content"] for one in request["body"]["messages"]]
                text = (
                    texts[tuple(asked)]
                    if step == "responses"
                    else next(text for wishes, text in texts.items() if isinstance(wishes, str) and wishes in asked[0])
                )
                response = {"status_code": 200, "body": said(text).body}
                answers.write(json.dumps({"custom_id": request["custom_id"], "response": response}) + "\n")
        assert Synthesis(config, batch=True).run(step, [tmp_path / "answers.jsonl"])
    assert Synthesis(config).run()
    table = pyarrow.parquet.read_table(tmp_path / "out/collection/train.parquet")
    assert table.schema == schemas()[0]
    own = [name for name in COLLECTION if name not in ("main_source", "original_source")]
    assert table.select(own).to_pylist() == [{name: row[name] for name in own} for row in sample]
