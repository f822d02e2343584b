"""Group kinds and base advantages, against a plain reading of their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from batches import NAN, REAL, Batch, advantages_of, batches, close, deviation, grpo, mean
from castctl.errors import UserError
from castctl.methods.baselines import BatchBaseline, GroupBaseline, NoBaseline, ratio_margin
from castctl.methods.groups import Groups, group_rewards
from castctl.methods.signals import TokenSignals
from castctl.methods.zero_variance import DropAndResample, SignedBase, ZeroBase


def compared(groups: Groups, **settings: object) -> NDArray[np.float64]:
    """Advantages of the group baseline, which reads no signal."""
    unread = TokenSignals(np.zeros(len(groups.of_row) + 1, np.int64))
    return GroupBaseline.model_validate(settings).advantages_R(groups, unread)


# Group kinds


@given(batches() | batches(REAL))
def test_kinds(batch: Batch) -> None:
    groups = batch.groups
    for row, r in enumerate(batch.rewards):
        assert groups.kind_R[row] == batch.kind(row)
        assert groups.known_R[row] == (not math.isnan(r))
        assert groups.size_G[batch.group[row]] == len(batch.known(row))
    assert groups.count == len(set(batch.group))
    assert groups.binary == all(r in (0, 1) for r in batch.rewards if not math.isnan(r))


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([1.0], "single"),
        ([0.0], "single"),
        ([NAN], "single"),
        ([NAN, 1.0, NAN], "single"),
        ([1.0, NAN, 1.0], "all_correct"),
        ([0.0, 0.0, NAN], "all_wrong"),
        ([1.0, NAN, 0.0], "mixed"),
        ([0.0, -0.0], "all_wrong"),
    ],
)
def test_kind_of(rewards: list[float], expected: str) -> None:
    assert group_rewards(np.array(rewards), np.zeros(len(rewards), np.int64)).kind_G == [expected]


@pytest.mark.parametrize("form", ["mean_std", "mean", "leave_one_out"])
@pytest.mark.parametrize("std", ["population", "sample"])
def test_equal_rewards_have_no_variance_however_they_round(form: str, std: str) -> None:
    rewards = np.full(7, 0.1 + 0.2)
    assert np.std(rewards) > 0, "what a comparison of the deviation with zero would trip over"
    groups = group_rewards(rewards, np.zeros(7, np.int64))
    assert list(groups.kind_G) == ["all_correct"]
    assert not compared(groups, kind=form, std=std, eps=0.0).any()


def test_equal_parts_of_the_credit_are_what_the_verdict_says() -> None:
    rewards, one = np.array([0.1, 0.1]), np.zeros(2, np.int64)
    for correct, kind in ((False, "all_wrong"), (True, "all_correct")):
        assert group_rewards(rewards, one, np.array([correct] * 2)).kind_G == [kind]


def test_rewards_that_nearly_agree_are_mixed() -> None:
    groups = group_rewards(np.array([0.3, 0.1 + 0.2]), np.zeros(2, np.int64))
    assert list(groups.kind_G) == ["mixed"]


# Baselines


@given(
    batches() | batches(REAL),
    st.sampled_from(["mean_std", "mean", "leave_one_out"]),
    st.sampled_from(["population", "sample"]),
    st.sampled_from([0.0, 1e-6, 0.5]),
)
def test_baselines(batch: Batch, form: str, std: str, eps: float) -> None:
    base = compared(batch.groups, kind=form, std=std, eps=eps)
    close(base, grpo(batch, form, std, eps))


@given(st.integers(1, 40), st.integers(1, 40))
def test_binary_rewards_give_the_odds(right: int, wrong: int) -> None:
    rewards = np.repeat([1.0, 0.0], [right, wrong])
    groups = group_rewards(rewards, np.zeros(len(rewards), np.int64))
    base = compared(groups, eps=0.0)
    plus, minus = math.sqrt(wrong / right), -math.sqrt(right / wrong)
    np.testing.assert_allclose(base, [plus] * right + [minus] * wrong, rtol=1e-12)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_weighted_ratios_are_the_margin(right: int, wrong: int, seed: int) -> None:
    """mean(A rho) = sqrt(p (1 - p)) (mean rho of the correct - mean rho of the wrong)."""
    rewards = np.repeat([1.0, 0.0], [right, wrong])
    groups = group_rewards(rewards, np.zeros(right + wrong, np.int64))
    base = compared(groups, eps=0.0)
    ratio = np.random.default_rng(seed).lognormal(size=right + wrong)
    p = right / (right + wrong)
    margin = math.sqrt(p * (1 - p)) * (ratio[:right].mean() - ratio[right:].mean())
    assert np.mean(base * ratio) == pytest.approx(margin, rel=1e-9, abs=1e-12)
    assert ratio_margin(groups, ratio) == pytest.approx(margin, rel=1e-9, abs=1e-12)


@given(batches() | batches(st.floats(0, 3)), st.sampled_from([0.0, 1e-6, 0.5]))
def test_maxrl_divides_by_the_mean(batch: Batch, eps: float) -> None:
    close(compared(batch.groups, kind="maxrl", eps=eps), grpo(batch, "maxrl", eps=eps))


@given(st.integers(1, 40), st.integers(1, 40))
def test_maxrl_is_the_gradient_of_the_truncated_likelihood(right: int, wrong: int) -> None:
    """(1/K) sum of the right ones' scores minus the mean of all scores, K of N being right
    (MaxRL, arXiv 2602.02710, algorithm 1)."""
    rewards = np.repeat([1.0, 0.0], [right, wrong])
    base = compared(group_rewards(rewards, np.zeros(len(rewards), np.int64)), kind="maxrl", eps=0.0)
    scores = np.random.default_rng(right * 100 + wrong).normal(size=len(rewards))
    expected = scores[:right].sum() / right - scores.mean()
    assert np.mean(base * scores) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_maxrl_refuses_rewards_below_0() -> None:
    groups = group_rewards(np.array([-1.0, 1.0]), np.zeros(2, np.int64))
    with pytest.raises(UserError, match="below 0; set method"):
        compared(groups, kind="maxrl")


@given(
    batches() | batches(REAL),
    st.sampled_from(["centred", "rewards"]),
    st.sampled_from(["population", "sample"]),
    st.sampled_from([0.0, 1e-6, 0.5]),
)
def test_one_deviation_for_the_step(batch: Batch, of: str, std: str, eps: float) -> None:
    """(r - p) / (s + eps), s over every known reward, or over each less its group's mean."""
    settings = {"of": of, "std": std, "eps": eps}
    made = BatchBaseline.model_validate(settings)
    known = [row for row, r in enumerate(batch.rewards) if not math.isnan(r)]
    centre = {row: batch.rewards[row] - mean(batch.known(row)) for row in known}
    values = [centre[row] if of == "centred" else batch.rewards[row] for row in known]
    least = 1 + (std == "sample")
    s = deviation(values, std) if len(values) >= least else 0.0
    expected = [
        centre[row] / (s + eps) if batch.kind(row) == "mixed" and row in centre else 0.0
        for row in range(len(batch))
    ]
    close(made.advantages_R(batch.groups, batch.signals), expected)
    assert made.measures(batch.groups, batch.signals)["batch_std"] == pytest.approx(s, abs=1e-12)


@given(batches() | batches(REAL))
def test_baselines_sum_to_zero_over_a_mixed_group(batch: Batch) -> None:
    for form in ("mean_std", "mean", "leave_one_out"):
        base = compared(batch.groups, kind=form)
        np.testing.assert_allclose(np.bincount(batch.group, base), 0, atol=1e-9)


# Zero-variance groups


@given(batches(), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 1.0, 2.0]))
def test_zero_variance_groups(batch: Batch, b_correct: float, b_wrong: float) -> None:
    base = np.array(grpo(batch))
    filled = SignedBase(b_correct=b_correct, b_wrong=b_wrong).fill_R(base.copy(), batch.groups)
    expected = []
    for row, r in enumerate(batch.rewards):
        signed = {"all_correct": b_correct, "all_wrong": -b_wrong}
        signal = signed.get(batch.kind(row), base[row])
        expected.append(0.0 if math.isnan(r) else signal)
    close(filled, expected)
    assert (ZeroBase().fill_R(base, batch.groups) == base).all()


@given(batches(), st.sampled_from([0.0, 0.1, 2.0]))
def test_entropies_size_the_verifier_s_sign(batch: Batch, alpha: float) -> None:
    """RL-ZVP's equation 5, token by token: alpha H, or -alpha (the completion's max H - H)."""
    made = advantages_of(
        batch, zero_variance={"kind": "entropy", "alpha": alpha}, baseline={"kind": "mean"}
    )
    others, expected = grpo(batch, "mean"), []
    for row, drifts in enumerate(batch.drifts or [[]] * len(batch)):
        kind = "unknown" if math.isnan(batch.rewards[row]) else batch.kind(row)
        entropies = [abs(drift) for drift in drifts]
        for entropy in entropies:
            sized = {"all_correct": alpha * entropy, "all_wrong": -alpha * max(entropies)}
            value = sized.get(kind, others[row])
            expected.append(value + alpha * entropy if kind == "all_wrong" else value)
    close(made.advantages_N, expected)
    assert made.weights_N is not None
    spread = np.repeat(made.base_R, np.diff(batch.offsets))
    close(spread * made.weights_N, expected)
    assert (made.kept_R == batch.groups.known_R).all()


@given(batches() | batches(REAL), st.integers(1, 20))
def test_what_is_dropped_and_resampled(batch: Batch, rounds: int) -> None:
    """Only what teaches is kept; the rest has no advantage either, and no group changes."""
    resample = DropAndResample(max_rounds=rounds)
    base, groups = np.array(grpo(batch)), batch.groups
    expected = [
        not math.isnan(r) and batch.kind(row) == "mixed" for row, r in enumerate(batch.rewards)
    ]
    assert list(resample.keeps_R(groups)) == expected
    assert (resample.fill_R(base, groups) == base).all()
    assert (resample.rounds, ZeroBase().rounds, SignedBase().rounds) == (rounds, 1, 1)
    for keeper in (ZeroBase(), SignedBase()):
        assert list(keeper.keeps_R(groups)) == [not math.isnan(r) for r in batch.rewards]


@given(batches() | batches(REAL))
def test_without_a_baseline_no_reward_teaches(batch: Batch) -> None:
    close(NoBaseline().advantages_R(batch.groups, batch.signals), [0.0] * len(batch))
