"""The journal of answers: nothing twice and nothing lost, wherever a command is killed and whoever else writes."""

import json
import os
import resource

import pytest

from janus_jax.errors import ConfigError, JanusError
from janus_jax.generation.answers import Journal

RECORDS = {3: {"t": "ä€"}, 1: {"t": "\ud800 alone"}, 2: {"t": "a\u2028b\nc"}, 0: {"t": "😀"}}


def written(out, asked="a"):
    """A journal to which all records are added that it does not hold."""
    journal = Journal(out, asked)
    journal.open()
    for number in RECORDS.keys() - journal.done.keys():
        journal.add(number, RECORDS[number])
    return journal


def test_a_journal_cut_at_any_byte_goes_on(tmp_path):
    out = tmp_path / "out.jsonl"
    written(out)._file.close()
    whole = (tmp_path / "out.jsonl.part").read_bytes()
    for size in range(len(whole)):
        (tmp_path / "out.jsonl.part").write_bytes(whole[:size])
        journal = written(out)
        assert journal.done == RECORDS
        journal._file.close()
        assert sorted(journal.path.read_bytes().splitlines()) == sorted(whole.splitlines())
    written(out).finish()
    lines = out.read_bytes().split(b"\n")[:-1]
    assert [json.loads(line) for line in lines] == [RECORDS[number] for number in range(4)]
    assert os.listdir(tmp_path) == ["out.jsonl"]


def test_a_command_that_comes_late_leaves_the_output_of_another(tmp_path):
    """It was started before the other one wrote, and opens its journal after the other one ended."""
    out = tmp_path / "out.jsonl"
    late = Journal(out, "other options")
    written(out).finish()
    content = out.read_bytes()
    with pytest.raises(ConfigError, match="another command wrote it meanwhile"):
        late.open()
    assert os.listdir(tmp_path) == ["out.jsonl"] and out.read_bytes() == content


def test_no_other_command_begins_while_the_output_is_made(tmp_path, monkeypatch):
    first, other, sync = written(tmp_path / "out.jsonl"), Journal(tmp_path / "out.jsonl", "a"), os.fsync

    def fsync(file):
        with pytest.raises(ConfigError, match="another command writes"):
            other.open()
        sync(file)

    monkeypatch.setattr(os, "fsync", fsync)
    first.finish()
    assert os.listdir(tmp_path) == ["out.jsonl"]


def test_a_full_disk_or_a_directory_in_the_way_is_one_line(tmp_path):
    """What was written before stays, and the same command goes on when there is room."""
    out, limit = tmp_path / "out.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (120, limit[1]))
    try:
        with pytest.raises(JanusError, match=r"out\.jsonl\.part.*[Ff]ile too large"):
            written(out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert len((tmp_path / "out.jsonl.part").read_bytes()) == 120
    assert Journal(out, "a").done
    written(out).finish()
    assert len(out.read_bytes().splitlines()) == len(RECORDS)
    (tmp_path / "dir.part").mkdir()
    with pytest.raises(JanusError, match=r"dir\.part.*directory"):
        Journal(tmp_path / "dir", "a")
