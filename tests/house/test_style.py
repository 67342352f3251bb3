"""Format, lint, types, and files that stay small enough to read."""

import importlib.metadata
import re
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

from tests.support.repository import ROOT, tool, tracked

LONGEST_FILE = 400


def test_ruff_finds_nothing():
    tool("-m", "ruff", "check", ".")


def test_everything_is_formatted():
    tool("-m", "ruff", "format", "--check", ".")


@pytest.mark.slow
def test_types_hold():
    """Ninety seconds of one core: `.ci/run` runs the same command beside something else."""
    tool("-m", "basedpyright", "--pythonpath", sys.executable, "--level", "error", "janus_jax", "launch")


def test_no_python_file_is_longer_than_400_lines():
    lines = {name: len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in _python_files()}
    assert {name: count for name, count in lines.items() if count > LONGEST_FILE} == {}


def test_no_line_of_prose_is_longer_than_120_characters():
    pages = [ROOT / name for name in tracked() if name.endswith(".md")]
    lines = [line for page in pages for line in page.read_text(encoding="utf-8").splitlines()]
    drawn = ("|", "    ")  # tables and indented code are as wide as they are
    assert pages and [line for line in lines if len(line) > 120 and not line.startswith(drawn)] == []


def _python_files() -> list[str]:
    return [name for name in tracked() if name.endswith(".py") and (ROOT / name).exists()]


@pytest.mark.parametrize("version", ["311", "312"])
def test_constraints_are_exact_versions_and_nothing_else(version):
    lines = (ROOT / f"constraints-py{version}.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)] == []
    names = [_normal(line.split("==")[0]) for line in lines]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("version", ["311", "312"])
def test_constraints_pin_every_requirement_inside_its_range(version):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / f"constraints-py{version}.txt").read_text(encoding="utf-8").splitlines()
    pins = {_normal(name): pin for name, pin in (line.split("==") for line in lines)}
    required = [Requirement(text) for text in [*project["dependencies"], *project["optional-dependencies"]["test"]]]
    outside = [str(item) for item in required if not item.specifier.contains(pins.get(_normal(item.name), "0"))]
    assert outside == []


def test_constraints_have_the_libtpu_that_their_jax_asks_for():
    """`pip install 'janus_jax[tpu]'` under the constraints of this Python would find no versions otherwise."""
    lines = (ROOT / f"constraints-py3{sys.version_info.minor}.txt").read_text(encoding="utf-8").splitlines()
    pins = {_normal(name): pin for name, pin in (line.split("==") for line in lines)}
    if importlib.metadata.version("jax") != pins["jax"]:
        pytest.skip("another jax is installed than the constraints name")
    asked = [Requirement(text) for text in importlib.metadata.requires("jax") or ()]
    (libtpu,) = [item for item in asked if item.name == "libtpu"]
    assert libtpu.specifier.contains(pins["libtpu"])


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
