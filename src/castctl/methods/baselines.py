"""From rewards to one base advantage a completion: the group baseline and its edge cases."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from castctl.methods.groups import Groups
from castctl.ragged import sums
from castctl.settings import Section


class Baseline(Section):
    """How a completion's reward is compared with its group's."""

    kind: Literal["mean_std", "mean", "leave_one_out"] = "mean_std"
    """`mean_std`: (r - p) / (s + eps), GRPO (arXiv 2402.03300); `mean`: r - p, Dr. GRPO
    (arXiv 2503.20783); `leave_one_out`: r minus the mean of the others, RLOO (arXiv 2402.14740)
    (paper: GRPO's)."""
    std: Literal["population", "sample"] = "population"
    """Which deviation s is; published codes differ (ours)."""
    eps: float = Field(1e-6, ge=0)
    """Added to s (ours)."""

    def advantages_R(self, groups: Groups) -> NDArray[np.float64]:
        """Base advantage a completion (R); 0 in groups that are not `mixed`."""
        size = groups.size_G[groups.of_row]
        advantages = groups.rewards_R - groups.mean_G[groups.of_row]
        if self.kind == "leave_one_out":
            advantages = advantages * size / np.maximum(size - 1, 1)
        elif self.kind == "mean_std":
            std = groups.std_G(ddof=int(self.std == "sample"))[groups.of_row]
            advantages = advantages / np.where(groups.kind_R == "mixed", std + self.eps, 1.0)
        return np.where((groups.kind_R == "mixed") & groups.known_R, advantages, 0.0)


def ratio_margin(groups: Groups, ratio_R: NDArray[np.float64]) -> float:
    """Mean over mixed groups of (1/G) sum_i A_i rho_i, with A_i = (r_i - p) / s.

    With binary rewards this is sqrt(p (1 - p)) (mean rho of the correct - mean rho of the
    wrong), the margin that GRPO implicitly widens (BICC, arXiv 2603.13134). `ratio_R` is each
    completion's mean ratio over its tokens; NaN without a mixed group.
    """
    mixed = groups.kind_G == "mixed"
    if not mixed.any():
        return float("nan")
    known = groups.known_R
    weighted = Baseline(eps=0.0).advantages_R(groups) * ratio_R
    margin_G = sums(weighted[known], groups.of_row[known], groups.count) / np.maximum(
        groups.size_G, 1
    )
    return float(margin_G[mixed].mean())


class ZeroBase(Section):
    """Groups without reward variance carry no signal, as in GRPO."""

    kind: Literal["zero"] = "zero"
    """`zero`: no advantage, GRPO; `signed`: the verifier's sign, CAST (paper)."""
    binary_rewards: ClassVar[bool] = False

    def fill_R(self, base_R: NDArray[np.float64], groups: Groups) -> NDArray[np.float64]:
        """The base advantages (R) as they are."""
        return base_R


class SignedBase(Section):
    """Groups without reward variance carry the verifier's sign (CAST, arXiv 2606.00172)."""

    kind: Literal["signed"] = "signed"
    """`zero`: no advantage, GRPO; `signed`: the verifier's sign, CAST (paper)."""
    binary_rewards: ClassVar[bool] = True
    b_correct: float = Field(1.0, ge=0)
    """Base advantage where every completion is right (paper)."""
    b_wrong: float = Field(1.0, ge=0)
    """Negated base advantage where every completion is wrong (paper)."""

    def fill_R(self, base_R: NDArray[np.float64], groups: Groups) -> NDArray[np.float64]:
        """The base advantages (R) with the zero-variance groups given their sign."""
        kind = np.where(groups.known_R, groups.kind_R, "unknown")
        base_R = np.where(kind == "all_correct", self.b_correct, base_R)
        return np.where(kind == "all_wrong", -self.b_wrong, base_R)


ZeroVariance = Annotated[ZeroBase | SignedBase, Field(discriminator="kind")]
