"""Seeds, near-duplicates of names, and a hierarchy that a model extends."""

import json
import os
from collections import Counter

import pytest

from janus_jax.data.synthesize.config import EMBEDDED, load_synthesis
from janus_jax.data.synthesize.hierarchy import Names, read_seeds
from janus_jax.data.synthesize.pipeline import Synthesis
from janus_jax.errors import DataError
from tests.support.endpoint_server import said, serving
from tests.support.synthesizing import reply, write_config

NODES = [
    {"id": "Style", "label": "Style", "parent": "", "value": 2},
    {"id": "Style/Tone", "label": "Tone", "parent": "Style", "value": 2},
    {"id": "Style/Tone/Dry wit", "label": "Dry wit", "parent": "Style/Tone", "value": 1},
    {
        "id": "Background knowledge/Basic/He/she is new",
        "label": "He/she is new",
        "parent": "Background knowledge/Basic",
    },
]


def read(tmp_path, items, dropped=None):
    path = tmp_path / "seed.json"
    path.write_text(json.dumps(items))
    return read_seeds([str(path)], 0.8, Counter() if dropped is None else dropped)


def test_the_embedded_seed_has_the_four_dimensions_and_all_descriptions():
    seed = read_seeds([EMBEDDED], 0.8, dropped := Counter())
    assert list(seed.dimensions) == ["style", "background_knowledge", "informativeness", "harmlessness"]
    assert not dropped and all(all(one) for one in seed.preferences())


def test_both_shapes_of_a_seed_are_read_and_repeats_are_counted(tmp_path):
    rows = [
        {"dimension": "style", "subdimension": "tone", "preference": "DRY  WIT!", "description": "It is dry."},
        {"dimension": "Style", "subdimension": "Tone", "preference": "Warm", "description": "It is warm."},
    ]
    seed = read(tmp_path, [*NODES, *rows], dropped := Counter())
    leaves = [tuple(one) for one in seed.preferences()]
    assert leaves == [
        ("style", "Tone", "Dry wit", ""),
        ("style", "Tone", "Warm", "It is warm."),
        ("background_knowledge", "Basic", "He/she is new", ""),
    ]
    assert dropped == {"seed_repeated": 1}


def test_seeds_that_are_near_duplicates_stay_and_a_note_names_both(tmp_path):
    own = {"dimension": "harmlessness", "subdimension": "Caution"}
    rows = [
        {**own, "preference": "No moralising", "description": "The answer never lectures."},
        {**own, "preference": "no moralizing", "description": "The answer never lectures"},
        {**own, "preference": "No Moralising!", "description": "It is another."},
        {**own, "preference": "Free of any moral talk at all"},
        {**own, "preference": "Free of any moral talk at"},
    ]
    (tmp_path / "seed.json").write_text(json.dumps(rows))
    seed = read_seeds([str(tmp_path / "seed.json")], 0.8, dropped := Counter(), (notes := []).append)
    names = [one.preference for one in seed.preferences()]
    assert names == [rows[at]["preference"] for at in (0, 1, 3, 4)] and dropped == {"seed_repeated": 1}
    at = f"{tmp_path}/seed.json"
    assert notes == [
        "seeds with the name of another in their subdimension are dropped (1): "
        f"{at}:3 'No Moralising!' is {at}:1 'No moralising'",
        f"seeds that are near-duplicates are kept (2): {at}:2 'no moralizing' is like {at}:1 'No moralising'; "
        f"{at}:5 'Free of any moral talk at' is like {at}:4 'Free of any moral talk at all'",
    ]


@pytest.mark.skipif("JANUS_REAL_DATA" not in os.environ, reason="JANUS_REAL_DATA names no folder of real rows")
def test_the_published_preferences_are_a_seed():
    seed = read_seeds([os.path.join(os.environ["JANUS_REAL_DATA"], "multifaceted_preferences.json")], 0.8, Counter())
    assert seed.statistics() == {"dimensions": 4, "subdimensions": 20, "preferences": 102}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"dimension": "style", "preference": "x"}, "seed.json:1.*no subdimension.*found: dimension, preference"),
        ({"dimension": "style", "subdimension": 3, "preference": "x"}, "column 'subdimension' must be a string"),
        ({**NODES[2], "parent": "Style/Form"}, "its parent is 'Style/Form', but its id names 'Style/Tone'"),
        ({**NODES[2], "label": "Wry"}, "does not end with its label 'Wry'"),
        ({**NODES[2], "valeu": 1}, "has 'valeu'; a node has id, label, parent, value, description"),
        ("text", "a row must be an object"),
        (NODES[0], "no preference"),
    ],
)
def test_an_item_that_is_no_preference_is_named(tmp_path, item, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, [item])


def test_names_that_look_alike_or_share_most_words_are_not_new():
    names = Names(0.8)
    names.add("Faithful representation of the original text")
    assert names.like("faithful Representation, of the original text!") == "repeated"
    assert names.like("Faithful representation of original text") == "alike"
    assert names.like("Free representation of another text") == ""
    names.add("简洁")
    assert names.like("简洁") == "repeated" and names.like("详细") == ""


def grown(tmp_path, script, **hierarchy):
    with serving(script) as server:
        Synthesis(load_synthesis(write_config(tmp_path, server.url, hierarchy=hierarchy))).run("hierarchy")
        number = len(server.bodies)
    path = tmp_path / "out/steps/hierarchy"
    rows = [json.loads(line) for line in (path / "rows.jsonl").read_text().splitlines()]
    return rows, json.loads((path / "step.json").read_text()), number


def counts(rows):
    return Counter((row["dimension"], row["subdimension"]) for row in rows)


def test_wrong_counts_and_repeats_end_in_the_counts_that_were_asked_for(tmp_path):
    def script(body, count):
        value = json.loads(reply(body))
        ((key, items),) = value.items()
        if len(items) > 1:  # one is lacking, one repeats another, and in other requests there are too many
            items = items[:1] * 2 if len(json.dumps(body)) % 2 else items * 3
        return said(json.dumps({key: items}))

    rows, facts, _ = grown(tmp_path, script, subdimensions=6, preferences=5, at_a_time=3, rounds=12)
    assert set(counts(rows).values()) == {5} and len(counts(rows)) == 24
    assert facts["dropped"]["repeated"] and facts["dropped"]["surplus"] and facts["rejected"]["wrong_count"]
    assert {row["provenance"]["origin"] for row in rows} == {"seed", "model"}


def test_a_model_that_repeats_itself_is_not_asked_for_ever(tmp_path):
    same = {"subdimensions": ["Rhythm"], "preferences": [{"preference": "Slow", "description": "It is slow."}]}
    script = lambda body, count: said(json.dumps(same))  # noqa: E731
    rows, facts, number = grown(tmp_path, script, subdimensions=6, preferences=4, rounds=3)
    assert all(row["description"] for row in rows) and number <= 3 * (4 + 24)
    assert any("preferences are missing" in note for note in facts["notes"])


def test_what_stands_in_the_form_of_an_answer_is_no_name(tmp_path):
    """SmolLM2-135M-Instruct answers so."""

    def script(body, count):
        if "subdimensions of" in body["messages"][0]["content"]:
            return said('{"subdimensions": ["First name", "Rhythm"]}')
        return said('{"preferences": [{"preference": "Slow", "description": "One sentence."}]}')

    rows, facts, _ = grown(tmp_path, script, subdimensions=6, preferences=3, rounds=1)
    assert {row["provenance"]["origin"] for row in rows} == {"seed"}
    assert facts["rejected"]["copied_form"] == 16 * 4  # answers without a name of their own, to 16 requests
    assert facts["dropped"]["copied_form"] == 4 + 16  # names, and requests that stayed without an answer
    assert facts["dropped"]["subdimension_without_preference"] == 4


def test_names_without_a_description_get_one(tmp_path):
    path = tmp_path / "names.json"
    path.write_text(json.dumps(NODES))
    rows, _, number = grown(
        tmp_path, lambda body, count: said(reply(body)), seeds=[str(path)], subdimensions=0, preferences=0
    )
    assert [row["preference"] for row in rows] == ["Dry wit", "He/she is new"] and number == 2  # one a subdimension
    assert all(row["description"] and row["provenance"]["model"] == "scripted" for row in rows)
    (tmp_path / "out/steps/hierarchy/step.json").unlink()
    (tmp_path / "out/steps/hierarchy/replies.jsonl").unlink()
    assert Synthesis(load_synthesis(tmp_path / "synthesis.yaml")).estimate("hierarchy")[0].requests == 2
