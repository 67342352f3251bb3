"""Scripts are read as a shell reads them, and never run."""

import subprocess

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


ODD = r"""a;b & c | d > e # (f) <g> 2>&1 && 'h' \"i\" """
"""Letters that end commands, where no quotes hide them."""


@pytest.mark.parametrize(
    "script",
    [
        f'X="{ODD}"\ncmd --a "$X" --b 1\ncmd --a $X --b 1\ncmd "--a=${{X}}" --b',
        f'X="{ODD}"\nY=$X\nZ="$Y $Y"\ncmd --a "$Y" $Z --b 1',
        f'cmd --a "{ODD}" --b 1',
        "cmd --a ';' --b \\; --c '|' --d '>' --e '>f' --g '&' --h x\\ y",
        "A='\\n'\ncmd $A \"$A\" '$A' \"\\$A\" \\$A",
        'A="--x 1"\nA+=" --y 2"\ncmd $A "$A"\nB=$A cmd 3',
        'O=(--a "x (y);" # it\'s (\n  --b)\nO+=(--c "p  q")\ncmd "${O[@]}" --d "${O[@]}"',
        'O=("a b" c "d;e")\ncmd ${O[@]} "x${O[@]}y"',
        'E=\ncmd ${E:-d} ${E-e} "${U:-f g}" ${U:-\'h i\' j} ${U:-${E:-k}} "$E" $E l',
        "A=1; B=${A}2; cmd $A $B; cmd $B && cmd 3 | cat",
        "read -r -d '' o <<EOF\n--a 'b c' \\\n --d \"e;\" | f\nEOF\ncmd $o --g",
        "cmd $'it\\'s; \\x41' end",
        "export A='1 2' B=3\ncmd $A $B",
    ],
)
def test_words_are_those_of_bash(script: str) -> None:
    define = 'cmd() { printf "%s\\0" "$@" END; }\n'
    done = subprocess.run(["bash", "-c", define + script], capture_output=True, text=True, check=True)
    commands = [one.split("\0") for one in done.stdout.split("END\0")]
    wanted = [["cmd", *words[:-1]] for words in commands[:-1]]
    assert [list(one.words) for one in Script(script).commands if one.words[0] == "cmd"] == wanted


@pytest.mark.parametrize("text", ["$(get a; b)", '$(python -c "print(1)")', "`get | x`", "$((1 + 2))", "${A%%;*}"])
def test_what_a_shell_computes_is_one_word(text: str) -> None:
    for script in (f"cmd --d {text} --e 1", f"D={text}\ncmd --d $D --e 1", f'D="{text}"\ncmd --d "${{D}}" --e 1'):
        assert [one.words for one in Script(script).commands] == [("cmd", "--d", text, "--e", "1")]
        assert Script(script).executed == {text}
    lines = Script(f"O=(\n --d {text} # (no\n --e 1)\ncmd ${{O[@]}}\n").commands
    assert [one.words for one in lines] == [("cmd", "--d", text, "--e", "1")]


def test_here_document_of_a_command_that_is_not_run() -> None:
    script = Script("D=$(cat <<'EOF'\ndon't (\nEOF\n)\ncmd --d $D --e\n")
    assert [one.words[-1] for one in script.commands] == ["--e"] and len(script.commands[0].words) == 4
    with pytest.raises(ConfigError, match="nest too deep"):
        Script("cmd " + "$(" * 20_000)


def test_what_is_not_known_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_OUTSIDE", "1")
    script = Script("A=2\ncmd $FROM_OUTSIDE $(date) && other\n")
    assert (script.unset, script.executed) == ({"FROM_OUTSIDE"}, {"$(date)"})
    assert [one.words[0] for one in script.commands] == ["cmd", "other"]


def test_variables_that_grow_without_end() -> None:
    doubling = "\n".join(f"V{one + 1}=$V{one}$V{one}" for one in range(60))
    with pytest.raises(ConfigError, match="more than 30,000 characters"):
        Script(f"V0=abcdefgh\n{doubling}\ncmd $V60")
