"""The completions of one prompt as a group, and what their rewards say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from castctl.ragged import means, sums

KINDS = ("mixed", "all_correct", "all_wrong", "single")

CORRECT = "correct"
"""The reward that verdicts come from; always among several."""


class Weighed(NamedTuple):
    """One reward of several: its weight in their sum, and the groups by it alone."""

    weight: float
    groups: Groups


@dataclass(frozen=True)
class Groups:
    """Reward statistics of `G` groups over `R` completions, in float64.

    Only completions whose reward is known enter a statistic. `kind_G` is decided by
    comparing the largest with the smallest reward, never by a rounded deviation: equal
    rewards are `all_correct` or `all_wrong` by the verdict, and fewer than two known rewards make
    a group `single`. Where the reward is a weighted sum, all this is of the sum, and `parts` has
    each reward by its name.
    """

    of_row: NDArray[np.int64]
    known_R: NDArray[np.bool_]
    rewards_R: NDArray[np.float64]
    size_G: NDArray[np.int64]
    mean_G: NDArray[np.float64]
    kind_G: NDArray[np.str_]
    parts: Mapping[str, Weighed] = field(default_factory=dict)

    @property
    def correctness(self) -> Groups:
        """The groups by correctness alone."""
        return self.parts[CORRECT].groups if self.parts else self

    @property
    def count(self) -> int:
        return len(self.size_G)

    @property
    def kind_R(self) -> NDArray[np.str_]:
        return self.kind_G[self.of_row]

    @property
    def binary(self) -> bool:
        """Whether every known reward is 0 or 1, by correctness and nothing else."""
        rewards = self.rewards_R[self.known_R]
        alone = np.array_equal(rewards, self.correctness.rewards_R[self.known_R])
        return alone and bool(np.isin(rewards, (0.0, 1.0)).all())

    def range_G(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lowest and highest known reward of each group (G); infinities where none is known."""
        return _ranges(self.rewards_R[self.known_R], self.of_row[self.known_R], self.count)

    def with_rewards(self, rewards_R: NDArray[np.float64]) -> Groups:
        """The same groups, of the same kinds, with other rewards (R) where they are known."""
        rewards = np.where(self.known_R, rewards_R, 0.0)
        mean_G = means(rewards[self.known_R], self.of_row[self.known_R], self.count)
        return replace(self, rewards_R=rewards, mean_G=mean_G)

    def std_G(self, ddof: int) -> NDArray[np.float64]:
        """Standard deviation a group: `ddof` 0 population, 1 sample; 0 for a lone completion."""
        known = self.known_R
        deviation = self.rewards_R - self.mean_G[self.of_row]
        squares = sums(deviation[known] ** 2, self.of_row[known], self.count)
        return np.sqrt(squares / np.maximum(self.size_G - ddof, 1))


def group_rewards(
    rewards: NDArray, of_row: NDArray[np.int64], correct: NDArray[np.bool_] | None = None
) -> Groups:
    """Group `rewards` (R, NaN = not known) by `of_row` (R, group numbers from 0).

    `correct` (R) are the verdicts, which part of the credit may fail; any reward above 0 is
    without them.
    """
    rewards = np.asarray(rewards, np.float64)
    count = int(of_row.max()) + 1 if len(of_row) else 0
    known = ~np.isnan(rewards)
    values, owner = rewards[known], of_row[known]
    lowest, highest = _ranges(values, owner, count)
    size = np.bincount(owner, minlength=count)
    right = values > 0 if correct is None else correct[known]
    any_right = np.bincount(owner, right, count) > 0
    kind = np.where(
        size < 2,
        "single",
        np.where(lowest < highest, "mixed", np.where(any_right, "all_correct", "all_wrong")),
    )
    return Groups(
        of_row=of_row,
        known_R=known,
        rewards_R=np.where(known, rewards, 0.0),
        size_G=size,
        mean_G=means(values, owner, count),
        kind_G=kind,
    )


def _ranges(
    values: NDArray[np.float64], owner: NDArray[np.int64], count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest value of each of `count` owners."""
    lowest = np.full(count, np.inf)
    highest = np.full(count, -np.inf)
    np.minimum.at(lowest, owner, values)
    np.maximum.at(highest, owner, values)
    return lowest, highest
