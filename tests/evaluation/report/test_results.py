"""Tables of evaluations: what compares stands together, and warnings stay."""

from janus_jax.evaluation.report.results import grouped, of_json
from janus_jax.evaluation.result_table import Row, Table
from tests.support.reported import table_json

PAPER = {"place": "Table 9", "judge": "j", "note": "n", "columns": ["average"], "rows": {"Janus 7B": [0.23]}}


def result(label, **changes):
    return of_json(table_json(**changes), label, f"{label}.json")


def test_a_table_comes_back_as_it_was_written():
    table = Table(
        "toxicity", "T", ["a", "b"], [Row("x", [1, None], [0.5, None], [1.5, None])], ["n"], {"s": 1}, "toxicity"
    )
    read = of_json(table.as_json(), "x", "x.json")
    assert read.table == Table(
        "toxicity", "T", ["a", "b"], [Row("x", [1, None], [0.5, None], [1.5, None])], ["n"], {"s": 1}
    )
    assert read.paper and read.paper["rows"]["Janus 7B"] == [0.256, 0.061, 14.58, 0.93, 0.95]


def test_results_of_one_kind_share_a_table_and_the_paper_stands_once():
    a, b = result("a", paper=PAPER), result("b", paper=PAPER)
    other = result("c", kind="verbosity", paper=PAPER)
    first, second = grouped([a, other, b])
    assert [row.name for row in first.rows] == ["a: mine", "b: mine"] and first.title == "ROUGE-L"
    assert (first.paper_is_above, second.paper_is_above) == (False, True)
    assert [row.name for row in second.rows] == ["mine"]


def test_notes_of_all_stay_and_unlike_settings_are_a_warning():
    a, b = result("a", notes=["warning: x"], settings={"judge": "p"}), result("b", settings={"judge": "q"})
    (group,) = grouped([a, b])
    assert group.notes == ("a: warning: x", "warning: judge differ, so these rows do not compare")
    assert grouped([a])[0].notes == ("warning: x",)


def test_judge_and_failures_are_never_folded():
    settings = {"judge": "gpt", "failed": 3, "seed": 0, "limit": None, "left_out": {"long": 2}}
    first, rest = result("a", settings=settings).settings
    assert first == {"judge": "gpt", "failed": "3", "left_out": '{"long": 2}'} and rest == {
        "seed": "0",
        "limit": "null",
    }


def test_settings_of_several_models_are_told_apart():
    settings = {"sft": {"judge": "p", "seed": 0}, "dpo": {"judge": "q", "seed": 0}}
    (group,) = grouped([result("a", settings=settings)])
    assert group.members[0].settings == ({"sft: judge": "p", "dpo: judge": "q"}, {"sft: seed": "0", "dpo: seed": "0"})
    assert group.notes == ("warning: judge differ, so these rows do not compare",)
