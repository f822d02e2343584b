"""Token masks, against a plain reading of their papers; their draws; and a shaped step."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batches import LONGEST, Batch, advantages_of, batches, mean
from castctl.errors import UserError
from castctl.methods.surrogate import token_scales
from castctl.progress import Silent
from castctl.runs.run import create_run
from castctl.shards.columns import nullable_floats, ragged_column
from castctl.stages.draws import token_draws
from castctl.stages.measures import measure_step
from castctl.stages.one_step import rollout_stage, score_stage
from castctl.stages.policies import policy_at
from castctl.stages.shape import shape_step
from runs import small_recipe

OVERLONG = st.sampled_from(["none", "mask"])
DROPPED = st.sampled_from(["zero", "resample"])


def counted(batch: Batch, overlong: str, dropped: str) -> list[bool]:
    """Which tokens may pull on the policy."""
    rows = [
        not math.isnan(r)
        and not (overlong == "mask" and len(batch.gaps[row]) == LONGEST)
        and not (dropped == "resample" and batch.kind(row) != "mixed")
        for row, r in enumerate(batch.rewards)
    ]
    return [bool(each) for each in batch.per_token([float(row) for row in rows])]


@given(batches(), st.sampled_from([0.01, 0.2, 0.5, 1.0]), OVERLONG, DROPPED)
def test_the_tokens_of_highest_entropy(
    batch: Batch, share: float, overlong: str, dropped: str
) -> None:
    """H >= tau, tau the quantile 1 - share of the step; and their mean in the place of all's."""
    slots = {"overlong": {"kind": overlong}, "zero_variance": {"kind": dropped}}
    mask = {"kind": "high_entropy", "share": share, "mean_over": "all"}
    made = advantages_of(batch, token_mask=mask, **slots)
    plain = advantages_of(batch, **slots)
    entropies = [abs(drift) for row in batch.drifts or [] for drift in row]
    counts = counted(batch, overlong, dropped)
    among = sorted(h for h, counts_ in zip(entropies, counts, strict=True) if counts_)
    expected = list(plain.masks_N)
    if among:
        place = (len(among) - 1) * (1 - share)
        low = math.floor(place)
        high = min(low + 1, len(among) - 1)
        tau = among[low] + (place - low) * (among[high] - among[low])
        for n, (h, counts_) in enumerate(zip(entropies, counts, strict=True)):
            if counts_ and not math.isclose(h, tau, rel_tol=1e-9, abs_tol=1e-15):
                expected[n] = float(h > tau)
            elif counts_:
                expected[n] = made.masks_N[n]  # either side of rounding
    assert list(made.masks_N) == expected
    assert (made.advantages_N == plain.advantages_N).all()
    if among and overlong == "none":
        mean_over = {**mask, "mean_over": "kept"}
        weighed = advantages_of(batch, token_mask=mean_over, **slots).masks_N[np.array(counts)]
        kept_R = np.diff(batch.offsets)[made.kept_R]
        scaled = weighed * token_scales("token_mean", kept_R, LONGEST)
        kept = made.masks_N[np.array(counts)] > 0
        assert kept.any()
        np.testing.assert_allclose(scaled, np.where(kept, 1 / kept.sum(), 0), rtol=1e-12)


@given(
    batches(), st.sampled_from([2e-4, 0.05, 0.5, 1.0]), st.sampled_from([-0.5, 0.0, 0.05]),
    OVERLONG, DROPPED,
)  # fmt: skip
def test_tokens_drawn_from_the_band_of_covariance(
    batch: Batch, share: float, low: float, overlong: str, dropped: str
) -> None:
    slots = {"overlong": {"kind": overlong}, "zero_variance": {"kind": dropped}}
    mask = {"kind": "clip_cov", "share": share, "low": low, "high": 0.4}
    made = advantages_of(batch, token_mask=mask, **slots)
    plain = advantages_of(batch, **slots)
    counts = counted(batch, overlong, dropped)
    logprobs = [-abs(drift) for row in batch.drifts or [] for drift in row]
    advantages = plain.advantages_N.tolist()
    among = [n for n, counts_ in enumerate(counts) if counts_]
    expected = list(plain.masks_N)
    if among:
        l_mean, a_mean = mean([logprobs[n] for n in among]), mean([advantages[n] for n in among])
        covariance = {n: (logprobs[n] - l_mean) * (advantages[n] - a_mean) for n in among}
        band = [n for n in among if low < covariance[n] < 0.4]
        draws = batch.signals.draws_N
        assert draws is not None
        for n in sorted(band, key=lambda n: int(draws[n]))[: max(int(share * len(among)), 1)]:
            expected[n] = 0.0
    assert list(made.masks_N) == expected
    assert (made.advantages_N == plain.advantages_N).all()


# Draws


def test_draws_belong_to_their_completion() -> None:
    """Not to the order, the part or the others, but to seed, step, key and purpose."""
    ids, samples, lengths = ["a", "a", "b"], [0, 1, 0], np.array([3, 0, 5])
    whole = token_draws(ids, samples, lengths, 7, 2, "p")
    alone = token_draws(["b"], [0], lengths[2:], 7, 2, "p")
    assert (whole[3:] == alone).all()
    assert (token_draws(ids[::-1], samples[::-1], lengths[::-1], 7, 2, "p")[:5] == alone).all()
    key = int.from_bytes(hashlib.sha256(b"7/2/b/0/p").digest()[:8], "little")
    assert (np.random.Philox(key=key).random_raw(5) == alone).all()
    for other in ((8, 2, "p"), (7, 3, "p"), (7, 2, "q")):
        assert not (token_draws(["b"], [0], lengths[2:], *other) == alone).any()


def test_each_token_is_as_likely_to_be_drawn_first() -> None:
    first = Counter(
        int(token_draws(["a"], [0], np.array([4]), seed, 0, "p").argmin()) for seed in range(2000)
    )
    assert set(first) == {0, 1, 2, 3} and all(430 < n < 570 for n in first.values())


# A step


def test_a_step_is_masked_and_says_by_which_seed(tmp_path: Path) -> None:
    always = "train.score_policy=always"
    recipe = small_recipe("grpo", "sampling.max_tokens=64", "seed=3", always)
    run = create_run(recipe, str(tmp_path / "run"), "test")
    rollout_stage(run, 0, policy_at(run, 0), progress=Silent())
    score_stage(run, 0, policy_at(run, 0), None, progress=Silent())
    folder = run.step(0)
    zero = ("method.zero_variance.kind=zero", "method.overlong.kind=none")

    def weights(name: str, *overrides: str, seed: int = 3) -> np.ndarray:
        method = small_recipe(name, *zero, *overrides).method
        shape_step(folder, method, longest=64, seed=seed, progress=Silent(), overwrite=True)
        shaped = folder.table("advantages")
        _, offsets = ragged_column(shaped, "advantages")
        found = nullable_floats(shaped, "loss_weights", offsets)
        assert found is not None
        return found

    plain = weights("grpo")
    entropies = np.concatenate(folder.table("signals")["entropies"].to_pylist())
    kept = weights("high-entropy", "method.token_mask.mean_over=all")
    assert (kept == np.where(entropies >= np.quantile(entropies, 0.8), plain, 0)).all()
    assert np.mean(kept > 0) == pytest.approx(0.2, abs=0.01)
    assert measure_step(folder)["masked_share"] == np.mean(kept == 0)

    wide = (
        "method.token_mask.low=-100",
        "method.token_mask.high=100",
        "method.token_mask.share=0.3",
    )
    drawn, again, other = (weights("clip-cov", *wide, seed=seed) for seed in (3, 3, 4))
    assert (drawn == again).all() and (drawn != other).any()
    assert (drawn == 0).sum() == (other == 0).sum() == int(0.3 * len(drawn))
    method = small_recipe("clip-cov", *zero, *wide).method
    with pytest.raises(UserError, match=r"another settings\.seed \(4, now 3\)"):
        shape_step(folder, method, longest=64, seed=3, progress=Silent())
