"""Clipped importance weights (CISPO of MiniMax-M1, arXiv 2506.13585): the ratio weighs REINFORCE,
so that no token loses its gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from castctl.methods.surrogate import PolicyLoss, ratios

if TYPE_CHECKING:
    from torch import Tensor

    from castctl.methods.objective import TokenStreams


class Cispo(PolicyLoss):
    """REINFORCE, weighted by the clipped ratio."""

    kind: Literal["cispo"] = "cispo"
    """`cispo`: the log-prob, weighted by the clipped ratio (paper: MiniMax-M1's)."""
    weight_low: float = Field(0.0, ge=0, le=1)
    """A ratio below weighs this (paper: no lower bound)."""
    weight_high: float = Field(5.0, ge=1)
    """A ratio above weighs this: 1 + eps_high of the paper, which does not state it (ours: TRL's,
    after ScaleRL, arXiv 2510.13786)."""

    def losses(self, streams: TokenStreams, logprobs: Tensor) -> Tensor:
        """-sg(clip(rho, low, high)) A l_new (eq. 4 and 5)."""
        weights = ratios(streams, logprobs.detach()).clamp(self.weight_low, self.weight_high)
        return -weights * streams.advantages * logprobs

    def held(self, streams: TokenStreams, logprobs: Tensor) -> Tensor:
        """Those whose weight is a bound; they have a gradient still."""
        ratio = (logprobs - streams.old_logprobs).double().exp()
        bounded = (ratio < self.weight_low) | (ratio > self.weight_high)
        return bounded & (streams.advantages != 0)
