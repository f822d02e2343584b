"""Soft adaptive policy optimization (SAPO, arXiv 2511.20347): a smooth gate in the clip's place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from castctl.methods.surrogate import PolicyLoss, ratios

if TYPE_CHECKING:
    from torch import Tensor

    from castctl.methods.objective import TokenStreams


class Sapo(PolicyLoss):
    """The ratio through a sigmoid around 1."""

    kind: Literal["sapo"] = "sapo"
    """`sapo`: the ratio through a sigmoid, whose slope fades with its distance from 1 (paper:
    SAPO's)."""
    tau_pos: float = Field(1.0, gt=0)
    """How steep the gate is where the advantage is positive (paper)."""
    tau_neg: float = Field(1.05, gt=0)
    """And where it is negative (paper)."""

    def losses(self, streams: TokenStreams, logprobs: Tensor) -> Tensor:
        """-(4 / tau) sigmoid(tau (rho - 1)) A (eq. 5 and 6): at rho = 1 its slope is A's, as that
        of rho A."""
        import torch

        ratio, advantages = ratios(streams, logprobs), streams.advantages
        tau = torch.where(advantages > 0, self.tau_pos, self.tau_neg).to(ratio)
        return -torch.sigmoid(tau * (ratio - 1)) * (4 / tau) * advantages
