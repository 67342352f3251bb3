"""The configuration of a synthesis: all mistakes in one report; prompts that a user replaces; the page of keys."""

import contextlib
import re

import pytest
import yaml

from janus_jax.data.synthesize import reference
from janus_jax.data.synthesize.config import load_synthesis
from janus_jax.data.synthesize.pipeline import Synthesis
from janus_jax.data.synthesize.prompts import read_prompt, require_known
from janus_jax.data.synthesize.stage import Planned
from janus_jax.errors import ConfigError
from tests.support.repository import ROOT
from tests.support.synthesizing import write_config


def test_all_mistakes_come_in_one_report(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "out: x\nsedd: 3\nendpoints: {default: {base_url: http://a/v1, model: m, api_key: sk-1}}\n"
        "instructions: {sources: [{path: a.jsonl, spilt: train}], ngram: 2}\n"
    )
    with pytest.raises(ConfigError) as error:
        load_synthesis(path, ["budget.tokens=0"])
    report = str(error.value)
    for line in (
        "mine.yaml:2: sedd: unknown key; did you mean 'seed'?",
        "mine.yaml:3: endpoints.default.api_key: unknown key",
        "mine.yaml:4: instructions.sources.0.spilt: unknown key; did you mean 'instructions.sources.0.split'?",
        "mine.yaml:4: instructions.ngram = 2: allowed: a whole number >= 4",
        "override 'budget.tokens=0': budget.tokens = 0: allowed: a whole number >= 1 or null",
    ):
        assert line in report
    assert "sk-1" not in report


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("systems.endpoint=cheap", "systems.endpoint = cheap: allowed: a name in endpoints: default"),
        ("budget.money=3", "budget.money = 3: needs endpoints.default.prices"),
        ("responses.min_chars=30000", "responses.min_chars = 30000: allowed: at most responses.max_chars, 20000"),
        (
            "endpoints={}",
            "endpoints = {}: allowed: a section of names of your own, each a section with the keys base_url",
        ),
    ],
)
def test_keys_that_contradict_each_other_are_named(tmp_path, override, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_synthesis(write_config(tmp_path, "http://h/v1"), [override])


def test_addresses_and_files_are_named_with_their_line(tmp_path):
    (tmp_path / "here.jsonl").write_text("")
    (tmp_path / "mine.yaml").write_text(
        "out: x\nendpoints:\n  default: {base_url: 'api.example.com/v1', model: m}\n"
        "  secret: {base_url: 'http://h/v1?key=sk-1', model: m}\n"
        "instructions:\n  sources:\n    - {path: here.jsonl}\n    - {path: none.jsonl}\n    - {path: owner/name}\n"
        "    - {path: gs://bucket/rows.jsonl}\n  contaminated_by: [bench.parquet]\n"
        "hierarchy: {seeds: [embedded,\n  seeds.json]}\nsets: {incompatible: rules.yaml}\nprompts: mine\n"
    )
    with contextlib.chdir(tmp_path), pytest.raises(ConfigError) as error:
        load_synthesis("mine.yaml", ["prompts=other"], inputs=True)
    assert str(error.value).splitlines() == [
        "mine.yaml: 7 errors",
        "  mine.yaml:3: endpoints.default.base_url 'api.example.com/v1': allowed: http:// or https:// and a host, like "
        "https://api.openai.com/v1",
        "  mine.yaml:4: endpoints.secret.base_url: allowed: no user, password, query or fragment; a key goes into the "
        "environment",
        "  mine.yaml:8: instructions.sources.1.path = none.jsonl: no such file or directory",
        "  mine.yaml:11: instructions.contaminated_by.0 = bench.parquet: no such file or directory",
        "  mine.yaml:13: hierarchy.seeds.1 = seeds.json: no such file",
        "  mine.yaml:14: sets.incompatible = rules.yaml: no such file",
        "  override 'prompts=other': prompts = other: no such directory",
    ]


def test_prompts_are_replaced_file_by_file(tmp_path):
    (tmp_path / "system.txt").write_text("Write for {preferences}.\n")
    (tmp_path / "systems.txt").write_text("You are A.\n---\nYou are B.\n")
    mine, ours = read_prompt("system", str(tmp_path)), read_prompt("system")
    assert mine.examples == ("You are A.", "You are B.") and mine.digest != ours.digest
    assert mine.fill(preferences="{examples} {x}", examples="no") == [
        {"role": "user", "content": "Write for {examples} {x}."}
    ]
    assert read_prompt("rubric", str(tmp_path)) == read_prompt("rubric")
    (tmp_path / "system.txt").write_text("Write.")
    with pytest.raises(ConfigError, match=r"system.txt has no \{preferences\}"):
        read_prompt("system", str(tmp_path))
    forms = 'Write for {preferences} as {"a": {"b": 1}}, {}, {1}, { x: 2 }, \\frac{1}{2} or {{tone}}, {{preferences}}.'
    (tmp_path / "system.txt").write_text(forms)
    (message,) = read_prompt("system", str(tmp_path)).fill(preferences="two", examples="")
    expected = forms.replace(" {preferences}", " two").replace("{{", "{").replace("}}", "}")
    assert message["content"] == expected.replace('{"b": 1}', '{"b": 1}}', 1)
    for typo in ("{tone}", "{exmaples}", "{ tone }", "{Preferences}", "{subdimension}"):
        (tmp_path / "system.txt").write_text(f"\nWrite for {{preferences}}.\nAnd {typo}.\n")
        what = rf"system.txt:3: unknown placeholder {typo}; allowed: {{preferences}}, {{examples}};"
        with pytest.raises(ConfigError, match=re.escape(what)):
            require_known(str(tmp_path))
    (tmp_path / "system.txt").write_text("Write for {preferences}.")
    for wrong in ("{}", '["x"]', '[{"criteria": "a"}]', '[{"criteria": "a", "score_descriptions": {"1": 2}}]'):
        (tmp_path / "rubrics.json").write_text(wrong)
        with pytest.raises(ConfigError, match=r"rubrics.json: allowed: a JSON list of objects with criteria and score"):
            read_prompt("rubric", str(tmp_path))
    (tmp_path / "sytsem.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"sytsem.txt: is no prompt; allowed: .*system.txt"):
        require_known(str(tmp_path))


@pytest.mark.parametrize(("examples", "notes"), [(3, 1), (0, 0)])
def test_examples_that_a_prompt_does_not_show_are_noted(tmp_path, examples, notes):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts/system.txt").write_text("Write for {preferences}.")
    changes = {"prompts": str(tmp_path / "prompts"), "systems": {"examples": examples}}
    lines = []
    Synthesis(load_synthesis(write_config(tmp_path, "http://127.0.0.1:9/v1", **changes)), tell=lines.append)
    what = f"note: {tmp_path}/prompts/system.txt has no {{examples}}: systems.examples = 3 shows none"
    assert lines == [what] * notes


def test_an_endpoint_that_no_step_uses_is_noted(tmp_path):
    url, lines = "http://127.0.0.1:9/v1", []
    for changes, unused, keys in (
        ({"hierarchy": {"endpoint": "cheap"}}, [], ""),
        ({}, ["cheap"], "hierarchy.endpoint, systems.endpoint, responses.endpoint, bench.endpoint"),
        (
            {name: {"endpoint": "cheap"} for name in ("hierarchy", "systems", "responses")}
            | {"bench": {"instructions": 0}},
            ["default"],
            "hierarchy.endpoint, systems.endpoint, responses.endpoint",
        ),
    ):
        path = write_config(tmp_path, url, endpoints={"cheap": {"base_url": url, "model": "m"}}, **changes)
        Synthesis(load_synthesis(path), tell=lines.append)
        assert lines == [
            f"note: endpoints.{n}: no step uses it; name it in one of {keys}, or remove it" for n in unused
        ]
        lines.clear()


def test_the_page_of_keys_is_that_of_the_code():
    assert (ROOT / "docs/synthesis_keys.md").read_text() == reference.page()


def test_the_configuration_of_the_page_loads(tmp_path):
    block, rules = re.findall(
        r"^```yaml\n(.*?)^```", (ROOT / "docs/synthesize.md").read_text(), re.MULTILINE | re.DOTALL
    )
    (tmp_path / "mine.yaml").write_text(block)
    assert load_synthesis(tmp_path / "mine.yaml").endpoints.keys() == {"default", "cheap"}
    assert all(len(rule) == 2 for rule in yaml.safe_load(rules))


def test_a_total_has_the_answers_of_steps_that_ask_nothing_more():
    asked = Planned("systems", requests=2, in_journal=1, prompt_tokens=10, money=0.5, most_money=None)
    total = Planned.total([Planned("hierarchy", in_journal=120), asked])
    assert (total.requests, total.in_journal, total.prompt_tokens) == (2, 121, 10)
    assert (total.money, total.most_money) == (0.5, None)
