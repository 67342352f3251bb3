"""The search for what the backward pass keeps, with a compiler that is a formula."""

from types import SimpleNamespace

import pytest

from janus_jax.config.run import load_config
from janus_jax.errors import ConfigError
from janus_jax.model.remat import TENSORS, in_order
from janus_jax.planning.chips.slices import find_slice, load_chips
from janus_jax.planning.search.estimate import choices_of_kept, estimate
from janus_jax.planning.search.keep import most_kept

CHANGES = ("init.from=null", "model={preset: mistral-7b}", "batch.rows=16", "batch.microbatches=1")
V5P, V5E = "v5p-16", "v5litepod-16"


@pytest.fixture(scope="module")
def config():
    return load_config("configs/sft_65k.yaml", CHANGES)


@pytest.fixture(scope="module")
def choices(config):
    return choices_of_kept(config, find_slice(V5E))


def test_each_choice_is_the_least_repetition_for_its_memory(config, choices):
    """All 128 sets: none with as little memory repeats less than the choice, and more memory always buys something."""
    assert choices[0].remat == "full"
    assert [choice.bytes for choice in choices] == sorted({choice.bytes for choice in choices})
    assert [choice.repeated for choice in choices] == sorted({choice.repeated for choice in choices}, reverse=True)
    by_remat = {choice.remat: choice for choice in choices}
    assert by_remat[in_order(tuple(TENSORS))] is choices[-1]
    for choice in (choices[0], choices[len(choices) // 2], choices[-1]):
        whole = estimate(config.model_copy(update={"remat": choice.remat}), find_slice(V5E))
        assert choice.bytes == whole.bytes


def test_memory_of_a_choice_is_the_sum_of_its_tensors(choices):
    """A 7B model, 8192 slots a device: bfloat16 values of 32 layers, and the softmax's float32 sum of each head."""
    widths = {"query": 4096, "key": 1024, "value": 1024, "attention": 4096 + 2 * 32, "projection": 4096}
    widths |= {"gate": 14336, "up": 14336}
    for choice in choices[1:]:
        kept = sum(widths[name] for name in choice.remat) * 32 * 8192 * 2
        assert choice.bytes - choices[0].bytes == pytest.approx(kept, abs=2)


def compiler(needs):
    """Plans by estimate times a factor; how many were asked for."""
    asked = []

    def planner(config, topology, *, num_slices, chips):
        asked.append(config.remat)
        usable = load_chips().chip(find_slice(topology)).usable_hbm_bytes_per_device
        needed = needs(estimate(config, find_slice(topology)).bytes)
        return SimpleNamespace(fits=needed <= usable, memory=SimpleNamespace(needed=needed, usable=usable))

    return planner, asked


@pytest.mark.parametrize("needs", [lambda b: b, lambda b: round(1.1 * b), lambda b: b - 2**30, lambda b: b + 2**30])
def test_the_best_that_fits_is_named_after_few_compilations(config, choices, needs):
    usable = load_chips().chip(find_slice(V5E)).usable_hbm_bytes_per_device
    best = [choice for choice in choices if needs(choice.bytes) <= usable][-1]
    planner, asked = compiler(needs)
    result = most_kept(config, V5E, planner=planner, tries=8)
    assert result.choice == best and result.plan.fits and len(asked) <= 5 and len(set(asked)) == len(asked)


def test_a_chip_with_room_keeps_everything_and_one_without_says_so(config):
    planner, asked = compiler(lambda b: b)
    assert most_kept(config, V5P, planner=planner).choice.remat == tuple(TENSORS) and len(asked) == 1
    planner, asked = compiler(lambda b: 3 * b)
    assert most_kept(config, V5E, planner=planner) is None and asked[-1] == "full"
    with pytest.raises(ConfigError, match="simulated devices"):
        most_kept(config, "cpu:16", planner=planner)
