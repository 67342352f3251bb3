"""Numbers of numbers: quantiles, histograms, intervals."""

import dataclasses
import math

import numpy as np

_BINS = 24


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean and quantiles; zeros of nothing."""

    count: int
    mean: float
    least: float
    p05: float
    p25: float
    median: float
    p75: float
    p95: float
    p99: float
    most: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Spread":
        if not len(values):
            return cls(0, *[0.0] * 9)
        found = np.quantile(values, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1])
        return cls(len(values), float(np.mean(values)), *map(float, found))


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Counts of bins of one width: bin i holds values from `start + i * width` on, up to the next bin.

    Bins leave out 1 % of the values on either side at most, so that outliers do not squeeze all others into one.
    """

    start: float
    width: float
    counts: list[int]
    before: int
    beyond: int
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
        """Bins as stated."""
        bins = np.floor((values - start) / width).astype(np.int64)
        inside = (bins >= 0) & (bins < number)
        counts = np.bincount(bins[inside], minlength=number).tolist()
        return cls(start, width, counts, int((bins < 0).sum()), int((bins >= number).sum()), unit)


def _round_width(width: float) -> float:
    """The next of 1, 2, 5, 10, 20, 50, ..."""
    if width <= 1:
        return 1.0
    power = 10.0 ** math.floor(math.log10(width))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= width)


def wilson_interval(right: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Of a share, 95 % by default (Wilson 1927). It takes the cases for independent of each other."""
    p = right / count
    centre = p + z * z / (2 * count)
    spread = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return (centre - spread) / (1 + z * z / count), (centre + spread) / (1 + z * z / count)
