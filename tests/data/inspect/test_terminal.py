"""How lines of the report break on a narrow terminal."""

import io

import pytest
from rich.console import Console

from janus_jax.data.inspect.terminal import show_verdicts
from janus_jax.data.inspect.wording import Verdict


@pytest.mark.parametrize("width", range(30, 70))
def test_an_option_and_its_value_stand_on_one_line(width):
    advice = "the tokenizer's own chat template is that of chatml, so build with --template chatml --boundary joint"
    written = io.StringIO()
    show_verdicts(Console(width=width, file=written), [Verdict("look at this", "LOOK AT THIS", (advice,))])
    _, *lines = written.getvalue().splitlines()
    assert " ".join(line.strip() for line in lines) == advice and max(map(len, lines)) <= width
    assert all(any(option in line for line in lines) for option in ("--template chatml", "--boundary joint"))
