"""The importance correction between sampler and scorer, where they are two programs.

Sampler and scorer round differently, or are other code. The policy loss of a token is multiplied
by a weight made of d = l_old - l_sampler, the scorer's log-prob of the token minus the sampler's.
One ratio a unit:

- `token`: r = exp(d), a ratio for each token;
- `sequence`: r = exp(sum of d over the completion), one for all its tokens;
- `geometric`: r = exp(mean of d over the completion), the same with the length divided out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from castctl.ragged import Ints, sums
from castctl.settings import Section

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Corrected:
    """What a correction makes of U units, which are tokens or completions that have tokens: their
    weights, which are masked and which capped, and how many tokens each has."""

    weights_U: Floats
    masked_U: Flags
    capped_U: Flags
    tokens_U: NDArray[np.int64]

    @property
    def weights_N(self) -> Floats:
        """What the policy loss of each token is multiplied by (N)."""
        return np.repeat(self.weights_U, self.tokens_U)

    @property
    def masked_N(self) -> Flags:
        """Which tokens are masked (N), alone or with their completion."""
        return np.repeat(self.masked_U, self.tokens_U)

    @property
    def capped_N(self) -> Flags:
        """Which tokens' weight is the cap (N), since their ratio or their completion's is above."""
        return np.repeat(self.capped_U, self.tokens_U)


class NoCorrection(Section):
    """Sampler and scorer are taken for one."""

    kind: Literal["none"] = "none"
    """`none`: every token weighs 1, whatever the sampler's log-prob (ours)."""
    level: ClassVar[str] = "token"
    of_completions: ClassVar[bool] = False

    def corrected(
        self, policy_N: ArrayLike, sampler_N: ArrayLike, offsets: Ints
    ) -> Corrected | None:
        """None: nothing is corrected."""
        return None


class _Correction(Section):
    kind: str
    level: Literal["token", "sequence", "geometric"] = "token"
    """One ratio exp(l_old - l_sampler) for each `token`; for each completion the product of its
    tokens' (`sequence`), or their geometric mean (`geometric`). The product is the one without
    bias, and leaves long completions little weight or none (ours)."""

    @property
    def of_completions(self) -> bool:
        """Whether a token's weight depends on its whole completion."""
        return self.level != "token"

    @property
    def bounds(self) -> tuple[float, float]:
        """Ratios below the first and above the second are masked or capped."""
        raise NotImplementedError

    def _weights(self, ratio: Floats) -> tuple[Floats, Flags, Flags]:
        """Weights, and which are masked and which capped, of ratios."""
        raise NotImplementedError

    def corrected(self, policy_N: ArrayLike, sampler_N: ArrayLike, offsets: Ints) -> Corrected:
        """The weights of completions cut by `offsets` (R + 1), from log-probs in nats (N), of any
        float type; all is computed in float64.

        A token whose log-prob is NaN on either side, such as one that the sampler did not report,
        has no ratio: it weighs 1, and counts neither as masked nor as capped. A completion's ratio
        is then that of its other tokens, and holds for all of them. A ratio that overflows is
        infinite, and so capped or masked.
        """
        log_U = np.asarray(policy_N, np.float64) - np.asarray(sampler_N, np.float64)
        tokens_U = np.ones(len(log_U), np.int64)
        if self.level != "token":
            lengths_R = np.diff(offsets)
            tokens_U = lengths_R[lengths_R > 0]
            log_U = self._log_ratios(log_U, np.repeat(np.arange(len(tokens_U)), tokens_U))
        with np.errstate(over="ignore"):
            ratio_U = np.exp(log_U)
        weights_U, masked_U, capped_U = self._weights(ratio_U)
        return Corrected(np.where(np.isnan(log_U), 1.0, weights_U), masked_U, capped_U, tokens_U)

    def _log_ratios(self, log_N: Floats, unit_N: NDArray[np.int64]) -> Floats:
        """The logarithm of each completion's ratio (U), NaN where no token has one."""
        told_N = ~np.isnan(log_N)
        units = int(unit_N.max(initial=-1)) + 1
        count_U = np.bincount(unit_N[told_N], minlength=units)
        log_U = sums(log_N[told_N], unit_N[told_N], units)
        if self.level == "geometric":
            log_U /= np.maximum(count_U, 1)
        return np.where(count_U > 0, log_U, np.nan)


class Truncate(_Correction):
    """A ratio counts up to a cap: truncated importance sampling (Ionides, 2008; between engines
    https://fengyao.notion.site/off-policy-rl). TRL has it as `token_truncate` and
    `sequence_truncate`, verl as `rollout_is` token and sequence."""

    kind: Literal["truncate"] = "truncate"
    """`truncate`: the weight is min(r, high) (ours; TRL's older and verl's usual one)."""
    high: float = Field(2.0, gt=0, le=1e9)
    """The cap (ours; verl's 2, where 1.5 to 5 is usual for tokens and 2 to 10 for sequences; TRL
    now has 3)."""

    @property
    def bounds(self) -> tuple[float, float]:
        return 0.0, self.high

    def _weights(self, ratio: Floats) -> tuple[Floats, Flags, Flags]:
        return np.minimum(ratio, self.high), np.zeros(len(ratio), np.bool_), ratio > self.high


MASKS: dict[str, tuple[float, float]] = {
    "token": (0.5, 5.0),
    "sequence": (0.0, 3.0),
    "geometric": (0.999, 1.001),
}
"""The bounds that are published for each level: IcePop's (arXiv 2510.18855), TRL's `sequence_mask`,
and those of verl's `seq_mean_k1`."""


class Mask(_Correction):
    """What lies beyond the bounds has no policy loss, and counts in its denominator still: IcePop
    (arXiv 2510.18855), TRL's `token_mask` and `sequence_mask`."""

    kind: Literal["mask"] = "mask"
    """`mask`: the weight is r where low <= r <= high, else 0 (paper: IcePop's)."""
    low: float | None = Field(None, ge=0)
    """Lowest ratio that counts. Left out, 0.5 for tokens (paper: IcePop's), 0 for sequences, so
    none is too low (TRL's), and 0.999 for geometric means (verl's)."""
    high: float | None = Field(None, gt=0, le=1e9)
    """Highest one. Left out, 5 for tokens (paper: IcePop's), 3 for sequences (TRL's), and 1.001
    for geometric means (verl's)."""

    @model_validator(mode="after")
    def _one_is_within(self) -> Mask:
        low, high = self.bounds
        if not (low <= 1 <= high and low < high):
            raise ValueError(
                f"a ratio of 1 means that sampler and scorer agree, and {low:g} to {high:g} would "
                "mask it; set low to at most 1 and high to at least 1"
            )
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        low, high = MASKS[self.level]
        return low if self.low is None else self.low, high if self.high is None else self.high

    def _weights(self, ratio: Floats) -> tuple[Floats, Flags, Flags]:
        low, high = self.bounds
        masked = (ratio < low) | (ratio > high)
        return np.where(masked, 0.0, ratio), masked, np.zeros(len(ratio), np.bool_)


Correction = Annotated[NoCorrection | Truncate | Mask, Field(discriminator="kind")]


def effective_share(weights: Floats) -> float | None:
    """Kish's effective number of weights over their number n, (sum w)^2 / (n sum w^2): 1 where all
    are equal, 0 where all are 0; None of no weights. Weights must be finite."""
    if not len(weights):
        return None
    largest = weights.max()
    if largest == 0:
        return 0.0
    scaled = weights / largest
    return float(scaled.sum() ** 2 / (len(scaled) * (scaled**2).sum()))


def divergence_terms(log: Floats) -> Floats:
    """Each token's term of k3, exp(d) - 1 - d, from finite d in nats: its mean over tokens that the
    sampler drew estimates KL(sampler || scorer), and no term is below 0 (Schulman,
    http://joschu.net/blog/kl-approx.html)."""
    with np.errstate(over="ignore"):
        return np.expm1(log) - log


def of_cap(cap: float | None) -> dict[str, object]:
    """The slot's settings for the `importance_cap` of an older castctl: they weigh alike."""
    return {"kind": "none"} if cap is None else {"kind": "truncate", "level": "token", "high": cap}
