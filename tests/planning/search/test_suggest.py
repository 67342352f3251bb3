"""Changes that make a step fit: what is tried, in which order, and what is said of it."""

import dataclasses
from types import SimpleNamespace

import pytest

from janus_jax.errors import ConfigError
from janus_jax.planning.chips.slices import find_slice, load_chips
from janus_jax.planning.search.estimate import MARGIN, estimate
from janus_jax.planning.search.suggest import suggestions
from tests.support.run_configs import recipe

USABLE = load_chips().chips["v5e"].usable_hbm_bytes_per_device


@dataclasses.dataclass
class Planner:
    """In place of a compiler: what is estimated is what it takes, times `worse`."""

    worse: float = 1.0
    tried: list = dataclasses.field(default_factory=list)

    def __call__(self, config, topology, *, num_slices, chips):
        self.tried.append(config)
        needed = estimate(config, find_slice(topology), num_slices).bytes
        return SimpleNamespace(fits=needed * self.worse <= USABLE)


def found(config, topology="v5litepod-16", planner=None, **options):
    return list(suggestions(config, topology, planner=planner or Planner(), **options))


def test_recomputing_what_does_not_fit_is_the_cheapest():
    planner = Planner()
    first, *others = found(recipe("sft_65k", "remat=none"), planner=planner)
    assert first.changes == ("remat=[query,key,value]",)
    kept = "the backward pass recomputes what blocks do not keep: they keep query, key, value"
    assert first.cost == f"{kept} (20% more operations)"
    assert len(planner.tried) >= 1 + len(others)
    # What has that change and another besides is no suggestion; offloading recomputes as much.
    assert not any("remat=" in change for each in others for change in each.changes)


def test_whole_blocks_are_recomputed_if_the_list_does_not_fit():
    planner = Planner(worse=1.1)
    first, *_ = found(recipe("sft_65k", "remat=none"), planner=planner)
    assert [config.remat for config in planner.tried[:2]] == [("query", "key", "value"), "full"]
    assert first.changes == ("remat=full",) and first.cost.startswith("the backward pass recomputes each block (24%")


def test_fewer_rows_at_a_time_come_before_another_optimizer():
    config = recipe("sft_65k", "batch.rows=64", "batch.microbatches=1")  # 4 rows a chip
    one, *others = found(config)
    assert one.changes == ("batch.microbatches=2",)
    assert "the same mathematics" in one.cost and "2 times per step instead of 1" in one.cost
    for each in others:
        assert not any(change.startswith("batch.microbatches") for change in each.changes)


def test_overrides_give_what_was_compiled():
    planner = Planner()
    for each in found(recipe("sft_65k", "remat=none"), planner=planner):
        assert recipe("sft_65k", "remat=none", *each.changes) in planner.tried


def test_two_changes_where_none_alone_is_enough():
    config = recipe("sft_65k", "remat=none", "batch.rows=128", "batch.microbatches=1")
    suggested = found(config)
    assert suggested and suggested[0].changes == ("remat=full", "batch.microbatches=4")
    assert "; " in suggested[0].cost


def test_three_changes_where_no_two_are_enough():
    suggested = found(recipe("sft_65k", "remat=none"), "v5litepod-8", planner=Planner(worse=1.2), tries=60)
    assert [each.changes for each in suggested] == [
        (
            *("remat=full", "optimizer.moments=bfloat16", "mesh.fsdp=1", "mesh.tensor=8"),
            "batch.microbatches=32",  # comes with the mesh
        )
    ]
    for words in ("the same mathematics", "bfloat16, rounded at random", "other traffic between chips"):
        assert words in suggested[0].cost


def test_the_hopeless_is_not_compiled_and_tries_are_counted():
    planner = Planner(worse=10)
    assert found(recipe("sft_65k", "remat=none"), planner=planner, tries=5) == []
    assert len(planner.tried) == 5
    for config in planner.tried:
        assert estimate(config, find_slice("v5litepod-16")).bytes <= MARGIN * USABLE
    planner = Planner()
    assert found(recipe(), "v5litepod-1", planner=planner) == [] and planner.tried == []


def test_a_step_that_fits_needs_no_change():
    planner = Planner()
    assert found(recipe(), planner=planner, failed=SimpleNamespace(fits=True)) == [] and planner.tried == []


def test_an_evaluation_that_is_too_large_is_made_smaller_first():
    planner, seen = Planner(), []
    failed = SimpleNamespace(
        fits=False, memory=SimpleNamespace(evaluation_is_most=True, samples_are_most=False, samples_rows=0)
    )
    run = recipe("sft_65k", "eval.rows=512", "eval.every_steps=10", "remat=full", "mesh.tensor=2")
    first, *others = found(run, planner=planner, failed=failed, report=lambda *lines: seen.append(lines))
    assert first.changes == ("eval.rows=null",) and others == [] and planner.tried[0].eval.rows is None
    assert seen == [(("eval.rows=null",), True)]


def test_an_online_reference_can_score_before_the_first_step():
    first, *_ = found(recipe("dpo", "reference.mode=online", "remat=full"))
    assert first.changes == ("reference.mode=precompute",) and "before the first step" in first.cost


def test_meshes_are_suggested_in_full():
    """Wide microbatches of a pair objective, whose rows no microbatch divides further."""
    config = recipe("dpo", "mesh.data=16", "mesh.fsdp=1", "mesh.tensor=1")
    suggested = found(config)
    assert suggested and all(any(change.startswith("mesh.") for change in each.changes) for each in suggested)
    assert any("other traffic between chips" in each.cost for each in suggested)


def test_a_change_that_training_refuses_is_passed_over():
    class Refusing(Planner):
        def __call__(self, config, *args, **options):
            if config.remat not in ("none", "offload"):
                self.tried.append(config)
                raise ConfigError("precision.attention=splash: cannot be")
            return super().__call__(config, *args, **options)

    planner = Refusing()
    suggested = found(recipe("sft_65k", "remat=none"), planner=planner)
    assert {config.remat for config in planner.tried} > {"full", ("query", "key", "value")}
    assert suggested and not any(change.startswith("remat=[") for each in suggested for change in each.changes)
    assert not any("remat=full" in each.changes for each in suggested)


def test_an_unknown_slice_is_an_error():
    with pytest.raises(ConfigError, match="v5e-17"):
        found(recipe(), "v5e-17")
