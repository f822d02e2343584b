"""CAST: clipped asymmetric self-teaching with advantage flipping (arXiv 2606.00172).

The verifier decides the direction of a trajectory; an answer-free teacher, a
stop-gradient copy of the policy, only shapes it locally through the gap
g = l_T - l_old.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from castctl.methods.groups import Groups
from castctl.methods.schedule import Moment, linear_decay
from castctl.methods.shaping import Shaped, TokenShaping, Told
from castctl.methods.signals import TokenSignals
from castctl.ragged import Ints, means, row_of_value, spread, sums
from castctl.settings import Amount

Positive = Annotated[float, Field(ge=0)]
Floats = NDArray[np.float64]


class CastShaping(TokenShaping):
    """CAST's local shaping of a signed base advantage."""

    kind: Literal["cast"] = "cast"
    """`cast`: the gap of an answer-free teacher shapes and flips tokens (paper)."""
    needs: ClassVar[frozenset[str]] = frozenset({"policy_logprobs", "teacher_logprobs"})
    binary_rewards: ClassVar[bool] = True

    positive_range: tuple[Positive, Positive] = (0.8, 1.05)
    """Range of the weight where the base is positive (paper)."""
    negative_range: tuple[Positive, Positive] = (0.95, 1.2)
    """Range of the weight where the base is negative (paper)."""
    lam: float = Field(1.0, ge=0, le=1)
    """Strength of the shaping at step 0 (ours; the paper does not state it)."""
    decay_steps: Amount = 0
    """Steps over which the strength falls linearly to 0; 0 is no decay (ours; in public scripts
    there is none, 50, 150 or 300, and `zero_variance.decay_steps` is the same)."""
    dead_band: tuple[Positive, Positive] | None = None
    """While exp(g) is within, the ends included, a token is neither weighted nor flipped; null is
    off (ours; a public port has one)."""
    flip: Literal["both", "correct", "wrong", "none"] = "both"
    """In which completions a token that the teacher contradicts may get the other sign (paper:
    both)."""
    flip_size: Literal["kappa", "other_side"] = "kappa"
    """`kappa`: the two kappas, in units of the shaped size; `other_side`: the base by the weight
    of the other side's range, its lower end raised to 1 (ours; public scripts: the latter)."""
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
        if self.dead_band is not None and not self.dead_band[0] <= 1 <= self.dead_band[1]:
            low, high = self.dead_band
            raise ValueError(f"dead_band must hold 1, exp of a zero gap; got [{low}, {high}]")
        return self

    @model_validator(mode="after")
    def _kappas_are_read(self) -> CastShaping:
        for name in ("kappa_correct", "kappa_wrong"):
            usual = type(self).model_fields[name].default
            if self.flip_size == "other_side" and getattr(self, name) != usual:
                raise ValueError(
                    f"flip_size=other_side reads no {name}; leave it out, or set flip_size=kappa"
                )
        return self

    @field_validator("flip", mode="before")
    @classmethod
    def _flip_was_a_switch(cls, flip: Any) -> Any:
        return {True: "both", False: "none"}[flip] if isinstance(flip, bool) else flip

    def warnings(self) -> list[str]:
        """What may surprise in these settings, a line each."""
        taus = (self.tau_rms, self.tau_floor) if self.tau_nats is None else (self.tau_nats,)
        if self.flip == "none" or any(taus):
            return []
        sized = self.flip_size == "other_side" or min(self.kappa_correct, self.kappa_wrong) > 0
        if self.flip == "both" and sized:
            outside = "" if self.dead_band is None else " outside of the dead band"
            return [
                f"tau is 0 and both flips are on, so sign(A) = sign(g) for every token{outside}: "
                "the verdict decides no direction any more, only how large a step is"
            ]
        return [
            "tau is 0, which flips every token the teacher contradicts, noise included: about half "
            "of all tokens where the gap is noise"
        ]

    def shape(
        self, base_R: Floats, signals: TokenSignals, groups: Groups, moment: Moment
    ) -> Shaped:
        """Token advantages (N) from base advantages (R) and the gap (N).

        Steps 3 to 6: the weight w = clip(exp(sign(B) g)), the shaped advantage
        B (1 + lam (w - 1)), flipping where the gap contradicts the base by more than tau,
        and the clamp. A completion without a gap keeps its base.
        """
        assert signals.gap_N is not None, "CAST shapes by the teacher's gap"
        base_N = spread(base_R, signals.offsets)
        gap_N = self._heard(signals.gap_N)
        lam = self.lam * linear_decay(moment, self.decay_steps)

        weights_N = 1 + lam * (self._weights(base_N, gap_N) - 1)
        advantages_N = base_N * weights_N
        tau_N = self.thresholds(signals.gap_N, signals.offsets, groups)
        down = (base_N > 0) & (gap_N < -tau_N) & (self.flip in ("both", "correct"))
        up = (base_N < 0) & (gap_N > tau_N) & (self.flip in ("both", "wrong"))
        if self.flip_size == "other_side":
            # Of an opposite base the gap is praise: the weight is the other range's, at least 1.
            other_N = np.maximum(self._weights(-base_N, gap_N), 1.0)
            turned_N = -base_N * (1 + lam * (other_N - 1))
        else:
            kappa_N = np.where(base_N > 0, self.kappa_correct, self.kappa_wrong)
            turned_N = -kappa_N * advantages_N
        flipped_N = down | up
        advantages_N = np.where(flipped_N, turned_N, advantages_N)
        return Shaped(self._clamped(advantages_N), weights_N, flipped_N)

    def measures(self, base_R: Floats, shaped: Shaped, offsets: Ints, groups: Groups) -> Told:
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

    def _clamped(self, advantages: Floats) -> Floats:
        if self.clamp is None:
            return advantages
        return np.clip(advantages, -self.clamp, self.clamp)

    def _heard(self, gap_N: Floats) -> Floats:
        """The gap (N), 0 where it is not known or within the dead band."""
        gap_N = np.where(np.isnan(gap_N), 0.0, gap_N)
        if self.dead_band is None:
            return gap_N
        low, high = self.dead_band
        with np.errstate(over="ignore"):  # an overflow is above the band
            ratio_N = np.exp(gap_N)
        return np.where((ratio_N >= low) & (ratio_N <= high), 0.0, gap_N)

    def _weights(self, base_N: Floats, gap_N: Floats) -> Floats:
        with np.errstate(over="ignore"):  # an overflow is clipped to the range's upper end
            raw = np.exp(np.sign(base_N) * gap_N)
        low = np.where(base_N > 0, self.positive_range[0], self.negative_range[0])
        high = np.where(base_N > 0, self.positive_range[1], self.negative_range[1])
        return np.clip(raw, low, high)

    def thresholds(self, gap_N: Floats, offsets: NDArray[np.int64], groups: Groups) -> Floats:
        """tau for each token (N), in nats; the spread is that of the group's scored tokens
        (those whose gap is not NaN) in completions with a reward."""
        if self.tau_nats is not None:
            return np.full(len(gap_N), self.tau_nats)
        group_N = groups.of_row[row_of_value(offsets)]
        counted = ~np.isnan(gap_N) & groups.known_R[row_of_value(offsets)]
        rms_G = np.sqrt(means(gap_N[counted] ** 2, group_N[counted], groups.count))
        return np.maximum(self.tau_rms * rms_G, self.tau_floor)[group_N]


def of_former(settings: dict[str, Any]) -> dict[str, Any]:
    """A part's slots as they are said today, where its shaping was CAST's before `flip` told of
    either side: without a dead band and without decay, flipped by the kappas."""
    shaping, filled = settings.get("shaping"), settings.get("zero_variance")
    if isinstance(shaping, dict) and isinstance(shaping.get("flip"), bool):
        since = {"decay_steps": 0, "dead_band": None, "flip_size": "kappa"}
        flip = "both" if shaping["flip"] else "none"
        settings = settings | {"shaping": {**since, **shaping, "flip": flip}}
    if isinstance(filled, dict) and filled.get("kind") == "signed":
        settings = settings | {"zero_variance": {"decay_steps": 0, **filled}}
    return settings
