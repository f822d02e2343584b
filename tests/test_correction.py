"""The correction between sampler and scorer against plain readings of its sources, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import TypeAdapter

from castctl.methods import MethodSettings
from castctl.methods.correction import (
    Corrected,
    Correction,
    Mask,
    NoCorrection,
    Truncate,
    divergence_terms,
    effective_share,
)
from castctl.ragged import offsets_of
from castctl.settings import settings_in

NAN, INF = math.nan, math.inf
LEVELS = ("token", "sequence", "geometric")

Rows = list[list[float]]
"""The differences d of completions' tokens; NaN where the sampler reported none."""

DIFFERENCE = st.floats(-3, 3) | st.sampled_from([0.0, math.log(2), -math.log(2), 60.0, -60.0])
ROWS = st.lists(st.lists(DIFFERENCE | st.just(NAN), max_size=6), max_size=6)
CORRECTIONS = st.one_of(
    st.builds(Truncate, level=st.sampled_from(LEVELS), high=st.floats(0.1, 10)),
    st.builds(Mask, level=st.sampled_from(LEVELS), low=st.floats(0, 1), high=st.floats(1.01, 10)),
    st.builds(Mask, level=st.sampled_from(LEVELS)),
)


def corrected(correction: Truncate | Mask, rows: Rows, dtype: Any = np.float64) -> Corrected:
    """What a correction makes of these differences, told as two log-probs."""
    flat = np.array([d for row in rows for d in row], np.float64)
    scorer = np.full(len(flat), -1.5)
    sampler = scorer - flat
    return correction.corrected(scorer.astype(dtype), sampler.astype(dtype),
                                offsets_of([len(row) for row in rows]))  # fmt: skip


def split(flat: NDArray, rows: Rows) -> list[list[Any]]:
    ends = np.cumsum([len(row) for row in rows], dtype=int)
    return [part.tolist() for part in np.split(flat, ends[:-1])] if rows else []


# Each formula, as its source has it


def trl(mode: str, rows: Rows, least: float | None, most: float | None) -> Rows:
    """`vllm_importance_sampling_mode` of TRL's GRPOConfig, from padded rows: the ratio of a token
    or of the whole row, clamped from above, or 0 outside the bounds."""
    longest = max(map(len, rows))
    padded = [[*row, *(longest - len(row)) * [0.0]] for row in rows]
    ratios = [[math.exp(d) for d in row] for row in padded]
    if mode.startswith("sequence"):
        ratios = [longest * [math.exp(math.fsum(row))] for row in padded]
    low = -INF if least is None else least
    high = INF if most is None else most
    if mode.endswith("truncate"):
        weights = [[min(r, high) for r in row] for row in ratios]
    else:
        weights = [[0.0 if r < low or r > high else r for r in row] for row in ratios]
    return [weight[: len(row)] for weight, row in zip(weights, rows, strict=True)]


def verl(level: str, threshold: float | tuple[float, float], rows: Rows) -> Rows:
    """`rollout_is` of verl, whose exponents are held within 20: a cap, or for two thresholds
    IcePop, which zeroes what lies outside."""

    def bounded(log: float) -> float:
        return math.exp(min(max(log, -20.0), 20.0))

    if level == "token":
        ratios = [[bounded(d) for d in row] for row in rows]
    else:
        ratios = [len(row) * [bounded(math.fsum(row))] for row in rows]
    if isinstance(threshold, tuple):
        low, high = threshold
        return [[r if low <= r <= high else 0.0 for r in row] for row in ratios]
    return [[min(r, threshold) for r in row] for row in ratios]


def icepop(rows: Rows, alpha: float, beta: float) -> Rows:
    """M(k) = k where alpha <= k <= beta, else 0, k = pi_train / pi_infer of a token."""
    return [[k if alpha <= (k := math.exp(d)) <= beta else 0.0 for d in row] for row in rows]


def noisy(seed: int, deviation: float = 0.6) -> Rows:
    rng = np.random.default_rng(seed)
    lengths = [5, 1, 0, 9, 3, 2, 7]
    return [rng.normal(0, deviation, n).tolist() for n in lengths]


SOURCES: dict[str, tuple[Truncate | Mask, Callable[[Rows], Rows]]] = {
    "TRL token_truncate": (Truncate(high=3), lambda r: trl("token_truncate", r, None, 3.0)),
    "TRL token_mask": (Mask(low=0, high=3), lambda r: trl("token_mask", r, None, 3.0)),
    "TRL sequence_truncate": (
        Truncate(level="sequence", high=3), lambda r: trl("sequence_truncate", r, None, 3.0),
    ),
    "TRL's default": (Mask(level="sequence"), lambda r: trl("sequence_mask", r, None, 3.0)),
    "TRL with both bounds": (
        Mask(level="sequence", low=0.4, high=2), lambda r: trl("sequence_mask", r, 0.4, 2.0),
    ),
    "verl token": (Truncate(), lambda r: verl("token", 2.0, r)),
    "verl sequence": (Truncate(level="sequence"), lambda r: verl("sequence", 2.0, r)),
    "verl 0.5_5.0": (Mask(), lambda r: verl("token", (0.5, 5.0), r)),
    "IcePop": (Mask(), lambda r: icepop(r, 0.5, 5.0)),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("seed", range(4))
def test_weights_are_those_of_their_source(name: str, seed: int) -> None:
    correction, source = SOURCES[name]
    rows = noisy(seed)
    found, expected = split(corrected(correction, rows).weights_N, rows), source(rows)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    flat = [w for row in expected for w in row]
    assert len(set(flat)) > 2, "the source tells them apart"


@pytest.mark.parametrize("seed", range(4))
def test_geometric_masks_reject_what_verl_rejects(seed: int) -> None:
    """verl holds the mean of -d between the logarithms of its thresholds, so that the ratio lies
    between their reciprocals."""
    rows = [row for row in noisy(seed, 0.3) if row]
    lower, upper = 0.9, 1.2
    kept = [
        math.log(lower) <= math.fsum(-d for d in row) / len(row) <= math.log(upper) for row in rows
    ]
    found = corrected(Mask(level="geometric", low=1 / upper, high=1 / lower), rows)
    assert found.masked_U.tolist() == [not each for each in kept]
    assert 0 < sum(kept) < len(kept)
    means = [math.exp(math.fsum(row) / len(row)) if keep else 0.0
             for row, keep in zip(rows, kept, strict=True)]  # fmt: skip
    np.testing.assert_allclose(found.weights_U, means, rtol=1e-12)


def test_the_bounds_of_masks_are_the_published_ones_of_their_level() -> None:
    assert Mask().bounds == (0.5, 5.0)
    assert Mask(level="sequence").bounds == (0.0, 3.0)
    assert Mask(level="geometric").bounds == (0.999, 1.001)
    assert Mask(level="geometric", high=2).bounds == (0.999, 2.0)
    assert Mask.model_validate({"level": "sequence", "low": 0.5}).bounds == (0.5, 3.0)


def test_the_default_weighs_as_the_capped_ratio_did() -> None:
    """To the last bit, unreported tokens and impossible ones among them."""
    rng = np.random.default_rng(0)
    scorer, sampler = np.log(rng.random((2, 5000))).astype(np.float32)
    sampler[::7], sampler[::11] = np.nan, -np.inf
    difference = scorer.astype(np.float64) - sampler.astype(np.float64)
    with np.errstate(over="ignore"):
        capped = np.where(np.isnan(difference), 1.0, np.minimum(np.exp(difference), 2.0))
    made = MethodSettings().correction.corrected(scorer, sampler, np.array([0, 5000]))
    assert made is not None and np.array_equal(made.weights_N, capped)


# What holds whatever the correction


@given(CORRECTIONS, ROWS)
def test_weights_by_the_plain_reading(correction: Truncate | Mask, rows: Rows) -> None:
    found = corrected(correction, rows)
    low, high = correction.bounds
    weights, masked, capped = (
        split(each, rows) for each in (found.weights_N, found.masked_N, found.capped_N)
    )
    for row, weight, out, cut in zip(rows, weights, masked, capped, strict=True):
        told = [d for d in row if not math.isnan(d)]
        for n, d in enumerate(row):
            log = d
            if correction.level != "token":
                total = math.fsum(told) if told else NAN
                log = total / len(told) if told and correction.level == "geometric" else total
            if math.isnan(log):
                assert (weight[n], out[n], cut[n]) == (1.0, False, False)
                continue
            ratio = math.exp(log)
            near = any(math.isclose(ratio, bound, rel_tol=1e-12) for bound in (low, high))
            beyond = ratio > high or (correction.kind == "mask" and ratio < low)
            if near:
                continue  # sums may round to either side
            assert (out[n], cut[n]) == (beyond and correction.kind == "mask",
                                        beyond and correction.kind == "truncate")  # fmt: skip
            expected = 0.0 if out[n] else min(ratio, high)
            assert weight[n] == pytest.approx(expected, rel=1e-9)


@given(CORRECTIONS, ROWS, st.randoms(use_true_random=False))
def test_neither_the_order_of_rows_nor_of_parts_matters(
    correction: Truncate | Mask, rows: Rows, random: Any
) -> None:
    whole = split(corrected(correction, rows).weights_N, rows)
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled = [rows[n] for n in order]
    assert split(corrected(correction, shuffled).weights_N, shuffled) == [whole[n] for n in order]
    cut = random.randint(0, len(rows))
    parts = (rows[:cut], rows[cut:])
    alone = [split(corrected(correction, part).weights_N, part) for part in parts]
    assert alone[0] + alone[1] == whole


@given(CORRECTIONS, ROWS)
def test_a_completion_is_weighed_and_masked_whole(correction: Truncate | Mask, rows: Rows) -> None:
    found = corrected(correction, rows)
    assert found.tokens_U.sum() == len(found.weights_N) == sum(map(len, rows))
    if correction.level == "token":
        return
    assert len(found.weights_U) == sum(1 for row in rows if row)
    for flat in (found.weights_N, found.masked_N, found.capped_N):
        assert all(len(set(row)) <= 1 for row in split(flat, rows))


@given(st.sampled_from(LEVELS), ROWS)
def test_bounds_beyond_every_ratio_leave_the_ratio(level: Any, rows: Rows) -> None:
    """Truncated without a cap, and masked without bounds: plain importance sampling."""
    small = [[d for d in row if not abs(d) > 3] for row in rows]
    free = Truncate(level=level, high=1e9)
    assert not corrected(free, small).capped_N.any()
    wide = Mask(level=level, low=0, high=1e9)
    assert np.array_equal(corrected(wide, small).weights_N, corrected(free, small).weights_N)
    if level == "token":
        flat = [math.exp(d) for row in small for d in row if not math.isnan(d)]
        weights = [w for row, own in zip(small, split(corrected(free, small).weights_N, small),
                                         strict=True)
                   for d, w in zip(row, own, strict=True) if not math.isnan(d)]  # fmt: skip
        np.testing.assert_allclose(weights, flat, rtol=1e-12)


@given(CORRECTIONS, ROWS)
def test_agreement_weighs_one_whatever_the_correction(
    correction: Truncate | Mask, rows: Rows
) -> None:
    agreed = [[0.0 for _ in row] for row in rows]
    found = corrected(correction, agreed)
    capped = correction.kind == "truncate" and correction.bounds[1] < 1
    assert capped or (found.weights_N == 1).all()
    assert not found.masked_N.any()


@given(CORRECTIONS, ROWS)
def test_log_probs_of_float32_are_told_apart_in_float64(
    correction: Truncate | Mask, rows: Rows
) -> None:
    """Equal numbers give equal weights, whatever the type they come in."""
    flat = np.array([d for row in rows for d in row], np.float32)
    sampler, scorer = np.full(len(flat), -1.25, np.float32), flat - np.float32(1.25)
    offsets = offsets_of([len(row) for row in rows])
    narrow = correction.corrected(scorer, sampler, offsets)
    wide = correction.corrected(scorer.astype(np.float64), sampler.astype(np.float64), offsets)
    assert narrow.weights_N.dtype == np.float64
    assert np.array_equal(narrow.weights_N, wide.weights_N)


@pytest.mark.parametrize("level", LEVELS)
def test_ratios_beyond_any_number_are_capped_or_masked(level: Any) -> None:
    rows: Rows = [[800.0, 800.0], [-800.0, -800.0], [0.0], [INF]]
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        capped = corrected(Truncate(level=level), rows)
        masked = corrected(Mask(level=level), rows)
    assert split(capped.weights_N, rows) == [[2.0, 2.0], [0.0, 0.0], [1.0], [2.0]]
    assert split(capped.capped_N, rows) == [[True, True], [False, False], [False], [True]]
    assert split(masked.weights_N, rows) == [[0.0, 0.0], [0.0, 0.0], [1.0], [0.0]]
    low = level != "sequence"  # there none is too low
    assert split(masked.masked_N, rows) == [[True, True], [low, low], [False], [True]]


def test_a_ratio_at_a_bound_is_within() -> None:
    at, inside, outside = math.log(2), math.log(1.99), math.log(2.01)
    assert math.exp(at) == 2 and math.exp(-at) == 0.5
    capped = corrected(Truncate(), [[at, inside, outside]])
    assert capped.capped_N.tolist() == [False, False, True]
    masked = corrected(Mask(high=2), [[at, inside, outside, -at, -inside, -outside]])
    assert masked.masked_N.tolist() == [False, False, True, False, False, True]


def test_tokens_that_the_sampler_did_not_report() -> None:
    rows: Rows = [[NAN, NAN], [math.log(2), NAN, math.log(3)], []]
    assert split(corrected(Truncate(high=2.5), rows).weights_N, rows)[1] == pytest.approx(
        [2.0, 1.0, 2.5]
    )
    product = corrected(Truncate(level="sequence", high=100), rows)
    assert split(product.weights_N, rows)[:2] == [[1.0, 1.0], pytest.approx([6.0, 6.0, 6.0])]
    mean = corrected(Truncate(level="geometric", high=100), rows)
    assert split(mean.weights_N, rows)[1] == pytest.approx(3 * [math.sqrt(6)])
    masked = corrected(Mask(level="sequence"), rows)
    assert split(masked.masked_N, rows) == [[False, False], [True, True, True], []]


def test_nothing_at_all() -> None:
    for level in LEVELS:
        for rows in ([], [[]], [[], []]):
            found = corrected(Mask(level=level), rows)  # type: ignore[arg-type]
            assert len(found.weights_N) == len(found.weights_U) == 0
    assert NoCorrection().corrected(np.zeros(2), np.ones(2), np.array([0, 2])) is None


# What is told of it


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20))
def test_effective_share(weights: list[float]) -> None:
    found = effective_share(np.array(weights))
    largest = max(weights)
    if largest == 0:
        assert found == 0
        return
    scaled = [w / largest for w in weights]
    expected = math.fsum(scaled) ** 2 / (len(weights) * math.fsum(w * w for w in scaled))
    assert found == pytest.approx(expected)
    assert 1 / len(weights) <= found * (1 + 1e-12) and found <= 1 + 1e-12


def test_effective_share_at_its_ends() -> None:
    assert effective_share(np.full(7, 1e-300)) == pytest.approx(1)
    assert effective_share(np.array([1e300, 0, 0, 0])) == pytest.approx(0.25)
    assert effective_share(np.zeros(3)) == 0
    assert effective_share(np.zeros(0)) is None


def test_divergence_terms_average_to_the_divergence() -> None:
    """Tokens in the very frequencies of the sampler give KL(sampler || scorer), and no other."""
    sampler, scorer = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25])
    drawn = np.array([0, 0, 1, 2])
    terms = divergence_terms(np.log(scorer[drawn]) - np.log(sampler[drawn]))
    assert (terms >= 0).all()
    assert terms.mean() == pytest.approx(float((sampler * np.log(sampler / scorer)).sum()))
    assert divergence_terms(np.array([1e-9]))[0] == pytest.approx(5e-19, rel=1e-6, abs=0)  # not 0


# The slot


ADAPTER: TypeAdapter[Any] = TypeAdapter(Correction)


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ({}, Truncate()),
        ({"high": 3}, Truncate(high=3)),
        ({"kind": "mask"}, Mask()),
        ({"kind": "mask", "level": "sequence"}, Mask(level="sequence")),
        ({"kind": "none"}, NoCorrection()),
    ],
)
def test_the_slot_is_filled_as_others_are(given_: dict[str, Any], expected: Any) -> None:
    for name in ("grpo", "cast", "opsd", "sdpg"):
        method = MethodSettings.model_validate({"name": name, "correction": given_})
        assert method.correction == expected
        dumped = method.model_dump(mode="json")["correction"]
        assert next(iter(dumped)) == "kind" and ADAPTER.validate_python(dumped) == expected


def test_the_settings_of_another_kind_have_its_own_defaults() -> None:
    method = MethodSettings.model_validate({"correction": {"kind": "mask", "level": "sequence"}})
    changed = {s.key for s in settings_in(method, MethodSettings()) if s.changed}
    assert changed == {"correction.kind", "correction.level"}
