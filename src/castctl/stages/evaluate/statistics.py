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


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with its 95 % interval; None where the problems give none."""

    mean: float
    low: float | None
    high: float | None


def problem_mean(values_P: NDArray[np.float64], confidence: float = 0.95) -> Estimate:
    """Mean of one value a problem (P) with Student's t interval over problems."""
    from scipy import stats  # takes a second to load, and reading results needs none of it

    mean = float(np.mean(values_P))
    count = len(values_P)
    if count < 2:
        return Estimate(mean, None, None)
    spread = float(np.std(values_P, ddof=1)) / math.sqrt(count)
    half = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * spread
    return Estimate(mean, mean - half, mean + half)


def problem_share(values_P: NDArray[np.float64], confidence: float = 0.95) -> Estimate:
    """Mean of one share a problem (P), its interval within 0 and 1 as the mean itself is.

    It is Wilson's score interval (`_wilson`) where every value is 0 or 1, where all are the same,
    and where Student's leaves 0 to 1: there it has no width or far too little, and none of 30
    solved does not say none ever will be. Otherwise Student's. Values outside 0 to 1 are no
    shares, and get Student's.
    """
    student = problem_mean(values_P, confidence)
    if student.low is None or student.high is None or ((values_P < 0) | (values_P > 1)).any():
        return student
    spread = np.ptp(values_P) > np.finfo(np.float32).eps and not np.isin(values_P, (0, 1)).all()
    if spread and student.low > 0 and student.high < 1:
        return student
    return _wilson(student.mean, len(values_P), confidence)


def _wilson(mean: float, count: int, confidence: float) -> Estimate:
    """Wilson's score interval (Wilson, 1927): the p with |mean - p| <= z sqrt(p(1 - p) / count).

    That is exact in form for values of 0 and 1. No other values between 0 and 1 with mean p vary
    more than p(1 - p), so for those it is wider rather than narrower (ours).
    """
    from scipy import stats

    z = float(stats.norm.ppf((1 + confidence) / 2))
    scale = 1 + z**2 / count
    middle = (mean + z**2 / (2 * count)) / scale
    half = z / scale * math.sqrt(mean * (1 - mean) / count + z**2 / (4 * count**2))
    return Estimate(mean, max(middle - half, 0.0), min(middle + half, 1.0))


def paired_difference(before_P: NDArray[np.float64], after_P: NDArray[np.float64]) -> Estimate:
    """Mean of after - before over the same problems (P), paired; no bounds where the differences
    have no spread, which says nothing of other problems."""
    found = problem_mean(after_P - before_P)
    if np.ptp(after_P - before_P) <= np.finfo(np.float32).eps:
        return Estimate(found.mean, None, None)
    return found


def sign_flip_p_value(difference_P: NDArray[np.float64]) -> float:
    """Two-sided p-value of a mean difference over problems (P), by flipping signs (Fisher, 1935).

    Under the null the two sides of a problem may change places. Exact where at most
    `EXACT_PROBLEMS` problems differ; else by `FLIPS` seeded draws, with (hits + 1) / (draws + 1).
    """
    from scipy import stats

    # A problem without a difference keeps its sum under any flip, and would only cost time.
    differs = difference_P[np.abs(difference_P) > np.finfo(np.float32).eps]
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
    from scipy import stats

    count = len(difference_P)
    if count < 2 or np.ptp(difference_P) == 0:
        return None
    quantiles = stats.t.ppf([1 - level / 2, power], count - 1)
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
