"""CAST against a plain reading of its six steps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batches import EARLY, NAN, Batch, advantages_of, batches, close, grpo
from castctl.errors import UserError
from castctl.methods.advantages import Advantages
from castctl.methods.cast import CastShaping
from castctl.methods.schedule import Moment
from castctl.shards.schema import ADVANTAGES, REWARDS
from castctl.stages.measures import Slots, measure_advantages

RANGES = st.tuples(st.floats(0.1, 1), st.floats(1, 3))
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "positive_range": RANGES,
        "negative_range": RANGES,
        "lam": st.floats(0, 1),
        "decay_steps": st.sampled_from([0, 2, 7]),
        "dead_band": st.sampled_from([None, (1.0, 1.0), (0.95, 1.05), (0.5, 3.0)]),
        "flip": st.sampled_from(["both", "correct", "wrong", "none"]),
        "flip_size": st.sampled_from(["kappa", "other_side"]),
        "tau_rms": st.sampled_from([0.0, 0.5, 1.0, 2.0]),
        "tau_floor": st.sampled_from([0.0, 1e-3, 0.1]),
        "tau_nats": st.sampled_from([None, 0.0, 0.01, 1.0]),
        "kappa_correct": st.floats(0, 2),
        "kappa_wrong": st.floats(0, 2),
        "clamp": st.sampled_from([None, 0.5, 1.2]),
    },
).map(
    lambda chosen: {
        name: value
        for name, value in chosen.items()
        if chosen.get("flip_size") != "other_side" or not name.startswith("kappa")
    }
)


def shaped(batch: Batch, zero_variance: str = "signed", **shaping: Any) -> Advantages:
    slots = {"zero_variance": {"kind": zero_variance}, "shaping": shaping}
    return advantages_of(batch, name="cast", **slots)


# The plain reading


def base_of(batch: Batch) -> list[float]:
    signed = {"all_correct": 1.0, "all_wrong": -1.0}
    return [
        0.0 if math.isnan(r) else signed.get(batch.kind(row), b)
        for row, (r, b) in enumerate(zip(batch.rewards, grpo(batch), strict=True))
    ]


def exp(x: float) -> float:
    return math.exp(min(x, 700.0))


def plain_cast(
    batch: Batch,
    positive_range: tuple[float, float] = (0.8, 1.05),
    negative_range: tuple[float, float] = (0.95, 1.2),
    lam: float = 1.0,
    decay_steps: int = 0,
    dead_band: tuple[float, float] | None = None,
    flip: str = "both",
    flip_size: str = "kappa",
    tau_rms: float = 2.0,
    tau_floor: float = 0.5,
    tau_nats: float | None = None,
    kappa_correct: float = 0.5,
    kappa_wrong: float = 0.5,
    clamp: float | None = 1.2,
) -> tuple[list[float], list[float], list[bool]]:
    """Advantage, shaping factor and flip of every token, one token at a time, at `EARLY`."""
    if decay_steps:
        lam *= max(0.0, (decay_steps - EARLY.step) / decay_steps)
    advantages, factors, flips = [], [], []
    for row, base in enumerate(base_of(batch)):
        known = [mate for mate in batch.mates(row) if not math.isnan(batch.rewards[mate])]
        gaps = [g for mate in known for g in batch.gaps[mate] if not math.isnan(g)]
        rms = math.sqrt(math.fsum(g * g for g in gaps) / len(gaps)) if gaps else 0.0
        tau = max(tau_rms * rms, tau_floor) if tau_nats is None else tau_nats
        for g in batch.gaps[row]:
            factor, flipped = 1.0, False
            quiet = dead_band is not None and dead_band[0] <= exp(g) <= dead_band[1]
            if base != 0 and not math.isnan(g) and not quiet:
                low, high = positive_range if base > 0 else negative_range
                w = exp(g if base > 0 else -g)
                w = low if w < low else high if w > high else w
                factor = 1 + lam * (w - 1)
                may = ("both", "correct") if base > 0 else ("both", "wrong")
                flipped = flip in may and (g < -tau if base > 0 else g > tau)
            a = base * factor
            if flipped and flip_size == "kappa":
                a = -kappa_correct * abs(a) if base > 0 else kappa_wrong * abs(a)
            elif flipped and base > 0:
                low, high = max(1.0, negative_range[0]), negative_range[1]
                a = -abs(base) * (1 + lam * (min(max(exp(-g), low), high) - 1))
            elif flipped:
                low, high = max(1.0, positive_range[0]), positive_range[1]
                a = abs(base) * (1 + lam * (min(max(exp(g), low), high) - 1))
            if clamp is not None:
                a = min(max(a, -clamp), clamp)
            advantages.append(a)
            factors.append(factor)
            flips.append(flipped)
    return advantages, factors, flips


# The formula


@given(batches(), SETTINGS)
def test_cast(batch: Batch, settings: dict[str, Any]) -> None:
    result = shaped(batch, **settings)
    advantages, _, flips = plain_cast(batch, **settings)
    close(result.base_R, base_of(batch))
    assert list(result.flipped_N) == flips
    close(result.advantages_N, advantages)
    assert list(result.kept_R) == [not math.isnan(r) for r in batch.rewards]


@pytest.mark.parametrize("lam", [1.0, 0.3, 0.0])
@given(batch=batches())
def test_weights_are_the_factors_applied(lam: float, batch: Batch) -> None:
    _, factors, _ = plain_cast(batch, lam=lam)
    close(shaped(batch, lam=lam).weights_N, factors)


def test_cast_by_hand() -> None:
    """A right and a wrong completion, base +-1 (eps 1e-6), every branch once."""
    batch = Batch([1.0, 0.0], [0, 0], [[0.0, 0.02, 9.0, -0.1, -9.0], [0.0, -0.02, -9.0, 0.02, 9.0]])
    result = shaped(batch, tau_nats=0.5)
    right = [1.0, math.exp(0.02), 1.05, math.exp(-0.1), -0.5 * 0.8]
    wrong = [-1.0, -math.exp(0.02), -1.2, -math.exp(-0.02), 0.5 * 0.95]
    np.testing.assert_allclose(result.advantages_N, right + wrong, rtol=3e-6)
    assert list(result.flipped_N) == [False] * 4 + [True] + [False] * 4 + [True]


@pytest.mark.parametrize("reward", [1.0, 0.0])
def test_the_threshold_is_strict_and_has_a_floor(reward: float) -> None:
    """A hundred tokens, all still but three about the floor; their own tau is far below it."""
    against = -1 if reward else 1
    gap = [against * 0.0009, against * 0.001, against * 0.0011, *[0.0] * 97]
    batch = Batch([reward, reward], [0, 0], [gap, []])
    assert np.flatnonzero(shaped(batch, tau_floor=1e-3).flipped_N).tolist() == [2]
    assert np.flatnonzero(shaped(batch, tau_floor=0.0).flipped_N).tolist() == [0, 1, 2]


@pytest.mark.parametrize("reward", [1.0, 0.0])
def test_tau_zero_flips_by_sign_alone(reward: float) -> None:
    batch = Batch([reward, reward], [0, 0], [[-1e-9, 0.0, 1e-9], []])
    flipped = shaped(batch, tau_nats=0.0).flipped_N
    assert np.flatnonzero(flipped).tolist() == [0 if reward else 2]


def test_a_completion_that_was_not_scored_keeps_its_base() -> None:
    """And does not enter the threshold, which here is 1.0 over what was scored."""
    batch = Batch([1.0, 1.0, 0.0], [0, 0, 0], [[NAN] * 100, [-0.9, 0.1], [-0.1]])
    result = shaped(batch, clamp=None, tau_rms=1.0 / math.sqrt(0.83 / 3))
    assert (result.advantages_N[:100] == result.base_R[0]).all()
    assert (result.weights_N[:100] == 1).all()
    assert not result.flipped_N.any()


@pytest.mark.parametrize("kappa", [False, True])
def test_a_dead_band_silences_weights_and_flips_with_its_ends(kappa: bool) -> None:
    """Gaps whose exponentials are the ends themselves, and just beyond."""
    band = (math.exp(-0.05), math.exp(0.05))
    gaps = [-0.05, 0.0, 0.05, -0.0501, 0.0501]
    size = {} if kappa else {"flip_size": "other_side"}
    batch = Batch([1.0, 0.0], [0, 0], [gaps, gaps])
    result = shaped(batch, tau_nats=0.0, dead_band=band, **size)
    assert np.flatnonzero(result.flipped_N).tolist() == [3, 9]
    assert (result.weights_N[[0, 1, 2, 5, 6, 7]] == 1).all()
    assert (result.weights_N[[3, 4, 8, 9]] != 1).all()
    assert (result.advantages_N[:3] == result.base_R[0]).all()
    assert (result.advantages_N[5:8] == result.base_R[1]).all()


def test_the_signed_bases_may_fade_with_the_shaping() -> None:
    """At step 3 of a decay over 4: a quarter of the base, and of the weight's distance to 1."""
    batch = Batch([1.0, 1.0, 0.0, 0.0], [0, 0, 1, 1], [[0.04, -0.1], [], [0.1, -0.04], []])
    fading = {"kind": "signed", "decay_steps": 4}
    slots = {"shaping": {"decay_steps": 4, "flip_size": "other_side", "tau_nats": 0.0}}
    result = advantages_of(batch, name="cast", zero_variance=fading, **slots)
    assert result.base_R.tolist() == [0.25, 0.25, -0.25, -0.25]
    up, down = 1 + (math.exp(0.04) - 1) / 4, 1 + (math.exp(0.1) - 1) / 4
    half = 1 + (1.05 - 1) / 4
    expected = [0.25 * up, -0.25 * down, 0.25 * half, -0.25 * up]
    np.testing.assert_allclose(result.advantages_N, expected, rtol=1e-12)
    over = advantages_of(batch, Moment(4, 10), name="cast", zero_variance=fading, **slots)
    assert not over.base_R.any() and not over.advantages_N.any()


# What follows from it


@given(batches(), st.floats(0, 1), st.sampled_from([None, 0.5, 1.2]))
def test_by_sign_and_with_unit_size_the_verdict_decides_no_direction(
    batch: Batch, lam: float, clamp: float | None
) -> None:
    """With tau 0, both flips and the other side's sizes sign(A) is sign(g), right or wrong."""
    public = {"tau_nats": 0.0, "flip_size": "other_side", "lam": lam, "clamp": clamp}
    result = shaped(batch, **public)
    gap_N = batch.signals.gap_N
    heard = (np.nan_to_num(gap_N) != 0) & (np.repeat(result.base_R, np.diff(batch.offsets)) != 0)
    assert (np.sign(result.advantages_N) == np.sign(gap_N))[heard].all()


def test_a_direction_that_the_verdict_does_not_decide_is_warned_of() -> None:
    def said(**settings: Any) -> str:
        return " ".join(CastShaping.model_validate(settings).warnings())

    for by_sign in ({"tau_nats": 0.0}, {"tau_rms": 0.0, "tau_floor": 0.0}):
        assert "the verdict decides no direction" in said(**by_sign)
        assert "the verdict decides no direction" in said(**by_sign, flip_size="other_side")
        assert "outside of the dead band" in said(**by_sign, dead_band=(0.9, 1.1))
        for partly in ({"flip": "correct"}, {"flip": "wrong"}, {"kappa_wrong": 0.0}):
            assert "noise included" in said(**by_sign, **partly)
        assert said(**by_sign, flip="none") == ""
    assert said() == said(tau_rms=0.0) == said(tau_floor=0.0) == said(tau_nats=0.1) == ""


@given(batches(), SETTINGS)
def test_without_flips_the_sign_is_the_verifiers(batch: Batch, settings: dict[str, Any]) -> None:
    result = shaped(batch, **{**settings, "flip": "none"})
    lengths = np.diff(batch.offsets)
    assert (np.sign(result.advantages_N) == np.repeat(np.sign(result.base_R), lengths)).all()
    assert not result.flipped_N.any()


@given(batches())
def test_cast_without_its_parts_is_grpo(batch: Batch) -> None:
    neutral = (1.0, 1.0)
    off: dict[str, Any] = {"flip": "none", "clamp": None}
    result = shaped(batch, "zero", positive_range=neutral, negative_range=neutral, **off)
    plain = advantages_of(batch)
    assert (result.advantages_N == plain.advantages_N).all()
    assert (result.base_R == plain.base_R).all()
    off["clamp"] = 1.2
    held = shaped(batch, "zero", positive_range=neutral, negative_range=neutral, **off)
    assert (held.advantages_N == plain.advantages_N.clip(-1.2, 1.2)).all()


@given(batches())
def test_a_teacher_equal_to_the_policy_changes_nothing(batch: Batch) -> None:
    silent = batch.with_gap(0.0)
    result = shaped(silent, clamp=None)
    assert (result.weights_N == 1).all()
    assert not result.flipped_N.any()
    assert (result.advantages_N == np.repeat(result.base_R, np.diff(silent.offsets))).all()


@given(batches(), SETTINGS)
def test_a_mirrored_group_has_mirrored_advantages(batch: Batch, settings: dict[str, Any]) -> None:
    """Base and gap with the other sign, the two sides' settings exchanged."""
    shaping = CastShaping(**settings)
    mirror = CastShaping(
        **{
            **settings,
            "positive_range": shaping.negative_range,
            "negative_range": shaping.positive_range,
            "kappa_correct": shaping.kappa_wrong,
            "kappa_wrong": shaping.kappa_correct,
            "flip": {"correct": "wrong", "wrong": "correct"}.get(shaping.flip, shaping.flip),
            "dead_band": shaping.dead_band and (1 / shaping.dead_band[1], 1 / shaping.dead_band[0]),
        }
    )
    base = np.array(base_of(batch))
    opposite = Batch(batch.rewards, batch.group, [[-g for g in gap] for gap in batch.gaps])
    here = shaping.shape(base, batch.signals, batch.groups, EARLY)
    there = mirror.shape(-base, opposite.signals, batch.groups, EARLY)
    assert (here.advantages_N == -there.advantages_N).all()
    assert (here.weights_N == there.weights_N).all()
    assert (here.flipped_N == there.flipped_N).all()


@given(batches(st.sampled_from([0.0, 1.0, 0.5])))
def test_rewards_other_than_right_and_wrong(batch: Batch) -> None:
    advantages_of(batch)
    if 0.5 not in batch.rewards:
        shaped(batch)
        return
    with pytest.raises(UserError) as refusal:
        shaped(batch)
    assert "\n" not in str(refusal.value)


# A gap of pure noise: what the threshold is for


@pytest.mark.parametrize(
    ("settings", "share", "mean"),
    [
        ({"tau_nats": 0.0, "kappa_correct": 1.0}, (0.49, 0.51), (-0.01, 0.01)),
        ({"tau_rms": 1.0, "tau_floor": 1e-3, "kappa_correct": 1.0}, (0.155, 0.165), (0.68, 0.70)),
        ({"tau_floor": 1e-3}, (0.02, 0.05), (0.96, 0.98)),
        ({}, (-0.1, 1e-9), (0.99, 1.01)),
    ],
)
def test_flips_on_pure_noise(
    settings: dict[str, float], share: tuple[float, float], mean: tuple[float, float]
) -> None:
    """Normal noise as wide as the gap of a snapshot ten steps old, base 1."""
    noise = np.random.default_rng(0).normal(0, 0.004, (2, 100_000))
    result = shaped(Batch([1.0, 1.0], [0, 0], noise.tolist()), **settings)
    assert share[0] < result.flipped_N.mean() < share[1]
    assert mean[0] < result.advantages_N.mean() < mean[1]


# The clamp


def test_the_clamp_takes_the_shaping_of_a_lone_correct_completion() -> None:
    gaps = np.random.default_rng(0).uniform(-0.2, 0.2, (8, 50)).tolist()
    batch = Batch([1.0, *[0.0] * 7], [0] * 8, gaps)
    free, held = shaped(batch, flip="none", clamp=None), shaped(batch, flip="none")
    assert free.base_R[0] == pytest.approx(math.sqrt(7), rel=1e-5)
    assert len(set(free.advantages_N[:50])) > 2
    assert set(held.advantages_N[:50]) == {1.2}
    assert (held.advantages_N[50:] == free.advantages_N[50:]).all()


def removed_share(
    rows: list[dict[str, Any]], rewards: list[float], shaping: CastShaping
) -> list[float]:
    """The measure of rows that leave out what it does not read."""
    keys = [{"prompt_id": row["prompt_id"], "sample": n} for n, row in enumerate(rows)]
    filled = [
        {"group_kind": "", "kept": True, **row, **key} for row, key in zip(rows, keys, strict=True)
    ]
    rewarded = [{**key, "reward": r} for r, key in zip(rewards, keys, strict=True)]
    tables = pa.Table.from_pylist(filled, ADVANTAGES), pa.Table.from_pylist(rewarded, REWARDS)
    measures = measure_advantages(*tables, None, Slots(shaping=shaping))
    shares = measures["clamp_removed_share"]
    assert isinstance(shares, list)
    return shares


def test_nothing_shaped_is_nothing_removed() -> None:
    """With lam 0 the gap shapes no token, whatever the clamp does to the bases."""
    batch = Batch([1.0, 0.0, 0.0, 0.0], [0] * 4, [[0.1, -0.1], [0.1], [-0.1], [0.1]])
    result, bounds = shaped(batch, lam=0.0, flip="none"), batch.offsets
    rows = [
        {
            "prompt_id": "a",
            "base": result.base_R[row],
            "advantages": result.advantages_N[bounds[row] : bounds[row + 1]],
            "weights": result.weights_N[bounds[row] : bounds[row + 1]],
            "flipped": result.flipped_N[bounds[row] : bounds[row + 1]],
        }
        for row in range(4)
    ]
    shares = removed_share(rows, batch.rewards, CastShaping(lam=0.0))
    assert all(math.isnan(share) for share in shares)


def test_share_of_tokens_whose_shaping_the_clamp_removed() -> None:
    # prompt, reward, base, (advantage, weight, flipped) of each token
    completions: list[tuple[str, float, float, list[tuple[float, float, int]]]] = [
        # Removed: 2.1 and 2 are both 1.2. Not shaped. Flipped. Removed.
        ("a", 1.0, 2.0, [(1.2, 1.05, 0), (1.2, 1.0, 0), (-0.8, 0.8, 1), (1.2, 0.8, 0)]),
        ("a", 0.0, -0.5, [(-0.55, 1.1, 0), (-0.5, 1.0, 0)]),
        ("a", 0.0, -0.5, []),
        # Cut short from 1.2075, but still above the base's own 1.15. And not clamped at all.
        ("b", 1.0, 1.15, [(1.2, 1.05, 0)]),
        ("b", 1.0, 1.15, [(0.92, 0.8, 0)]),
        ("b", 0.0, -2.3, [(-1.2, 0.95, 0), (-1.2, 1.2, 0)]),
        # All wrong: 1.2 is reached by shaping.
        ("c", 0.0, -1.0, [(-1.2, 1.2, 0)]),
        ("c", 0.0, -1.0, [(-0.95, 0.95, 0)]),
    ]
    rows = [
        {
            "prompt_id": prompt,
            "base": base,
            "advantages": [a for a, _, _ in tokens],
            "weights": [w for _, w, _ in tokens],
            "flipped": [bool(f) for _, _, f in tokens],
        }
        for prompt, _, base, tokens in completions
    ]
    share = removed_share(rows, [reward for _, reward, _, _ in completions], CastShaping())
    assert share[:3] == pytest.approx([0.0, 2 / 3, 2 / 4])
