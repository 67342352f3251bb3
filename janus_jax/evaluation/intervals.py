"""Bootstrap intervals: how far a mean could be from what other rows of the same kind give."""

import numpy as np

_RESAMPLES = 4000
_AT_A_TIME = 1_000_000  # numbers drawn


def mean_interval(
    values: np.ndarray, *, share: float = 0.95, seed: int = 0, weights: np.ndarray | None = None
) -> tuple[float, float]:
    """The interval of a mean, by resampling the values. Both ends are NaN without values.

    Args:
        values: one for each row.
        weights: of the values in the mean; None: all alike.
        share: of resampled means that lie inside.
        seed: the same one gives the same interval.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        return float("nan"), float("nan")
    generator, means = np.random.default_rng(seed), []
    step = max(1, _AT_A_TIME // len(values))
    for start in range(0, _RESAMPLES, step):
        count = min(step, _RESAMPLES - start)
        drawn = generator.integers(0, len(values), (count, len(values)))
        if weights is None:
            means.append(values[drawn].mean(axis=1))
        else:
            means.append((values * weights)[drawn].sum(axis=1) / weights[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def mean_cell(values: np.ndarray) -> tuple[float | None, float | None, float | None]:
    """A mean and the ends of its interval, for a table; nothing without values."""
    return (float(np.mean(values)), *mean_interval(values)) if len(values) else (None, None, None)
