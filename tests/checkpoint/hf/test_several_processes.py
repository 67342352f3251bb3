"""Two and four processes load and export the bytes that one does, each no more than its part, and fail together."""

import json

import jax
import pytest

from janus_jax.checkpoint.hf.read import save_hf
from tests.checkpoint.hf import several_processes
from tests.support import processes
from tests.support.models import SMALL, random_params


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def course(request, tmp_path_factory):
    """(directory, what each process found) of several processes."""
    directory = tmp_path_factory.mktemp("processes")
    save_hf(random_params(SMALL), SMALL, directory / "hf", max_shard_size=several_processes.LIMIT)
    port = processes.free_port()
    module, count = "tests.checkpoint.hf.several_processes", request.param
    processes.run(*(["-m", module, port, i, count, directory] for i in range(count)))
    return directory, [json.loads((directory / f"{i}.json").read_text()) for i in range(count)]


@pytest.mark.parametrize("mesh", several_processes.MESHES)
def test_they_export_the_files_that_one_process_exports(course, mesh):
    directory, _ = course
    expected = _files(directory / "hf")
    assert len([name for name in expected if name.endswith(".safetensors")]) > 4
    assert _files(directory / mesh) == expected


@pytest.mark.parametrize("mesh", several_processes.MESHES)
def test_each_takes_from_the_files_what_its_devices_hold_and_no_more(course, mesh):
    _, result = course
    assert all(process["read"][mesh] == process["held"][mesh] > 0 for process in result)
    if mesh == "fsdp":  # every part is on one device
        assert sum(process["read"][mesh] for process in result) == sum(
            leaf.nbytes for leaf in jax.tree.leaves(random_params(SMALL))
        )


@pytest.mark.parametrize("course", [2], indirect=True)
@pytest.mark.parametrize(
    ("which", "owner", "message"),
    [
        ("occupied", 0, "StorageError: DIR/hf: exists and is not empty; choose another directory or remove it"),
        ("embedding", 0, "ConversionError: tensor model.embed_tokens.weight holds NaN or infinite values in float32"),
        ("lm_head", 1, "ConversionError: tensor lm_head.weight holds NaN or infinite values in float32"),
        ("full", 1, "StorageError: DIR/bad: cannot be written: File too large"),
        ("unlike", 0, "ConversionError: DIR/bad: tensor x is not what was written"),
        ("not shared", 1, "StorageError: DIR/bad: not on a file system that all processes share"),
    ],
)
def test_a_mistake_of_one_ends_both_with_its_error(course, which, owner, message):
    _, result = course
    kind, _, text = message.partition(": ")
    for i, process in enumerate(result):
        expected = message if i == owner else f"{kind}: process {owner}: {text}"
        assert process["errors"][which].removesuffix(": not exported") == expected


@pytest.mark.parametrize("course", [2], indirect=True)
def test_a_bug_of_one_ends_the_other_too(course):
    _, (first, second) = course
    assert second["errors"]["bug"] == "TypeError: a bug"
    assert first["errors"]["bug"] == "JanusError: process 1: TypeError: a bug"


def test_mistakes_leave_nothing_and_do_not_hinder_the_next_export(course):
    directory, result = course
    expected = {"hf", *several_processes.MESHES}
    if len(result) == 2:
        expected.add("bad")
        assert _files(directory / "bad") == _files(directory / "hf")
    assert {path.name for path in directory.iterdir() if path.is_dir()} == expected


def _files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}
