"""Diagnostic `credit`: OAR-P's influence of a token on the answer against OAR-G's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from castctl.diagnosis.clusters import PromptSums, histogram_of, quantiles_of, tenths
from castctl.diagnosis.data import Flags, Floats, StepData
from castctl.diagnosis.diagnosis import Context, Numbers
from castctl.diagnosis.ranks import gini_within, largest_within, order_within, spearman_within
from castctl.diagnosis.spelled import TokenTally
from castctl.methods.oar import OarGradient, OarPerturbation
from castctl.stages.measures import VERDICTS

WAYS = {"perturb": OarPerturbation(), "grad": OarGradient()}
"""The two kinds of influence, each with the reshaping into weights that its preset has."""

FEWEST = 3
"""Scored tokens of a completion without which a rank correlation says nothing."""

TOP = 0.1
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
TOKENS = 20
PASSES = ("policy", "perturbation", "gradient")


def measure(steps: Iterator[StepData], context: Context) -> Numbers:
    """Agreement of both influences, where their weights sit, and what they cost.

    Every estimate is `{mean, low, high}` with a 95 % interval over prompts, or None. A completion
    is compared where 3 or more of its tokens have both scores.

    - `prompts`, `completions`: how many were read; `unscored`, `few`, `flat`: completions without
      a score, with fewer than 3 tokens that have both, or with one score the same at all of them;
      `scored`, share of completions with a score; `tokens_scored`: share of all tokens, by kind.
    - `rho`: Spearman's correlation of the two scores within a completion, mean over completions;
      `rho_quantiles`; `rho_histogram`; `rho_by_verdict`.
    - `overlap`: of the 10 % (rounded up) of a completion's scored tokens that score highest for
      one, the share that is among those of the other; `overlap_chance`: what unrelated scores
      would share; `overlap_excess`: the difference.
    - `perturb`, `grad`: of the bi-level weights (arXiv 2601.07408, the preset's settings)
      `by_position`, mean weight of scored tokens by tenth of the completion; `top_share`, the
      share of a completion's weight in its heaviest 10 % of scored tokens; `gini`; `raw_top_share`
      and `raw_gini`, the same of the scores themselves; `tokens`, those of the vocabulary that
      gain most: `id`, `text`, `count`, `weight` (sum) and `gain` (sum of weight - 1); `settings`.
    - `seconds`: of each pass over the steps for which all are known, and the `steps` that are;
      `overhead`, those of the two influences as multiples of the policy's, or None.
    - `by_step`: `step`, `rho`, `overlap`, `scored`.
    """
    total = PromptSums()
    by_step: list[dict[str, Any]] = []
    tallies = {name: TokenTally("gain", "weight", "count") for name in WAYS}
    found: list[Floats] = []
    for data in steps:
        own = total.fresh()
        prompt_R = own.numbers(data.prompt_ids)
        scores = _scores(data)
        scored_R = _any_R(~np.isnan(scores["perturb"]) | ~np.isnan(scores["grad"]), data)
        own.add("completions", prompt_R)
        own.add("scored", prompt_R[scored_R])
        own.add("tokens", prompt_R, data.lengths_R)
        for name, scores_N in scores.items():
            own.add(f"{name}_scored", prompt_R[data.row_N[~np.isnan(scores_N)]])
            _add_weights(own, name, data, scores_N, prompt_R, tallies[name])
        found.append(_add_agreement(own, data, scores, prompt_R))
        by_step.append(
            {
                "step": data.step,
                "rho": own.ratio("rho", "compared", -1, 1),
                "overlap": own.share("overlap", "compared"),
                "scored": own.share("scored", "completions"),
            }
        )
        total.merge(own)
    rho = np.concatenate(found) if found else np.zeros(0)
    return {
        "prompts": total.prompts,
        "completions": int(total.total("completions")),
        "unscored": int(total.total("completions") - total.total("scored")),
        "few": int(total.total("few")),
        "flat": int(total.total("flat")),
        "scored": total.share("scored", "completions"),
        "tokens_scored": {name: total.share(f"{name}_scored", "tokens") for name in WAYS},
        "rho": total.ratio("rho", "compared", -1, 1),
        "rho_quantiles": quantiles_of(rho, LEVELS),
        "rho_histogram": histogram_of(rho, -1, 1, 20),
        "rho_by_verdict": {v: total.ratio(f"rho_{v}", f"compared_{v}", -1, 1) for v in VERDICTS},
        "overlap": total.share("overlap", "compared"),
        "overlap_chance": total.share("chance", "compared"),
        "overlap_excess": total.ratio("excess", "compared", -1, 1),
        **{name: _weights(total, name, tallies[name], context) for name in WAYS},
        **_costs(context, [step["step"] for step in by_step]),
        "by_step": by_step,
    }


def _scores(data: StepData) -> dict[str, Floats]:
    assert data.signals is not None, "influences were asked for"
    signals = data.signals.tokens
    missing = np.full(len(data.ids_N), np.nan)
    both = {"perturb": signals.perturb_N, "grad": signals.grad_N}
    return {name: missing if scores is None else scores for name, scores in both.items()}


def _any_R(chosen_N: Flags, data: StepData) -> Flags:
    return np.bincount(data.row_N[chosen_N], minlength=len(data.prompt_ids)) > 0


def _add_agreement(
    own: PromptSums, data: StepData, scores: dict[str, Floats], prompt_R: NDArray[np.int64]
) -> Floats:
    """Add what the completions that can be compared say; their correlations."""
    rows = len(prompt_R)
    both_N = ~np.isnan(scores["perturb"]) & ~np.isnan(scores["grad"])
    row, (first, second) = data.row_N[both_N], (scores[name][both_N] for name in WAYS)
    count_R = np.bincount(row, minlength=rows)
    orders = [order_within(each, row, rows) for each in (first, second)]
    rho_R = spearman_within(first, second, row, *orders)
    enough_R = count_R >= FEWEST
    compared_R = enough_R & ~np.isnan(rho_R)
    own.add("few", prompt_R[_any_R(~np.isnan(scores["perturb"]) | ~np.isnan(scores["grad"]), data)
                            & ~enough_R])  # fmt: skip
    own.add("flat", prompt_R[enough_R & np.isnan(rho_R)])

    tops = [largest_within(order, TOP) for order in orders]
    size_R = np.maximum(np.bincount(row[tops[0]], minlength=rows), 1)
    overlap_R = np.bincount(row[tops[0] & tops[1]], minlength=rows) / size_R
    chance_R = size_R / np.maximum(count_R, 1)

    chosen = prompt_R[compared_R]
    own.add("compared", chosen)
    own.add("rho", chosen, rho_R[compared_R])
    own.add("overlap", chosen, overlap_R[compared_R])
    own.add("chance", chosen, chance_R[compared_R])
    own.add("excess", chosen, (overlap_R - chance_R)[compared_R])
    for verdict in VERDICTS:
        among_R = compared_R & (data.verdict_R == verdict)
        own.add(f"compared_{verdict}", prompt_R[among_R])
        own.add(f"rho_{verdict}", prompt_R[among_R], rho_R[among_R])
    return rho_R[compared_R]


def _add_weights(
    own: PromptSums, name: str, data: StepData, scores_N: Floats, prompt_R: NDArray[np.int64],
    tally: TokenTally,
) -> None:  # fmt: skip
    scored_N = ~np.isnan(scores_N)
    weight = WAYS[name].weights(scores_N, data.offsets)[scored_N]
    row, rows = data.row_N[scored_N], len(prompt_R)
    tenth = tenths(data.position_N[scored_N])
    own.add(f"{name}_weight", prompt_R[row], weight, tenth, 10)
    own.add(f"{name}_at", prompt_R[row], None, tenth, 10)
    tally.add(data.ids_N[scored_N], gain=weight - 1, weight=weight, count=np.ones(len(weight)))
    # Weights never fall where scores rise, so that one order serves both.
    order = order_within(scores_N[scored_N], row, rows)
    top = largest_within(order, TOP)
    raw = np.maximum(scores_N[scored_N], 0.0)
    enough_R = np.bincount(row, minlength=rows) >= FEWEST
    for kind, values in (("", weight), ("raw_", raw)):
        whole_R = np.bincount(row, values, minlength=rows)
        part_R = np.bincount(row[top], values[top], minlength=rows)
        gini_R = gini_within(values, order)
        told_R = enough_R & (whole_R > 0)
        own.add(f"{name}_{kind}told", prompt_R[told_R])
        own.add(f"{name}_{kind}top", prompt_R[told_R], part_R[told_R] / whole_R[told_R])
        own.add(f"{name}_{kind}gini", prompt_R[told_R], gini_R[told_R])


def _weights(total: PromptSums, name: str, tally: TokenTally, context: Context) -> dict[str, Any]:
    shaping = WAYS[name]
    return {
        "settings": {key: getattr(shaping, key) for key in ("threshold", "gain", "floor")},
        "by_position": total.ratios(f"{name}_weight", f"{name}_at", least=0),
        "top_share": total.share(f"{name}_top", f"{name}_told"),
        "gini": total.share(f"{name}_gini", f"{name}_told"),
        "raw_top_share": total.share(f"{name}_raw_top", f"{name}_raw_told"),
        "raw_gini": total.share(f"{name}_raw_gini", f"{name}_raw_told"),
        "tokens": tally.top("gain", TOKENS, context.texts),
    }


def _costs(context: Context, steps: list[int]) -> dict[str, Any]:
    known = [context.seconds[step] for step in steps
             if set(PASSES) <= context.seconds.get(step, {}).keys()]  # fmt: skip
    seconds = {name: sum(each[name] for each in known) for name in PASSES}
    policy = seconds.pop("policy")
    return {
        "seconds": {"steps": len(known), "policy": policy, **seconds},
        "overhead": {name: spent / policy for name, spent in seconds.items()} if policy else None,
    }
