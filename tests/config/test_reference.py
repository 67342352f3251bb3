"""docs/configuration.md is what the code generates, and describes every key."""

import subprocess
import sys

from janus_jax.config.reference import keys, page
from tests.support.repository import ROOT


def test_the_committed_page_is_the_generated_one():
    committed = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert committed == page(), "run: python -m janus_jax.config.reference > docs/configuration.md"


def test_every_key_has_a_meaning():
    assert [key.name for key in keys() if not key.meaning] == []


def test_keys_of_sections_lists_and_forms_are_described():
    described = {key.name: key for key in keys()}
    assert described["run.dir"].default == "required"
    assert described["batch.rows"].allowed == "a whole number >= 1 or null"
    assert described["data.mixture.N.weight"].default == "`null`"
    assert described["sharding.batch"].default == "`[data, fsdp]`"
    assert described["export.dtype"].allowed == "float32 | bfloat16 | null"
    assert {"objective.name", "objective.gamma", "objective.nll", "remat", "init.from"} <= described.keys()


def test_making_the_page_imports_no_jax():
    code = "import sys; from janus_jax.config.reference import page; page(); assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
