"""`janus chat` as a person meets it, behind a pseudo-terminal."""

import os
import sys

import pytest
from rich.cells import cell_len

from tests.support.chat_models import chat_model
from tests.support.terminals import Terminal, seen


@pytest.fixture
def terminal(tmp_path):
    """40 columns wide; answers have some thousand tokens unless they are stopped."""
    model = chat_model(tmp_path, max_position_embeddings=8192)
    options = ["--max-new-tokens", "8000", "--min-new-tokens", "8000", "--devices", "1"]
    environment = {**os.environ, "JANUS_CACHE": str(tmp_path / "cache"), "NO_COLOR": "1"}
    one = Terminal([sys.executable, "-m", "janus_jax.cli", "chat", str(model), *options], environment, 40)
    yield one
    one.close()


def test_a_person_talks_stops_compares_and_leaves(terminal, tmp_path):
    at = terminal.until("(?s)/help.*> ")

    def command(line, reply):
        nonlocal at
        terminal.type(f"{line}\r")
        at = terminal.until(f"(?s){reply}.*\n.*> ", at)

    terminal.type("Why?\r")
    began = terminal.until("Why[?]\r\n(?:[^\n]*\n){3}", at)  # it streams: some lines are there, more come
    terminal.type("\x03")
    at = terminal.until("(?s)Stopped; the conversation keeps what.*tokens/s, seed 0.*\n.*> ", began)
    command("/history", "> Why.*stopped by you")
    for line in seen(terminal.text[:at]):
        assert cell_len(line) <= 40
    command("/reset", "A new conversation")
    command("/set min_new_tokens 0", "min_new_tokens = 0")
    command("/set max_new_tokens 40", "max_new_tokens = 40")
    command("\x1b[200~/system Be brief,\nand kind.\x1b[201~", "system: Be brief,\r\nand kind.")  # pasted
    command("/both Be brief. | Be long, 世界!", "right: Be long")
    for width in (40, 120):
        terminal.resize(width)
        before = at
        terminal.type("And then?\r")
        at = terminal.until("(?s)tokens.*seed 0.*\n.*> ", at)
        rows = seen(terminal.text[before:at])
        columns = [row for row in rows if "│" in row or "┼" in row]
        bars = {cell_len(row.replace("┼", "│").partition("│")[0]) for row in columns}
        assert len(columns) >= 3 and bars == {(width - 4) // 2 + 1}
        assert max(map(cell_len, rows)) < width
    assert all(character.isprintable() or character in "\r\n\b\x1b" for character in terminal.text)

    terminal.type("half a que")
    at = terminal.until("que", at)
    terminal.interrupt()  # it drops what is typed
    at = terminal.until("(?s)\n.*> ", at)
    terminal.interrupt()
    at = terminal.until("(?s)Ctrl-C again.*\n.*> ", at)
    terminal.interrupt()
    assert terminal.end() == 0
    file = tmp_path / "cache" / "chat_history"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text().splitlines()[:2] == ["Why?", "/history"]
