"""A run on GPUs: its kernel has the limits of the rows that it reads, in training and on held-out examples."""

import functools

import numpy as np
import pytest

from janus_jax.model.kernels import choice, cudnn
from janus_jax.parallel.mesh import Placement
from janus_jax.training.setup import prepare
from tests.support.cudnn import packed_attention
from tests.support.run_configs import run_config
from tests.support.training_examples import random_examples, write_dataset


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_no_row_of_a_run_breaks_a_limit(kind, tmp_path, monkeypatch):
    """It would be NaN. Plain JAX takes the place of cuDNN's call, and the devices say that they are GPUs."""
    examples = random_examples(60, pairs=kind == "dpo", seed=2)
    write_dataset(tmp_path / kind, {"train": examples[:40], "validation": examples[40:]}, kind=kind)
    monkeypatch.setattr(Placement, "platform", property(lambda _: "gpu"))
    monkeypatch.setattr(cudnn, "_device_reason", lambda _: None)
    monkeypatch.setattr(cudnn, "Cudnn", functools.partial(cudnn.Cudnn, packed=packed_attention))
    monkeypatch.setattr(choice, "_proven", lambda name, need: choice._KERNELS[name](need))
    run = run_config(tmp_path, tmp_path / "run", kind, precision={"compute": "bfloat16"})
    setup = prepare(run)
    program, params = setup.program, setup.initial_params(np.float32)
    kernel = program.functions.compute.kernel
    assert program.attention == "cuDNN kernel" and kernel.longest < run.batch.max_sequence_length
    segments, shared, longest = 0, 0, 0
    for loader in (setup.loader, setup.eval_loader):
        for loaded in loader.batches(steps=sum(loader.steps(epoch) for epoch in range(loader.epochs))):
            assert np.isfinite(program.reference(params, loaded.batch)).all()
            segment, branch, position = (
                np.asarray(x) for x in (loaded.batch.segment, loaded.batch.branch, loaded.batch.position)
            )
            segments = max(segments, segment.max())
            shared = max(shared, ((segment > 0) & (branch == 0)).sum(-1).max())
            longest = max(longest, position.max() + 1)
    assert kernel.sequences == segments * (1 + (kind == "dpo"))
    assert kernel.copies == (shared if kind == "dpo" else 0)
    assert longest == kernel.longest - 1  # EOS is not fed
