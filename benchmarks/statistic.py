"""Medians, quartiles, and ratios of times that were taken in the same round."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """A median between two other values: the quartiles, or the ends of an interval for the median."""

    low: float
    median: float
    high: float

    def text(self, spec: str) -> str:
        """Write all three, each as ``spec`` says."""
        return f"{self.median:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


def quartiles(values: Sequence[float]) -> Spread:
    """The median and the quartiles around it."""
    if len(values) < 2:
        return Spread(values[0], values[0], values[0])
    return Spread(*statistics.quantiles(values, n=4, method="inclusive"))


def ratio(times: Sequence[float], base: Sequence[float]) -> Spread:
    """Quartiles of the ratio, round by round: what slows a whole round drops out."""
    return quartiles([own / other for own, other in zip(times, base, strict=True)])


def difference(times: Sequence[float], base: Sequence[float]) -> Spread:
    """The median difference, round by round, in a 95 % interval for the median, which assumes nothing of the noise."""
    found = sorted(own - other for own, other in zip(times, base, strict=True))
    half = 0.98 * len(found) ** 0.5  # 1.96 standard deviations of how many of n lie below their median
    low, high = int(len(found) / 2 - half), int(len(found) / 2 + half)
    return Spread(found[max(low, 0)], statistics.median(found), found[min(high, len(found) - 1)])
