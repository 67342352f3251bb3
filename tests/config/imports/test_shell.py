"""Scripts are read as a shell reads them, and never run."""

import pytest

from janus_jax.config.imports.shell import Script
from janus_jax.errors import ConfigError


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("cmd --a 1 --b 'x y' # no", ["cmd", "--a", "1", "--b", "x y"]),
        ("cmd --a \\\n  --b\n", ["cmd", "--a", "--b"]),
        ("A=1\nB=${A}2\ncmd $B ${C:-3} '$A'", ["cmd", "12", "3", "$A"]),
        ('X="a b"\ncmd "$X" $X', ["cmd", "a b", "a", "b"]),
        ("cmd $'a\\nb' \"c#d\" e#f", ["cmd", "a\nb", "c#d", "e#f"]),
        ('O=(\n  --a 1  # why\n  --b "x y"\n)\ncmd "${O[@]}" --c ""', ["cmd", "--a", "1", "--b", "x y", "--c", ""]),
        ("read -r -d '' o <<EOF\n--a \\\n --b\nEOF\ncmd $o", ["cmd", "--a", "--b"]),
        ("read -r o <<'EOF'\n$HOME\nEOF\ncmd $o", ["cmd", "$HOME"]),
        ("E=1 cmd a > log 2>&1", ["cmd", "a"]),
        ("cmd $(rm -rf x) `id` $HOME", ["cmd", "$(rm -rf x)", "`id`", "$HOME"]),
        ("cmd 'open", ["cmd", "'open"]),
        ("A=$A$A\ncmd $A", ["cmd", "$A$A"]),
    ],
)
def test_words(script: str, words: list[str]) -> None:
    assert [list(one.words) for one in Script(script).commands if one.words[0] == "cmd"] == [words]


def test_what_is_not_known_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_OUTSIDE", "1")
    script = Script("A=2\ncmd $FROM_OUTSIDE $(date) && other\n")
    assert (script.unset, script.executed) == ({"FROM_OUTSIDE"}, {"$(date)"})
    assert [one.words[0] for one in script.commands] == ["cmd", "other"]


def test_variables_that_grow_without_end() -> None:
    doubling = "\n".join(f"V{one + 1}=$V{one}$V{one}" for one in range(60))
    with pytest.raises(ConfigError, match="more than 30,000 characters"):
        Script(f"V0=abcdefgh\n{doubling}\ncmd $V60")
