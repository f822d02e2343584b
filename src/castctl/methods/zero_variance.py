"""What groups teach whose rewards are all equal."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from castctl.methods.groups import Groups
from castctl.methods.schedule import START, Moment, linear_decay
from castctl.methods.shaping import Shaped
from castctl.methods.signals import TokenSignals
from castctl.ragged import row_of_value, spread
from castctl.settings import Amount, Count, Section

Floats = NDArray[np.float64]


class _ZeroVariance(Section):
    binary_rewards: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    fills: ClassVar[bool] = False
    """Whether groups without variance get a base advantage."""

    @property
    def rounds(self) -> int:
        """Most rounds of rollouts in a step."""
        return 1

    def fill_R(self, base_R: Floats, groups: Groups, moment: Moment = START) -> Floats:
        """The base advantages (R) as they are."""
        return base_R

    def shape(
        self, shaped: Shaped, base_R: Floats, groups: Groups, signals: TokenSignals
    ) -> Shaped:
        """Token advantages as the method's shaping made them."""
        return shaped

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
    fills: ClassVar[bool] = True
    b_correct: float = Field(1.0, ge=0)
    """Base advantage where every completion is right (paper)."""
    b_wrong: float = Field(1.0, ge=0)
    """Negated base advantage where every completion is wrong (paper)."""
    decay_steps: Amount = 0
    """Steps over which both fall linearly to 0; 0 is no decay (ours; where public scripts let
    `shaping.lam` decay, they let these decay alike)."""

    def fill_R(self, base_R: Floats, groups: Groups, moment: Moment = START) -> Floats:
        """The base advantages (R) with the zero-variance groups given their sign."""
        strength = linear_decay(moment, self.decay_steps)
        return _signed_R(base_R, groups, self.b_correct * strength, self.b_wrong * strength)


class EntropyBase(_ZeroVariance):
    """Groups without reward variance carry the verifier's sign, and each token's entropy its size
    (RL-ZVP, arXiv 2509.21880, equation 5).

    With H the policy's entropy at a token, in nats and a constant to the gradient: alpha H where
    every completion is right, -alpha (max H - H) where every one is wrong, the maximum being that
    of the completion.
    """

    kind: Literal["entropy"] = "entropy"
    """`entropy`: the verifier's sign times alpha and a factor of the token's entropy, RL-ZVP
    (paper)."""
    binary_rewards: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"policy_logprobs", "entropies"})
    fills: ClassVar[bool] = True
    alpha: float = Field(0.1, ge=0)
    """Advantage for each nat (ours; the paper tunes it for each model)."""

    def fill_R(self, base_R: Floats, groups: Groups, moment: Moment = START) -> Floats:
        """The base advantages (R) with +-alpha in the zero-variance groups."""
        return _signed_R(base_R, groups, self.alpha, self.alpha)

    def shape(
        self, shaped: Shaped, base_R: Floats, groups: Groups, signals: TokenSignals
    ) -> Shaped:
        """In zero-variance groups the entropy's factor in the place of the shaping's."""
        assert signals.entropies_N is not None, "RL-ZVP reads entropies"
        offsets, entropies_N = signals.offsets, signals.entropies_N
        highest_R = np.zeros(len(base_R))
        np.maximum.at(highest_R, row_of_value(offsets), entropies_N)
        kind_N = spread(groups.kind_R, offsets)
        right_N, wrong_N = kind_N == "all_correct", kind_N == "all_wrong"
        others_N = np.ones(len(kind_N)) if shaped.weights_N is None else shaped.weights_N
        factor_N = np.where(wrong_N, spread(highest_R, offsets) - entropies_N, entropies_N)
        weights_N = np.where(right_N | wrong_N, factor_N, others_N)
        advantages_N = np.where(
            right_N | wrong_N, spread(base_R, offsets) * weights_N, shaped.advantages_N
        )
        flipped_N = shaped.flipped_N
        if flipped_N is not None:
            flipped_N = flipped_N & ~(right_N | wrong_N)
        return Shaped(advantages_N, weights_N, flipped_N)


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


ZeroVariance = Annotated[
    ZeroBase | SignedBase | EntropyBase | DropAndResample, Field(discriminator="kind")
]


def _signed_R(base_R: Floats, groups: Groups, right: float, wrong: float) -> Floats:
    """The base advantages (R), but `right` where every completion of the group is right, and
    -`wrong` where every one is wrong."""
    kind = np.where(groups.known_R, groups.kind_R, "unknown")
    base_R = np.where(kind == "all_correct", right, base_R)
    return np.where(kind == "all_wrong", -wrong, base_R)
