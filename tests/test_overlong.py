"""Completions that are too long: penalised, masked, or as any other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batches import LONGEST, REAL, Batch, advantages_of, batches, close, deviation, grpo, mean
from castctl.methods.overlong import KeepOverlong, MaskOverlong, PenaliseOverlong

ANY = batches() | batches(REAL)
CACHES = st.sampled_from([None, 1, 4, 9])


def plain_penalty(length: int, longest: int, cache: float | None) -> float:
    """0 up to L_max - L_cache, then linearly to -1 at L_max."""
    cache = longest / 4 if cache is None else cache
    begin = longest - cache
    return 0.0 if length <= begin else -(length - begin) / (longest - begin)


@given(st.integers(1, 5000), st.none() | st.integers(1, 5000), st.data())
def test_penalties(longest: int, cache: int | None, data: Any) -> None:
    cache = None if cache is None else min(cache, longest)
    lengths = data.draw(st.lists(st.integers(0, longest), max_size=10))
    penalties = PenaliseOverlong(cache=cache).penalties_R(np.array(lengths, np.int64), longest)
    expected = [plain_penalty(length, longest, cache) for length in lengths]
    np.testing.assert_allclose(penalties, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("cache", "corners"),
    [
        (None, {0: 0.0, 75: 0.0, 76: -0.04, 80: -0.2, 99: -0.96, 100: -1.0, 150: -1.0}),
        (4, {95: 0.0, 96: 0.0, 97: -0.25, 98: -0.5, 100: -1.0}),
        (1, {99: 0.0, 100: -1.0}),
        (100, {0: 0.0, 1: -0.01, 50: -0.5, 100: -1.0}),
    ],
)
def test_corners(cache: int | None, corners: dict[int, float]) -> None:
    penalties = PenaliseOverlong(cache=cache).penalties_R(np.array(list(corners), np.int64), 100)
    np.testing.assert_allclose(penalties, list(corners.values()), atol=1e-12)


def penalised(batch: Batch, cache: int | None) -> list[float]:
    """Rewards with the penalty of their length."""
    pairs = zip(batch.rewards, batch.gaps, strict=True)
    return [r + plain_penalty(len(gap), LONGEST, cache) for r, gap in pairs]


@given(ANY, CACHES)
def test_the_penalty_enters_the_advantage(batch: Batch, cache: int | None) -> None:
    """Of groups that were mixed before it; mean and deviation are of the penalised rewards."""
    rewards = penalised(batch, cache)
    expected = []
    for row, r in enumerate(rewards):
        mates = [rewards[i] for i in batch.mates(row) if not math.isnan(rewards[i])]
        silent = math.isnan(r) or batch.kind(row) != "mixed"
        expected.append(
            0.0 if silent else (r - mean(mates)) / (deviation(mates, "population") + 1e-6)
        )
    result = advantages_of(batch, overlong={"kind": "penalty", "cache": cache})
    np.testing.assert_allclose(result.base_R, expected, rtol=1e-8, atol=1e-9)
    assert (result.masks_N == 1).all()


@given(ANY, CACHES)
def test_group_kinds_are_the_verifiers(batch: Batch, cache: int | None) -> None:
    """A penalty makes no group mixed that was not, and none equal that was."""
    before = batch.groups
    lengths = np.diff(batch.offsets)
    after = PenaliseOverlong(cache=cache).penalised(before, lengths, LONGEST)
    assert list(after.kind_G) == list(before.kind_G)
    assert (after.size_G == before.size_G).all()
    assert (after.known_R == before.known_R).all()
    close(before.rewards_R, [0.0 if math.isnan(r) else r for r in batch.rewards])
    equal = np.array([batch.kind(row) != "mixed" for row in range(len(batch))], np.bool_)
    kept = advantages_of(batch, name="dapo", overlong={"cache": cache})
    assert not kept.base_R[equal].any()
    assert not kept.kept_R[equal].any()


@given(batches(), CACHES)
def test_signed_groups_keep_their_sign(batch: Batch, cache: int | None) -> None:
    result = advantages_of(batch, name="cast", overlong={"kind": "penalty", "cache": cache})
    for row, r in enumerate(batch.rewards):
        sign = {"all_correct": 1.0, "all_wrong": -1.0}.get(batch.kind(row))
        if sign is not None and not math.isnan(r):
            assert result.base_R[row] == sign


def test_a_right_answer_as_long_as_allowed_is_worth_a_wrong_one() -> None:
    long, short = [0.0] * LONGEST, [0.0]
    equal = Batch([1.0, 0.0], [0, 0], [long, short])
    assert not advantages_of(equal, overlong={"kind": "penalty"}).base_R.any()
    assert not advantages_of(
        equal, overlong={"kind": "penalty"}, baseline={"eps": 0.0}
    ).base_R.any()
    worse = Batch([1.0, 1.0, 0.0], [0, 0, 0], [long, short, short])
    close(
        advantages_of(worse, overlong={"kind": "penalty"}, baseline={"kind": "mean"}).base_R,
        [-1 / 3, 2 / 3, -1 / 3],
    )


@given(ANY)
def test_a_cut_completion_is_masked_and_still_compared(batch: Batch) -> None:
    result = advantages_of(batch, overlong={"kind": "mask"})
    masks = [0.0 if len(gap) == LONGEST else 1.0 for gap in batch.gaps]
    assert list(result.masks_N) == batch.per_token(masks)
    close(result.base_R, grpo(batch))
    assert list(result.kept_R) == [not math.isnan(r) for r in batch.rewards]


@given(ANY)
def test_length_is_no_matter_by_default(batch: Batch) -> None:
    lengths, ending = np.diff(batch.offsets), batch.ending
    for kind in (KeepOverlong(), MaskOverlong()):
        assert kind.penalised(batch.groups, lengths, LONGEST).rewards_R.tolist() == (
            batch.groups.rewards_R.tolist()
        )
    for kind in (KeepOverlong(), PenaliseOverlong()):
        assert (kind.masks_R(ending.truncated_R) == 1).all()
