"""CAST: clipped asymmetric self-teaching with advantage flipping (arXiv 2606.00172).

The verifier decides the direction of a trajectory; an answer-free teacher, a
stop-gradient copy of the policy, only shapes it locally through the gap
g = l_T - l_old.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from castctl.methods.groups import Groups
from castctl.methods.schedule import Moment
from castctl.methods.shaping import Shaped, TokenShaping, Told
from castctl.methods.signals import TokenSignals
from castctl.ragged import Ints, means, row_of_value, spread, sums

Positive = Annotated[float, Field(ge=0)]


class CastShaping(TokenShaping):
    """CAST's local shaping of a signed base advantage."""

    kind: Literal["cast"] = "cast"
    """`cast`: the gap of an answer-free teacher shapes and flips tokens (paper)."""
    needs: ClassVar[frozenset[str]] = frozenset({"teacher_logprobs"})
    binary_rewards: ClassVar[bool] = True

    positive_range: tuple[Positive, Positive] = (0.8, 1.05)
    """Range of the weight where the base is positive (paper)."""
    negative_range: tuple[Positive, Positive] = (0.95, 1.2)
    """Range of the weight where the base is negative (paper)."""
    lam: float = Field(1.0, ge=0, le=1)
    """Strength of the shaping, not decayed (ours; the paper does not state it)."""
    flip: bool = True
    """Whether a token the teacher contradicts may get the other sign (paper)."""
    tau_rms: Positive = 2.0
    """A token flips beyond this many root mean squares of its group's gap (ours)."""
    tau_floor: Positive = 0.5
    """Smallest threshold, in nats (ours). The gap of a past self is no noise: it is largest on
    the very tokens that are being learned, and a floor of 0.001 nats flips those and stops the
    learning (docs/measured.md)."""
    tau_nats: Positive | None = None
    """A fixed threshold in nats in place of the two above; 0 flips by sign alone."""
    kappa_correct: Positive = 0.5
    """Size of a flipped token in a correct completion, in units of its shaped size (ours)."""
    kappa_wrong: Positive = 0.5
    """The same in a wrong completion (ours)."""
    clamp: float | None = Field(1.2, gt=0)
    """Bound of every token advantage (paper); null is off."""

    @model_validator(mode="after")
    def _ranges_hold_one(self) -> CastShaping:
        for name in ("positive_range", "negative_range"):
            low, high = getattr(self, name)
            if not low <= 1 <= high:
                raise ValueError(
                    f"{name} must hold 1, the weight of a zero gap; got [{low}, {high}]"
                )
        return self

    def warnings(self) -> list[str]:
        """What may surprise in these settings, a line each."""
        if not self.flip or self.tau_nats != 0:
            return []
        return [
            "tau_nats=0 flips every token the teacher contradicts, noise included: about half of "
            "all tokens where the gap is noise"
        ]

    def shape(
        self, base_R: NDArray[np.float64], signals: TokenSignals, groups: Groups, moment: Moment
    ) -> Shaped:
        """Token advantages (N) from base advantages (R) and the gap (N).

        Steps 3 to 6: the weight w = clip(exp(sign(B) g)), the shaped advantage
        B (1 + lam (w - 1)), flipping where the gap contradicts the base by more than tau,
        and the clamp. A completion without a gap keeps its base.
        """
        assert signals.gap_N is not None, "CAST shapes by the teacher's gap"
        base_N = spread(base_R, signals.offsets)
        scored = ~np.isnan(signals.gap_N)
        gap_N = np.where(scored, signals.gap_N, 0.0)

        weights_N = 1 + self.lam * (self._weights(base_N, gap_N) - 1)
        advantages_N = base_N * weights_N
        flipped_N = np.zeros(len(base_N), np.bool_)
        if self.flip:
            tau_N = self.thresholds(signals.gap_N, signals.offsets, groups)
            down = (base_N > 0) & (gap_N < -tau_N)
            up = (base_N < 0) & (gap_N > tau_N)
            size_N = np.abs(advantages_N)
            advantages_N = np.where(down, -self.kappa_correct * size_N, advantages_N)
            advantages_N = np.where(up, self.kappa_wrong * size_N, advantages_N)
            flipped_N = down | up
        return Shaped(self._clamped(advantages_N), weights_N, flipped_N)

    def measures(
        self, base_R: NDArray[np.float64], shaped: Shaped, offsets: Ints, groups: Groups
    ) -> Told:
        """`clamp_removed_share`, by number of rewards above 0 in the group (0, 1, ...): the share
        of tokens with a weight other than 1, not flipped, whose advantage the clamp made
        what it would be unshaped. NaN where no token of such a group was shaped.

        Advantages are compared as they are stored, in float32.
        """
        weights_N, flipped_N = shaped.weights_N, shaped.flipped_N
        assert weights_N is not None and flipped_N is not None, "CAST always stores both"
        correct_G = sums(groups.rewards_R > 0, groups.of_row, groups.count).astype(np.int64)
        correct_N = correct_G[groups.of_row[row_of_value(offsets)]]
        unshaped_N = self._clamped(spread(base_R, offsets))
        shaped_N = (weights_N != 1) & ~flipped_N & (unshaped_N != 0)
        same_N = shaped.advantages_N.astype(np.float32) == unshaped_N.astype(np.float32)
        largest = int(np.bincount(groups.of_row, minlength=1).max())
        total = np.bincount(correct_N[shaped_N], minlength=largest + 1)
        removed = np.bincount(correct_N[shaped_N & same_N], minlength=largest + 1)
        with np.errstate(invalid="ignore"):
            shares = removed / total
        return {"clamp_removed_share": [float(share) for share in shares]}

    def _clamped(self, advantages: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.clamp is None:
            return advantages
        return np.clip(advantages, -self.clamp, self.clamp)

    def _weights(
        self, base_N: NDArray[np.float64], gap_N: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        with np.errstate(over="ignore"):  # an overflow is clipped to the range's upper end
            raw = np.exp(np.sign(base_N) * gap_N)
        low = np.where(base_N > 0, self.positive_range[0], self.negative_range[0])
        high = np.where(base_N > 0, self.positive_range[1], self.negative_range[1])
        return np.clip(raw, low, high)

    def thresholds(
        self, gap_N: NDArray[np.float64], offsets: NDArray[np.int64], groups: Groups
    ) -> NDArray[np.float64]:
        """tau for each token (N), in nats; the spread is that of the group's scored tokens
        (those whose gap is not NaN) in completions with a reward."""
        if self.tau_nats is not None:
            return np.full(len(gap_N), self.tau_nats)
        group_N = groups.of_row[row_of_value(offsets)]
        counted = ~np.isnan(gap_N) & groups.known_R[row_of_value(offsets)]
        rms_G = np.sqrt(means(gap_N[counted] ** 2, group_N[counted], groups.count))
        return np.maximum(self.tau_rms * rms_G, self.tau_floor)[group_N]
