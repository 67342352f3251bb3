"""Shapes and dtypes written in annotations are checked in every test (see tests/conftest.py)."""

import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from janus_jax.model.head import token_logps
from janus_jax.objectives.scores import branch_scores
from janus_jax.training.optimizer import Schedule
from tests.support.repository import ROOT, SHAPED, tracked


def test_every_module_that_annotates_shapes_is_checked():
    annotating = [
        name.removesuffix(".py").replace("/", ".")
        for name in tracked()
        if name.startswith("janus_jax/") and name.endswith(".py") and "jaxtyping" in (ROOT / name).read_text()
    ]
    assert len(annotating) > 5
    assert [name for name in annotating if not name.startswith(SHAPED)] == []


@pytest.mark.parametrize("targets", [jnp.zeros((2, 4), jnp.int32), jnp.zeros((2, 3))], ids=["shape", "dtype"])
def test_an_argument_of_another_shape_or_dtype_is_refused(targets):
    hidden, head = jnp.zeros((2, 3, 8)), jnp.zeros((8, 5))
    assert token_logps(hidden, head, jnp.zeros((2, 3), jnp.int32)).shape == (2, 3)
    with pytest.raises(TypeCheckError, match="targets"):
        token_logps(hidden, head, targets)


def test_other_checked_modules_refuse_too():
    with pytest.raises(TypeCheckError, match="branch_scores"):
        branch_scores(jnp.zeros(3), None)
    with pytest.raises(TypeCheckError):
        Schedule(1e-3, 10)(jnp.zeros(2))  # one rate for one step
