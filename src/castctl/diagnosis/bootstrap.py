"""Intervals that resample whole prompts: tokens and completions of one are not independent."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from castctl.stages.evaluate.statistics import Estimate

Floats = NDArray[np.float64]

REPLICATES = 1000
CHUNK = 50
"""Replicates computed at once."""

LEVELS = (0.025, 0.975)
ENOUGH = 0.95
"""Share of the replicates that must be defined: an interval of the others alone would be of those
draws that happened to work."""


def cluster_numbers(names: list[str]) -> NDArray[np.int64]:
    """For each name, the number of its cluster, from 0 in order of first appearance."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)


def resamples(clusters: int, seed: int, replicates: int = REPLICATES) -> Iterator[Floats]:
    """How often each cluster (P) is drawn in each replicate (B), with replacement, in chunks."""
    rng = np.random.default_rng(seed)
    for start in range(0, replicates, CHUNK):
        rows = range(start, min(start + CHUNK, replicates))
        drawn = (rng.integers(clusters, size=clusters) for _ in rows)
        yield np.stack([np.bincount(each, minlength=clusters) for each in drawn]).astype(np.float64)


def interval_of_sums(
    sums_PK: Floats,
    statistic: Callable[[Floats], Floats],
    seed: int,
    replicates: int = REPLICATES,
) -> tuple[Floats, Floats, Floats]:
    """A statistic of K sums over clusters (P, K), and its 95 % percentile interval.

    `statistic` maps sums (B, K) to values (B, ...), NaN where it is not defined. Returns values,
    lows and highs; the bounds are NaN with fewer than two clusters, or where fewer than
    `ENOUGH` of the replicates are defined.
    """
    value = statistic(sums_PK.sum(0, keepdims=True))[0]
    if len(sums_PK) < 2:
        return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
    drawn = [statistic(weights @ sums_PK) for weights in resamples(len(sums_PK), seed, replicates)]
    low, high = percentiles(np.concatenate(drawn))
    return value, low, high


def percentiles(values_B: Floats) -> tuple[Floats, Floats]:
    """The bounds of a 95 % percentile interval over replicates (B, ...); NaN where fewer than
    `ENOUGH` of them are defined."""
    defined = np.isfinite(values_B)
    filled = np.where(defined, values_B, np.nan)
    enough = defined.mean(0) >= ENOUGH
    safe = np.where(enough, filled, 0.0)
    low, high = np.nanquantile(safe, LEVELS, axis=0)
    return np.where(enough, low, np.nan), np.where(enough, high, np.nan)


def estimate(value: float, low: float, high: float) -> Estimate:
    """A value with its interval, which is widened to hold it where the resamples all lie to one
    side; None where a bound is not known."""
    value = float(value)
    if not np.isfinite([value, low, high]).all():
        return Estimate(value, None, None)
    return Estimate(value, min(float(low), value), max(float(high), value))


def auc_interval(
    scores_R: Floats,
    correct_R: NDArray[np.bool_],
    cluster_R: NDArray[np.int64],
    seed: int,
    replicates: int = REPLICATES,
) -> Estimate | None:
    """The share of (correct, incorrect) pairs of completions in which the correct one scores
    higher, ties counting half (the Mann-Whitney form of the area under the ROC curve), with a
    95 % percentile interval over prompts (`cluster_R`, numbers from 0).

    None where all scored completions are correct or none is; NaN scores are left out. Without
    bounds where every replicate gives one value, as with perfect separation: no resampling of these
    prompts can tell how far others would be from it.
    """
    scored = np.isfinite(scores_R)
    scores, correct, cluster = scores_R[scored], correct_R[scored], cluster_R[scored]
    if correct.all() or not correct.any():
        return None
    order = np.argsort(scores, kind="stable")
    correct = correct[order]
    present, cluster = np.unique(cluster[order], return_inverse=True)
    ties = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)
    value = _weighted_auc(np.ones((1, len(order))), correct, ties)[0]
    if len(present) < 2:
        return Estimate(float(value), None, None)
    drawn = [
        _weighted_auc(weights[:, cluster], correct, ties)
        for weights in resamples(len(present), seed, replicates)
    ]
    values = np.concatenate(drawn)
    if len(np.unique(values[np.isfinite(values)])) < 2:
        return Estimate(float(value), None, None)
    low, high = percentiles(values)
    return estimate(float(value), float(low), float(high))


def _weighted_auc(
    weights_BR: Floats, correct_R: NDArray[np.bool_], ties: NDArray[np.int64]
) -> Floats:
    """AUC a replicate (B) of completions in ascending order of score; `ties` are the places where
    another score begins. NaN without a correct or without an incorrect one."""
    right = np.add.reduceat(weights_BR * correct_R, ties, axis=1)
    wrong = np.add.reduceat(weights_BR * ~correct_R, ties, axis=1)
    below = np.cumsum(wrong, axis=1) - wrong
    wins = (right * (below + wrong / 2)).sum(1)
    pairs = right.sum(1) * wrong.sum(1)
    return np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
