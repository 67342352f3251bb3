"""What a run says about examples that it does not read."""

import numpy as np
import pytest

from janus_jax.data.from_config import fit_counts, fit_lines
from janus_jax.data.rows import fit


@pytest.mark.parametrize(
    ("options", "output"),
    [
        ({"overlong": "drop"}, ["over-long and dropped", "equal pairs: 1 of 6 held-out examples is dropped"]),
        ({"overlong": "truncate"}, ["1 of 6 held-out examples is over-long and truncated", "equal pairs: 1 of 6"]),
        ({"overlong": "zero_grad"}, ["over-long and left without responses", "equal pairs: 1 of 6"]),
        (
            {"overlong": "drop", "keep_together": 2},
            ["1 of 6 held-out", "equal pairs: 1 of 6", "batch.keep_together: 2 of 6 held-out examples are dropped"],
        ),
    ],
)
def test_every_example_that_is_left_out_is_told_under_its_own_reason(options, output):
    lengths = np.array([[4, 3, 3], [4, 3, 2], [4, 9, 20], [4, 2, 5], [4, 4, 5], [4, 5, 4]])
    limits = {"row_length": 20, "max_sequence_length": 10}
    fitted = fit(lengths, equal=lambda index, lengths: index == 0, **limits, **options)
    lines = fit_lines("held-out", **fit_counts(fitted))
    assert len(lines) == len(output) and all(part in line for part, line in zip(output, lines, strict=True))


def test_nothing_is_told_if_everything_is_read():
    fitted = fit(np.full((3, 3), 2), row_length=20, max_sequence_length=10, overlong="drop")
    assert fit_lines("training", **fit_counts(fitted)) == []
