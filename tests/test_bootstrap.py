"""Intervals over prompts against naive readings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from castctl.diagnosis.bootstrap import (
    auc_interval,
    cluster_numbers,
    estimate,
    interval_of_sums,
    resamples,
)


def _naive_auc(scores: list[float], correct: list[bool]) -> float:
    pairs = [
        1.0 if right > wrong else 0.5 if right == wrong else 0.0
        for right, r in zip(scores, correct, strict=True)
        if r
        for wrong, w in zip(scores, correct, strict=True)
        if not w
    ]
    return sum(pairs) / len(pairs)


def _means(sums: np.ndarray) -> np.ndarray:
    return sums[:, :1] / sums[:, 1:]


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=24).filter(
        lambda rows: len({right for _, right in rows}) == 2
    )
)
def test_the_area_is_the_share_of_pairs_won(rows: list[tuple[int, bool]]) -> None:
    scores, correct = [float(score) for score, _ in rows], [right for _, right in rows]
    found = auc_interval(np.array(scores), np.array(correct), np.arange(len(rows)) // 3, 0, 50)
    assert found is not None and found.mean == pytest.approx(_naive_auc(scores, correct))


def test_replicates_weigh_prompts_as_if_their_completions_were_repeated() -> None:
    """A replicate by weights equals one that lists each drawn prompt's completions anew."""
    rng = np.random.default_rng(1)
    scores, correct = rng.normal(size=30), rng.random(30) < 0.5
    prompts = np.repeat(np.arange(10), 3)
    naive = []
    for chunk in resamples(10, 7, 100):
        for drawn in chunk.astype(int):
            rows = [
                row for p in range(10) for _ in range(drawn[p]) for row in range(3 * p, 3 * p + 3)
            ]
            naive.append(_naive_auc(scores[rows].tolist(), correct[rows].tolist()))
    found = auc_interval(scores, correct, prompts, 7, 100)
    assert found is not None and found.low is not None
    assert [found.low, found.high] == pytest.approx(np.quantile(naive, [0.025, 0.975]).tolist())


def test_one_kind_has_no_area_and_one_prompt_no_interval() -> None:
    scores = np.arange(4.0)
    assert auc_interval(scores, np.ones(4, bool), np.arange(4), 0) is None
    found = auc_interval(scores, np.array([0, 0, 1, 1], bool), np.zeros(4, np.int64), 0)
    assert found is not None and (found.mean, found.low, found.high) == (1.0, None, None)


def test_an_interval_is_widened_to_hold_its_value() -> None:
    """A statistic whose resamples all lie below it, as those of the largest value may."""
    one_sided = estimate(3.0, 1.0, 2.5)
    assert (one_sided.mean, one_sided.low, one_sided.high) == (3.0, 1.0, 3.0)
    assert estimate(float("nan"), 1.0, 2.5).low is None
    sums = np.array([[1.0], [2.0], [3.0]])
    bounds = interval_of_sums(sums, lambda drawn: np.where(drawn == 6, 9.0, drawn), 0, 200)
    found = estimate(*(float(each[0]) for each in bounds))
    assert found.low < found.mean == found.high == 9.0


def test_perfect_separation_of_few_prompts_has_no_bounds() -> None:
    scores, correct = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0, 0, 1, 1], bool)
    found = auc_interval(scores, correct, np.arange(4), 0)
    assert found is not None and (found.mean, found.low, found.high) == (1.0, None, None)


def test_scores_that_are_not_known_do_not_count() -> None:
    scores = np.array([0.0, np.nan, 1.0, np.nan])
    found = auc_interval(scores, np.array([0, 1, 1, 0], bool), np.array([0, 5, 7, 9]), 0)
    assert found is not None and found.mean == 1.0


def test_more_of_the_same_completions_make_no_interval_narrower() -> None:
    rng = np.random.default_rng(0)
    scores, prompts = rng.normal(size=40), np.repeat(np.arange(20), 2)
    correct = scores + rng.normal(size=40) > 0
    one = auc_interval(scores, correct, prompts, 3)
    four = auc_interval(*(np.tile(each, 4) for each in (scores, correct, prompts)), 3)
    assert one == four


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says() -> None:
    """Clustered values: an interval over their tokens would cover less than half of the time."""
    rng = np.random.default_rng(5)
    hits = 0
    for seed in range(200):
        effects = rng.normal(size=40)
        sizes = rng.integers(1, 30, 40)
        sums = np.stack([effects * sizes, sizes], 1).astype(np.float64)
        _, low, high = interval_of_sums(sums, _means, seed, 200)
        hits += bool(low[0] <= 0 <= high[0])
    assert 170 <= hits <= 199


def test_values_are_told_without_bounds_where_one_prompt_or_no_replicate_gives_any() -> None:
    value, low, high = interval_of_sums(np.array([[3.0, 2.0]]), _means, 0)
    assert value[0] == 1.5 and np.isnan([low[0], high[0]]).all()
    with np.errstate(invalid="ignore"):
        value, low, high = interval_of_sums(np.zeros((5, 2)), _means, 0)
    assert np.isnan([value[0], low[0], high[0]]).all()


def test_equal_seeds_draw_equally_and_clusters_are_numbered_in_order() -> None:
    first, second = (np.concatenate(list(resamples(6, 4, 75))) for _ in range(2))
    assert np.array_equal(first, second) and first.shape == (75, 6)
    assert (first.sum(1) == 6).all()
    assert cluster_numbers(["b", "a", "b"]).tolist() == [0, 1, 0]
