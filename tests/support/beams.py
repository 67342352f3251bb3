"""Apache Beam, where it is installed: an extra that the tests' own environment cannot hold (constraints-beam.txt)."""

import importlib.util
import os
from pathlib import Path

import pytest

_IS_MISSING = importlib.util.find_spec("apache_beam") is None and os.environ.get("JANUS_BEAM") != "required"

needs_beam = pytest.mark.skipif(
    _IS_MISSING, reason="apache-beam is not installed: pip install -c constraints-beam.txt -e '.[beam]' (docs/data.md)"
)


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }
