"""The repository as its checks see it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHAPED = (
    "janus_jax.evaluation.pairs",
    "janus_jax.generation",
    "janus_jax.model",
    "janus_jax.objectives",
    "janus_jax.parallel.hashing",
    "janus_jax.training.fingerprint",
    "janus_jax.training.optimizer",
    "janus_jax.training.quantized",
    "janus_jax.training.step",
)
"""Modules whose annotations of shapes are checked at each call."""


def tracked() -> list[str]:
    """Paths of all tracked files, relative to the root, with / between parts."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    return [name for name in listing.stdout.split("\0") if name]


def tool(*arguments: str) -> None:
    """Runs a Python tool of this environment on the repository; fails with what it prints."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout}{done.stderr}"
