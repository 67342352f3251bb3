"""The journal of replies and its index: nothing is lost whatever becomes of the index."""

import json
import shutil
import sqlite3
import subprocess
import sys
import textwrap

import pytest

from janus_jax.errors import ConfigError, StorageError
from janus_jax.storage.endpoint_journal import ReplyJournal
from tests.support.repository import ROOT


def record(number):
    return {"text": f"answer {number}", "finish_reason": "stop", "prompt_tokens": 10, "completion_tokens": number}


def add(path, numbers):
    journal = ReplyJournal(path)
    for number in numbers:
        journal.add(f"key {number}", record(number))
    journal.close()


def check(path, count):
    """All replies are in it with their tokens, now and when it is opened again."""
    for _ in range(2):
        journal = ReplyJournal(path)
        try:
            assert len(journal) == count and not journal.has("another")
            assert [journal.get(f"key {number}") for number in range(count)] == [*map(record, range(count))]
            assert journal.spent.prompt_tokens == 10 * count
            assert journal.spent.completion_tokens == sum(range(count))
        finally:
            journal.close()


def index(path):
    return [path.with_name(f"{path.name}.index{suffix}") for suffix in ("", "-wal", "-shm")]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "replies.jsonl"


def test_an_index_that_was_removed_is_made_again(path):
    add(path, range(5))
    index(path)[0].unlink()
    check(path, 5)
    assert index(path)[0].exists()


@pytest.mark.parametrize("content", ["other journal", "no database", "empty"])
def test_an_index_of_something_else_is_made_again(path, content):
    add(path, range(5))
    if content == "other journal":
        other = path.with_name("other.jsonl")
        add(other, range(100, 120))
        shutil.copy(index(other)[0], index(path)[0])
    else:
        index(path)[0].write_bytes(b"" if content == "empty" else b"no database " * 1000)
    check(path, 5)


def test_an_index_that_is_older_takes_the_later_lines(path):
    add(path, range(3))
    older = index(path)[0].read_bytes()
    add(path, range(3, 9))
    index(path)[0].write_bytes(older)
    check(path, 9)


def test_an_index_that_is_newer_than_the_file_is_made_again(path):
    add(path, range(3))
    content = path.read_bytes()
    add(path, range(3, 9))
    path.write_bytes(content)  # a copy that was put back
    check(path, 3)


@pytest.mark.parametrize("kept", [1, 20, 60])
def test_half_a_last_line_is_cut_off(path, kept):
    add(path, range(4))
    end = path.stat().st_size
    with path.open("ab") as file:
        file.write(json.dumps({"key": "key 4", **record(4)}).encode()[:kept])
    check(path, 4)
    assert path.stat().st_size == end
    add(path, [4])
    check(path, 5)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("indexed", [True, False])
def test_a_last_line_that_lacks_only_its_newline_is_kept(path, count, indexed):
    """A kill may come before it, and editors take it off."""
    add(path, range(count))
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    if not indexed:
        index(path)[0].unlink()
    check(path, count)
    assert path.read_bytes() == content
    add(path, range(count, count + 2))
    check(path, count + 2)


@pytest.mark.parametrize("line", ['{"key": "key 9", "text": "paid"}', "{}", "12", '{"key": 9, "prompt_tokens": 1'])
def test_a_last_line_without_a_newline_that_is_no_record_is_cut_off(path, line):
    add(path, range(2))
    with path.open("a") as file:
        file.write(line)
    check(path, 2)
    add(path, [2])
    check(path, 3)


def test_a_killed_process_leaves_every_reply_that_add_returned_for(path):
    """Kills at several moments, also beyond the replies after which the index is written."""
    code = f"""
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        from janus_jax.storage import endpoint_journal
        endpoint_journal._UNWRITTEN = 7
        from tests.storage.test_endpoint_journal import record
        journal = endpoint_journal.ReplyJournal(sys.argv[1])
        for number in range(int(sys.argv[2]), 1000):
            journal.add(f"key {{number}}", record(number))
            print(number, flush=True)
    """
    written = 0
    for more in (3, 7, 24):
        command = [sys.executable, "-c", textwrap.dedent(code), str(path), str(written)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if int(line) >= written + more:
                    process.kill()
                    break
            rest = process.stdout.read().splitlines()
        seen = int(rest[-1]) + 1 if rest else int(line) + 1
        journal = ReplyJournal(path)
        written = len(journal)
        journal.close()
        assert seen <= written <= seen + 1  # the kill may come before the print
        check(path, written)


def test_a_line_that_was_edited_is_named(path):
    add(path, range(4))
    path.write_text(path.read_text().replace('"key 1"', '"key x"'))
    journal = ReplyJournal(path)
    with pytest.raises(ConfigError, match=r"was edited; remove replies.jsonl.index, which is made again"):
        journal.get("key 1")
    journal.close()
    index(path)[0].unlink()
    journal = ReplyJournal(path)
    assert len(journal) == 4 and journal.get("key 1") is None and journal.get("key x") == record(1)
    journal.close()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], "{no JSON\n", *lines[3:]]))
    with pytest.raises(ConfigError, match=r"replies.jsonl:3: is damaged"):
        ReplyJournal(path)


def test_two_writers_are_refused(path):
    journal = ReplyJournal(path)
    with pytest.raises(ConfigError, match=r"replies.jsonl: another process writes it"):
        ReplyJournal(path)
    journal.add("key 0", record(0))
    journal.close()
    check(path, 1)


def test_a_full_disk_loses_no_earlier_reply(path):
    add(path, range(3))
    code = f"""
        import resource, sys
        sys.path.insert(0, {str(ROOT)!r})
        from janus_jax.errors import StorageError
        from janus_jax.storage.endpoint_journal import ReplyJournal
        journal = ReplyJournal(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (journal.end + 50, journal.end + 50))
        try:
            journal.add("key 3", {record(3)!r})
        except StorageError as error:
            print(error)
        journal.close()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "replies.jsonl: cannot be written" in done.stdout
    check(path, 3)


def test_a_reply_that_the_index_cannot_take_is_kept(path):
    """SQLite may undo what it has taken when it cannot write; no later state may claim that it is there."""
    journal = ReplyJournal(path)
    for number in range(3):
        journal.add(f"key {number}", record(number))
    real, journal._index = journal._index, None

    class Full:
        def execute(self, query, values=()):
            if query.startswith("INSERT OR REPLACE"):
                real.execute("ROLLBACK")
                raise sqlite3.OperationalError("database or disk is full")
            return real.execute(query, values)

        def close(self):
            real.close()

    journal._index = Full()
    for number in (3, 4):  # what other threads have under way is written down too
        with pytest.raises(StorageError, match=r"replies.jsonl.index: cannot be used: database or disk is full"):
            journal.add(f"key {number}", record(number))
    with pytest.raises(StorageError, match="cannot be used"):
        journal.get("key 0")  # it would not be there, and be paid for again
    journal.close()
    check(path, 5)
