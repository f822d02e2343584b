"""What a run's own importance correction does to its tokens, and whether the run rests on it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from castctl.diagnosis.bootstrap import Floats, estimate, interval_of_sums
from castctl.diagnosis.clusters import ROUNDING, Ints, PromptSums, Told, tenths
from castctl.diagnosis.data import StepData
from castctl.methods.correction import Correction, NoCorrection
from castctl.stages.evaluate.statistics import Estimate

MOST_TOUCHED = {"token": 0.01, "sequence": 0.1, "geometric": 0.1}
"""Share of the units, by level, that a correction may mask or cap before the run rests on it: a
hundredth of the tokens, or a tenth of the completions (ours)."""

LEAST_EFFECTIVE = 0.5
"""Effective share of the units below which it does: half the sampling is then thrown away (ours;
verl's documentation calls less than 0.3 a warning, and 0.5 good)."""


def describe(correction: Correction) -> dict[str, Any]:
    """The correction as it is in force: `kind`, and where it corrects `level`, `low` and `high`."""
    if isinstance(correction, NoCorrection):
        return {"kind": correction.kind}
    low, high = correction.bounds
    return {"kind": correction.kind, "level": correction.level, "low": low, "high": high}


def add_corrected(
    own: PromptSums, data: StepData, correction: Correction, bins: tuple[Ints, int]
) -> None:
    """Add what the correction makes of a step to the sums of its prompts; `bins` are each token's
    bin (N) by the sampler's log-prob, and how many there are."""
    assert data.signals is not None and data.sampler_N is not None, "both were read"
    assert data.signals.policy_N is not None, "policy log-probs were asked for"
    found = correction.corrected(data.signals.policy_N, data.sampler_N, data.offsets)
    if found is None:
        return
    prompt_R = own.numbers(data.prompt_ids)
    prompt_N = prompt_R[data.row_N]
    prompt_U = prompt_N if correction.level == "token" else prompt_R[data.lengths_R > 0]
    every, reported = np.ones(len(prompt_N), np.bool_), ~np.isnan(data.sampler_N)
    places = {
        "": (np.zeros(len(prompt_N), np.int64), 1, every),
        "_position": (tenths(data.position_N), 10, every),
        "_logprob": (*bins, reported),
    }
    for by, (bin_N, count, among) in places.items():
        for name, flags in (("all", every), ("masked", found.masked_N), ("capped", found.capped_N)):
            chosen = flags & among
            own.add(f"{name}{by}", prompt_N[chosen], None, bin_N[chosen], count)
    own.add("units", prompt_U)
    own.add("units_touched", prompt_U[found.masked_U | found.capped_U])
    own.add("unit_weight", prompt_U, found.weights_U)
    own.add("unit_weight_squared", prompt_U, found.weights_U**2)


def told_corrected(total: PromptSums, level: str, seed: int | None) -> dict[str, Any] | None:
    """What was added: `masked` and `capped` (shares of the tokens), `units`, `touched` (share of
    them that is masked or capped), `effective` (their effective share), and `carries`: whether the
    run rests on it. None of a run without correction.

    `carries` is `yes` where `touched` is above `MOST_TOUCHED` or `effective` below
    `LEAST_EFFECTIVE` with the whole interval, `maybe` where the estimate alone is, else `no`.
    Without a `seed` the effective share has no interval.
    """
    if not total.total("units"):
        return None
    touched, effective = total.share("units_touched", "units"), _effective(total, seed)
    beyond = {
        _beyond(touched, MOST_TOUCHED[level], 1),
        _beyond(effective, LEAST_EFFECTIVE, -1),
    }
    return {
        "masked": total.share("masked", "all"),
        "capped": total.share("capped", "all"),
        "units": int(total.total("units")),
        "touched": touched,
        "effective": effective,
        "carries": next(each for each in ("yes", "maybe", "no") if each in beyond),
    }


def told_by(total: PromptSums, by: str) -> dict[str, list[Told | None]]:
    """`masked` and `capped`, bin by bin; nothing of a run without correction."""
    if not total.total("units"):
        return {}
    return {name: total.shares(f"{name}_{by}", f"all_{by}") for name in ("masked", "capped")}


def _effective(total: PromptSums, seed: int | None) -> Told:
    """(sum w)^2 / (n sum w^2) over the units, with an interval that resamples prompts."""
    sums_PK = total.table("unit_weight", "unit_weight_squared", "units")
    sums_PK = sums_PK[sums_PK[:, 2] > 0]
    if seed is None:
        return asdict(Estimate(float(_effective_of(sums_PK.sum(0, keepdims=True))[0]), None, None))
    value, low, high = (float(each) for each in interval_of_sums(sums_PK, _effective_of, seed))
    if high - low <= ROUNDING:  # no prompt differs from another
        low = high = np.nan
    return asdict(estimate(value, low, high).within(0, 1))


def _effective_of(sums_BK: Floats) -> Floats:
    weight, squared, count = sums_BK.T
    # Where every weight is 0 nothing is left.
    return np.divide(weight**2, squared * count, out=np.zeros(len(weight)), where=squared > 0)


def _beyond(told: Told | None, limit: float, side: int) -> str:
    """Whether an estimate is above (`side` 1) or below (-1) a limit: `yes` with its whole interval
    or where prompts do not differ, `maybe` with a part of it."""
    if told is None or told["mean"] is None or side * told["mean"] <= side * limit:
        return "no"
    near = told["low"] if side > 0 else told["high"]
    return "maybe" if near is not None and side * near <= side * limit else "yes"
