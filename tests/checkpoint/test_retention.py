"""Which steps stay."""

import math

from janus_jax.checkpoint.retention import Retention


def test_the_newest_steps_stay():
    assert Retention(2).kept([5, 1, 9], {}) == {5, 9}
    assert Retention(2).kept([5], {}) == {5}
    assert Retention(2).kept([], {}) == set()


def test_the_first_step_of_every_interval_stays_wherever_saves_fall():
    assert Retention(1, every=100).kept(range(10, 321, 10), {}) == {100, 200, 300, 320}
    assert Retention(1, every=100).kept([30, 99, 130, 170, 260, 290, 310], {}) == {130, 260, 310}


def test_the_best_steps_stay_and_a_tie_goes_to_the_older():
    values = {1: 3.0, 2: 1.0, 3: math.nan, 4: 1.0, 5: None, 6: 2.0}
    assert Retention(1, best=1).kept(range(1, 8), values) == {2, 7}
    assert Retention(1, best=3).kept(range(1, 8), values) == {2, 4, 6, 7}
    assert Retention(1, best=1, metric="rewards/margins").kept(range(1, 8), values) == {1, 7}


def test_it_says_what_stays():
    kept = Retention(1, every=1000, best=3, metric="rewards/accuracies")
    assert (
        str(kept) == "the newest one, the first of every 1,000 steps, the 3 of the highest held-out rewards/accuracies"
    )
