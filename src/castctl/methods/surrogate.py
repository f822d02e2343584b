"""The policy loss of one token, and how tokens add up to the loss of an optimizer step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from castctl.settings import Section

if TYPE_CHECKING:
    from torch import Tensor


MAX_LOG_RATIO = 20.0
"""Beyond e^20 a ratio says no more, and float32 overflows into NaN gradients at e^89."""


class Surrogate(Section):
    """What an advantage pulls on, and over what it is averaged."""

    kind: Literal["clip", "reinforce", "none"] = "clip"
    """`clip`: the clipped ratio (PPO, arXiv 1707.06347; GRPO, arXiv 2402.03300); `reinforce`: the
    log-prob itself (SDPG); `none`: no policy loss (OPSD) (paper: GRPO's)."""
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
    entropy_bonus: float = Field(0.0, ge=0)
    """Weight of the policy's entropy, in nats, subtracted from the loss; 0 is off (ours)."""

    @model_validator(mode="after")
    def _clips_belong_to_a_ratio(self) -> Surrogate:
        if self.kind != "clip" and self.dual_clip is not None:
            raise ValueError(
                f"dual_clip bounds a ratio, and kind={self.kind} has none; set "
                "method.surrogate.kind=clip, or dual_clip to null"
            )
        return self


def policy_losses(
    settings: Surrogate, advantages: Tensor, old_logprobs: Tensor, logprobs: Tensor
) -> Tensor:
    """Policy loss of each token (N), in the dtype given; `logprobs` (nats) carry the gradient.

    With rho = exp(l_new - l_old), `clip`: -min(rho A, clip(rho, 1 - low, 1 + high) A), for A < 0
    at least c A under dual clip. `reinforce`: -A l_new. `none`: 0.
    """
    import torch

    if settings.kind == "none":
        return torch.zeros_like(logprobs)
    if settings.kind == "reinforce":
        return -advantages * logprobs
    ratio = torch.exp((logprobs - old_logprobs).clamp(max=MAX_LOG_RATIO))
    clipped = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    gain = torch.minimum(ratio * advantages, clipped * advantages)
    if settings.dual_clip is not None:
        bounded = torch.maximum(gain, settings.dual_clip * advantages)
        gain = torch.where(advantages < 0, bounded, gain)
    return -gain


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
