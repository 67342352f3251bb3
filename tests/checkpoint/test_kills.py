"""Conversions that are killed, or whose disk is full: whole or absent, and the next one succeeds.

Killed at any moment: `pytest -n 0 -m slow tests/checkpoint/test_kills.py`. Exports: tests/training/test_kills.py.
"""

import contextlib
import dataclasses
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from janus_jax.checkpoint.convert import check, from_hf, to_hf
from janus_jax.checkpoint.hf.read import save_hf
from janus_jax.errors import ConversionError, StorageError
from tests.checkpoint.hf.several_processes import limited_file_size
from tests.support.models import SMALL, random_params
from tests.support.repository import ROOT

MIDDLING = dataclasses.replace(
    SMALL, num_layers=12, hidden_size=256, intermediate_size=1024, vocab_size=512, head_dim=64, sliding_window=None
)
WAYS = {"from-hf": (from_hf, "hf"), "to-hf": (to_hf, "orbax")}
TIMEOUT_S = 600


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A directory that holds one model as hf (44 MB) and as orbax."""
    directory = tmp_path_factory.mktemp("sources")
    save_hf(random_params(MIDDLING), MIDDLING, directory / "hf", max_shard_size="8MB")
    from_hf(directory / "hf", directory / "orbax", verify="digest")
    return directory


def command(way, source, target):
    arguments = [sys.executable, "-m", "janus_jax.cli", "convert", way, source, target]
    return [*map(str, arguments), *(["--max-shard-size", "8MB"] if way == "to-hf" else [])]


def start(arguments):
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(arguments, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def leftovers(target):
    """Of conversions to `target`."""
    return {*target.parent.glob(f".{target.name}.*.incomplete")}


def size(directory):
    total = 0
    for parent, _, names in os.walk(directory):  # of what may vanish meanwhile
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def kill_when(process, reached):
    """Kills a process as soon as `reached`, or after its end; says whether it was alive."""
    deadline = time.monotonic() + TIMEOUT_S
    while process.poll() is None and not reached():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    output = process.communicate()[0]
    assert process.returncode in (0, -signal.SIGKILL), output
    return process.returncode != 0


def require_whole_or_absent(source, target):
    """And what lies beside it is taken for nothing."""
    if target.exists():
        assert check(source, target) == []
    else:
        with pytest.raises(ConversionError, match="no such directory"):
            check(source, target)
    with pytest.raises(ConversionError, match="holds no model"):
        check(source, target.parent)


def test_a_killed_conversion_leaves_no_directory_and_the_next_one_cleans_up(sources, tmp_path):
    """Killed half way, and when all is written and not yet verified."""
    whole = size(sources / "hf")
    moments = [("from-hf", 1.0), ("to-hf", 0.5)]
    for way, share in moments:
        source, target = sources / WAYS[way][1], tmp_path / way
        before = leftovers(target)

        def reached(target=target, share=share, before=before):
            return any(size(path) >= share * whole for path in leftovers(target) - before)

        assert kill_when(start(command(way, source, target)), reached)
        assert not target.exists()
        require_whole_or_absent(source, target)
        assert len(leftovers(target)) == 1 and not leftovers(target) & before
    for way, (convert, source) in WAYS.items():
        convert(sources / source, tmp_path / way, verify="digest")
        require_whole_or_absent(sources / source, tmp_path / way)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(WAYS)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_conversion_killed_at_any_moment_is_whole_or_absent(way, sources, tmp_path):
    source, target = sources / WAYS[way][1], tmp_path / "out"
    whole, draw, killed, begun = size(sources / "hf"), random.Random(0), 0, 0
    for number in range(20):
        shutil.rmtree(target, ignore_errors=True)
        before = leftovers(target)
        share, delay = draw.uniform(0, 1.02 * whole), draw.uniform(0, 0.6)
        if number % 5 == 0:  # perhaps before anything is written
            share, delay = -1, draw.uniform(0, 4)
        waited = []

        def reached(share=share, delay=delay, before=before, waited=waited):
            if not waited and (share < 0 or any(size(path) >= share for path in leftovers(target) - before)):
                waited.append(time.monotonic())
            return bool(waited) and time.monotonic() - waited[0] >= delay

        killed += kill_when(start(command(way, source, target)), reached)
        begun += bool(leftovers(target) - before)
        require_whole_or_absent(source, target)
        assert len(leftovers(target)) <= 1
    print(f"{way}: {killed} of 20 killed, {begun} left something")
    assert killed >= 10 and begun >= 5
    shutil.rmtree(target, ignore_errors=True)
    WAYS[way][0](source, target)
    require_whole_or_absent(source, target)
    assert not leftovers(target)


# --- A full disk


@pytest.mark.parametrize("way", WAYS)
def test_a_file_that_the_disk_refuses_ends_a_conversion_with_nothing_left(way, sources, tmp_path):
    convert, source = WAYS[way]
    text = r"out(/params)?: cannot be written: File too large$"
    with limited_file_size(1 << 20), pytest.raises(StorageError, match=text):
        convert(sources / source, tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 20 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a file system")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("way", WAYS)
def test_a_full_disk_ends_the_command_with_14_and_nothing_left(way, sources, small_disk, janus):
    code, out, err = janus("convert", way, sources / WAYS[way][1], small_disk / "out")
    assert (code, out) == (14, "")
    text = rf"error: {small_disk}/out(/params)?: cannot be written: .*No space left on device\n"
    assert re.fullmatch(text, err), err
    assert not [*small_disk.iterdir()]
