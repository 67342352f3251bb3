"""Values of --system: default, none, a text, or a file."""

import pytest

from janus_jax.errors import ConfigError
from janus_jax.evaluation.official.systems import DEFAULT, System, read_systems


def test_messages_and_their_labels(tmp_path):
    (tmp_path / "kind.txt").write_text("Be kind.\n\nAlways.\n", encoding="utf-8")
    given = ["default", "none", "Be brief.", f"@{tmp_path / 'kind.txt'}"]
    assert read_systems(given) == [
        System("default", DEFAULT),
        System("none", ""),
        System("system-3", "Be brief."),
        System("kind", "Be kind.\n\nAlways."),
    ]


def test_messages_that_are_refused(tmp_path):
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "x.txt").write_text(f"Text {number}.")
    (tmp_path / "a b.txt").write_text("Text.")
    (tmp_path / "empty.txt").write_text("\n")
    for given, message in (
        (["default", DEFAULT], "is given twice"),
        ([""], "shows no text"),
        ([f"@{tmp_path}/missing.txt"], "cannot be read: No such file"),
        ([f"@{tmp_path}/a b.txt"], "the file names the model 'a b'; allowed: letters"),
        ([f"@{tmp_path}/empty.txt"], "shows no text"),
        ([f"@{tmp_path}/1/x.txt", f"@{tmp_path}/2/x.txt"], "another one is named 'x' too"),
    ):
        with pytest.raises(ConfigError, match=r"^--system .*") as error:
            read_systems(given)
        assert message in str(error.value)
