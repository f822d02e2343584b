"""Which tokens the policy loss is taken over."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from castctl.methods.signals import TokenSignals
from castctl.settings import Section

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


class NoTokenMask(Section):
    """Every token counts."""

    kind: Literal["none"] = "none"
    """`none`: every token counts (paper: GRPO's)."""
    needs: ClassVar[frozenset[str]] = frozenset()
    whole_step: ClassVar[bool] = False
    draws: ClassVar[bool] = False

    def weights_N(self, advantages_N: Floats, signals: TokenSignals, counted_N: Flags) -> Floats:
        """Ones (N)."""
        return np.ones(len(advantages_N))


class HighEntropyTokens(Section):
    """The policy loss of the tokens of highest entropy alone (arXiv 2506.01939, equation 6).

    A token counts where H >= tau, the quantile 1 - share of the entropies of all tokens of the step
    that may pull on the policy.
    """

    kind: Literal["high_entropy"] = "high_entropy"
    """`high_entropy`: the tokens of highest entropy in the step (paper)."""
    share: float = Field(0.2, gt=0, le=1)
    """Share of the step's tokens that count (paper)."""
    mean_over: Literal["kept", "all"] = "kept"
    """Which tokens the loss is averaged over: those that count (`kept`, which weigh more for it),
    or `all` (TRL's) (paper)."""
    needs: ClassVar[frozenset[str]] = frozenset({"policy_logprobs", "entropies"})
    whole_step: ClassVar[bool] = True
    draws: ClassVar[bool] = False

    def weights_N(self, advantages_N: Floats, signals: TokenSignals, counted_N: Flags) -> Floats:
        """0, or what a token that counts weighs (N), from the step's entropies in nats; 1 where
        `counted_N` is not set, since nothing pulls there."""
        assert signals.entropies_N is not None, "reads entropies"
        entropies = signals.entropies_N[counted_N]
        weights_N = np.ones(len(advantages_N))
        if not len(entropies):
            return weights_N
        kept = entropies >= np.quantile(entropies, 1 - self.share)
        weight = len(kept) / kept.sum() if self.mean_over == "kept" else 1.0
        weights_N[counted_N] = kept * weight
        return weights_N


class ClipCov(Section):
    """Tokens drawn from a band of high covariance have no policy loss: Clip-Cov (arXiv 2505.22617).

    A token's covariance is (l - mean l)(A - mean A), l being its log-prob in nats, A its advantage
    and the means those of all tokens of the step that may pull on the policy. It is what the paper
    computes where the ratio is 1, as in the first update of a step.
    """

    kind: Literal["clip_cov"] = "clip_cov"
    """`clip_cov`: tokens drawn from a band of covariance are left out, Clip-Cov (paper)."""
    share: float = Field(2e-4, gt=0, le=1)
    """Share of the step's tokens that are left out at most, and at least one where the band has
    any (paper; at least one is its code's)."""
    low: float = 1.0
    """Covariance above which a token may be left out (paper: its code)."""
    high: float = 5.0
    """And below which (paper: its code)."""
    needs: ClassVar[frozenset[str]] = frozenset({"policy_logprobs"})
    whole_step: ClassVar[bool] = True
    draws: ClassVar[bool] = True

    @model_validator(mode="after")
    def _is_a_band(self) -> ClipCov:
        if self.low >= self.high:
            raise ValueError(
                f"no covariance lies between {self.low:g} and {self.high:g}; set low below high"
            )
        return self

    def weights_N(self, advantages_N: Floats, signals: TokenSignals, counted_N: Flags) -> Floats:
        """0 where a token is left out (N), else 1. The tokens of the band with the smallest of
        `signals.draws_N` are. Sums are exact, so that the order of completions does not matter."""
        assert signals.logprobs_N is not None and signals.draws_N is not None, "reads both"
        left_out_N = np.zeros(len(advantages_N), np.bool_)
        centred = [
            values_N - math.fsum(values_N[counted_N]) / max(int(counted_N.sum()), 1)
            for values_N in (signals.logprobs_N, advantages_N)
        ]
        covariance_N = centred[0] * centred[1]
        band = np.flatnonzero(counted_N & (covariance_N > self.low) & (covariance_N < self.high))
        most = max(int(self.share * counted_N.sum()), 1)
        left_out_N[band[np.argsort(signals.draws_N[band], kind="stable")[:most]]] = True
        return np.where(left_out_N, 0.0, 1.0)


TokenMask = Annotated[NoTokenMask | HighEntropyTokens | ClipCov, Field(discriminator="kind")]
