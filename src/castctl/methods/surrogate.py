"""The policy loss of one token, and how tokens add up to the loss of an optimizer step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from castctl.settings import Section

if TYPE_CHECKING:
    from torch import Tensor


MAX_LOG_RATIO = 20.0
"""Beyond e^20 a ratio says no more, and float32 overflows into NaN gradients at e^89."""


def _anchor_name(name: object) -> object:
    """The estimators k2 and k3 by the names their gradients go by."""
    return {"k2": "urkl", "k3": "ufkl"}.get(name, name) if isinstance(name, str) else name


class Surrogate(Section):
    """The clipped surrogate (PPO, arXiv 1707.06347; GRPO, arXiv 2402.03300) and its companions."""

    clip_low: float = Field(0.2, ge=0, le=1)
    """The ratio is clipped at 1 - clip_low (paper: PPO's 0.2)."""
    clip_high: float = Field(0.2, ge=0)
    """And at 1 + clip_high (paper: PPO's 0.2; DAPO's clip-higher, arXiv 2503.14476, is 0.28)."""
    dual_clip: float | None = Field(None, gt=1)
    """Bound c on the ratio where the advantage is negative (10 is usual); null is off."""
    aggregation: Literal["sequence_mean", "token_mean", "constant"] = "sequence_mean"
    """`token_mean`: over all kept tokens (DAPO); `sequence_mean`: tokens, then completions
    (GRPO); `constant`: over completions times the longest allowed length (Dr. GRPO)
    (paper: GRPO's)."""
    anchor: Annotated[Literal["none", "urkl", "ufkl"], BeforeValidator(_anchor_name)] = "none"
    """Penalty towards the frozen initial policy: `urkl` (or `k2`), `ufkl` (or `k3`); off, where
    GRPO's paper has `k3` (ours)."""
    anchor_coefficient: float = Field(0.001, ge=0)
    """Weight of the anchor (paper: SDPG's 0.001, arXiv 2606.04036)."""
    entropy_bonus: float = Field(0.0, ge=0)
    """Weight of the policy's entropy, in nats, subtracted from the loss; 0 is off (ours)."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset() if self.anchor == "none" else frozenset({"ref_logprobs"})

    @property
    def every_token(self) -> bool:
        """Whether tokens without an advantage have a gradient too."""
        return self.anchor != "none" or self.entropy_bonus > 0


@dataclass(frozen=True)
class TokenStreams:
    """What the loss reads of `N` tokens; float32 tensors of shape (N), no gradient.

    `scale` is the token's share of the step's loss (see `token_scales`).
    """

    old_logprobs: Tensor
    advantages: Tensor
    loss_weights: Tensor
    scale: Tensor
    ref_logprobs: Tensor | None = None

    def __getitem__(self, part: slice) -> TokenStreams:
        """The streams of some of the tokens."""
        return TokenStreams(
            self.old_logprobs[part],
            self.advantages[part],
            self.loss_weights[part],
            self.scale[part],
            None if self.ref_logprobs is None else self.ref_logprobs[part],
        )


def token_losses(
    settings: Surrogate, streams: TokenStreams, logprobs: Tensor, entropies: Tensor
) -> Tensor:
    """Loss of each token (N), already scaled: their sum over a step is the step's loss.

    With rho = exp(l_new - l_old): -min(rho A, clip(rho, 1 - low, 1 + high) A), for A < 0 at
    least c A under dual clip, times the loss weight; plus the anchor, with
    u = l_new - l_ref: u^2 / 2 (urkl) or exp(-u) + u (ufkl, the constant -1 left out); minus
    the entropy bonus. `logprobs` and `entropies` (N, nats) carry the gradient.
    """
    import torch

    advantages = streams.advantages
    ratio = torch.exp((logprobs - streams.old_logprobs).clamp(max=MAX_LOG_RATIO))
    clipped = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    gain = torch.minimum(ratio * advantages, clipped * advantages)
    if settings.dual_clip is not None:
        bounded = torch.maximum(gain, settings.dual_clip * advantages)
        gain = torch.where(advantages < 0, bounded, gain)
    losses = -gain * streams.loss_weights
    if settings.anchor != "none":
        assert streams.ref_logprobs is not None, "the anchor reads reference log-probs"
        u = logprobs - streams.ref_logprobs
        anchor = 0.5 * u**2 if settings.anchor == "urkl" else torch.exp(-u) + u
        losses = losses + settings.anchor_coefficient * anchor
    if settings.entropy_bonus > 0:
        losses = losses - settings.entropy_bonus * entropies
    return losses * streams.scale


def token_scales(
    aggregation: str, lengths_R: NDArray[np.int64], max_tokens: int
) -> NDArray[np.float64]:
    """Each token's share of the loss (N) over all kept completions of one optimizer step.

    `lengths_R` are the kept completions' lengths, those without an advantage included, so
    that the denominators do not depend on what a forward pass may skip. `max_tokens` is the
    longest allowed completion.
    """
    if aggregation == "token_mean":
        per_row = np.full(len(lengths_R), 1.0 / max(int(lengths_R.sum()), 1))
    elif aggregation == "sequence_mean":
        per_row = 1.0 / (np.maximum(lengths_R, 1) * max(len(lengths_R), 1))
    else:
        per_row = np.full(len(lengths_R), 1.0 / (max_tokens * max(len(lengths_R), 1)))
    return np.repeat(per_row, lengths_R)
