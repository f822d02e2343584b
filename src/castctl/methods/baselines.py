"""From rewards to one base advantage a completion: what its reward is compared with."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from castctl.errors import UserError
from castctl.methods.groups import Groups, Weighed
from castctl.methods.signals import TokenSignals
from castctl.ragged import means, row_of_value, sums
from castctl.settings import Section

Floats = NDArray[np.float64]


class GroupBaseline(Section):
    """A reward compared with the others of its group."""

    kind: Literal["mean_std", "mean", "leave_one_out", "maxrl"] = "mean_std"
    """`mean_std`: (r - p) / (s + eps), GRPO (arXiv 2402.03300); `mean`: r - p, Dr. GRPO
    (arXiv 2503.20783); `leave_one_out`: r minus the mean of the others, RLOO (arXiv 2402.14740);
    `maxrl`: (r - p) / (p + eps), MaxRL (arXiv 2602.02710) (paper: GRPO's)."""
    std: Literal["population", "sample"] = "population"
    """Which deviation s is; published codes differ (ours)."""
    eps: float = Field(1e-6, ge=0)
    """Added to what is divided by (ours; the codes of GRPO and MaxRL have it too)."""
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = (
        "sum_then_normalize"
    )
    """How several rewards become one advantage, in TRL's words: of their weighted sum
    (`sum_then_normalize`), or as the weighted sum of each one's own advantages, over its deviation
    in the step (`normalize_then_sum`, GDPO, arXiv 2601.05242) (ours; TRL's)."""
    needs: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="after")
    def _order_matters(self) -> Self:
        if self.normalizes_first and self.kind != "mean_std":
            raise ValueError(
                f"kind={self.kind} divides by no deviation, so that rewards may as well be added "
                "first; set method.baseline.multi_objective_aggregation="
                "sum_then_normalize, or method.baseline.kind=mean_std"
            )
        return self

    @property
    def normalizes_first(self) -> bool:
        """Whether each of several rewards is compared by itself."""
        return self.multi_objective_aggregation == "normalize_then_sum"

    @property
    def whole_step(self) -> bool:
        """Whether advantages depend on completions of other prompts."""
        return self.normalizes_first

    def advantages_R(self, groups: Groups, signals: TokenSignals) -> Floats:
        """Base advantage a completion (R), 0 in groups that are not `mixed`; `groups` are the
        step's where it is `whole_step`. Raises `UserError` for rewards below 0 where their mean is
        divided by."""
        if not self.normalizes_first:
            return self._compared_R(groups)
        sums_R = self._sums_R(groups)
        scale = _spread(sums_R[groups.known_R], self.std) + self.eps
        # No mean is taken off: each group's is 0.
        return sums_R / (scale if scale > 0 else 1.0)

    def _sums_R(self, groups: Groups) -> Floats:
        """The weighted sum of the advantages by each reward (R)."""
        parts = groups.parts.values() or (Weighed(1.0, groups),)
        return np.sum([each.weight * self._compared_R(each.groups) for each in parts], axis=0)

    def _compared_R(self, groups: Groups) -> Floats:
        advantages = groups.rewards_R - groups.mean_G[groups.of_row]
        if self.kind == "maxrl":
            advantages = advantages / _means_R(groups, self.eps)
        elif self.kind == "leave_one_out":
            size = groups.size_G[groups.of_row]
            advantages = advantages * size / np.maximum(size - 1, 1)
        elif self.kind == "mean_std":
            advantages = advantages / _deviations_R(groups, self.std, self.eps)
        return _in_mixed_groups(advantages, groups)

    def measures(self, groups: Groups, signals: TokenSignals) -> dict[str, float]:
        """`batch_std`: the deviation of the sums of advantages, where each reward has its own."""
        if not self.normalizes_first:
            return {}
        return {"batch_std": _spread(self._sums_R(groups)[groups.known_R], self.std)}


class RccBaseline(Section):
    """Reward-confidence correction (BICC, arXiv 2603.13134): GRPO with the baseline moved by how
    the rewards go with the policy's drift from the reference."""

    kind: Literal["rcc"] = "rcc"
    """`rcc`: (r - b*) / (s + eps) with b* = mean(r) + 2 Cov(r, d) (paper)."""
    reduction: Literal["sum", "mean"] = "sum"
    """d of a completion from its tokens' l_old - l_ref (paper: the sum)."""
    clip: bool = True
    """Keep b* between the group's lowest and highest reward, 0 and 1 where they are binary; a large
    d would drive it out (ours)."""
    std: Literal["population", "sample"] = "population"
    """Which deviation s is; published codes differ (ours)."""
    eps: float = Field(1e-6, ge=0)
    """Added to s (ours)."""
    needs: ClassVar[frozenset[str]] = frozenset({"policy_logprobs", "ref_logprobs"})
    normalizes_first: ClassVar[bool] = False
    whole_step: ClassVar[bool] = False

    def advantages_R(self, groups: Groups, signals: TokenSignals) -> Floats:
        """Base advantage a completion (R); 0 in groups that are not `mixed`."""
        baseline_G, _ = self.baselines_G(groups, signals)
        advantages = groups.rewards_R - baseline_G[groups.of_row]
        return _in_mixed_groups(advantages / _deviations_R(groups, self.std, self.eps), groups)

    def measures(self, groups: Groups, signals: TokenSignals) -> dict[str, float]:
        """Over mixed groups: mean Cov(r, d), and the share whose baseline was clipped."""
        mixed = groups.kind_G == "mixed"
        clipped_G, raw_G = self.baselines_G(groups, signals)
        if not mixed.any():
            return {"reward_confidence_cov": float("nan"), "baseline_clipped_share": 0.0}
        covariance_G = (raw_G - groups.mean_G) / 2
        return {
            "reward_confidence_cov": float(covariance_G[mixed].mean()),
            "baseline_clipped_share": float((clipped_G != raw_G)[mixed].mean()),
        }

    def baselines_G(self, groups: Groups, signals: TokenSignals) -> tuple[Floats, Floats]:
        """b* of each group (G) as it is used, and before its bounds."""
        confidence_R = completion_drifts(signals, self.reduction)
        raw_G = groups.mean_G + 2 * reward_covariances(groups, confidence_R)
        if not self.clip:
            return raw_G, raw_G
        lowest_G, highest_G = groups.range_G()
        return np.clip(raw_G, lowest_G, highest_G), raw_G


class BatchBaseline(Section):
    """The group's mean, and one deviation for the whole step: REINFORCE++ with baseline
    (arXiv 2501.03262) and LitePPO (arXiv 2508.08221)."""

    kind: Literal["batch_std"] = "batch_std"
    """`batch_std`: (r - p) / (s + eps) with one s for the step (paper)."""
    of: Literal["centred", "rewards"] = "centred"
    """What s is the deviation of, over the step's completions: r - p (`centred`, REINFORCE++ with
    baseline), or r itself (`rewards`, LitePPO) (paper: REINFORCE++'s)."""
    std: Literal["population", "sample"] = "population"
    """Which deviation s is; published codes differ (ours)."""
    eps: float = Field(1e-6, ge=0)
    """Added to s (ours)."""
    needs: ClassVar[frozenset[str]] = frozenset()
    normalizes_first: ClassVar[bool] = False
    whole_step: ClassVar[bool] = True

    def advantages_R(self, groups: Groups, signals: TokenSignals) -> Floats:
        """Base advantage a completion (R), where `groups` are the step's; 0 in groups that are not
        `mixed`."""
        centred_R = groups.rewards_R - groups.mean_G[groups.of_row]
        scale = self.deviation(groups) + self.eps
        return _in_mixed_groups(centred_R / (scale if scale > 0 else 1.0), groups)

    def measures(self, groups: Groups, signals: TokenSignals) -> dict[str, float]:
        """`batch_std`: s."""
        return {"batch_std": self.deviation(groups)}

    def deviation(self, groups: Groups) -> float:
        """s, over the known rewards of every group; 0 of none. Sums are exact, so that the order of
        completions does not matter."""
        rewards_R = groups.rewards_R
        if self.of == "centred":
            rewards_R = rewards_R - groups.mean_G[groups.of_row]
        return _spread(rewards_R[groups.known_R], self.std)


class NoBaseline(Section):
    """No advantage at all: the rewards teach nothing, as in pure distillation."""

    kind: Literal["none"] = "none"
    """`none`: no advantage from rewards, OPSD (paper)."""
    needs: ClassVar[frozenset[str]] = frozenset()
    normalizes_first: ClassVar[bool] = False
    whole_step: ClassVar[bool] = False

    def advantages_R(self, groups: Groups, signals: TokenSignals) -> Floats:
        """Zeros (R)."""
        return np.zeros(len(groups.of_row))

    def measures(self, groups: Groups, signals: TokenSignals) -> dict[str, float]:
        """Nothing to tell."""
        return {}


Baseline = Annotated[
    GroupBaseline | BatchBaseline | RccBaseline | NoBaseline, Field(discriminator="kind")
]


def completion_drifts(signals: TokenSignals, reduction: str) -> Floats:
    """d of each completion (R): its tokens' l_old - l_ref in nats, their sum or their mean."""
    assert signals.drift_N is not None, "needs reference log-probs"
    rows = len(signals.offsets) - 1
    reduce = sums if reduction == "sum" else means
    return reduce(signals.drift_N, row_of_value(signals.offsets), rows)


def reward_covariances(groups: Groups, values_R: Floats) -> Floats:
    """Population covariance of reward and a value within each group (G), over known rewards."""
    known = groups.known_R
    owner, count = groups.of_row[known], groups.count
    values = values_R[known]
    centred = values - means(values, owner, count)[owner]
    return means((groups.rewards_R - groups.mean_G[groups.of_row])[known] * centred, owner, count)


def ratio_margin(groups: Groups, ratio_R: Floats) -> float:
    """Mean over mixed groups of (1/G) sum_i A_i rho_i, with A_i = (r_i - p) / s.

    With binary rewards this is sqrt(p (1 - p)) (mean rho of the correct - mean rho of the
    wrong), the margin that GRPO implicitly widens (BICC, arXiv 2603.13134). `ratio_R` is each
    completion's mean ratio over its tokens; NaN without a mixed group.
    """
    mixed = groups.kind_G == "mixed"
    if not mixed.any():
        return float("nan")
    centred = groups.rewards_R - groups.mean_G[groups.of_row]
    weighted = _in_mixed_groups(centred / _deviations_R(groups, "population", 0.0), groups)
    known = groups.known_R
    margin_G = sums((weighted * ratio_R)[known], groups.of_row[known], groups.count) / np.maximum(
        groups.size_G, 1
    )
    return float(margin_G[mixed].mean())


def _spread(values: Floats, std: str) -> float:
    """The deviation of all these values; 0 of none. Sums are exact, so that the order of
    completions does not matter."""
    counted = len(values) - int(std == "sample")
    if counted < 1:
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((values - mean) ** 2) / counted)


def _deviations_R(groups: Groups, std: str, eps: float) -> Floats:
    """s + eps of each completion's group (R); 1 where the group is not mixed."""
    deviation = groups.std_G(ddof=int(std == "sample"))[groups.of_row] + eps
    # A penalty can bring the rewards of a mixed group together.
    return np.where((groups.kind_R == "mixed") & (deviation > 0), deviation, 1.0)


def _means_R(groups: Groups, eps: float) -> Floats:
    """p + eps of each completion's group (R), which is above 0 in a mixed one; 1 elsewhere."""
    if (groups.rewards_R < 0).any():
        raise UserError(
            "method.baseline.kind=maxrl divides by the mean reward of a group, so no reward may be "
            "below 0; set method.baseline.kind=mean"
        )
    return np.where(groups.kind_R == "mixed", groups.mean_G[groups.of_row] + eps, 1.0)


def _in_mixed_groups(advantages_R: Floats, groups: Groups) -> Floats:
    return np.where((groups.kind_R == "mixed") & groups.known_R, advantages_R, 0.0)
