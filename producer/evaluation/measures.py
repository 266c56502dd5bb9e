"""Measures of arms, with bootstrap intervals over samples.

A measure is a ratio of sums, such as right answers by questions: each sample gives a numerator and a
denominator, so that a sample with many questions weighs more. Intervals are those of the percentile bootstrap
(Efron and Tibshirani 1993, chapter 13). All arms and measures share the same draws of samples, so differences
between arms are paired.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Draws of as many samples as there are, with replacement.
DRAWS = 4000
#: Of the intervals.
CONFIDENCE = 0.95

#: What one sample adds to a measure: numerator and denominator.
Part = tuple[float, float]
#: A sample about which the measure says nothing.
NOTHING: Part = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and the interval that it lies in, as far as the choice of the samples goes."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is more than chance."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class Overlap:
    """How what was said compares with what is true."""

    #: Facts that were said.
    right: int
    #: Statements, right or wrong.
    said: int
    #: All facts.
    true: int

    @property
    def precision(self) -> float:
        return self.right / self.said if self.said else 0.0

    @property
    def recall(self) -> float:
        return self.right / self.true if self.true else 0.0

    def __add__(self, other: "Overlap") -> "Overlap":
        return Overlap(self.right + other.right, self.said + other.said, self.true + other.true)


class Bootstrap:
    """Draws of samples by a seed."""

    def __init__(self, samples: int, seed: int = 0, draws: int = DRAWS) -> None:
        # (draws, samples): how often each sample is drawn.
        shares = np.full(samples, 1 / samples)
        self._times = np.random.default_rng(seed).multinomial(samples, shares, size=draws).astype(float)

    def estimate(self, parts: Iterable[Part]) -> Estimate | None:
        """Return the measure of one arm; None where no sample says anything."""
        whole, drawn = self._ratios(parts)
        return _estimate(whole, drawn)

    def difference(self, first: Iterable[Part], second: Iterable[Part]) -> Estimate | None:
        """Return how much higher the second arm's measure is, on the same samples in the same order."""
        (whole, drawn), (other, others) = self._ratios(first), self._ratios(second)
        return _estimate(other - whole, others - drawn)

    def _ratios(self, parts: Iterable[Part]) -> tuple[float, NDArray[np.float64]]:
        """Return the ratio over all samples, and over those of each draw; NaN where it has no denominator."""
        numerators, denominators = np.array(list(parts), float).reshape(-1, 2).T
        with np.errstate(invalid="ignore", divide="ignore"):
            whole = numerators.sum() / denominators.sum()
            return float(whole), (self._times @ numerators) / (self._times @ denominators)


def _estimate(whole: float, drawn: NDArray[np.float64]) -> Estimate | None:
    if np.isnan(whole):
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail])
    return Estimate(whole, float(low), float(high))
