"""The baseline corrected by the covariance of reward and confidence, against its definition."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from batches import NAN, REAL, Batch, advantages_of, batches, close, deviation, grpo, mean
from castctl.methods.baselines import GroupBaseline, RccBaseline

SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "reduction": st.sampled_from(["sum", "mean"]),
        "clip": st.booleans(),
        "std": st.sampled_from(["population", "sample"]),
        "eps": st.sampled_from([0.0, 1e-6, 0.5]),
    },
)


def corrected(batch: Batch, **settings: Any) -> NDArray[np.float64]:
    return RccBaseline(**settings).advantages_R(batch.groups, batch.signals)


# The plain reading


def confidence(drifts: list[float], reduction: str = "sum") -> float:
    return math.fsum(drifts) / (max(len(drifts), 1) if reduction == "mean" else 1)


def plain_baseline(batch: Batch, row: int, reduction: str = "sum") -> float:
    """b* of the row's group, before its bounds: mean(r) + 2 Cov(r, d)."""
    assert batch.drifts is not None
    known = [i for i in batch.mates(row) if not math.isnan(batch.rewards[i])]
    r = [batch.rewards[i] for i in known]
    d = [confidence(batch.drifts[i], reduction) for i in known]
    return mean(r) + 2 * mean([(x - mean(r)) * (y - mean(d)) for x, y in zip(r, d, strict=True)])


def plain_rcc(
    batch: Batch,
    reduction: str = "sum",
    clip: bool = True,
    std: str = "population",
    eps: float = 1e-6,
) -> list[float]:
    advantages = []
    for row, r in enumerate(batch.rewards):
        if math.isnan(r) or batch.kind(row) != "mixed":
            advantages.append(0.0)
            continue
        b = plain_baseline(batch, row, reduction)
        if clip:
            b = min(max(b, min(batch.known(row))), max(batch.known(row)))
        advantages.append((r - b) / (deviation(batch.known(row), std) + eps))
    return advantages


@given(batches() | batches(REAL), SETTINGS)
def test_rcc(batch: Batch, settings: dict[str, Any]) -> None:
    close(corrected(batch, **settings), plain_rcc(batch, **settings))


def test_rcc_by_hand() -> None:
    """d is 0.3 and -0.1 (sums), so Cov(r, d) is 0.1 and b* 0.7; without rounding in s."""
    batch = Batch([1.0, 0.0], [0, 0], [[0.0] * 3, [0.0]], [[0.1, 0.3, -0.1], [-0.1]])
    close(corrected(batch, eps=0.0), [0.6, -1.4])
    # By the mean, d is 0.1 and -0.1, Cov 0.05 and b* 0.6.
    close(corrected(batch, eps=0.0, reduction="mean"), [0.8, -1.2])
    # A covariance of 0.3 would bring b* to 1.1; the highest reward bounds it.
    far = replace(batch, drifts=[[0.6], [-0.6]], gaps=[[0.0], [0.0]])
    close(corrected(far, eps=0.0), [0.0, -2.0])
    close(corrected(far, eps=0.0, clip=False), [-0.2, -2.2])


# What follows from it


@given(batches() | batches(REAL))
def test_a_policy_at_its_reference_gives_grpo(batch: Batch) -> None:
    at_reference = replace(batch, drifts=None)
    assert not at_reference.signals.drift_N.any()
    close(corrected(at_reference), grpo(batch))
    plain = GroupBaseline().advantages_R(batch.groups, batch.signals)
    assert (corrected(at_reference) == plain).all()


@given(batches(), st.floats(-5, 5))
def test_only_differences_of_confidence_count(batch: Batch, shift: float) -> None:
    """A drift that every completion of a group shares changes nothing."""
    assert batch.drifts is not None
    longer = [[*row, 0.0] for row in batch.drifts]
    shifted = [[*row, shift] for row in batch.drifts]
    gaps = [[0.0] * len(row) for row in longer]
    before, after = (
        corrected(Batch(batch.rewards, batch.group, gaps, drifts), clip=False)
        for drifts in (longer, shifted)
    )
    np.testing.assert_allclose(after, before, atol=1e-9)


@given(st.lists(st.tuples(REAL, st.floats(-2, 2)), min_size=2, max_size=12))
def test_it_is_the_first_order_of_the_best_baseline(rows: list[tuple[float, float]]) -> None:
    """E[w^2 R] / E[w^2] with w = exp(h d) is b* up to terms in h^2: value and slope at h = 0."""
    rewards, d = [r for r, _ in rows], np.array([d for _, d in rows])

    def best(h: float) -> float:
        w2 = np.exp(2 * h * d)
        return float((w2 * rewards).sum() / w2.sum())

    drifts = [[float(value)] for value in d]
    batch = Batch(rewards, [0] * len(rows), [[0.0]] * len(rows), drifts)
    covariance = RccBaseline().measures(batch.groups, batch.signals)["reward_confidence_cov"]
    if batch.kind(0) == "mixed":
        h = 1e-4
        slope = (best(h) - best(-h)) / (2 * h)
        assert mean(rewards) == pytest.approx(best(0), abs=1e-12)
        assert 2 * covariance == pytest.approx(slope, rel=1e-5, abs=1e-5)


@given(batches())
def test_the_bounds_hold_and_are_told(batch: Batch) -> None:
    """The share of mixed groups whose b* was bounded, and the mean covariance over them."""
    rows = {
        g: plain_baseline(batch, batch.group.index(g))
        for g in set(batch.group)
        if batch.kind(batch.group.index(g)) == "mixed"
    }
    told = RccBaseline().measures(batch.groups, batch.signals)
    if not rows:
        assert math.isnan(told["reward_confidence_cov"])
        assert told["baseline_clipped_share"] == 0
        return
    near = any(abs(b - bound) < 1e-12 for b in rows.values() for bound in (0, 1))
    outside = [not 0 <= b <= 1 for b in rows.values()]
    assert near or told["baseline_clipped_share"] == pytest.approx(mean(outside))
    p = {g: mean(batch.known(batch.group.index(g))) for g in rows}
    covariances = [(b - p[g]) / 2 for g, b in rows.items()]
    assert told["reward_confidence_cov"] == pytest.approx(mean(covariances), abs=1e-9)
    off = RccBaseline(clip=False).measures(batch.groups, batch.signals)
    assert off["baseline_clipped_share"] == 0


@given(batches())
def test_bounded_it_never_turns_the_verifier_round(batch: Batch) -> None:
    """With b* in [0, 1] right answers have no negative advantage and wrong ones no positive."""
    for r, a in zip(batch.rewards, corrected(batch), strict=True):
        assert math.isnan(r) or (a >= 0 if r == 1 else a <= 0)


@given(batches())
def test_a_completion_without_a_reward_does_not_enter_the_covariance(batch: Batch) -> None:
    rewards, group = [*batch.rewards, NAN], [*batch.group, 0]
    assert batch.drifts is not None
    more = Batch(rewards, group, [*batch.gaps, [0.0]], [*batch.drifts, [100.0]])
    close(corrected(more)[:-1], plain_rcc(batch))


def test_the_preset_asks_for_the_reference() -> None:
    batch = Batch([1.0, 0.0], [0, 0], [[0.0], [0.0]], [[0.2], [-0.2]])
    close(advantages_of(batch, name="rcc").advantages_N, plain_rcc(batch))
