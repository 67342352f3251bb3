"""Bootstrap intervals: how far a mean could be from what other rows of the same kind give."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_RESAMPLES = 4000
_AT_A_TIME = 1_000_000  # numbers drawn

Statistic = Callable[[np.ndarray], np.ndarray]
"""Means of some columns [..., K] -> a number [...]."""


class Cell(NamedTuple):
    """A number of a table, and the ends of its 95 % interval. What does not exist is None."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


def interval(columns: np.ndarray, statistic: Statistic) -> tuple[float, float]:
    """The 95 % interval of a number that follows from means, by resampling rows; the same for the same columns.

    Both ends are NaN without rows, and where a resample has no number.

    Args:
        columns: [N, K], a line for each row.
    """
    columns = np.asarray(columns, np.float64)
    if not len(columns):
        return float("nan"), float("nan")
    generator, numbers = np.random.default_rng(0), []
    step = max(1, _AT_A_TIME // len(columns))
    for start in range(0, _RESAMPLES, step):
        drawn = generator.integers(0, len(columns), (min(step, _RESAMPLES - start), len(columns)))
        numbers.append(statistic(columns[drawn].mean(axis=1)))
    low, high = np.quantile(np.concatenate(numbers), [0.025, 0.975])
    return float(low), float(high)


def mean_interval(values: np.ndarray, weights: np.ndarray | None = None) -> tuple[float, float]:
    """The 95 % interval of a mean, by resampling the values. Both ends are NaN without values.

    Args:
        values: [N], one for each row.
        weights: [N], of the values in the mean; None: all alike.
    """
    if weights is None:
        return interval(np.asarray(values)[:, None], lambda means: means[..., 0])
    return interval(np.stack([values * weights, weights], axis=1), lambda means: means[..., 0] / means[..., 1])


def mean_cell(values: np.ndarray, weights: np.ndarray | None = None) -> Cell:
    """A mean and its interval, as `mean_interval`; empty without values."""
    if not len(values):
        return Cell()
    return Cell(float(np.average(values, weights=weights)), *mean_interval(values, weights))
