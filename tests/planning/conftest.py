"""Data sets for plans of the tiny model."""

import pytest

from janus_jax.planning import compile
from tests.support.training_examples import random_examples, write_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for kind in ("sft", "dpo"):
        splits = {"train": random_examples(60, pairs=kind == "dpo", seed=1)}
        write_dataset(root / kind, splits | {"validation": random_examples(9, pairs=kind == "dpo", seed=2)}, kind=kind)
    return root


@pytest.fixture
def uncompiled(monkeypatch):
    """Plans know what is lowered, and nothing is compiled: as if the compiler had run out of memory.
    `time_step` compiles all the same."""

    def lower(jitted, arguments, *_, **__):
        return compile.CompiledStep(jitted.lower(*arguments).as_text(), None, "not compiled", 0.0, "")

    monkeypatch.setattr(compile, "compile_step", lower)
