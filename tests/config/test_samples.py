"""The section `samples`: what it refuses, and what it notes."""

import re
import textwrap

import pytest

from janus_jax.config.run import load_config, to_yaml
from janus_jax.errors import ConfigError
from tests.support.repository import ROOT
from tests.support.run_configs import SMALLEST_YAML

ON = "samples.prompts=prompts.jsonl"


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALLEST_YAML)
    return path


def test_a_run_has_none_unless_it_names_prompts(small):
    assert load_config(small).samples is None
    section = load_config(small, [ON]).samples
    assert section is not None and (section.temperature, section.n, section.at_start) == (0, 1, True)


def test_it_is_written_out_and_read_back(small):
    config = load_config(small, [ON, "samples.systems=['', Be kind.]", "samples.temperature=1", "samples.stop=[x]"])
    small.write_text(to_yaml(config))
    assert load_config(small) == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["samples.every_steps=3"], "samples.prompts: missing; allowed: non-empty text"),
        ([ON, "samples.system=x"], "samples.system: unknown key; did you mean 'samples.systems'?"),
        ([ON, "samples.systems=[]"], "allowed: a list of different system messages, at least one; or null"),
        ([ON, "samples.systems=[a, b, a]"], "samples.systems = [a, b, a]: allowed: a list of different system"),
        ([ON, "samples.min_new_tokens=257"], "samples.min_new_tokens = 257: allowed: at most samples.max_new_tokens ="),
        ([ON, "samples.temperature=-1"], "samples.temperature = -1: allowed: 0, or a number from 0.000001"),
        ([ON, "samples.temperature=0.0000001"], "samples.temperature = 1.0e-07: allowed: 0, or a number from"),
        (["samples.prompts=-"], "samples.prompts = '-': a run reads no standard input; allowed: a file or gs:// URL"),
        ([ON, "objective={name: rm}"], "samples: objective rm trains a reward model, which makes no text; allowed: sa"),
    ],
)
def test_what_cannot_be_is_refused_in_words(small, overrides, message):
    with pytest.raises(ConfigError) as caught:
        load_config(small, overrides)
    assert message in str(caught.value)


def test_a_missing_file_is_in_the_report_of_other_mistakes(small):
    with pytest.raises(ConfigError, match=r"samples\.prompts = prompts\.jsonl: no such file"):
        load_config(small, [ON, "batch.rowz=4"], inputs=True)


def test_keys_without_effect_are_noted(small):
    greedy = load_config(small, [ON, "samples.n=2", "samples.top_p=0.9"])
    assert [note for note in greedy.advice() if "samples" in note] == [
        "samples.n = 2 makes answers that are all the same: samples.temperature is 0",
        "samples.top_p = 0.9 has no effect: samples.temperature is 0",
    ]
    drawn = load_config(small, [ON, "samples.n=2", "samples.temperature=1", "samples.every_steps=9"])
    assert [note for note in drawn.advice() if "samples" in note] == []
    assert [note for note in drawn.step_advice(5) if "samples" in note] == [
        "samples.every_steps = 9 is longer than the run, which has 5 steps: only the last step is sampled"
    ]


def test_the_section_of_the_training_page_loads(small):
    page = (ROOT / "docs/training.md").read_text()
    (block,) = re.findall(r"^    samples:\n(?:      .*\n)+", page, re.MULTILINE)
    small.write_text(SMALLEST_YAML + textwrap.dedent(block))
    section = load_config(small).samples
    assert section is not None and section.systems is not None and section.systems[-1] == ""
