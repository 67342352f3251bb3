"""The page: one file that loads nothing, every text escaped, its size bounded."""

import base64
import hashlib
import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from janus_jax.evaluation.report import inputs
from janus_jax.evaluation.report.page import page
from tests.support.html_pages import Page
from tests.support.reported import answer_line, records, table_json, write_lines, write_run

HOSTILE = "</script><img src=x onerror=alert(1)>'\"&amp;<!-- </style> ]]> {{7*7}} {% raw %}"


@pytest.fixture
def shown(tmp_path):
    def make(*given, title="t") -> tuple[Page, str]:
        text = page(inputs.read([str(one) for one in given]), title, tmp_path / "report.html")
        return Page(text), text

    return make


@pytest.fixture
def everything(tmp_path):
    """A run with samples, another of pairs, a table and answers."""
    sft = write_run(tmp_path / "sft")
    systems = ("You are a pirate.", "You answer a child.")
    for step in (0, 20):
        lines = [answer_line("Why is the sky blue?", system, f"{system} {step}", step=step) for system in systems]
        write_lines(sft / "samples" / f"{step}.jsonl", lines)
    (sft / "exports" / "20").mkdir(parents=True)
    dpo = write_run(tmp_path / "dpo", records(pairs=True), config={"objective": {"name": "dpo", "loss": "sigmoid"}})
    table = tmp_path / "table.json"
    paper = {"place": "Table 9", "judge": "j", "note": "n", "columns": ["average"], "rows": {"Janus 7B": [0.23]}}
    warning = "warning: 3 answers have no score"
    table.write_text(json.dumps(table_json(notes=[warning], settings={"judge": "gpt"}, paper=paper)))
    answers = write_lines(tmp_path / "answers.jsonl", [answer_line("Other?", "You are a pirate.", "Arr.")])
    return [sft, dpo, table, answers]


def test_it_shows_every_part(everything, shown):
    page, _ = shown(*everything)
    parts = ["summary", "configuration", "data", "curves", "time", "samples", "evaluation", "files"]
    assert [one["id"] for one in page.of("h2")] == parts
    links = {one["href"] for one in page.of("a")}
    assert {f"#{part}" for part in parts} <= links
    words = page.text_of()
    for wanted in (
        "sft: finished",
        "90% of 1 min 40 s was training, in 2 starts",
        "the next one began 4 s later",
        "dpo sigmoid",
        "reward margin, dpo sigmoid",
        "mistral-inst",
        "You answer a child. 20",
        "warning: 3 answers have no score",
        "Table 9",
        "gpt",
        "0.250 [0.200, 0.300]",
    ):
        assert wanted in words, wanted
    assert {"./sft/exports/20", "./sft/checkpoints/20"} <= links


def test_it_loads_nothing_and_its_policy_allows_its_own_script_alone(everything, shown):
    page, text = shown(*everything)
    places = [value for tag, one in page.tags for key, value in one.items() if key in ("src", "href") and tag != "a"]
    assert not places and not re.search(r"https?:(?!//www\.w3\.org/2000/svg)|@import|url\(", text)
    assert all(re.match(r"#|\./", str(one["href"])) for one in page.of("a"))
    (policy,) = [meta["content"] for meta in page.of("meta") if "http-equiv" in meta]
    (script,) = [piece for element, piece in page.texts if element == "script"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy and policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}'" in policy
    assert not [key for _, one in page.tags for key in one if key.startswith("on")]


def test_it_can_be_read_aloud(everything, shown):
    page, _ = shown(*everything)
    assert {"lang": "en"} in page.of("html") and any(meta.get("name") == "viewport" for meta in page.of("meta"))
    assert len(page.of("h1")) == 1 and all(head.get("scope") in ("col", "row") for head in page.of("th"))
    assert all(one.get("aria-label") or one.get("aria-hidden") for one in page.of("svg"))
    assert len(page.of("table")) == len(page.of("caption"))
    ids = [one["id"] for _, one in page.tags if "id" in one]
    assert len(ids) == len(set(ids))


def hostile_inputs(folder, text):
    """A run, a table and answers that hold a text wherever one can stand."""
    lines = records(5)
    lines.append({"kind": "nonfinite", "step": 3, "loss": None, "batch": {text: [1]}})
    config = {"objective": {"name": text}, "data": {"dir": text, text: text}, "init": {"from": text}}
    run = write_run(folder / "run", lines, config=config)
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"ended": text, "left_out": {text: 1}}))
    (run / "lock.json").write_text(json.dumps({"host": text, "pid": 1}))
    meta = {"template": text, "data": [{text: text, "source": text}], "facts": {"base_model": text}}
    (run / "checkpoints" / "20" / "meta" / "metadata").write_text(json.dumps(meta))
    write_lines(run / "samples" / "5.jsonl", [answer_line(text, system, text, step=5) for system in (text, "b")])
    other = write_run(folder / "other")
    paper = {"place": text, "judge": text, "note": text, "columns": [text], "rows": {text: [1]}}
    row = {"name": text, "values": [1.0], "low": [0.0], "high": [2.0]}
    table = table_json(kind=text, title=text, columns=[text], rows=[row], notes=[text], settings={text: text})
    write_lines(folder / "table.json", [table | {"paper": paper}])
    answers = write_lines(folder / "answers.jsonl", [answer_line(text + "?", text, text)])
    return [run, other, folder / "table.json", answers]


def test_a_hostile_text_stays_text_wherever_it_stands(tmp_path, shown):
    page, text = shown(*hostile_inputs(tmp_path, HOSTILE), title=HOSTILE)
    assert not page.of("img") and len(page.of("script")) == len(page.of("style")) == 1
    assert text.count("</script>") == text.count("</style>") == 1
    assert not [key for _, one in page.tags for key in one if key.startswith("on")]
    assert page.text_of().count(HOSTILE) > 25 and HOSTILE in page.text_of("title")


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec=None), min_size=1, max_size=30))
def test_any_text_leaves_the_page_whole(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("any")
    made = page(inputs.read([str(one) for one in hostile_inputs(folder, text)]), text, folder / "report.html")
    made.encode()  # half of a character is spelled out
    read = Page(made)
    assert len(read.of("script")) == 1 and not read.of("img")
    assert not [c for c in made if not c.isprintable() and c not in "\n\t\u200c\u200d"]


def test_the_page_of_a_long_history_is_small_and_says_what_is_thinned(tmp_path, shown):
    run = write_run(tmp_path / "run", records(12_000, pairs=True))
    lines = [answer_line(f"{number} " + "q" * 3000, "s" * 3000, "a" * 20_000) for number in range(60)]
    answers = write_lines(tmp_path / "answers.jsonl", lines)
    page, text = shown(run, answers)
    assert len(text.encode()) < 2_000_000
    assert "of each stretch, only the smallest and the largest value are drawn" in page.text_of()
    assert re.search(r"\d+ more questions are not shown", page.text_of()) and "more characters)" in page.text_of()


def test_spikes_survive_the_thinning(tmp_path, shown):
    lines = records(4000)
    lines[2001]["grad_norm"] = 777.0
    page, _ = shown(write_run(tmp_path / "run", lines))
    charts = dict(zip([one for e, one in page.texts if e == "figcaption"], page.of("svg"), strict=False))
    values = [float(one) for one in str(charts["gradient norm, before clipping"]["data-values"]).split()]
    drawn = [one["d"] for one in page.of("path") if one.get("class") == "batches run0"]
    assert values[1] > 777 and all(len(re.findall("[ML]", str(path))) < 1000 for path in drawn)
