"""Sums by prompt over many steps, and ratios of them with intervals over prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from castctl.stages.evaluate.statistics import Estimate, problem_mean, problem_share, student

Floats = NDArray[np.float64]
Ints = NDArray[np.integer]
Told = dict[str, float | None]
"""An estimate as a diagnosis holds it: `mean`, `low` and `high`."""

ROUNDING = 1e-12
"""Of the size of float64 numbers that were added or subtracted: what is left below it is none."""

FEWEST_STEPS = 5
"""With fewer a line through steps says nothing."""


class PromptSums:
    """Named sums of values by prompt (P) and bin (K), over all that is added.

    A prompt keeps its number from step to step, so that one seen twice is one cluster.
    """

    def __init__(self, prompts: dict[str, int] | None = None) -> None:
        self._prompts = {} if prompts is None else prompts
        self._sums: dict[str, Floats] = {}

    def fresh(self) -> PromptSums:
        """No sums yet, of the same prompts."""
        return PromptSums(self._prompts)

    @property
    def prompts(self) -> int:
        """How many prompts have been named."""
        return len(self._prompts)

    def numbers(self, prompt_ids: list[str]) -> NDArray[np.int64]:
        """The number of each prompt named (V), from 0."""
        known = self._prompts
        return np.array([known.setdefault(name, len(known)) for name in prompt_ids], np.int64)

    def add(
        self, name: str, prompt_V: Ints, values_V: NDArray | None = None,
        bin_V: Ints | None = None, bins: int = 1,
    ) -> None:  # fmt: skip
        """Add values (V), 1 each where none are given, to the sums of their prompts and bins."""
        key = prompt_V if bin_V is None else prompt_V * bins + bin_V
        weights = None if values_V is None else np.asarray(values_V, np.float64)
        flat = np.bincount(key, weights, minlength=self.prompts * bins).astype(np.float64)
        self._accumulate(name, flat.reshape(-1, bins))

    def merge(self, other: PromptSums) -> None:
        """Add all sums of another, which has the same prompts."""
        for name, sums_PK in other._sums.items():
            self._accumulate(name, sums_PK)

    def _accumulate(self, name: str, sums_PK: Floats) -> None:
        old = self._sums.get(name, np.zeros((0, 1)))
        shape = np.maximum(old.shape, sums_PK.shape)
        total = np.zeros(shape)
        total[: old.shape[0], : old.shape[1]] = old
        total[: sums_PK.shape[0], : sums_PK.shape[1]] += sums_PK
        self._sums[name] = total

    def of(self, name: str) -> Floats:
        """The sums of a name (P, K); no rows where nothing was added."""
        return self._sums.get(name, np.zeros((0, 1)))

    def total(self, name: str) -> float:
        """The sum over prompts and bins."""
        return float(self.of(name).sum())

    def table(self, *names: str) -> Floats:
        """Sums of several names without bins, side by side (P, len(names))."""
        columns = [self._padded(self.of(name), self.prompts, 1)[:, 0] for name in names]
        return np.stack(columns, 1)

    def share(self, above: str, below: str) -> Told | None:
        """`ratio_over_prompts` of two names, of which the first counts part of the second."""
        return self.shares(above, below)[0]

    def ratio(
        self, above: str, below: str, least: float = -math.inf, most: float = math.inf
    ) -> Told | None:
        """`ratio_over_prompts` of two names."""
        return self.ratios(above, below, least, most)[0]

    def shares(self, above: str, below: str) -> list[Told | None]:
        """`share`, bin by bin (K)."""
        return self._bins(above, below, share=True)

    def ratios(
        self, above: str, below: str, least: float = -math.inf, most: float = math.inf
    ) -> list[Told | None]:
        """`ratio`, bin by bin (K)."""
        return self._bins(above, below, least=least, most=most)

    def _bins(self, above: str, below: str, **bounds: Any) -> list[Told | None]:
        bins = max(self.of(above).shape[1], self.of(below).shape[1])
        rows = self.prompts
        tops, bottoms = (self._padded(self.of(name), rows, bins) for name in (above, below))
        return [ratio_over_prompts(tops[:, k], bottoms[:, k], **bounds) for k in range(bins)]

    @staticmethod
    def _padded(sums_PK: Floats, rows: int, bins: int) -> Floats:
        padding = ((0, rows - len(sums_PK)), (0, bins - sums_PK.shape[1]))
        return np.pad(sums_PK, padding)


def ratio_over_prompts(
    above_P: Floats, below_P: Floats, *, share: bool = False,
    least: float = -math.inf, most: float = math.inf,
) -> Told | None:  # fmt: skip
    """Sum of `above_P` over sum of `below_P`, with a 95 % interval over prompts (P).

    The interval is that of the mean over prompts of the linearised ratio (Cochran, Sampling
    Techniques, 1977, chapter 6): R + (a_p - R b_p) / mean(b), within `least` and `most`, what such
    a ratio can be; of a `share` 0 and 1.
    Without a difference between prompts there is no interval, but for a share of which each prompt
    counts alike: there it is Wilson's. None where nothing is below.
    """
    there = below_P > 0
    if not there.any():
        return None
    above, below = above_P[there], below_P[there]
    total = above.sum()
    size = np.abs(above).sum()
    if np.isfinite(size) and abs(total) <= ROUNDING * size:  # what cancels leaves rounding behind
        total = 0.0
    ratio = float(total / below.sum())
    if not np.isfinite(ratio):
        return asdict(Estimate(ratio, None, None))
    even = (below == below[0]).all()  # then it is a plain mean, and 0 and 1 stay what they are
    linear_P = above / below if even else ratio + (above - ratio * below) / below.mean()
    if share and even:
        return asdict(problem_share(linear_P))
    if np.ptp(linear_P) <= ROUNDING * np.abs(linear_P).max():
        return asdict(Estimate(ratio, None, None))
    found = problem_mean(linear_P)  # its mean is the ratio, but for rounding
    found = Estimate(ratio, found.low, found.high)
    return asdict(found.within(0, 1) if share else found.within(least, most))


def trend(steps: Sequence[int], told: Sequence[Told | None]) -> Told | None:
    """Change of an estimate a step, by least squares over the steps that have one, each an
    observation of its own, with Student's 95 % interval; None with fewer than `FEWEST_STEPS`.

    Without a difference between steps there is no interval.
    """
    from scipy import stats  # as in `student`

    known = [(step, each["mean"]) for step, each in zip(steps, told, strict=True) if each]
    if len(known) < FEWEST_STEPS or len({step for step, _ in known}) < 2:
        return None
    at, means = np.array(known, np.float64).T
    if np.ptp(means) <= ROUNDING * np.abs(means).max():
        return asdict(Estimate(0.0, None, None))
    fit = stats.linregress(at, means)
    return asdict(student(float(fit.slope), float(fit.stderr), len(known) - 2))


def tenths(position_V: Floats) -> NDArray[np.int64]:
    """The tenth (0 to 9) in which each relative position (V, 0 to 1) lies."""
    return np.minimum((position_V * 10).astype(np.int64), 9)


def quantiles_of(values: NDArray, levels: tuple[float, ...]) -> dict[str, float]:
    """Quantiles by level, as text; nothing of nothing."""
    if not len(values):
        return {}
    found = np.quantile(values, levels)
    return {f"{level:g}": float(value) for level, value in zip(levels, found, strict=True)}


def histogram_of(values: NDArray, low: float, high: float, bins: int) -> dict[str, Any]:
    """Counts in equal bins from `low` to `high`; what lies outside is counted in the outer ones."""
    counts, edges = np.histogram(np.clip(values, low, high), bins, (low, high))
    return {"edges": edges.tolist(), "counts": counts.tolist()}
