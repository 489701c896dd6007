"""Numbers of several rounds as one: the median, and how far apart they were."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and greatest of `rounds` numbers."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises `ValueError` if there are none."""
        if not values:
            raise ValueError("no round was measured")
        return cls(statistics.median(values), min(values), max(values), len(values))


def ratios(ours: Sequence[float], base: Sequence[float]) -> list[float]:
    """Round by round: what disturbed a whole round is in both, and drops out."""
    return [our / their for our, their in zip(ours, base, strict=True) if their > 0]
