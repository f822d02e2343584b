"""Statistics of an evaluation. The estimand is the population of problems, so every interval
is clustered by problem: more samples of the same problems never make it shrink to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with its 95 % interval; None where one problem gives none."""

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


def paired_difference(before_P: NDArray[np.float64], after_P: NDArray[np.float64]) -> Estimate:
    """Mean of after - before over the same problems (P), paired."""
    return problem_mean(after_P - before_P)


def pass_at_k(correct_P: NDArray[np.int64], samples: int, k: int) -> NDArray[np.float64]:
    """Unbiased pass@k a problem (P): 1 - C(n - c, k) / C(n, k) (Chen et al., arXiv 2107.03374,
    equation 1), with n samples of which c are correct."""
    if not 1 <= k <= samples:
        raise ValueError(f"k must be 1 to {samples}, got {k}")
    # The product form stays exact where the binomials would overflow.
    factors = [
        np.prod(1 - k / np.arange(samples - c + 1, samples + 1)) if samples - c >= k else 0.0
        for c in correct_P
    ]
    return 1 - np.array(factors, np.float64)


def majority(answers: Sequence[str | None], equivalent: Callable[[str, str], bool]) -> int | None:
    """Index of the first sample whose answer most samples share; None where none answers.

    Answers that are `equivalent` count as one; a tie goes to the answer given first.
    """
    first: list[int] = []
    votes: list[int] = []
    for index, answer in enumerate(answers):
        if answer is None:
            continue
        for cluster, leader in enumerate(first):
            if answer == answers[leader] or equivalent(answers[leader] or "", answer):
                votes[cluster] += 1
                break
        else:
            first.append(index)
            votes.append(1)
    return first[int(np.argmax(votes))] if votes else None
