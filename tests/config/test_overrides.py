"""Overrides of a command line: YAML or text, by dotted keys and numbers of items."""

import pytest

from janus_jax.config.run import load_config
from janus_jax.config.yaml_file import read_tree
from tests.support.run_configs import complaint


def test_overrides_win_and_the_last_one_counts(small):
    config = load_config(
        small, ["batch.rows=4", "batch.rows=16", "schedule={name: linear, learning_rate: 0.1, steps: 3}"]
    )
    assert config.batch.rows == 16 and config.schedule.steps == 3 and config.schedule.epochs is None


def test_an_override_of_an_item_of_a_list_has_its_number(small):
    mixture = ["data.dir=null", "data.mixture=[{dir: a, weight: 1}, {dir: b, weight: 1}]"]
    config = load_config(small, [*mixture, "data.mixture.1.weight=3", "data.mixture.0.dir=a #1"])
    assert [(one.dir, one.weight) for one in config.data.mixture or ()] == [("a #1", 1), ("b", 3)]
    allowed = "; allowed: data.mixture.0 to data.mixture.1, or the whole list, data.mixture=[...]"
    for key, problem in (
        ("2.weight", f"data.mixture has no item 2{allowed}"),
        ("first.dir", f"data.mixture has no item first{allowed}"),
        ("00.weight", f"data.mixture has no item 00{allowed}"),
        ("9" * 5000, f"data.mixture has no item {'9' * 5000}{allowed}"),
        ("1.weight.0", "data.mixture.1.weight = 1 is not a section with a key '0'"),
    ):
        assert problem in complaint(small, *mixture, f"data.mixture.{key}=2")
    assert "override 'data.mixture.1.weight=-1': data.mixture.1.weight = -1: allowed: a number > 0" in complaint(
        small, *mixture, "data.mixture.1.weight=-1"
    )


@pytest.mark.parametrize("key", ["data.mixture[0].weight", "data.mixture.-1.weight", "data.mixture.+", "a..b"])
def test_an_override_with_no_dotted_key_learns_how_items_are_named(small, key):
    assert "; an item of a list has a number, from 0: data.mixture.0.weight=2" in complaint(small, f"{key}=2")


def test_a_number_may_be_a_name_of_the_users_own(small):
    assert "list" not in complaint(small, "mesh.0=1") and "mesh.0" in complaint(small, "mesh.0=1")
    unset = "data.mixture = {'0': {weight: 2}}: allowed: a list with at least one item"
    assert unset in complaint(small, "data.mixture.0.weight=2")
    root, problems = read_tree(small, ["endpoints.1.model=m"])
    assert root.plain()["endpoints"] == {"1": {"model": "m"}} and not problems


def test_an_override_creates_the_section_it_needs(small):
    assert load_config(small, ["eval.every_steps=5"]).eval.every_steps == 5


# fmt: off
TEXTS = [
    "runs/try #2", "#2", "runs/a: b", "a: b #c", "[v1]", "runs/[v1]", "{x}", "100%", "@x", "&x", "*x", "|", "> x",
    "`x`", "a'b", 'a"b', "123", "007", "1e-5", "0x10", "1_000", ".5", "on", "no", "2024-05-01", "12:30:00", "a=b",
    "runs/x ", " x", "a\nb", "a\n  b", "a\tb", "é ü", "?", "? x", "-x", "x.", "...", "---", "~x", "- x", ", x",
]
# fmt: on


@pytest.mark.parametrize("value", TEXTS)
def test_an_override_of_a_text_takes_all_of_its_value(small, value):
    config = load_config(small, ["model=null", *(f"{key}={value}" for key in ("run.dir", "init.from", "data.split"))])
    assert (config.run.dir, config.init.from_, config.data.split) == (value, value, value)


@pytest.mark.parametrize(("value", "text"), [("'a b'", "a b"), ('"a #b"', "a #b"), ("'it''s'", "it's"), ('"7"', "7")])
def test_quotes_around_the_whole_text_of_an_override_are_yaml(small, value, text):
    assert load_config(small, [f"run.dir={value}"]).run.dir == text


@pytest.mark.parametrize("value", ["null", "~", "", " ", "true", "False"])
def test_words_that_are_no_text_name_no_directory(small, value):
    assert "run.dir = " in complaint(small, f"run.dir={value}")
    assert load_config(small, ["data.eval_dir=x", "data.eval_dir=null"]).data.eval_dir is None


@pytest.mark.parametrize(
    "override", ["batch.rows=4 #8", "mesh={fsdp: 1} # one", "run.dir='a' # b", "remat=full # all", "batch.rows=#4"]
)
def test_an_override_that_yaml_would_cut_is_refused(small, override):
    assert "comment" in complaint(small, override) and load_config(small, ["data.split='a #b'"]).data.split == "a #b"


def test_an_override_that_no_file_can_hold_is_refused(small):
    assert complaint(small, "run.dir=\udcff") == r"override 'run.dir=\udcff': is not UTF-8 text"
