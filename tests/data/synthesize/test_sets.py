"""Preference sets: one of each dimension, used about equally, in no order's debt, and compatible."""

import json
from collections import Counter

import pytest

from janus_jax.data.synthesize import dry_run
from janus_jax.data.synthesize.config import EMBEDDED, load_synthesis
from janus_jax.data.synthesize.hierarchy import Hierarchy, Preference, read_seeds
from janus_jax.data.synthesize.pipeline import Synthesis
from janus_jax.data.synthesize.sets import Rules, draw, read_rules
from janus_jax.errors import DataError, JanusError
from tests.support.synthesizing import QUESTIONS, rows, write_config

IDS = [f"{number:04x}" for number in range(60)]


def hierarchy(**sizes):
    return Hierarchy(
        {name: {"s": [Preference(name, "s", f"p{at}", "d") for at in range(size)]} for name, size in sizes.items()}
    )


def uses(sets):
    return Counter(one.key for of_one in sets.values() for chosen in of_one for one in chosen)


def test_each_preference_is_used_about_equally_often():
    seed = read_seeds([EMBEDDED], 0.8, Counter())
    sets, failed = draw(seed, IDS, 3, 0, Rules((), ()))
    counts = uses(sets)
    assert not failed
    for dimension in seed.dimensions:
        own = [counts[one.key] for one in seed.preferences() if one.dimension == dimension]
        assert max(own) - min(own) <= 1
    for of_one in sets.values():
        assert [one.dimension for one in of_one[0]] == list(seed.dimensions)
        for number in range(4):  # enough preferences in each dimension, so the sets of one differ in each
            assert len({chosen[number] for chosen in of_one}) == 3


def test_order_does_not_matter_and_the_seed_does():
    seed = read_seeds([EMBEDDED], 0.8, Counter())
    rules = read_rules(None)
    sets, _ = draw(seed, IDS, 3, 0, rules)
    assert draw(seed, IDS[::-1], 3, 0, rules)[0] == sets
    assert draw(seed, IDS, 3, 1, rules)[0] != sets
    assert max(uses(sets).values()) - min(uses(sets).values()) < 10  # dimensions have 8 to 12 preferences


def test_sets_that_were_drawn_stay_and_new_ones_balance_them():
    tree = hierarchy(a=5, b=7)
    first, _ = draw(tree, IDS[10:40], 3, 0, Rules((), ()))
    both, _ = draw(tree, IDS, 3, 0, Rules((), ()), first)
    assert all(both[one] == first[one] for one in first) and len(both) == 60
    counts = uses(both)
    assert max(counts.values()) <= -(-180 // 5) + 1 and min(counts.values()) >= 180 // 7 - 1


def test_few_preferences_give_sets_that_differ_or_none():
    sets, failed = draw(hierarchy(a=1, b=3), IDS, 3, 0, Rules((), ()))
    assert not failed and all(len(set(of_one)) == 3 for of_one in sets.values())
    sets, failed = draw(hierarchy(a=1, b=2), IDS, 3, 0, Rules((), ()))
    assert not sets and failed == set(IDS)


@pytest.mark.parametrize(
    ("edit", "per_instruction", "message"),
    [
        ("", 3, "sets: the hierarchy has no preference; see"),
        (
            '{"dimension": "style", "subdimension": "Tone", "preference": "Playful", "description": "It plays."}\n',
            3,
            r"per_instruction = 3: only 1 different set can be made of the hierarchy's preferences \(1 of style\)",
        ),
        (None, 100, None),
    ],
)
def test_sets_that_cannot_be_are_refused_at_once_with_the_cause(tmp_path, edit, per_instruction, message):
    pytest.importorskip("datasketch")
    values = {"hierarchy": {"subdimensions": 0, "preferences": 0}, "sets": {"per_instruction": per_instruction}}
    config = load_synthesis(write_config(tmp_path, "http://127.0.0.1:9/v1", **values))
    for step in ("instructions", "hierarchy"):
        assert Synthesis(config).run(step)
    if message is None:
        assert Synthesis(config).run("sets") and len(rows(tmp_path, "sets")) == per_instruction * len(QUESTIONS)
        return
    (tmp_path / "out/steps/hierarchy/rows.jsonl").write_text(edit)
    with pytest.raises(DataError, match=message):
        Synthesis(config).run("sets")


def test_a_dry_run_takes_a_seed_with_fewer_preferences_than_sets(tmp_path):
    pytest.importorskip("datasketch")
    one = {"dimension": "style", "subdimension": "Tone", "preference": "Playful", "description": "It plays."}
    (tmp_path / "seed.json").write_text(json.dumps([one]))
    values = {"hierarchy": {"seeds": [str(tmp_path / "seed.json")]}}
    work = Synthesis(load_synthesis(write_config(tmp_path, "http://127.0.0.1:9/v1", **values)))
    responses = next(line for line in dry_run.lines(work) if line.startswith("responses "))
    assert responses.split()[1] == str(3 * len(QUESTIONS))


def test_incompatible_preferences_never_meet(tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text(
        "- [{dimension: a, preference: P0}, {dimension: b, preference: p1}]\n- [{preference: p2}, {preference: p2}]\n"
    )
    sets, failed = draw(hierarchy(a=3, b=3), IDS, 3, 0, read_rules(str(path)))
    chosen = {(x.preference, y.preference) for of_one in sets.values() for x, y in of_one}
    assert not failed and chosen and ("p0", "p1") not in chosen and ("p2", "p2") not in chosen


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        (
            "{subdimension: Concisenes}, {subdimension: Depth}",
            "no subdimension is called 'concisenes'; similar names: Con",
        ),
        ("{dimension: styles}, {subdimension: Depth}", "no dimension is called 'styles'; similar names: style"),
        ("{preference: zzz}, {subdimension: Depth}", "no preference is called 'zzz'"),
        ("{dimension: style, subdimension: Depth}, {dimension: style}", "no preference has dimension 'style' and subd"),
        ("{subdimension: Conciseness}, {subdimension: Tone}", "a set has one preference of each dimension"),
    ],
)
def test_a_rule_that_forbids_nothing_is_noted_with_similar_names(tmp_path, rule, line):
    path, lines = tmp_path / "rules.yaml", []
    path.write_text(f"- [{{subdimension: Conciseness}}, {{subdimension: Depth}}]\n- [{rule}]\n")
    config = write_config(
        tmp_path,
        "http://127.0.0.1:1/v1",
        sets={"incompatible": str(path)},
        hierarchy={"subdimensions": 0, "preferences": 0},
    )
    work = Synthesis(load_synthesis(config), tell=lines.append)
    for step in ("instructions", "hierarchy", "sets"):
        assert work.run(step)
    (note,) = [one for one in lines if "forbids" in one]
    assert note.startswith(f"note: {path}:2: the rule forbids nothing: ") and line in note
    assert not list(read_rules(None).idle(read_seeds([EMBEDDED], 0.8, Counter())))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- [{dimension: a}]", r"rules.yaml:1: is no rule"),
        ("a: b", "allowed: a list"),
        ("- [{dimension: a}, {subdimention: b}]", "unknown key 'subdimention'"),
        ("- [{dimension: a}, {preference: 3}]", "a name is no text"),
    ],
)
def test_a_rule_that_is_none_is_named(tmp_path, text, message):
    (tmp_path / "rules.yaml").write_text(text + "\n")
    with pytest.raises(JanusError, match=message):
        read_rules(str(tmp_path / "rules.yaml"))
