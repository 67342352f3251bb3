"""What each of several processes of two simulated devices does for test_several_processes.py."""

import contextlib
import json
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

LIMIT = "6KB"
MESHES = {"fsdp": (1, -1, 1), "both": (1, -1, 2), "replicas": (2, -1, 1)}
DEVICES = 2


def main(port: str, process: str, count: str, directory: Path) -> None:
    """Loads DIRECTORY/hf and exports it under each mesh, then meets mistakes; DIRECTORY/PROCESS.json says what came."""
    from janus_jax.parallel import processes

    processes.start(processes.RuntimeOptions(f"127.0.0.1:{port}", int(count), int(process), DEVICES))
    from janus_jax.checkpoint.hf import shared_directory
    from janus_jax.checkpoint.hf.read import load_hf, save_hf
    from tests.support.models import SMALL

    shared_directory.SLICE_BYTES = 600  # most tensors go in several slices
    read, held, errors, params = {}, {}, {}, {}
    for name, shape in MESHES.items():
        with counted_bytes() as counted:
            _, params = load_hf(directory / "hf", shardings=shardings(shape))
        read[name], held[name] = sum(counted), require_expected_shards(params)
        save_hf(params, SMALL, directory / name, max_shard_size=LIMIT)

    if count == "2":
        errors = mistakes(process, directory, params)
    (directory / f"{process}.json").write_text(json.dumps({"read": read, "held": held, "errors": errors}))


def mistakes(process: str, directory: Path, params: Any) -> dict[str, str]:
    """What each of two processes says when one of them cannot go on; at the end a good export to DIRECTORY/bad."""
    from janus_jax.checkpoint.hf.read import save_hf
    from tests.support.models import SMALL

    def failure(params: Any, out: str = "bad", verify: Any = None) -> str:
        try:
            save_hf(params, SMALL, directory / out, max_shard_size=LIMIT, verify=verify)
        except Exception as error:
            return f"{type(error).__name__}: {error}".replace(str(directory), "DIR")
        return "none"

    errors = {"occupied": failure(params, "hf")}
    for name in ("embedding", "lm_head"):
        errors[name] = failure(params | {name: params[name].at[0, 0].set(np.nan)})
    with limited_file_size(2000 if process == "1" else None):
        errors["full"] = failure(params)
    with bug() if process == "1" else contextlib.nullcontext():
        errors["bug"] = failure(params)
    errors["unlike"] = failure(params, verify=refuse)
    with blind() if process == "1" else contextlib.nullcontext():
        errors["not shared"] = failure(params)
    save_hf(params, SMALL, directory / "bad", max_shard_size=LIMIT)  # all of them are fit for more
    return errors


def refuse(directory: Path) -> None:
    """A verification that finds something."""
    from janus_jax.errors import ConversionError

    raise ConversionError(directory, "tensor x is not what was written")


def shardings(shape: tuple[int, int, int]) -> Any:
    from janus_jax.model.mistral import param_specs
    from janus_jax.parallel.mesh import MeshShape, build_mesh, merge_rules, param_shardings
    from tests.support.models import SMALL

    return param_shardings(param_specs(SMALL), build_mesh(MeshShape(*shape)), merge_rules({}))


def require_expected_shards(params: Any) -> int:
    """Compares what the devices of this process hold with the model; returns its bytes, each part counted once."""
    from janus_jax.checkpoint.hf.keys import leaves
    from tests.support.models import SMALL, random_params

    size = 0
    for path, expected in leaves(random_params(SMALL)).items():
        parts = {}
        for shard in leaves(params)[path].addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), np.asarray(expected)[shard.index])
            parts[str(shard.index)] = shard.data.nbytes
        size += sum(parts.values())
    return size


@contextlib.contextmanager
def counted_bytes() -> Iterator[list[int]]:
    """Yields a list that grows by the bytes of each read from a safetensors file."""
    from janus_jax.checkpoint.hf import read as hf_read

    read, counted = hf_read.SafetensorsFile.read, []

    def counting(*arguments: Any) -> np.ndarray:
        block = read(*arguments)
        counted.append(block.nbytes)
        return block

    hf_read.SafetensorsFile.read = counting
    try:
        yield counted
    finally:
        hf_read.SafetensorsFile.read = read


@contextlib.contextmanager
def limited_file_size(limit: int | None) -> Iterator[None]:
    """As on a full disk, whatever writes beyond `limit` bytes of a file is refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft if limit is None else limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def bug() -> Iterator[None]:
    """Something that nobody foresaw, at the second file."""
    from janus_jax.checkpoint.hf import write as hf_write

    write, written = hf_write.write_file, []

    def failing(*arguments: Any) -> None:
        written.append(write(*arguments))
        if len(written) == 2:
            raise TypeError("a bug")

    hf_write.write_file = failing
    try:
        yield
    finally:
        hf_write.write_file = write


@contextlib.contextmanager
def blind() -> Iterator[None]:
    """This process looks for what process 0 made on a file system of its own."""
    from janus_jax.parallel import processes

    broadcast: Callable[..., Any] = processes.broadcast
    processes.broadcast = lambda name, value: broadcast(name, value) + ".elsewhere"
    try:
        yield
    finally:
        processes.broadcast = broadcast


if __name__ == "__main__":
    main(*sys.argv[1:4], Path(sys.argv[4]))
