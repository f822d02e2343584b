"""Completions as tests draw them, and the plain reading of groups and GRPO's advantages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from castctl.methods import MethodSettings
from castctl.methods.advantages import Advantages, Ending, compute_advantages
from castctl.methods.groups import Groups, group_rewards
from castctl.methods.schedule import Moment
from castctl.methods.signals import TokenSignals
from castctl.ragged import offsets_of

NAN = math.nan
LONGEST = 9
"""Tokens of the longest completion that is drawn."""

EARLY = Moment(3, 10)
"""Step 3 of 10."""

Rows = list[list[float]]


@dataclass(frozen=True)
class Batch:
    """Completions in any order: reward (NaN = unknown), group, and a list of values a token: the
    gap, the drift l_old - l_ref, whose size is the entropy and minus l_old too, and a score of
    influence. What is left out is all 0."""

    rewards: list[float]
    group: list[int]
    gaps: Rows
    drifts: Rows | None = None
    scores: Rows | None = None

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def groups(self) -> Groups:
        return group_rewards(np.array(self.rewards), np.array(self.group, np.int64))

    @property
    def offsets(self) -> NDArray[np.int64]:
        return offsets_of([len(gap) for gap in self.gaps])

    @property
    def signals(self) -> TokenSignals:
        gap, scores = self._flat(self.gaps), self._flat(self.scores)
        drifts, count = self._flat(self.drifts), int(self.offsets[-1])
        draws = np.random.default_rng(count).integers(2**63, size=count).astype(np.uint64)
        return TokenSignals(
            self.offsets, gap, drifts, scores, scores, np.abs(drifts), -np.abs(drifts), draws
        )

    @property
    def ending(self) -> Ending:
        """Completions of the longest length were cut."""
        return Ending(np.array([len(gap) == LONGEST for gap in self.gaps], np.bool_), LONGEST)

    def _flat(self, rows: Rows | None) -> NDArray[np.float64]:
        if rows is None:
            return np.zeros(int(self.offsets[-1]))
        return np.array([value for row in rows for value in row], float)

    def mates(self, row: int) -> list[int]:
        """The rows of this row's group, itself among them."""
        return [other for other in range(len(self)) if self.group[other] == self.group[row]]

    def known(self, row: int) -> list[float]:
        """The known rewards of this row's group."""
        return [self.rewards[i] for i in self.mates(row) if not math.isnan(self.rewards[i])]

    def kind(self, row: int) -> str:
        return kind(self.known(row))

    def with_gap(self, gap: float) -> Batch:
        """The same with this gap at every token."""
        return replace(self, gaps=[[gap] * len(row) for row in self.gaps])

    def take(self, rows: Sequence[int]) -> Batch:
        """A batch of the chosen rows, in that order, with groups numbered afresh."""
        numbers = {group: n for n, group in enumerate(sorted({self.group[i] for i in rows}))}

        def chosen(values: Rows | None) -> Rows | None:
            return None if values is None else [values[i] for i in rows]

        return Batch(
            [self.rewards[i] for i in rows],
            [numbers[self.group[i]] for i in rows],
            [self.gaps[i] for i in rows],
            chosen(self.drifts),
            chosen(self.scores),
        )

    def per_token(self, values_R: Sequence[float]) -> list[float]:
        """A value of each completion, repeated over its tokens."""
        return [v for v, gap in zip(values_R, self.gaps, strict=True) for _ in gap]


BINARY = st.sampled_from([0.0, 1.0])
REAL = st.floats(-3, 3).map(lambda reward: round(reward, 3))


@st.composite
def batches(draw: st.DrawFn, reward: st.SearchStrategy[float] = BINARY) -> Batch:
    """Groups of every kind and of one to eight rows, interleaved; zero to nine tokens a row.

    Some rewards are unknown, some rows have no gap (NaN), some no score, some tokens neither.
    Gaps run from far below to far above the ranges of the weights, with thin and heavy tails.
    """
    rows: list[tuple[float, int, list[float], list[float], list[float]]] = []
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    for number in range(draw(st.integers(1, 4))):
        rewards = draw(st.lists(reward, min_size=1, max_size=8))
        if draw(st.integers(0, 2)) == 2:
            rewards = rewards[:1] * len(rewards)
        scale, power = random.choice([1e-5, 1e-3, 0.03, 0.3, 3.0]), random.choice([1, 3])
        drift = random.choice([0.0, 1e-3, 0.3, 3.0])
        for value in rewards:
            known, heard, scored = random.random(3) < 0.85
            size = random.choice([0, 1, 1, 2, 5, LONGEST])
            gaps = random.normal(size=size) ** power * (scale if heard else NAN)
            scores = random.normal(0.5, 1, size) ** power * (scale if scored else NAN)
            for values in (gaps, scores):
                values[random.random(size) < 0.1] = NAN
            drifts = random.normal(0, drift, size)
            rows.append((value if known else NAN, number, list(gaps), list(drifts), list(scores)))
    order = draw(st.permutations(rows))
    return Batch(*(list(column) for column in zip(*order, strict=True)))


def method(**slots: Any) -> MethodSettings:
    return MethodSettings.model_validate(slots)


def advantages_of(batch: Batch, moment: Moment = EARLY, **slots: Any) -> Advantages:
    """What a method makes of a batch."""
    return compute_advantages(method(**slots), batch.groups, batch.signals, moment, batch.ending)


# The plain reading


def kind(known: list[float]) -> str:
    if len(known) < 2:
        return "single"
    if max(known) == min(known):
        return "all_correct" if known[0] > 0 else "all_wrong"
    return "mixed"


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def deviation(known: list[float], std: str) -> float:
    p = mean(known)
    squares = math.fsum((r - p) ** 2 for r in known)
    return math.sqrt(squares / (len(known) - (1 if std == "sample" else 0)))


def grpo(
    batch: Batch, form: str = "mean_std", std: str = "population", eps: float = 1e-6
) -> list[float]:
    """Base advantage of each row, zero-variance groups at 0."""
    base = []
    for row, r in enumerate(batch.rewards):
        known = batch.known(row)
        if math.isnan(r) or kind(known) != "mixed":
            base.append(0.0)
        elif form == "mean_std":
            base.append((r - mean(known)) / (deviation(known, std) + eps))
        elif form == "mean":
            base.append(r - mean(known))
        elif form == "maxrl":
            base.append((r - mean(known)) / (mean(known) + eps))
        else:
            base.append(r - (math.fsum(known) - r) / (len(known) - 1))
    return base


def close(actual: Any, expected: Sequence[float]) -> None:
    assert np.asarray(actual).dtype == np.float64
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-12)
