"""What groups teach whose rewards are all equal."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from castctl.methods.groups import Groups
from castctl.methods.schedule import START, Moment, linear_decay
from castctl.settings import Amount, Count, Section

Floats = NDArray[np.float64]


class _ZeroVariance(Section):
    binary_rewards: ClassVar[bool] = False

    @property
    def rounds(self) -> int:
        """Most rounds of rollouts in a step."""
        return 1

    def fill_R(self, base_R: Floats, groups: Groups, moment: Moment = START) -> Floats:
        """The base advantages (R) as they are."""
        return base_R

    def keeps_R(self, groups: Groups) -> NDArray[np.bool_]:
        """Completions (R) that training counts: all whose reward is known."""
        return groups.known_R


class ZeroBase(_ZeroVariance):
    """Groups without reward variance carry no signal, as in GRPO."""

    kind: Literal["zero"] = "zero"
    """`zero`: no advantage, GRPO (paper)."""


class SignedBase(_ZeroVariance):
    """Groups without reward variance carry the verifier's sign (CAST, arXiv 2606.00172)."""

    kind: Literal["signed"] = "signed"
    """`signed`: the verifier's sign, CAST (paper)."""
    binary_rewards: ClassVar[bool] = True
    b_correct: float = Field(1.0, ge=0)
    """Base advantage where every completion is right (paper)."""
    b_wrong: float = Field(1.0, ge=0)
    """Negated base advantage where every completion is wrong (paper)."""
    decay_steps: Amount = 0
    """Steps over which both fall linearly to 0; 0 is no decay (ours; where public scripts let
    `shaping.lam` decay, they let these decay alike)."""

    def fill_R(self, base_R: Floats, groups: Groups, moment: Moment = START) -> Floats:
        """The base advantages (R) with the zero-variance groups given their sign."""
        kind = np.where(groups.known_R, groups.kind_R, "unknown")
        strength = linear_decay(moment, self.decay_steps)
        base_R = np.where(kind == "all_correct", self.b_correct * strength, base_R)
        return np.where(kind == "all_wrong", -self.b_wrong * strength, base_R)


class DropAndResample(_ZeroVariance):
    """Only mixed groups are kept, and the loop rolls out more prompts until there are as many as
    the step wants (DAPO, arXiv 2503.14476)."""

    kind: Literal["resample"] = "resample"
    """`resample`: dropped, and others rolled out in their place, DAPO (paper)."""
    max_rounds: Count = 10
    """Most rounds of rollouts in a step, the first included (ours)."""

    @property
    def rounds(self) -> int:
        """Most rounds of rollouts in a step."""
        return self.max_rounds

    def keeps_R(self, groups: Groups) -> NDArray[np.bool_]:
        """Completions (R) whose reward is known, of groups that correctness alone makes mixed."""
        return groups.known_R & (groups.correctness.kind_R == "mixed")


ZeroVariance = Annotated[ZeroBase | SignedBase | DropAndResample, Field(discriminator="kind")]
