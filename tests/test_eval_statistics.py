"""Statistics of an evaluation, against naive readings of their formulas in float64."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from castctl.recipe.verifier import VerifierSettings
from castctl.stages.evaluate.results import Result
from castctl.stages.evaluate.statistics import (
    FLIPS,
    Estimate,
    detectable_difference,
    difference,
    majority,
    paired_difference,
    pass_at_k,
    problem_share,
    seed_mean,
    sign_flip_p_value,
)
from castctl.stages.evaluate.summary import summarise
from castctl.verify.pool import CheckPool


def summary(samples: list[list[tuple[float, str | None]]], wrong: str = "wrong") -> Result:
    """Of one problem a row, and one (reward, answer) a sample; `wrong` is the verdict on 0."""
    rows = [
        {
            "prompt_id": f"p{p}",
            "reward": reward,
            "extracted": answer,
            "verdict": "correct" if reward else wrong,
        }
        for p, row in enumerate(samples)
        for reward, answer in row
    ]
    with CheckPool(VerifierSettings(workers=1)) as pool:
        return summarise(pa.Table.from_pylist(rows), None, None, len(samples[0]), pool, "task")


# Whole numbers alone, which need no grader; the gold is 0.
SAMPLES = st.integers(1, 4).flatmap(
    lambda k: st.lists(
        st.lists(st.sampled_from([(1.0, "0"), (0.0, "1"), (0.0, "2"), (0.0, None)]),
                 min_size=k, max_size=k),
        min_size=2, max_size=6,
    )
)  # fmt: skip


@given(SAMPLES, st.integers(2, 5))
@settings(max_examples=60)
def test_the_same_samples_again_make_no_interval_smaller(
    samples: list[list[tuple[float, str | None]]], times: int
) -> None:
    once, often = summary(samples), summary([row * times for row in samples])
    for name in ("avg", "maj"):
        assert often[name] == pytest.approx(once[name])
    assert often["pass"]["1"] == pytest.approx(once["pass"]["1"])


def test_many_samples_leave_the_interval_as_wide_as_the_problems_differ() -> None:
    """Half of 10 problems are solved 3 times in 4, half once in 4, each sampled 400 times."""
    rows = [[(1.0, "0")] * hits + [(0.0, "1")] * (400 - hits) for hits in [300, 100] * 5]
    avg = summary(rows)["avg"]
    half = student.ppf(0.975, 9) * np.std([0.75, 0.25] * 5, ddof=1) / math.sqrt(10)
    assert (avg["low"], avg["high"]) == pytest.approx((0.5 - half, 0.5 + half))
    assert half > 0.18


@given(SAMPLES)
@settings(max_examples=40)
def test_every_pass_at_k_is_the_share_of_subsets_with_a_right_one(
    samples: list[list[tuple[float, str | None]]],
) -> None:
    found = summary(samples)["pass"]
    assert list(found) == [str(k) for k in range(1, len(samples[0]) + 1)]
    for k in map(int, found):
        shares = []
        for row in samples:
            subsets = list(itertools.combinations([reward for reward, _ in row], k))
            shares.append(sum(max(subset) for subset in subsets) / len(subsets))
        assert found[str(k)]["mean"] == pytest.approx(np.mean(shares), abs=1e-12)


def test_pass_at_k_of_many_problems_is_each_ones_own() -> None:
    counts = np.array([3, 0, 5, 3, 1])
    expected = [1 - math.comb(5 - c, 2) / math.comb(5, 2) for c in counts]
    assert pass_at_k(counts, 5, 2) == pytest.approx(expected)


@pytest.mark.parametrize(("hits", "problems"), [(0, 30), (30, 30), (7, 30), (1, 2)])
def test_shares_of_right_and_wrong_have_wilsons_interval(hits: int, problems: int) -> None:
    """Wilson (1927): the p for which |hits/n - p| is at most z standard errors under p."""
    found = problem_share(np.array([1.0] * hits + [0.0] * (problems - hits)))
    grid = np.linspace(0, 1, 200_001)
    mean, z = hits / problems, 1.959963984540054
    within = grid[np.abs(mean - grid) <= z * np.sqrt(grid * (1 - grid) / problems) + 1e-12]
    assert found.mean == pytest.approx(mean)
    assert (found.low, found.high) == pytest.approx((within[0], within[-1]), abs=1e-5)
    assert found.high - found.low > 0  # type: ignore[operator]


@pytest.mark.parametrize(
    "values", [[0.0] * 29 + [1 / 64], [0.5] * 30, [0.3] * 7, [1.0, 1.0, 1.0, 0.5]]
)
def test_shares_near_an_end_or_without_spread_have_wilsons_interval_too(
    values: list[float],
) -> None:
    found = problem_share(np.array(values))
    grid = np.linspace(0, 1, 200_001)
    mean, z = np.mean(values), 1.959963984540054
    within = grid[np.abs(mean - grid) <= z * np.sqrt(grid * (1 - grid) / len(values)) + 1e-12]
    assert (found.low, found.high) == pytest.approx((within[0], within[-1]), abs=1e-5)


def test_other_shares_have_students_interval() -> None:
    inner = problem_share(np.array([0.5, 0.5, 0.5, 0.4]))
    assert inner.high == pytest.approx(0.475 + student.ppf(0.975, 3) * 0.05 / 2)
    half = student.ppf(0.975, 3) * np.std([1, 1, 1, 0.5], ddof=1) / 2
    free = problem_share(np.array([2.0, 2.0, 2.0, 1.5]))  # rewards of the user's own scale
    assert free.high == pytest.approx(1.875 + half) and free.high > 2  # type: ignore[operator]
    alone = problem_share(np.array([1.0]))
    assert (alone.mean, alone.low, alone.high) == (1.0, None, None)


# The majority


def classes(texts: set[str], pairs: list[tuple[str, str]]) -> dict[str, frozenset[str]]:
    """The transitive closure of an equivalence, by going round until nothing changes."""
    known = {text: frozenset([text]) for text in texts}
    for _ in texts:
        for a, b in pairs:
            joined = known[a] | known[b]
            known |= dict.fromkeys(joined, joined)
    return known


@given(st.data())
def test_the_majority_is_the_largest_class_whatever_the_order(data: st.DataObject) -> None:
    texts = "abcdef"
    answers = data.draw(st.lists(st.sampled_from([*texts, None]), max_size=9))
    given_ = sorted({answer for answer in answers if answer is not None})
    every = list(itertools.combinations(given_, 2))
    pairs = data.draw(st.lists(st.sampled_from(every), max_size=4)) if every else []
    winners = majority(answers, pairs)
    closure = classes(set(given_), pairs)
    votes = Counter(closure[answer] for answer in answers if answer is not None)
    if not votes:
        assert winners == []
        return
    most = max(votes.values())
    first = next(a for a in answers if a is not None and votes[closure[a]] == most)
    assert winners == [i for i, a in enumerate(answers) if a is not None and a in closure[first]]
    shuffled = data.draw(st.permutations(pairs))
    assert majority(answers, [(b, a) for a, b in shuffled]) == winners


def test_a_chain_of_equivalents_outvotes_the_gold() -> None:
    """0.5, 1/2 and 2/4 are one wrong answer, three against two; of a tie the first one wins."""
    wrong = [(0.0, "0.5"), (0.0, "\\frac{1}{2}"), (0.0, "\\frac{2}{4}")]
    right = [(1.0, "3"), (1.0, "3.0"), (0.0, None)]
    tied = [(1.0, "3"), (0.0, "7"), (0.0, "7"), (1.0, "3.0"), (0.0, None), (0.0, None)]
    assert summary([[*right, *wrong]])["maj"]["mean"] == 0.0
    assert summary([[*wrong[:2], *right, (0.0, "8")]])["maj"]["mean"] == 0.0  # two and two
    assert summary([tied])["maj"]["mean"] == 1.0
    assert summary([tied, [*tied[1:], tied[0]], [(0.0, None)] * 6])["maj"]["mean"] == (
        pytest.approx(1 / 3)
    )


def test_an_answer_that_timed_out_once_goes_with_its_twin() -> None:
    assert summary([[(0.0, "x"), (1.0, "x"), (0.0, "2")]])["maj"]["mean"] == 1.0


def test_answers_whose_check_hung_are_not_compared_with_one_another() -> None:
    """As wrong answers 1/2 and 0.5 outvote the gold; as hanging ones each stands alone."""
    samples = [[(1.0, "3"), (1.0, "3"), (0.0, "\\frac12"), (0.0, "0.5"), (0.0, "\\frac{1}{2}")]]
    assert summary(samples)["maj"]["mean"] == 0.0
    assert summary(samples, "timeout")["maj"]["mean"] == 1.0


# Paired differences


def test_differences_without_spread_have_no_interval() -> None:
    same = paired_difference(np.full(30, 0.1), np.full(30, 0.3))
    assert (same.mean, same.low, same.high) == (pytest.approx(0.2), None, None)
    some = paired_difference(np.zeros(4), np.array([0.0, 0.5, 0.0, 0.5]))
    half = student.ppf(0.975, 3) * np.std([0, 0.5, 0, 0.5], ddof=1) / 2
    assert (some.low, some.high) == pytest.approx((0.25 - half, 0.25 + half))


def test_a_difference_of_shares_stays_within_all_and_nothing() -> None:
    few = paired_difference(np.zeros(2), np.array([0.0, 0.5]))
    assert (few.low, few.high) == (-1, 1)  # Student's is -2.9 to 3.4
    free = paired_difference(np.zeros(2), np.array([0.0, 5.0]))  # rewards of the user's own scale
    assert free.high > 30


def test_rounding_is_no_difference() -> None:
    """0.1 + 0.2 is not 0.3 in float64, and 1/3 in float32 not 1/3."""
    exact = np.array([0.3, 1 / 3, 0.5, 1.0])
    rounded = np.array([0.1 + 0.2, float(np.float32(1 / 3)), 0.5, 1 - 1e-16])
    assert not difference(exact, rounded).any() and not difference(rounded, exact).any()
    same = paired_difference(exact, rounded)
    assert (same.mean, same.low, same.high) == (0.0, None, None)
    moved = np.where(np.arange(4) == 2, 0.75, rounded)
    assert difference(exact, moved).tolist() == [0, 0, 0.25, 0]
    assert sign_flip_p_value(difference(exact, rounded)) == 1.0
    assert detectable_difference(np.array([1e-17, 0.0, -1e-17])) is None
    assert difference(np.array([-12.0]), np.array([-12.0 + 2e-6])) > 0  # of log-probs


# Every interval


@given(st.integers(2, 400), st.sampled_from([0.0, 1.0]))
@settings(max_examples=200, deadline=None)
def test_all_and_nothing_are_exact_ends(problems: int, end: float) -> None:
    """A rounded Wilson interval of 0 began at 3.5e-18, above its own mean."""
    for values in (np.full(problems, end), np.full(problems, abs(end - 1e-16))):
        found = problem_share(values)
        assert found.mean == end and end in (found.low, found.high)
        assert (found.low == 0) == (end == 0) and (found.high == 1) == (end == 1)


@given(st.lists(st.floats(0, 1) | st.sampled_from([0.0, 1.0, 1 + 1e-16, -1e-17]), min_size=2))
@settings(max_examples=300, deadline=None)
def test_an_interval_of_shares_holds_its_mean_within_0_and_1(values: list[float]) -> None:
    found = problem_share(np.array(values))
    assert 0 <= found.low <= found.mean <= found.high <= 1  # type: ignore[operator]
    moved = paired_difference(np.array(values), np.array(values[::-1]))
    assert moved.low is None or -1 <= moved.low <= moved.mean <= moved.high <= 1


def test_a_bound_past_the_mean_is_refused_but_for_rounding() -> None:
    healed = Estimate(0.0, 3.5e-18, 0.038)
    assert (healed.low, healed.high) == (0.0, 0.038)
    assert Estimate(1.0, 0.9, 1 - 1e-16).high == 1.0
    for low, high in ((0.1, 0.2), (-0.2, -0.1), (1e-3, 1.0)):
        with pytest.raises(ValueError, match="does not hold its mean 0"):
            Estimate(0.0, low, high)
    assert Estimate(0.0, None, 0.5).low is None
    assert Estimate(0.5, 0.4, 1.2).within(0, 1) == Estimate(0.5, 0.4, 1)


def test_an_interval_over_seeds_is_students_of_their_means() -> None:
    seeds = np.array([[1.0, 0.5, 0.0], [1.0, 0.5, 0.5], [0.5, 0.5, 0.5]])
    means = [0.5, 2 / 3, 0.5]
    half = student.ppf(0.975, 2) * np.std(means, ddof=1) / math.sqrt(3)
    found = seed_mean(seeds)
    assert (found.mean, found.low, found.high) == pytest.approx(
        (np.mean(means), np.mean(means) - half, np.mean(means) + half)
    )
    wide = seed_mean(seeds[:2])  # two seeds tell little
    assert (wide.low, wide.high) == (0, 1)
    assert seed_mean(seeds[:2] - 0.5, least=-1).low == pytest.approx(
        1 / 12 - student.ppf(0.975, 1) / 12
    )
    assert seed_mean(np.ones((3, 4))) == Estimate(1.0, None, None)


@given(st.lists(st.integers(-4, 4), min_size=2, max_size=10))
@settings(max_examples=60)
def test_the_permutation_test_counts_every_flip_of_signs(eighths: list[int]) -> None:
    sums = [
        abs(sum(sign * d for sign, d in zip(signs, eighths, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(eighths))
    ]
    expected = sum(each >= abs(sum(eighths)) for each in sums) / len(sums)
    assert sign_flip_p_value(np.array(eighths) / 8) == pytest.approx(expected)


def test_a_drawn_p_value_is_near_the_exact_one_and_stays_the_same() -> None:
    """Sixteen problems: 65,536 flips, counted here by the distribution of their sum."""
    eighths = [3, -1, 2, 4, -2, 1, 1, -3, 2, 5, -1, 2, 1, -2, 3, 1]
    ways = Counter({0: 1})
    for d in eighths:
        ways = Counter({s: ways[s - d] + ways[s + d] for s in range(-60, 61)})
    total = abs(sum(eighths))
    exact = sum(n for s, n in ways.items() if abs(s) >= total) / 2 ** len(eighths)
    drawn = sign_flip_p_value(np.array(eighths) / 8)
    assert drawn == sign_flip_p_value(np.array(eighths) / 8)
    assert abs(drawn - exact) < 5 * math.sqrt(exact / FLIPS)
    assert sign_flip_p_value(np.full(200, 0.5)) == pytest.approx(2 / (FLIPS + 1))  # never 0


def test_the_detectable_difference_is_detected_four_times_in_five() -> None:
    """Problems whose differences have that mean and this spread, and a paired t-test."""
    rng = np.random.default_rng(0)
    shape = rng.integers(-4, 5, 40) / 8
    effect = detectable_difference(shape)
    assert effect is not None
    drawn = rng.normal(effect, np.std(shape, ddof=1), (4000, 40))
    ratios = drawn.mean(1) / (drawn.std(1, ddof=1) / math.sqrt(40))
    found = np.mean(np.abs(ratios) > student.ppf(0.975, 39))
    assert 0.77 < found < 0.83
    assert detectable_difference(np.array([0.5, 0.5])) is None
    assert detectable_difference(np.array([0.5])) is None
