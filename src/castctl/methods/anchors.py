"""The penalty that ties the policy to the frozen initial one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field

from castctl.methods.surrogate import MAX_LOG_RATIO
from castctl.settings import Section

if TYPE_CHECKING:
    from torch import Tensor

NAMES = {"k2": "urkl", "k3": "ufkl"}
"""The estimators by the names their gradients go by."""


def _canonical(name: object) -> object:
    return NAMES.get(name, name) if isinstance(name, str) else name


class Anchor(Section):
    """A penalty on u = l_new - l_ref of every sampled token (SDPG, arXiv 2606.04036)."""

    kind: Annotated[Literal["none", "urkl", "ufkl", "fkl", "rkl"], BeforeValidator(_canonical)] = (
        "none"
    )
    """`urkl` (or `k2`): u^2 / 2; `ufkl` (or `k3`): exp(-u) + u; `fkl`: exp(-u);
    `rkl`: (u + 1)^2 / 2. Off, where GRPO's paper has `k3` (ours)."""
    coefficient: float = Field(0.001, ge=0)
    """Weight in the loss (paper: SDPG's 0.001)."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset() if self.kind == "none" else frozenset({"ref_logprobs"})


def anchor_penalties(kind: str, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Penalty of each token (N), before its coefficient; log-probs in nats, the policy's with
    gradient.

    At the reference the gradient is 0 for `urkl` and `ufkl`; it is -1 for `fkl` and +1 for `rkl`,
    0 in expectation alone. The constant -1 of k3 is left out of `ufkl`.
    """
    import torch

    u = logprobs - ref_logprobs
    if kind == "urkl":
        return 0.5 * u**2
    if kind == "rkl":
        return 0.5 * (u + 1) ** 2
    inverse = torch.exp((-u).clamp(max=MAX_LOG_RATIO))
    return inverse + u if kind == "ufkl" else inverse
