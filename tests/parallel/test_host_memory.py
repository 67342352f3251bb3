"""What this machine cannot hold is refused before it is asked for."""

import subprocess
import sys

import pytest

from janus_jax.batch import Batch, empty_batch, row_bytes
from janus_jax.errors import ConfigError
from janus_jax.parallel.host_memory import host_memory, require_host_memory


def test_what_fits_passes_and_the_rest_names_keys_need_and_machine():
    require_host_memory(host_memory(), "batch.rows = 2", "rows")
    with pytest.raises(
        ConfigError, match=r"batch.rows = 2: rows take at least [\d,]+\.\d GiB of memory, but this mach"
    ):
        require_host_memory(host_memory() + 1, "batch.rows = 2", "rows")


def test_a_limit_of_the_shell_counts():
    code = "from janus_jax.parallel.host_memory import host_memory; print(host_memory())"
    command = ["bash", "-c", f"ulimit -v 1000000 && {sys.executable} -c '{code}'"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == f"{1_000_000 << 10}\n"


@pytest.mark.parametrize(("rows", "length", "segments"), [(1, 64, 3), (2, 7, 7), (3, 1, 50)])
def test_bytes_of_a_row_are_those_of_its_fields(rows, length, segments):
    batch = empty_batch(rows, length, segments)
    assert sum(getattr(batch, name).nbytes for name in Batch.__dataclass_fields__) == rows * row_bytes(length, segments)
