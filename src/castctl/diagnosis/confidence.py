"""Diagnostic `confidence`: does the policy's drift go with reward, and what does RCC make of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from castctl.diagnosis.bootstrap import auc_interval, estimate, interval_of_sums
from castctl.diagnosis.clusters import ROUNDING, PromptSums, histogram_of, quantiles_of, trend
from castctl.diagnosis.data import Flags, Floats, StepData
from castctl.diagnosis.diagnosis import Context, Numbers
from castctl.diagnosis.ranks import order_within, ranks_within
from castctl.methods.baselines import (
    GroupBaseline,
    RccBaseline,
    completion_drifts,
    reward_covariances,
)
from castctl.methods.groups import Groups, group_rewards
from castctl.methods.signals import TokenSignals
from castctl.ragged import sums

REDUCTIONS = ("sum", "mean")
"""d of a completion from its tokens' l_old - l_ref; the paper's is the sum."""

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS = 30
MOMENTS = ("completions_mixed", "grpo", "grpo_squares", "rcc", "rcc_squares")


def measure(steps: Iterator[StepData], context: Context) -> Numbers:
    """Drift d of each completion from the reference, and RCC's correction (arXiv 2603.13134).

    Every estimate is `{mean, low, high}` with a 95 % interval over prompts, or None. Only
    completions with a reward and a reference enter, and of groups only mixed ones.

    - `prompts`, `completions`, `mixed` (groups): how many were read; `still`: share of tokens with
      l_old = l_ref exactly.
    - `sum`, `mean` (over a completion's tokens, in nats): `correct` and `incorrect` with the `mean`
      of d, its `std` and `quantiles`; `histogram` with `edges` and the counts `correct` and
      `incorrect`; `auc`: how often a correct completion has the higher d, ties half, bootstrapped
      over prompts; `auc_within`: the same of pairs within one mixed group; `covariance`: Cov(r, d),
      its mean over mixed groups, with `covariance_quantiles` and `covariance_histogram`.
    - `baseline`, of the sum: `shift`, b* - mean(r) as it is used, `shift_size`, its absolute value,
      and `shift_quantiles`; `clipped`, share of groups whose b* left the range of their rewards;
      `variance` of the advantages with RCC over that without, `second_moment` the same of their
      squares (both bootstrapped over prompts); `risk`, with RCC's b* over with mean(r), and
      `risk_attainable`, with the exact b over with mean(r), where the risk is the sum over groups
      of E[w^2 (r - b)^2] / E[w^2], w = exp(d), and the exact b = E[w^2 r] / E[w^2];
      `error_mean` and `error_rcc`, mean absolute difference of mean(r) and of b* from the exact b.
    - `trend`: change of the mean Cov(r, d) of the sum a step, by least squares over steps.
    - `by_step`: `step`, `drift` (mean d), `covariance`, `auc_within`, `clipped`, `risk`.
    """
    total = PromptSums()
    by_step: list[dict[str, Any]] = []
    completions: list[dict[str, NDArray]] = []
    groups: list[dict[str, Floats]] = []
    for data in steps:
        own = total.fresh()
        heard = _heard(data)
        prompt_R = own.numbers(data.prompt_ids)
        own.add("tokens", prompt_R[data.row_N])
        own.add("still", prompt_R[data.row_N[heard.still_N]])
        completions.append(_add_completions(own, heard, prompt_R))
        groups.append(_add_groups(own, heard, prompt_R))
        by_step.append(
            {
                "step": data.step,
                "drift": own.ratio("sum", "scored"),
                "covariance": own.ratio("sum_covariance", "mixed"),
                "auc_within": own.share("sum_wins", "pairs"),
                "clipped": own.share("clipped", "mixed"),
                "risk": own.ratio("risk_rcc", "risk_mean", least=0),
            }
        )
        total.merge(own)
    of_R, of_G = _joined(completions), _joined(groups)
    return {
        "prompts": total.prompts,
        "completions": len(of_R["prompt"]),
        "mixed": int(total.total("mixed")),
        "still": total.share("still", "tokens"),
        **{name: _reduced(total, name, of_R, of_G, context.seed) for name in REDUCTIONS},
        "baseline": _baseline(total, of_G["shift"], context.seed),
        "trend": trend(
            [step["step"] for step in by_step], [step["covariance"] for step in by_step]
        ),
        "by_step": by_step,
    }


@dataclass(frozen=True)
class _Heard:
    """A step's groups as its completions with a reward and a reference make them; the drift of
    the tokens, 0 where there is none; which tokens (N) have not drifted, and which of those
    completions are correct."""

    groups: Groups
    signals: TokenSignals
    still_N: Flags
    correct_R: Flags


def _heard(data: StepData) -> _Heard:
    assert data.signals is not None, "a reference was asked for"
    signals = data.signals.tokens
    drift_N = signals.drift_N
    assert drift_N is not None, "a reference was asked for"
    deaf_R = sums(np.isnan(drift_N), data.row_N, len(data.prompt_ids)) > 0
    rewards = np.where(data.known_R & ~deaf_R, data.groups.rewards_R, np.nan)
    return _Heard(
        group_rewards(rewards, data.groups.of_row, data.correct_R),
        replace(signals, drift_N=np.nan_to_num(drift_N)),
        np.equal(drift_N, 0.0),
        data.correct_R & ~deaf_R,
    )


def _joined(pieces: list[dict[str, NDArray]]) -> dict[str, NDArray]:
    return {name: np.concatenate([each[name] for each in pieces]) for name in pieces[0]}


def _add_completions(
    own: PromptSums, heard: _Heard, prompt_R: NDArray[np.int64]
) -> dict[str, NDArray]:
    """Add the drift of completions, and of pairs in mixed groups; what is kept of each."""
    groups = heard.groups
    scored_R = groups.known_R
    correct_R = heard.correct_R
    kept: dict[str, NDArray] = {"prompt": prompt_R[scored_R], "correct": correct_R[scored_R]}
    sides = {"correct": correct_R, "incorrect": scored_R & ~correct_R}
    own.add("scored", prompt_R[scored_R])
    for side, among_R in sides.items():
        own.add(side, prompt_R[among_R])
    for name in REDUCTIONS:
        d_R = completion_drifts(heard.signals, name)
        kept[name] = d_R[scored_R]
        own.add(name, prompt_R[scored_R], d_R[scored_R])
        for side, among_R in sides.items():
            own.add(f"{name}_{side}", prompt_R[among_R], d_R[among_R])
        wins_G, pairs_G = _pairs(groups, d_R, correct_R)
        prompt_G = _prompt_of_group(groups, prompt_R)
        own.add(f"{name}_wins", prompt_G, wins_G)
    own.add("pairs", prompt_G, pairs_G)
    return kept


def _pairs(groups: Groups, d_R: Floats, correct_R: Flags) -> tuple[Floats, Floats]:
    """Of each group (G) the pairs of a correct and an incorrect completion: those in which the
    correct one's d is higher, ties half, and all (Mann-Whitney's U from ranks)."""
    known = groups.known_R
    owner, count = groups.of_row[known], groups.count
    d, right = d_R[known], correct_R[known]
    rank = ranks_within(d, order_within(d, owner, count))
    right_G, all_G = sums(right, owner, count), sums(known[known], owner, count)
    wins_G = sums(rank * right, owner, count) - right_G * (right_G + 1) / 2
    return wins_G, right_G * (all_G - right_G)


def _prompt_of_group(groups: Groups, prompt_R: NDArray[np.int64]) -> NDArray[np.int64]:
    prompt_G = np.zeros(groups.count, np.int64)
    prompt_G[groups.of_row] = prompt_R
    return prompt_G


def _add_groups(own: PromptSums, heard: _Heard, prompt_R: NDArray[np.int64]) -> dict[str, Floats]:
    """Add what RCC does to the mixed groups; their covariances and shifts."""
    groups, signals = heard.groups, heard.signals
    mixed_G = groups.kind_G == "mixed"
    prompt = _prompt_of_group(groups, prompt_R)[mixed_G]
    kept = {
        name: reward_covariances(groups, completion_drifts(signals, name))[mixed_G]
        for name in REDUCTIONS
    }
    own.add("mixed", prompt)
    for name, covariance in kept.items():
        own.add(f"{name}_covariance", prompt, covariance)

    mean = groups.mean_G[mixed_G]
    used, raw = (each[mixed_G] for each in RccBaseline().baselines_G(groups, signals))
    weight_R, exact_G = _exact(groups, completion_drifts(signals, "sum"))
    exact = exact_G[mixed_G]
    told = {
        "clipped": raw != used,
        "shift": used - mean,
        "shift_size": np.abs(used - mean),
        "error_mean": np.abs(mean - exact),
        "error_rcc": np.abs(used - exact),
        **{
            f"risk_{name}": _risk(groups, weight_R, mixed_G, baseline)
            for name, baseline in (("mean", mean), ("rcc", used), ("exact", exact))
        },
    }
    for name, values in told.items():
        # A weight of exp(-60) is nothing beside rewards of about 1.
        own.add(name, prompt, np.where(np.abs(values) > ROUNDING, values, 0))
    _add_moments(own, heard, prompt_R)
    return kept | {"shift": told["shift"]}


def _exact(groups: Groups, d_R: Floats) -> tuple[Floats, Floats]:
    """w^2 = exp(2 d) of each completion (R), as a share of its group's, and E[w^2 r] / E[w^2] of
    each group (G): the baseline of least variance (arXiv 2603.13134)."""
    known, owner = groups.known_R, groups.of_row
    highest_G = np.full(groups.count, -np.inf)
    np.maximum.at(highest_G, owner[known], d_R[known])
    # Only differences within the group matter, and the largest would overflow.
    size = np.where(known, 2 * (d_R - highest_G[owner]), -np.inf)
    weight_R = np.exp(np.where(known, size, -np.inf))
    weight_R /= np.where(known, sums(weight_R, owner, groups.count)[owner], 1.0)
    return weight_R, sums(weight_R * groups.rewards_R, owner, groups.count)


def _risk(groups: Groups, weight_R: Floats, mixed_G: Flags, baseline: Floats) -> Floats:
    """E[w^2 (r - b)^2] / E[w^2] of each mixed group, for its baseline b."""
    b_G = np.zeros(groups.count)
    b_G[mixed_G] = baseline
    squares_R = weight_R * (groups.rewards_R - b_G[groups.of_row]) ** 2
    return sums(squares_R, groups.of_row, groups.count)[mixed_G]


def _add_moments(own: PromptSums, heard: _Heard, prompt_R: NDArray[np.int64]) -> None:
    groups = heard.groups
    among_R = groups.known_R & (groups.kind_R == "mixed")
    own.add("completions_mixed", prompt_R[among_R])
    for name, baseline in (("grpo", GroupBaseline()), ("rcc", RccBaseline())):
        advantages = baseline.advantages_R(groups, heard.signals)[among_R]
        own.add(name, prompt_R[among_R], advantages)
        own.add(f"{name}_squares", prompt_R[among_R], advantages**2)


def _reduced(
    total: PromptSums, name: str, of_R: dict[str, NDArray], of_G: dict[str, Floats], seed: int
) -> dict[str, Any]:
    d_R, correct_R, covariance = of_R[name], of_R["correct"], of_G[name]
    reach = _reach(d_R)
    edges = np.linspace(*reach, BINS + 1)
    sides = {"correct": d_R[correct_R], "incorrect": d_R[~correct_R]}
    auc = auc_interval(d_R, correct_R, of_R["prompt"], seed) if len(d_R) else None
    return {
        **{
            side: {
                "mean": total.ratio(f"{name}_{side}", side),
                "std": float(values.std()) if len(values) else None,
                "quantiles": quantiles_of(values, LEVELS),
            }
            for side, values in sides.items()
        },
        "histogram": {
            "edges": edges.tolist(),
            **{s: histogram_of(values, *reach, BINS)["counts"] for s, values in sides.items()},
        },
        "auc": None if auc is None else asdict(auc),
        "auc_within": total.share(f"{name}_wins", "pairs"),
        "covariance": total.ratio(f"{name}_covariance", "mixed"),
        "covariance_quantiles": quantiles_of(covariance, LEVELS),
        "covariance_histogram": histogram_of(covariance, *_reach(covariance), BINS),
    }


def _reach(values: Floats) -> tuple[float, float]:
    """Where a histogram begins and ends: the middle 99 % of the values; outer bins take the
    rest."""
    if not len(values):
        return -1.0, 1.0
    low, high = np.quantile(values, (0.005, 0.995))
    return (float(low), float(high)) if low < high else (float(low) - 0.5, float(high) + 0.5)


def _baseline(total: PromptSums, shift: Floats, seed: int) -> dict[str, Any]:
    moments_PK = total.table(*MOMENTS)
    ratios: dict[str, Any] = {"variance": None, "second_moment": None}
    if total.total("mixed"):
        bounds = interval_of_sums(moments_PK[moments_PK[:, 0] > 0], _moment_ratios, seed)
        ratios = {name: asdict(estimate(*map(float, each)))
                  for name, *each in zip(ratios, *bounds, strict=True)}  # fmt: skip
    return {
        "shift": total.ratio("shift", "mixed"),
        "shift_size": total.ratio("shift_size", "mixed", least=0),
        "shift_quantiles": quantiles_of(shift, LEVELS),
        "clipped": total.share("clipped", "mixed"),
        **ratios,
        "risk": total.ratio("risk_rcc", "risk_mean", least=0),
        "risk_attainable": total.ratio("risk_exact", "risk_mean", least=0),
        "error_mean": total.ratio("error_mean", "mixed", least=0),
        "error_rcc": total.ratio("error_rcc", "mixed", least=0),
    }


def _moment_ratios(sums_BK: Floats) -> Floats:
    """Variance and second moment of RCC's advantages over those of GRPO's (B, 2), from sums (B, K)
    of `MOMENTS`."""
    count, *rest = sums_BK.T
    with np.errstate(invalid="ignore", divide="ignore"):
        grpo, grpo_squares, rcc, rcc_squares = (each / count for each in rest)
        variance = (rcc_squares - rcc**2) / (grpo_squares - grpo**2)
        return np.stack([variance, rcc_squares / grpo_squares], 1)
