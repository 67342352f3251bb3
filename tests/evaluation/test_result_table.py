"""The three forms of a table hold the same numbers."""

import csv
import dataclasses
import io
import json

from janus_jax.evaluation.result_table import Row, Table
from janus_jax.storage.local import finite

TABLE = Table(
    "toxicity",
    "Toxicity of 4 prompts",
    ["maximum", "prompts"],
    [Row("mine", [0.25, 4], [0.125, None], [0.5, None]), Row("other, with comma", [None, float("nan")])],
    ["note: one scorer"],
    {"seed": 1},
    "toxicity",
)


def test_text_has_intervals_notes_and_the_paper_beside():
    lines = TABLE.lines()
    assert lines[0] == "Toxicity of 4 prompts" and lines[4] == "note: one scorer"
    assert lines[2].split() == ["mine", "0.250", "[0.125,", "0.500]", "4"] and lines[3].split()[-2:] == ["-", "-"]
    assert len({len(line) for line in lines[1:4]}) == 1  # aligned at the right
    assert any(line.startswith("Janus 7B") and "0.061" in line for line in lines[5:])


def test_programs_read_the_same_numbers():
    output = json.loads(json.dumps(finite(TABLE.as_json())))
    assert (output["kind"], output["columns"], output["settings"]) == ("toxicity", ["maximum", "prompts"], {"seed": 1})
    assert output["rows"][0] == {"name": "mine", "values": [0.25, 4], "low": [0.125, None], "high": [0.5, None]}
    assert output["rows"][1]["values"] == [None, None] and output["paper"]["rows"]["Janus 7B"][0] == 0.256
    first, second = csv.DictReader(io.StringIO(TABLE.as_csv()))
    assert (first["maximum"], first["maximum low"], first["prompts"], first["prompts high"]) == (
        "0.25",
        "0.125",
        "4",
        "",
    )
    assert second["name"] == "other, with comma" and second["maximum"] == second["prompts"] == ""


def test_a_mark_stands_at_every_number_of_the_paper():
    marked = dataclasses.replace(TABLE, paper_mark="other scorer")
    assert all(name.endswith(" (other scorer)") for name in marked.as_json()["paper"]["rows"])
    rows = marked.lines()[len(TABLE.lines()) - 10 :]
    assert len(rows) == 10 and all("(other scorer)  " in line for line in rows)
