"""The same weights are known by their values, and the very same files without being read."""

import shutil

import numpy as np
import pytest

from janus_jax.checkpoint.convert import from_hf
from janus_jax.checkpoint.hf.read import save_hf
from janus_jax.checkpoint.same_weights import file_facts, weight_facts
from janus_jax.checkpoint.stored_model import open_model
from tests.support.models import SMALL, random_params


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The same weights as a Hugging Face directory and converted."""
    root = tmp_path_factory.mktemp("models")
    save_hf(random_params(SMALL), SMALL, root / "hf")
    from_hf(root / "hf", root / "converted", verify="none")
    return root


def test_checksums_are_of_values_whatever_the_form_and_see_one_flipped_bit(models, tmp_path):
    sums = dict(weight_facts(open_model(models / "hf")))
    assert sums == dict(weight_facts(open_model(models / "converted"))) and len(sums) == 3 + 9 * SMALL.num_layers
    copy = shutil.copytree(models / "hf", tmp_path / "hf")
    content = np.fromfile(copy / "model.safetensors", np.uint8)
    content[-3] ^= 1
    content.tofile(copy / "model.safetensors")
    changed = dict(weight_facts(open_model(copy)))
    assert len([key for key in sums if sums[key] != changed[key]]) == 1


def test_the_very_same_files_are_known_without_being_read(models, tmp_path):
    (tmp_path / "link").symlink_to(models / "hf")
    assert file_facts(open_model(models / "hf")) == file_facts(open_model(tmp_path / "link"))
    copy = shutil.copytree(models / "hf", tmp_path / "copy")
    assert file_facts(open_model(models / "hf")) != file_facts(open_model(copy))
