"""Data sets for plans of the tiny model."""

import pytest

from tests.support.training_examples import random_examples, write_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for kind in ("sft", "dpo"):
        splits = {"train": random_examples(60, pairs=kind == "dpo", seed=1)}
        write_dataset(root / kind, splits | {"validation": random_examples(9, pairs=kind == "dpo", seed=2)}, kind=kind)
    return root
