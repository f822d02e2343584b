"""OAR's bi-level reshaping against a plain reading, whoever made the scores."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batches import EARLY, NAN, REAL, Batch, advantages_of, batches, close, grpo
from castctl.methods.oar import OarGradient, OarPerturbation
from castctl.methods.shaping import Shaped
from castctl.methods.signals import TokenSignals
from castctl.ragged import offsets_of

ANY = batches() | batches(REAL)
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "threshold": st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9, 1.0]),
        "gain": st.sampled_from([0.0, 1.0, 3.0]),
        "floor": st.sampled_from([0.0, 0.1, 1.0]),
    },
)
SCORES = st.lists(
    st.just(NAN) | st.sampled_from([0.0, -1.0, 0.5, 1e-9, 1e-7]) | st.floats(-2, 50), max_size=12
)


# The plain reading


def quantile(values: list[float], share: float) -> float:
    """Between order statistics, linearly."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    if below + 1 == len(ordered):
        return ordered[below]
    return ordered[below] + (place - below) * (ordered[below + 1] - ordered[below])


def plain_weights(
    scores: list[float], threshold: float = 0.3, gain: float = 1.0, floor: float = 0.1
) -> list[float]:
    """Weights of one completion; NaN is no score."""
    reasoning = [max(s, 0.0) for s in scores if not math.isnan(s)]
    if len(reasoning) < 2 or max(reasoning) - min(reasoning) < 1e-8:
        return [1.0] * len(scores)
    logs = [math.log1p(s) for s in reasoning]
    z = [(value - min(logs)) / (max(logs) - min(logs)) for value in logs]
    q = quantile(z, threshold)
    raw = []
    for value in z:
        if value < q:
            raw.append(max(value / q, floor))
        else:
            raw.append(1.0 if q == 1 else 1 + gain * (value - q) / (1 - q))
    scale = len(raw) / math.fsum(raw)
    scaled = iter([weight * scale for weight in raw])
    return [1.0 if math.isnan(s) else next(scaled) for s in scores]


def weights_of(rows: list[list[float]], **settings: Any) -> np.ndarray:
    flat = np.array([score for row in rows for score in row], float)
    return OarGradient(**settings).weights(flat, offsets_of([len(row) for row in rows]))


@given(st.lists(SCORES, max_size=5), SETTINGS)
def test_weights(rows: list[list[float]], settings: dict[str, Any]) -> None:
    expected = [weight for row in rows for weight in plain_weights(row, **settings)]
    np.testing.assert_allclose(weights_of(rows, **settings), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["oar-p", "oar-g"])
@given(batch=ANY)
def test_advantages(name: str, batch: Batch) -> None:
    result = advantages_of(batch, name=name)
    assert batch.scores is not None
    weights = [weight for row in batch.scores for weight in plain_weights(row)]
    base = grpo(batch)
    expected = [b * w for b, w in zip(batch.per_token(base), weights, strict=True)]
    np.testing.assert_allclose(result.advantages_N, expected, rtol=1e-9, atol=1e-12)
    close(result.base_R, base)


def test_by_hand() -> None:
    """z is 0, 1/2 and 1; the quantile at 0.5 is 1/2."""
    scores = [0.0, math.sqrt(3) - 1, 2.0]
    raw = np.array([0.1, 1.0, 2.0])
    np.testing.assert_allclose(weights_of([scores], threshold=0.5), raw * 3 / raw.sum())
    raw = np.array([1.0, 1.5, 2.0])
    np.testing.assert_allclose(weights_of([scores], threshold=0.0), raw * 3 / raw.sum())
    raw = np.array([0.1, 0.5, 1.0])
    np.testing.assert_allclose(weights_of([scores], threshold=1.0), raw * 3 / raw.sum())
    # Outside the reasoning the weight is 1, and the mass is that of the reasoning.
    raw = np.array([0.1, 1.0, 2.0]) * 3 / 3.1
    mixed = [NAN, *scores[:2], NAN, scores[2]]
    weights = weights_of([mixed], threshold=0.5)
    np.testing.assert_allclose(weights, [1.0, raw[0], raw[1], 1.0, raw[2]])


# What follows from it


@given(st.lists(SCORES, max_size=5), SETTINGS)
def test_the_mass_of_the_advantage_is_kept(
    rows: list[list[float]], settings: dict[str, Any]
) -> None:
    """Weights over the scored tokens of a completion sum to their number; none is negative."""
    weights, offsets = weights_of(rows, **settings), offsets_of([len(row) for row in rows])
    for row, (start, end) in zip(rows, pairwise(offsets), strict=True):
        scored = ~np.isnan(np.array(row, float))
        assert weights[start:end][scored].sum() == pytest.approx(scored.sum())
        assert (weights[start:end][~scored] == 1).all()
    assert (weights >= 0).all()


@given(st.lists(st.floats(0, 50), min_size=2, max_size=12), SETTINGS)
def test_more_influence_is_no_less_weight(scores: list[float], settings: dict[str, Any]) -> None:
    weights = weights_of([scores], **settings)
    ordered = weights[np.argsort(scores, kind="stable")]
    assert (np.diff(ordered) >= -1e-12).all()


@pytest.mark.parametrize(
    "scores",
    [
        [],
        [3.0],
        [NAN, 3.0, NAN],
        [NAN, NAN],
        [0.7] * 5,
        [0.0, 0.0],
        [-3.0, -1.0, 0.0],
        [0.5, 0.5 + 9e-9],
        [1e12, 1e12 + 1e-3],  # further apart than 1e-8, and the same logarithm
    ],
)
def test_scores_that_tell_nothing_apart_leave_every_weight_at_one(scores: list[float]) -> None:
    with np.errstate(all="raise"):
        assert (weights_of([scores]) == 1).all()


def test_just_above_the_spread_that_counts() -> None:
    assert (weights_of([[0.0, 2e-8]]) != 1).all()


@given(ANY)
def test_a_completion_without_an_answer_keeps_its_advantage(batch: Batch) -> None:
    unscored = Batch(batch.rewards, batch.group, batch.gaps, None, batch.with_gap(NAN).gaps)
    result = advantages_of(unscored, name="oar-p")
    assert (result.advantages_N == advantages_of(batch).advantages_N).all()


def test_each_reads_its_own_scores() -> None:
    batch = Batch([1.0, 0.0], [0, 0], [[0.0] * 3, []])
    up, down = np.array([0.0, 1.0, 2.0]), np.array([2.0, 1.0, 0.0])
    signals = TokenSignals(batch.offsets, perturb_N=up, grad_N=down)
    base = np.array([1.0, -1.0])
    for shaping, scores in ((OarPerturbation(), up), (OarGradient(), down)):
        shaped = shaping.shape(base, signals, batch.groups, EARLY)
        np.testing.assert_allclose(shaped.weights_N, plain_weights(list(scores)))


def test_completions_that_kept_uniform_weights_are_counted() -> None:
    rows = [[0.0, 1.0, NAN], [NAN, NAN], [], [2.0, 2.0]]
    batch = Batch([1.0, 0.0, 1.0, 0.0], [0] * 4, [[0.0] * len(row) for row in rows], None, rows)
    result = advantages_of(batch, name="oar-g")
    shaped = Shaped(result.advantages_N, result.weights_N)
    told = OarGradient().measures(result.base_R, shaped, batch.offsets, batch.groups)
    assert told == {"uniform_share": 0.75}
