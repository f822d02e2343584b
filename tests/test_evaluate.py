"""Statistics of an evaluation, against closed forms, simulation and cases made by hand."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from castctl.errors import UserError
from castctl.evaluate.results import task_name
from castctl.evaluate.runner import summarise
from castctl.evaluate.statistics import majority, paired_difference, pass_at_k, problem_mean
from castctl.recipe import EvalSettings, VerifierSettings
from castctl.verify.pool import CheckPool


@given(st.integers(1, 9), st.data())
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_correct_one(
    samples: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, samples))
    correct = data.draw(st.integers(0, samples))
    marks = [True] * correct + [False] * (samples - correct)
    subsets = list(combinations(marks, k))
    expected = sum(any(subset) for subset in subsets) / len(subsets)
    assert pass_at_k(np.array([correct]), samples, k)[0] == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_stays_exact_where_binomials_overflow() -> None:
    expected = 1 - math.comb(9_000, 5_000) / math.comb(10_000, 5_000)
    assert pass_at_k(np.array([1_000]), 10_000, 5_000)[0] == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="k must be"):
        pass_at_k(np.array([1]), 4, 5)


def test_the_interval_is_students_over_problems() -> None:
    estimate = problem_mean(np.array([0.0, 0.5, 1.0, 0.5]))
    half = 3.182446305284263 * np.std([0, 0.5, 1, 0.5], ddof=1) / 2
    assert estimate.mean == 0.5
    assert estimate.low == pytest.approx(0.5 - half) and estimate.high == pytest.approx(0.5 + half)
    assert problem_mean(np.array([0.25])).low is None
    paired = paired_difference(np.array([0.1, 0.9, 0.4]), np.array([0.3, 1.1, 0.6]))
    assert paired.low == pytest.approx(0.2) and paired.high == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("problems", "difficulty", "low", "high"),
    [
        (200, (1.0, 2.0), 0.93, 0.97),
        (200, (0.3, 0.7), 0.93, 0.97),
        (30, (1.0, 2.0), 0.93, 0.97),
        (30, (0.3, 0.7), 0.93, 0.97),
        (30, (0.2, 1.8), 0.89, 0.93),  # most problems unsolved: the mean of 30 is skewed
    ],
)
def test_the_interval_covers_the_mean_over_the_population_of_problems(
    problems: int, difficulty: tuple[float, float], low: float, high: float
) -> None:
    """Problems of Beta difficulty, 8 samples each: how many intervals hold the true mean.

    An interval over problems x samples as if they were independent would be too narrow.
    """
    rng = np.random.default_rng(0)
    truth = difficulty[0] / sum(difficulty)
    covered = narrow = 0
    trials = 2000
    for _ in range(trials):
        means = rng.binomial(8, rng.beta(*difficulty, problems)) / 8
        estimate = problem_mean(means)
        assert estimate.low is not None and estimate.high is not None
        covered += estimate.low <= truth <= estimate.high
        half = 1.96 * math.sqrt(estimate.mean * (1 - estimate.mean) / (8 * problems))
        narrow += abs(estimate.mean - truth) <= half
    assert low < covered / trials < high
    assert narrow / trials < 0.85


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (["1", "2", "2"], 1),
        (["1", "2"], 0),  # a tie goes to the answer given first
        ([None, "3", None], 1),
        ([None, None], None),
        (["2", "1/2", "0.5"], 1),  # equivalent answers count as one
        (["7", "7", "1/2", "0.5", "\\frac12"], 2),
    ],
)
def test_majority(answers: list[str | None], winner: int | None) -> None:
    half = {"1/2", "0.5", "\\frac12"}
    assert majority(answers, lambda a, b: a in half and b in half) == winner


def _tables(rewards: list[list[float | None]], answers: list[list[str | None]]) -> list[pa.Table]:
    rows = [
        {"prompt_id": f"p{p}", "sample": s, "reward": reward, "extracted": answers[p][s]}
        for p, samples in enumerate(rewards)
        for s, reward in enumerate(samples)
    ]
    rollouts = pa.table(
        {
            "completion_token_ids": [[1] * (1 + r["sample"]) for r in rows],
            "finish_reason": ["length" if r["sample"] == 0 else "stop" for r in rows],
        }
    )
    return [rollouts, pa.Table.from_pylist(rows)]


def test_a_summary_by_hand() -> None:
    rewards = [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 1.0]]
    answers = [["1", "0.50", "1/2", None], ["2", "2.0", "3", "2"]]
    with CheckPool(VerifierSettings(workers=1)) as pool:
        result = summarise(*_tables(rewards, answers), EvalSettings(k=4), pool)
    assert result["avg"]["mean"] == 0.5
    assert result["pass"]["1"]["mean"] == 0.5 and result["pass"]["4"]["mean"] == 1.0
    assert result["pass"]["2"]["mean"] == pytest.approx((0.5 + 1.0) / 2)
    assert result["maj"]["mean"] == 0.5  # one half outvotes the gold of the first problem
    assert result["truncated_share"] == 0.25 and result["length_mean"] == 2.5
    assert result["by_problem"] == {"p0": 0.25, "p1": 0.75}


@pytest.mark.parametrize("broken", [[[1.0, None], [0.0, 1.0]], [[1.0], [0.0, 1.0]]])
def test_fewer_samples_than_k_are_no_result(broken: list[list[float | None]]) -> None:
    answers = [["1"] * len(samples) for samples in broken]
    with (
        CheckPool(VerifierSettings(workers=1)) as pool,
        pytest.raises(UserError, match="there is no avg@2"),
    ):
        summarise(*_tables(broken, answers), EvalSettings(k=2), pool)


def test_a_task_names_its_folder() -> None:
    assert task_name("aime24") == "aime24"
    assert task_name("some/where/my.jsonl") == "my"
    assert task_name("owner/data") == "owner--data"
