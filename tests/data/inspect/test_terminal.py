"""How lines of the report break on a narrow terminal."""

import io

from rich.console import Console

from janus_jax.data.inspect.terminal import show_verdicts
from janus_jax.data.inspect.wording import Verdict


def test_an_option_and_its_value_stand_on_one_line():
    advice = "the tokenizer's own chat template is that of chatml, so build with --template chatml --boundary joint"
    for width in range(30, 70):
        console = Console(width=width, file=io.StringIO())
        show_verdicts(console, [Verdict("look at this", "LOOK AT THIS", [advice])])
        _, *lines = console.file.getvalue().splitlines()
        assert " ".join(line.strip() for line in lines) == advice and max(map(len, lines)) <= width
        assert (
            sum("--template chatml" in line for line in lines) == sum("--boundary joint" in line for line in lines) == 1
        )
