"""A file written by a thread: all bytes in their order, and an error where the caller waits."""

import contextlib
import io
import os
import threading

import pytest

from janus_jax.storage.behind import write_behind


def test_blocks_are_written_in_order(tmp_path):
    blocks = [bytes([i]) * (i * 1000 + 1) for i in range(50)]
    with (tmp_path / "f").open("xb") as file, write_behind(file) as behind:
        for block in blocks:
            behind.write(block)
    assert (tmp_path / "f").read_bytes() == b"".join(blocks)


def test_the_caller_goes_on_while_a_block_is_written(tmp_path):
    started, go_on = threading.Event(), threading.Event()

    class Slow(io.FileIO):
        def write(self, block):
            started.set()
            assert go_on.wait(60)
            return super().write(block)

    with Slow(tmp_path / "f", "x") as file, write_behind(file) as behind:
        behind.write(b"slow")
        assert started.wait(60)  # the caller is here, and the block is not written
        assert not (tmp_path / "f").read_bytes()
        go_on.set()
    assert (tmp_path / "f").read_bytes() == b"slow"


@pytest.mark.parametrize("step", [1, 7, 0])
def test_a_file_that_takes_a_part_gets_the_rest(step, tmp_path):
    class Partial(io.FileIO):
        def write(self, block):
            return super().write(bytes(block[:step])) if step else 0

    with Partial(tmp_path / "f", "x") as file:
        expected = contextlib.nullcontext() if step else pytest.raises(OSError, match="takes no more bytes")
        with expected, write_behind(file) as behind:  # type: ignore[arg-type]
            behind.write(b"0123456789" * 3)
    assert (tmp_path / "f").read_bytes() == (b"0123456789" * 3 if step else b"")


@pytest.mark.parametrize("blocks", [1, 3])
def test_a_block_that_cannot_be_written_ends_it(blocks):
    with (
        open("/dev/full", "wb", buffering=0) as file,
        pytest.raises(OSError, match="No space left"),
        write_behind(file) as behind,  # type: ignore[arg-type]
    ):
        behind._sync = lambda: None  # the device has nothing to sync
        for _ in range(blocks):
            behind.write(b"x")


def test_an_error_of_the_disk_that_only_the_thread_hears_ends_it(tmp_path, monkeypatch):
    def failing(descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with (
        (tmp_path / "f").open("xb") as file,
        pytest.raises(OSError, match="Input/output"),
        write_behind(file) as behind,
    ):
        behind.write(b"x")


def test_an_error_of_the_caller_leaves_no_thread_in_the_file(tmp_path):
    with (tmp_path / "f").open("xb") as file:
        with pytest.raises(KeyError), write_behind(file) as behind:
            behind.write(b"x" * 10**6)
            raise KeyError
        assert not any(thread.name.startswith("behind") for thread in threading.enumerate())
