"""Divergence proximal policy optimization (DPPO, arXiv 2602.04879): a trust region by how far a
token's probability moved, where PPO's is by its ratio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from castctl.methods.surrogate import PolicyLoss, ratios

if TYPE_CHECKING:
    from torch import Tensor

    from castctl.methods.objective import TokenStreams

BOUNDS = {"tv": 0.15, "kl": 0.05}
"""Those that the paper recommends for each divergence."""


class Dppo(PolicyLoss):
    """The ratio, where the token's divergence is within bounds."""

    kind: Literal["dppo"] = "dppo"
    """`dppo`: the ratio, masked where the policy has moved too far already (paper: DPPO's)."""
    divergence: Literal["tv", "kl"] = "tv"
    """Between the old and the new policy's chances of the token or any other: `tv`, the total
    variation |p_new - p_old| (eq. 13); `kl`, KL(old || new) of the two (eq. 14) (paper)."""
    divergence_low: float | None = Field(None, ge=0)
    """The most where the advantage is negative and the token less likely than before. Left out,
    0.15 for `tv` and 0.05 nats for `kl` (paper)."""
    divergence_high: float | None = Field(None, ge=0)
    """The most where the advantage is positive and the token likelier. Left out, the same two
    (paper)."""
    ratio_cap: float = Field(20.0, ge=1)
    """A ratio above weighs this (ours: verl's and TRL's)."""

    @property
    def bounds(self) -> tuple[float, float]:
        """The largest divergence of a token that falls, and of one that rises."""
        usual = BOUNDS[self.divergence]
        low, high = self.divergence_low, self.divergence_high
        return usual if low is None else low, usual if high is None else high

    def losses(self, streams: TokenStreams, logprobs: Tensor) -> Tensor:
        """-M rho A (eq. 11), M = 0 for the tokens that are held; beyond the cap of rho, which is a
        weight without gradient, the gradient is that of the cap times l_new."""
        weights = ratios(streams, logprobs.detach()).clamp(max=self.ratio_cap)
        kept = ~self.held(streams, logprobs)
        ratio = weights * (logprobs - logprobs.detach()).exp()
        return -kept.to(ratio) * ratio * streams.advantages

    def held(self, streams: TokenStreams, logprobs: Tensor) -> Tensor:
        """Those that are masked (eq. 12): too far already, to where the advantage pulls."""
        old, new = streams.old_logprobs.detach().double(), logprobs.detach().double()
        distances = binary_tv(old, new) if self.divergence == "tv" else binary_kl(old, new)
        low, high = self.bounds
        rises = (streams.advantages > 0) & (new > old) & (distances > high)
        return rises | ((streams.advantages < 0) & (new < old) & (distances > low))


def binary_tv(old: Tensor, new: Tensor) -> Tensor:
    """|p_new - p_old| of each token (N), from log-probs in nats."""
    return (new.exp() - old.exp()).abs()


def binary_kl(old: Tensor, new: Tensor) -> Tensor:
    """p log(p / q) + (1 - p) log((1 - p) / (1 - q)) of each token (N), in nats, p = exp(old) and
    q = exp(new); infinite where q is 1 and p is not."""
    import torch

    p, p_rest, q_rest = old.exp(), -torch.expm1(old), -torch.expm1(new)
    rest = torch.special.xlogy(p_rest, p_rest) - torch.special.xlogy(p_rest, q_rest)
    return p * (old - new) + rest
