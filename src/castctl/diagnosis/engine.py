"""Diagnostic `engine`: do the sampler's log-probs agree with the scorer's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from castctl.diagnosis.clusters import ROUNDING, PromptSums, quantiles_of, tenths
from castctl.diagnosis.corrected import add_corrected, describe, told_by, told_corrected
from castctl.diagnosis.data import Floats, StepData
from castctl.diagnosis.diagnosis import Context, Numbers
from castctl.diagnosis.spelled import Extremes
from castctl.errors import UserError
from castctl.methods.correction import divergence_terms, effective_share
from castctl.ragged import sums
from castctl.stages.sampled import alteration

TAILS = (0.01, 0.1, 0.5, 1.0)
"""Sizes of a difference, in nats, beyond which tokens are counted."""

SIZES = tuple(10 ** (n / 3) for n in range(-24, 4))
"""Sizes of the tail that is drawn, three a decade, in nats."""

LEVELS = (0.01, 0.05, 0.5, 0.95, 0.99)
LOGPROBS = (-10.0, -5.0, -2.0, -1.0, -0.5, -0.1, -0.01)
"""Where bins of the sampler's log-prob begin after the lowest, in nats."""

WORST = 20


def measure(steps: Iterator[StepData], context: Context) -> Numbers:
    """The difference l_old - l_sampler of every sampled token, l_old the scorer's, in nats.

    Every estimate is `{mean, low, high}` with a 95 % interval over prompts, or None. Tokens whose
    log-prob is missing or not finite on either side are counted and left out.

    - `prompts`, `completions`, `tokens`: how many were compared; `left_out` (tokens).
    - `mean`, `size` (mean absolute difference), `std`, `largest`, `quantiles`; `beyond`: by size in
      nats, the share of tokens that differ by more; `tail`: the same by `sizes`, without intervals.
    - `k1`, `k3`: estimates of KL(sampler || scorer) a token, from -diff and from
      exp(diff) - 1 - diff.
    - `token_weights` and `completion_weights`: exp(diff), and its product over a completion:
      `mean` (1 where nothing is wrong), `min`, `max`, `quantiles`, and `effective`, Kish's
      effective number over their number.
    - `correction`: the run's own, as it is in force; `corrected`: what it makes of these steps, see
      `told_corrected`, over all tokens, those left out among them.
    - `altered`: what made the sampling distribution another than the policy's, None where nothing.
    - `logprobs`: where bins of the sampler's log-prob begin after the lowest.
    - `by_position` (tenths of the completion), `by_logprob`: `mean`, `size` and `share` of tokens
      in lists, and the shares `masked` and `capped` where there is a correction.
    - `worst`: the tokens that differ most, one a prompt: `step`, `prompt_id`, `sample`,
      `position`, `id`, `before`, `token`, `after`, and the log-probs `sampler` and `scorer`.
    - `by_step`: `step`, `mean`, `size`, `largest`, `k3`, and `corrected` as above.

    Raises `UserError` for steps without the sampler's log-probs.
    """
    total = PromptSums()
    by_step: list[dict[str, Any]] = []
    differences: list[NDArray[np.float32]] = []
    logs: list[Floats] = []
    worst = Extremes(WORST)
    left_out, altered = 0, None
    correction = describe(context.correction)
    level = correction.get("level", "token")
    within = np.zeros(len(SIZES) + 1)
    for data in steps:
        told_N = _logprobs(data)
        diff_N = told_N["scorer"] - told_N["sampler"]
        there = np.flatnonzero(np.isfinite(diff_N))
        left_out += len(diff_N) - len(there)
        own = total.fresh()
        log_R = _add(own, data, diff_N, there)
        add_corrected(own, data, context.correction, _logprob_bins(told_N["sampler"]))
        altered = altered or alteration(data.made.get("rollouts"))
        worst.add(data, there, np.abs(diff_N[there]), context.texts, **told_N)
        within += _count_sizes(diff_N[there])
        differences.append(diff_N[there].astype(np.float32))
        logs.append(log_R)
        corrected = told_corrected(own, level, None)
        by_step.append(_step(own, data.step, diff_N[there]) | {"corrected": corrected})
        total.merge(own)
    diff, log_R = np.concatenate(differences), np.concatenate(logs)
    return {
        "prompts": total.prompts,
        "completions": len(log_R),
        "tokens": len(diff),
        "left_out": left_out,
        "mean": total.ratio("diff", "tokens"),
        "size": total.ratio("size", "tokens", least=0),
        "std": _std(total),
        "largest": float(np.abs(diff).max()) if len(diff) else None,
        "quantiles": quantiles_of(diff, LEVELS),
        "beyond": {f"{tail:g}": total.share(f"beyond_{tail:g}", "tokens") for tail in TAILS},
        "tail": {"sizes": list(SIZES), "shares": _tail(within)},
        "k1": total.ratio("k1", "tokens"),
        "k3": total.ratio("k3", "tokens", least=0),
        "token_weights": _weights(total, "token", diff),
        "completion_weights": _weights(total, "completion", log_R),
        "correction": correction,
        "corrected": told_corrected(total, level, context.seed),
        "altered": altered,
        "logprobs": list(LOGPROBS),
        **{f"by_{by}": _binned(total, by) for by in ("position", "logprob")},
        "worst": worst.told(),
        "by_step": by_step,
    }


def _logprobs(data: StepData) -> dict[str, Floats]:
    """What sampler and scorer say of each token (N, nats)."""
    assert data.signals is not None and data.signals.policy_N is not None, "they were asked for"
    if data.sampler_N is None:
        raise UserError(
            f"the rollouts of step {data.step} have no sampler_logprobs, so nothing can be set "
            "beside the scorer's; sample with `castctl rollout`, which writes them"
        )
    return {"sampler": data.sampler_N, "scorer": data.signals.policy_N}


def _add(own: PromptSums, data: StepData, diff_N: Floats, there: NDArray[np.int64]) -> Floats:
    """Add a step's differences to the sums; the log of each completion's weight."""
    assert data.sampler_N is not None
    prompt_R = own.numbers(data.prompt_ids)
    diff, row = diff_N[there], data.row_N[there]
    prompt, size = prompt_R[row], np.abs(diff)
    with np.errstate(over="ignore"):
        weight = np.exp(diff)
    own.add("tokens", prompt)
    for name, values in (
        ("diff", diff), ("size", size), ("squares", diff**2), ("k1", -diff),
        ("k3", divergence_terms(diff)), ("token_weight", weight),
    ):  # fmt: skip
        own.add(name, prompt, values)
    for tail in TAILS:
        own.add(f"beyond_{tail:g}", prompt[size > tail])
    bins = {
        "position": (tenths(data.position_N[there]), 10),
        "logprob": _logprob_bins(data.sampler_N[there]),
    }
    for by, (bin, count) in bins.items():
        own.add(f"tokens_{by}", prompt, None, bin, count)
        own.add(f"diff_{by}", prompt, diff, bin, count)
        own.add(f"size_{by}", prompt, size, bin, count)
    rows = len(prompt_R)
    heard_R = np.bincount(row, minlength=rows) > 0
    log_R = sums(diff, row, rows)[heard_R]
    with np.errstate(over="ignore"):
        own.add("completion_weight", prompt_R[heard_R], np.exp(log_R))
    own.add("completions", prompt_R[heard_R])
    return log_R


def _logprob_bins(sampler_V: Floats) -> tuple[NDArray[np.int64], int]:
    """The bin of each of the sampler's log-probs, and how many bins there are."""
    return np.searchsorted(LOGPROBS, sampler_V, "right"), len(LOGPROBS) + 1


def _count_sizes(diff: Floats) -> NDArray[np.int64]:
    """How many differences lie between one of `SIZES` and the next, in size."""
    return np.bincount(np.searchsorted(SIZES, np.abs(diff)), minlength=len(SIZES) + 1)


def _tail(within: Floats) -> list[float]:
    """The share of tokens beyond each of `SIZES`, from counts between them."""
    return (1 - np.cumsum(within)[:-1] / max(within.sum(), 1)).tolist()


def _step(own: PromptSums, step: int, diff: Floats) -> dict[str, Any]:
    return {
        "step": step,
        "mean": own.ratio("diff", "tokens"),
        "size": own.ratio("size", "tokens", least=0),
        "largest": float(np.abs(diff).max()) if len(diff) else None,
        "k3": own.ratio("k3", "tokens", least=0),
    }


def _std(total: PromptSums) -> float | None:
    tokens = total.total("tokens")
    if not tokens:
        return None
    mean, square = total.total("diff") / tokens, total.total("squares") / tokens
    variance = square - mean**2
    return float(np.sqrt(variance)) if variance > ROUNDING * square else 0.0


def _weights(total: PromptSums, of: str, log: NDArray) -> dict[str, Any]:
    """The spread of the weights of tokens or completions, from their logarithms."""
    if not len(log):
        return {"mean": None, "min": None, "max": None, "quantiles": {}, "effective": None}
    with np.errstate(over="ignore"):
        low, high = np.exp([float(log.min()), float(log.max())])
        quantiles = {level: float(np.exp(q)) for level, q in quantiles_of(log, LEVELS).items()}
    return {
        "mean": total.ratio(f"{of}_weight", f"{of}s", least=0),
        "min": float(low),
        "max": float(high),
        "quantiles": quantiles,
        "effective": effective_share(np.exp(log - log.max())),  # of which the largest is 1
    }


def _binned(total: PromptSums, by: str) -> dict[str, Any]:
    tokens = total.of(f"tokens_{by}").sum(0)
    return {
        "mean": total.ratios(f"diff_{by}", f"tokens_{by}"),
        "size": total.ratios(f"size_{by}", f"tokens_{by}", least=0),
        "share": (tokens / max(tokens.sum(), 1)).tolist(),
        **told_by(total, by),
    }
