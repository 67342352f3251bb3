"""Quantiles, histograms and confidence intervals."""

import dataclasses
import math

import numpy as np

_BINS = 24


@dataclasses.dataclass(frozen=True)
class Quantiles:
    """Mean and quantiles; all 0 if there are no values."""

    count: int
    mean: float
    min: float
    p05: float
    p25: float
    median: float
    p75: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Quantiles":
        if not len(values):
            return cls(0, *[0.0] * 9)
        quantiles = np.quantile(values, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1])
        return cls(len(values), float(np.mean(values)), *map(float, quantiles))


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Counts in bins of equal width; bin i holds values in [start + i * width, start + (i + 1) * width).

    At most 1 % of the values at either end are outside, so that outliers do not squeeze the rest into one bin.
    """

    start: float
    width: float
    counts: list[int]
    below: int
    above: int
    unit: str

    @classmethod
    def of(cls, values: np.ndarray, unit: str) -> "Histogram":
        """Bins of a round width."""
        if not len(values):
            return cls(0, 1, [0], 0, 0, unit)
        first, last = map(float, np.quantile(values, [0.01, 0.99]))
        width = _round_width((last - first) / _BINS)
        start = math.floor(first / width) * width
        return cls.with_bins(values, unit, start, width, int((last - start) // width) + 1)

    @classmethod
    def with_bins(cls, values: np.ndarray, unit: str, start: float, width: float, number: int) -> "Histogram":
        """`number` bins from `start` on."""
        bins = np.floor((values - start) / width).astype(np.int64)
        inside = (bins >= 0) & (bins < number)
        counts = np.bincount(bins[inside], minlength=number).tolist()
        return cls(start, width, counts, int((bins < 0).sum()), int((bins >= number).sum()), unit)


def _round_width(width: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that is not below `width`."""
    if width <= 1:
        return 1.0
    power = 10.0 ** math.floor(math.log10(width))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= width)


def wilson_interval(right: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Confidence interval of the share `right / count` of independent cases, 95 % by default (Wilson 1927)."""
    p = right / count
    centre = p + z * z / (2 * count)
    radius = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return (centre - radius) / (1 + z * z / count), (centre + radius) / (1 + z * z / count)
