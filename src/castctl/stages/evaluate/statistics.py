"""Statistics of an evaluation. The estimand is the population of problems, so every interval
is clustered by problem: more samples of the same problems never make it shrink to nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EXACT_PROBLEMS = 13
"""Up to so many problems that differ, a permutation test counts every flip of signs."""

FLIPS = 9_999
"""Flips drawn where there are more."""


DUST = float(np.finfo(np.float32).eps)
"""Beside 1: rewards and log-probs are float32, and what is smaller is what rounding made."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; None where there is none.

    Every interval is formed here, and holds its mean: a bound that rounding alone has put past it
    becomes it. Raises `ValueError` for a bound that is further past it.
    """

    mean: float
    low: float | None
    high: float | None

    def __post_init__(self) -> None:
        low = self.mean if self.low is None else self.low
        high = self.mean if self.high is None else self.high
        slack = DUST * max(abs(low), abs(high))
        if max(low - self.mean, self.mean - high) > slack:
            raise ValueError(f"an interval from {low} to {high} does not hold its mean {self.mean}")
        if self.low is not None:
            object.__setattr__(self, "low", min(low, self.mean))
        if self.high is not None:
            object.__setattr__(self, "high", max(high, self.mean))

    def within(self, least: float, most: float) -> Estimate:
        """The same, its bounds no further than what is estimated can be."""
        if self.low is None or self.high is None:
            return self
        return Estimate(self.mean, max(self.low, least), min(self.high, most))


def student(mean: float, error: float, freedom: int, confidence: float = 0.95) -> Estimate:
    """Student's t interval of a mean with this standard error and so many degrees of freedom."""
    from scipy import special  # to read results takes none of it; scipy.stats loads far longer

    half = float(special.stdtrit(freedom, (1 + confidence) / 2)) * error
    return Estimate(mean, mean - half, mean + half)


def problem_mean(values_P: NDArray[np.float64], confidence: float = 0.95) -> Estimate:
    """Mean of one value a problem (P) with Student's t interval over problems."""
    mean = float(np.mean(values_P))
    count = len(values_P)
    if count < 2:
        return Estimate(mean, None, None)
    error = float(np.std(values_P, ddof=1)) / math.sqrt(count)
    return student(mean, error, count - 1, confidence)


def seed_mean(values_SP: NDArray[np.float64], least: float = 0.0) -> Estimate:
    """Mean of the seeds' own means over problems (S, P), with Student's t interval over seeds,
    within `least` and 1 where all values are; no bounds where the seeds have no spread, which says
    nothing of other seeds."""
    found = problem_mean(values_SP.mean(1))
    if np.ptp(values_SP.mean(1)) <= DUST:
        return Estimate(found.mean, None, None)
    bounded = (values_SP >= least - DUST) & (values_SP <= 1 + DUST)
    return found.within(least, 1) if bounded.all() else found


def difference(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    """after - before, 0 where that is no more than rounding to float32 makes of the two, or of 1:
    rewards and log-probs come of numbers of that size, however small they are."""
    found = after - before
    size = np.maximum(np.maximum(np.abs(before), np.abs(after)), 1.0)
    return np.where(np.abs(found) <= DUST * size, 0.0, found)


def problem_share(values_P: NDArray[np.float64], confidence: float = 0.95) -> Estimate:
    """Mean of one share a problem (P), its interval within 0 and 1 as the mean itself is.

    It is Wilson's score interval (`_wilson`) where every value is 0 or 1, where all are the same,
    and where Student's leaves 0 to 1: there it has no width or far too little, and none of 30
    solved does not say none ever will be. Otherwise Student's. Values outside 0 to 1 are no
    shares, and get Student's.
    """
    ends_P = np.rint(values_P)
    at_end = np.isin(ends_P, (0, 1)) & (np.abs(values_P - ends_P) <= DUST)
    values_P = np.where(at_end, ends_P, values_P)
    found = problem_mean(values_P, confidence)
    if found.low is None or found.high is None or not is_share(values_P):
        return found
    spread = np.ptp(values_P) > DUST and not at_end.all()
    if spread and found.low > 0 and found.high < 1:
        return found
    return _wilson(found.mean, len(values_P), confidence)


def is_share(values: NDArray[np.float64]) -> bool:
    """Whether all values lie within 0 and 1, as rewards of a scale of one's own may not."""
    return bool(((values >= -DUST) & (values <= 1 + DUST)).all())


def _wilson(mean: float, count: int, confidence: float) -> Estimate:
    """Wilson's score interval (Wilson, 1927): the p with |mean - p| <= z sqrt(p(1 - p) / count).

    That is exact in form for values of 0 and 1. No other values between 0 and 1 with mean p vary
    more than p(1 - p), so for those it is wider rather than narrower (ours).
    """
    from scipy import special

    z = float(special.ndtri((1 + confidence) / 2))
    scale = 1 + z**2 / count

    def low(mean: float) -> float:
        """The smaller root of scale p^2 - (2 mean + z^2 / n) p + mean^2, by the product of both:
        their difference would leave dust at a mean of 0."""
        middle = (mean + z**2 / (2 * count)) / scale
        half = z / scale * math.sqrt(mean * (1 - mean) / count + z**2 / (4 * count**2))
        return mean**2 / scale / (middle + half)

    return Estimate(mean, low(mean), 1 - low(1 - mean))


def paired_difference(before_P: NDArray[np.float64], after_P: NDArray[np.float64]) -> Estimate:
    """Mean of after - before over the same problems (P), paired, with Student's interval, within
    -1 and 1 where both are shares; no bounds where the differences have no spread, which says
    nothing of other problems."""
    difference_P = difference(before_P, after_P)
    found = problem_mean(difference_P)
    if np.ptp(difference_P) <= DUST:
        return Estimate(found.mean, None, None)
    return found.within(-1, 1) if is_share(before_P) and is_share(after_P) else found


def sign_flip_p_value(difference_P: NDArray[np.float64]) -> float:
    """Two-sided p-value of a mean difference over problems (P), by flipping signs (Fisher, 1935).

    Under the null the two sides of a problem may change places. Exact where at most
    `EXACT_PROBLEMS` problems differ; else by `FLIPS` seeded draws, with (hits + 1) / (draws + 1).
    """
    from scipy import stats

    # A problem without a difference keeps its sum under any flip, and would only cost time.
    differs = difference_P[np.abs(difference_P) > DUST]
    if len(differs) < 2:
        return 1.0
    found = stats.permutation_test(
        (differs, np.zeros(len(differs))),
        lambda one, other, axis: np.mean(one - other, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=math.inf if len(differs) <= EXACT_PROBLEMS else FLIPS,
        batch=1000,
        rng=0,
    )
    return float(found.pvalue)


def detectable_difference(
    difference_P: NDArray[np.float64], power: float = 0.8, level: float = 0.05
) -> float | None:
    """The smallest true mean difference that a two-sided paired t-test over this many problems
    finds with this power: (t(1 - level / 2) + t(power)) * s / sqrt(P), with t the quantiles of
    Student's distribution at P - 1 degrees of freedom and s the standard deviation of the
    observed differences (P). None where they have no spread, which says nothing."""
    from scipy import special

    count = len(difference_P)
    if count < 2 or np.ptp(difference_P) <= DUST:
        return None
    quantiles = special.stdtrit(count - 1, [1 - level / 2, power])
    return float(quantiles.sum() * np.std(difference_P, ddof=1) / math.sqrt(count))


def pass_at_k(correct_P: NDArray[np.int64], samples: int, k: int) -> NDArray[np.float64]:
    """Unbiased pass@k a problem (P): 1 - C(n - c, k) / C(n, k) (Chen et al., arXiv 2107.03374,
    equation 1), with n samples of which c are correct."""
    if not 1 <= k <= samples:
        raise ValueError(f"k must be 1 to {samples}, got {k}")
    counts, places_P = np.unique(correct_P, return_inverse=True)
    # The product form stays exact where the binomials would overflow.
    missed = [
        np.prod(1 - k / np.arange(samples - c + 1, samples + 1)) if samples - c >= k else 0.0
        for c in counts
    ]
    return (1 - np.array(missed, np.float64))[places_P]


def majority(answers: Sequence[str | None], equal: Iterable[tuple[str, str]]) -> list[int]:
    """The samples whose answer most samples share, ascending; none where none answers.

    `equal` are pairs of different answers that mean the same. Two that a chain of pairs links
    count as one too, so that it does not matter which was given first. Of a tie the answer given
    first wins: the samples of a problem are exchangeable, so that is a draw by lot.
    """
    leader = {answer: answer for answer in answers if answer is not None}

    def find(answer: str) -> str:
        while leader[answer] != answer:
            answer = leader[answer]
        return answer

    for one, other in equal:
        leader[find(other)] = find(one)
    clusters: defaultdict[str, list[int]] = defaultdict(list)
    for index, answer in enumerate(answers):
        if answer is not None:
            clusters[find(answer)].append(index)
    return min(clusters.values(), key=lambda cluster: (-len(cluster), cluster[0]), default=[])
