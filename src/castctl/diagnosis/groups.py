"""Diagnostic `groups`: which prompts tell right from wrong, and how much of a batch teaches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from castctl.diagnosis.clusters import PromptSums, Told, trend
from castctl.diagnosis.data import StepData
from castctl.diagnosis.diagnosis import Context, Numbers
from castctl.methods.baselines import GroupBaseline
from castctl.methods.groups import KINDS
from castctl.methods.signals import TokenSignals
from castctl.methods.zero_variance import SignedBase, ZeroBase
from castctl.ragged import sums
from castctl.stages.evaluate.statistics import Estimate, difference, pass_at_k
from castctl.stages.measures import VERDICTS

RULES = {"zero": ZeroBase(), "signed": SignedBase()}
"""What groups without reward variance teach: nothing (GRPO), or the verifier's sign (CAST)."""

Batch = dict[str, dict[str, float]]


def measure(steps: Iterator[StepData], context: Context) -> Numbers:
    """What the rewards of these steps say.

    Every estimate is `{mean, low, high}` with a 95 % interval over prompts, or None.

    - `prompts`, `groups`, `completions`, `tokens`: how many were read; `unjudged`: completions
      without a reward; `binary`: whether every reward is 0 or 1.
    - `reward`: mean of the known rewards; `kinds`: share of groups of each kind; `verdicts`: share
      of completions of each verdict.
    - `gradient`: under `zero` and `signed` the share of `completions` and of `tokens` whose
      GRPO advantage (group mean and deviation) is not 0, all completions counted, and `batch` and
      `effective`, means over steps of the number of such completions and of Kish's effective
      number of them, (sum |A|)^2 / sum A^2. `signed` is None where rewards are not binary.
    - `correct`: by number of judged completions in the group, how many groups have 0, 1, ... right.
    - `mixed_at`: by k, the share of groups that k of their judged completions would leave mixed:
      1 - C(n - c, k) / C(n, k) - C(c, k) / C(n, k), over the groups that have k or more.
    - `rounds`: 1 / the share of mixed groups, the groups that DAPO rolls out for each it keeps.
    - `trend`: change of the share of mixed groups a step, by least squares over steps.
    - `by_step`: `step`, `groups`, `completions`, `reward`, `kinds`, `gradient`, `rounds`.
    """
    total = PromptSums()
    by_step: list[dict[str, Any]] = []
    correct: dict[int, NDArray[np.int64]] = {}
    unjudged = tokens = 0
    binary = True
    for data in steps:
        own = total.fresh()
        _add(own, data)
        _count_correct(correct, data)
        told = _shares(own, data.groups.binary, _batch(data))
        by_step.append(
            {"step": data.step, "groups": data.groups.count, "completions": len(data.prompt_ids)}
            | {name: value for name, value in told.items() if name != "verdicts"}
        )
        total.merge(own)
        binary &= data.groups.binary
        unjudged += int((~data.known_R).sum())
        tokens += len(data.ids_N)
    mean_batch = {
        rule: {
            key: float(np.mean([step["gradient"][rule][key] for step in by_step]))
            for key in ("batch", "effective")
        }
        for rule in RULES
        if by_step and all(step["gradient"][rule] for step in by_step)
    }
    return {
        "prompts": total.prompts,
        "groups": sum(step["groups"] for step in by_step),
        "completions": sum(step["completions"] for step in by_step),
        "tokens": tokens,
        "unjudged": unjudged,
        "binary": binary,
        **_shares(total, binary, mean_batch),
        "correct": {str(size): correct[size].tolist() for size in sorted(correct)},
        "mixed_at": {
            str(k + 1): told
            for k, told in enumerate(total.shares("mixed_at", "drawn_at"))
            if told is not None
        },
        "trend": trend(
            [step["step"] for step in by_step], [step["kinds"]["mixed"] for step in by_step]
        ),
        "by_step": by_step,
    }


def _add(own: PromptSums, data: StepData) -> None:
    """Add what a step's groups and completions count to the sums of their prompts."""
    groups, prompt_R = data.groups, own.numbers(data.prompt_ids)
    prompt_G = np.zeros(groups.count, np.int64)
    prompt_G[groups.of_row] = prompt_R
    own.add("groups", prompt_G)
    for kind in KINDS:
        own.add(kind, prompt_G[groups.kind_G == kind])
    own.add("completions", prompt_R)
    own.add("tokens", prompt_R, data.lengths_R)
    for verdict in VERDICTS:
        own.add(f"verdict_{verdict}", prompt_R[data.verdict_R == verdict])
    own.add("known", prompt_R[data.known_R])
    own.add("reward", prompt_R, groups.rewards_R)
    for rule, base_R in _bases(data).items():
        taught = base_R != 0
        own.add(f"{rule}_completions", prompt_R[taught])
        own.add(f"{rule}_tokens", prompt_R[taught], data.lengths_R[taught])
    _add_smaller_groups(own, data, prompt_G)


def _bases(data: StepData) -> dict[str, NDArray[np.float64]]:
    """GRPO's advantage of each completion (R) under each rule that can read the rewards."""
    base_R = GroupBaseline().advantages_R(data.groups, TokenSignals(data.offsets))
    return {
        name: rule.fill_R(base_R, data.groups)
        for name, rule in RULES.items()
        if data.groups.binary or not rule.binary_rewards
    }


def _batch(data: StepData) -> Batch:
    """How many completions carry an advantage, and how many of equal size would weigh as much."""
    batch = {}
    for rule, base_R in _bases(data).items():
        size = np.abs(base_R)
        squares = float((size**2).sum())
        effective = float(size.sum()) ** 2 / squares if squares else 0.0
        batch[rule] = {"batch": float((size > 0).sum()), "effective": effective}
    return batch


def _add_smaller_groups(own: PromptSums, data: StepData, prompt_G: NDArray[np.int64]) -> None:
    """Chances that k of a group's judged completions are mixed, k = 2, 3, ... in bin k - 1."""
    groups = data.groups
    right_G = sums(data.correct_R, groups.of_row, groups.count).astype(np.int64)
    largest = int(groups.size_G.max(initial=1))
    for size in np.unique(groups.size_G[groups.size_G > 0]):
        among = groups.size_G == size
        prompt, right = prompt_G[among], right_G[among]
        for k in range(2, int(size) + 1):
            none = 1 - pass_at_k(right, int(size), k)
            mixed = difference(none, pass_at_k(size - right, int(size), k))
            place = np.full(len(prompt), k - 1)
            own.add("mixed_at", prompt, mixed, place, largest)
            own.add("drawn_at", prompt, None, place, largest)


def _count_correct(correct: dict[int, NDArray[np.int64]], data: StepData) -> None:
    groups = data.groups
    right_G = sums(data.correct_R, groups.of_row, groups.count).astype(np.int64)
    for size in map(int, np.unique(groups.size_G[groups.size_G > 0])):
        counts = np.bincount(right_G[groups.size_G == size], minlength=size + 1)
        correct[size] = correct.get(size, 0) + counts


def _shares(own: PromptSums, binary: bool, batch: Batch) -> dict[str, Any]:
    mixed = own.share("mixed", "groups")
    return {
        "reward": (own.share if binary else own.ratio)("reward", "known"),
        "kinds": {kind: own.share(kind, "groups") for kind in KINDS},
        "verdicts": {name: own.share(f"verdict_{name}", "completions") for name in VERDICTS},
        "gradient": {
            rule: {
                "completions": own.share(f"{rule}_completions", "completions"),
                "tokens": own.share(f"{rule}_tokens", "tokens"),
                **batch.get(rule, {}),
            }
            if binary or not RULES[rule].binary_rewards
            else None
            for rule in RULES
        },
        "rounds": _inverse(mixed),
    }


def _inverse(share: Told | None) -> Told | None:
    """1 / a share, its bounds changing places; None where nothing has it."""
    if share is None or not share["mean"]:
        return None
    low, high = (1 / bound if bound else None for bound in (share["high"], share["low"]))
    return asdict(Estimate(1 / share["mean"], low, high))
