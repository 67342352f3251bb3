"""The embedded sample goes through the steps of a synthesis."""

import json
from collections import defaultdict

import pyarrow.parquet
import pytest

from janus_jax.data.sample import SPLITS, sample_records
from janus_jax.data.synthesize.collection import COLLECTION, schemas
from janus_jax.data.synthesize.config import load_synthesis
from janus_jax.data.synthesize.pipeline import Synthesis
from tests.support.endpoint_server import said
from tests.support.synthesizing import write_config

pytest.importorskip("openai")


def test_the_embedded_sample_passes_all_gates_and_comes_out_as_it_is(tmp_path):
    """Its texts were written by hand, and its preference sets chosen: here they are answers to what the steps ask."""
    sample = [row for split in SPLITS for row in sample_records(split)]
    groups = defaultdict(list)
    for row in sample:
        groups[row["prompt"]].append(row)
    asked = [{name: rows[0][name] for name in ("prompt", "main_source", "original_source")} for rows in groups.values()]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    seeds = {json.dumps(one): one for row in sample for one in row["preference_set"]}
    (tmp_path / "seeds.json").write_text(json.dumps(list(seeds.values())))
    config = load_synthesis(
        write_config(
            tmp_path,
            "http://127.0.0.1:9/v1",
            hierarchy={"seeds": [str(tmp_path / "seeds.json")], "subdimensions": 0, "preferences": 0, "alike": 1.0},
            instructions={"alike": None},
            systems={"min_chars": 100, "alike": 0.9, "examples": 8},
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
    ordered = [row for group in groups.values() for row in group]
    with (tmp_path / "out/steps/sets/rows.jsonl").open("w") as sets:  # edited, as a person may
        for prompt, group in groups.items():
            for number, row in enumerate(group):
                one = {"id": f"{ids[prompt]}-{number}", "instruction": ids[prompt]}
                sets.write(json.dumps({**one, "preferences": row["preference_set"]}) + "\n")
    for step, column in (("systems", "system"), ("responses", "output")):
        assert not Synthesis(config, batch=True).run(step)
        (requests,) = (tmp_path / "out/steps" / step / "batch").glob("requests-*.jsonl")
        with (tmp_path / "answers.jsonl").open("w") as answers:
            for line, row in zip(requests.read_text().splitlines(), ordered, strict=True):
                request = json.loads(line)
                asked = [one["content"] for one in request["body"]["messages"]]
                if step == "systems":
                    assert all(one["description"] in asked[0] for one in row["preference_set"])
                else:
                    assert asked == [row["system"], row["prompt"]]
                response = {"status_code": 200, "body": said(row[column]).body}
                answers.write(json.dumps({"custom_id": request["custom_id"], "response": response}) + "\n")
        assert Synthesis(config, batch=True).run(step, [tmp_path / "answers.jsonl"])
    assert Synthesis(config).run()
    table = pyarrow.parquet.read_table(tmp_path / "out/collection/train.parquet")
    assert table.schema == schemas()[0]
    assert table.to_pylist() == [{name: row[name] for name in COLLECTION} for row in ordered]
