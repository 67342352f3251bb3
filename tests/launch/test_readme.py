"""launch/README.md has the settings, the table of watch, the commands and the exit codes that there are."""

import json
import re

import pytest

from janus_jax.errors import EXIT_CODES
from launch.__main__ import COMMANDS, _parser
from launch.settings import Settings
from tests.support.repository import ROOT

PAGE = (ROOT / "launch/README.md").read_text(encoding="utf-8")


def table(title: str) -> list[list[str]]:
    """Cells of the rows of the table under a heading."""
    part = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows[1:]]


def test_the_settings_are_those_of_the_file():
    rows = {key.strip("`"): (default, meaning) for key, default, meaning in table("Settings")}
    assert list(rows) == list(Settings.model_fields)
    for key, field in Settings.model_fields.items():
        default, meaning = rows[key]
        assert meaning == " ".join((field.description or "").split())
        assert (default == "needed") == field.is_required()
        if not field.is_required():
            value = json.dumps(field.get_default(call_default_factory=True))
            assert default == "`{}`".format(value.strip('"'))


def test_the_table_of_watch_is_the_one_that_it_follows():
    from launch.watching.decide import ROWS

    rows = [tuple(row) for row in table("6. Keep it going: watch")]
    assert rows == [(name, *texts) for name, texts in ROWS.items()]


def test_exit_codes_exist_and_mean_what_the_errors_say():
    rows = {code: meaning for code, meaning in table("Exit codes")}
    assert {int(code) for codes in rows for code in codes.split(",")} <= set(EXIT_CODES)


@pytest.mark.parametrize("words", re.findall(r"^    (?:\$ )?python -m launch (.+)$", PAGE, re.MULTILINE))
def test_every_command_parses(words):
    for part in words.replace("python -m launch ", "").split(" && "):
        _parser(part.split()).parse_args(part.split())


def test_every_command_is_explained():
    assert [name for name in COMMANDS if not re.search(rf"\b{name}\b", PAGE)] == []


def test_links_resolve():
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", PAGE) if "://" not in target]
    assert targets and [name for name in targets if not (ROOT / "launch" / name.partition("#")[0]).exists()] == []
