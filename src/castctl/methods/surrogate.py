"""The policy loss of one token, and how tokens add up to the loss of an optimizer step."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from castctl.settings import Section

if TYPE_CHECKING:
    from torch import Tensor

    from castctl.methods.objective import TokenStreams


MAX_LOG_RATIO = 20.0
"""Beyond e^20 a ratio says no more, and float32 overflows into NaN gradients at e^89."""


class PolicyLoss(Section):
    """What an advantage pulls on, and over what it is averaged."""

    kind: str
    aggregation: Literal["sequence_mean", "token_mean", "constant"] = "sequence_mean"
    """`token_mean`: over all kept tokens (DAPO); `sequence_mean`: tokens, then completions
    (GRPO); `constant`: over completions times the longest allowed length (Dr. GRPO)
    (paper: GRPO's)."""
    entropy_bonus: float = Field(0.0, ge=0)
    """Weight of the policy's entropy, in nats, subtracted from the loss; 0 is off (ours)."""
    carried: ClassVar[frozenset[str]] = frozenset({"aggregation", "entropy_bonus"})
    """What stays as it was set where another kind is chosen."""
    of_completions: ClassVar[bool] = False
    """Whether a token's loss reads the log-probs of its whole completion (see `prepared`)."""

    @property
    def trains(self) -> bool:
        """Whether there is a policy loss at all."""
        return True

    @property
    def has_ratio(self) -> bool:
        """Whether it divides by the old policy: for several updates a batch, and other prompts."""
        return True

    @property
    def one_advantage(self) -> bool:
        """Whether all tokens of a completion must have the same advantage."""
        return False

    def prepared(
        self, streams: TokenStreams, lengths_R: NDArray[np.int64], logprobs: Tensor | None
    ) -> TokenStreams:
        """The streams of whole completions (their lengths R) with what the loss reads of these.

        `logprobs` (N) are the policy's in nats; None where it is the old policy still.
        """
        return streams

    def losses(self, streams: TokenStreams, logprobs: Tensor) -> Tensor:
        """Policy loss of each token (N) before its weights, in the dtype given; `logprobs` (nats)
        carry the gradient."""
        raise NotImplementedError

    def held(self, streams: TokenStreams, logprobs: Tensor) -> Tensor:
        """Which tokens (N, bool) a bound on the ratio holds."""
        import torch

        return torch.zeros_like(logprobs, dtype=torch.bool)


def ratios(streams: TokenStreams, logprobs: Tensor) -> Tensor:
    """exp(l_new - l_old) of each token (N), with gradient."""
    return (logprobs - streams.old_logprobs).clamp(max=MAX_LOG_RATIO).exp()


def clipped_losses(ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """-min(rho A, clip(rho, 1 - low, 1 + high) A) of each token (N)."""
    import torch

    clipped = ratio.clamp(1 - low, 1 + high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def beyond(ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """Where the clip takes the gradient (N, bool): the ratio is outside of [1 - low, 1 + high], on
    the side to which the advantage pulls."""
    return ((ratio > 1 + high) & (advantages > 0)) | ((ratio < 1 - low) & (advantages < 0))


class Surrogate(PolicyLoss):
    """PPO's clipped ratio, the log-prob itself, or nothing."""

    kind: Literal["clip", "reinforce", "none"] = "clip"
    """`clip`: the clipped ratio (PPO, arXiv 1707.06347; GRPO, arXiv 2402.03300); `reinforce`: the
    log-prob itself (SDPG); `none`: no policy loss (OPSD) (paper: GRPO's)."""
    clip_low: float = Field(0.2, ge=0, le=1)
    """The ratio is clipped at 1 - clip_low (paper: PPO's 0.2)."""
    clip_high: float = Field(0.2, ge=0)
    """And at 1 + clip_high (paper: PPO's 0.2; DAPO's clip-higher, arXiv 2503.14476, is 0.28)."""
    dual_clip: float | None = Field(None, gt=1)
    """Bound c on the ratio where the advantage is negative (10 is usual); null is off."""

    @model_validator(mode="after")
    def _clips_belong_to_a_ratio(self) -> Surrogate:
        if self.kind != "clip" and self.dual_clip is not None:
            raise ValueError(
                f"dual_clip bounds a ratio, and kind={self.kind} has none; set "
                "method.surrogate.kind=clip, or dual_clip to null"
            )
        return self

    @property
    def trains(self) -> bool:
        return self.kind != "none"

    @property
    def has_ratio(self) -> bool:
        return self.kind == "clip"

    def losses(self, streams: TokenStreams, logprobs: Tensor) -> Tensor:
        """With rho = exp(l_new - l_old), `clip`: -min(rho A, clip(rho, 1 - low, 1 + high) A), for
        A < 0 at most -c A under dual clip. `reinforce`: -A l_new. `none`: 0."""
        import torch

        advantages = streams.advantages
        if self.kind == "none":
            return torch.zeros_like(logprobs)
        if self.kind == "reinforce":
            return -advantages * logprobs
        ratio = ratios(streams, logprobs)
        losses = clipped_losses(ratio, advantages, self.clip_low, self.clip_high)
        if self.dual_clip is None:
            return losses
        bounded = torch.minimum(losses, -self.dual_clip * advantages)
        return torch.where(advantages < 0, bounded, losses)

    def held(self, streams: TokenStreams, logprobs: Tensor) -> Tensor:
        """Those whose ratio is beyond the clip; a dual clip is not counted."""
        if self.kind != "clip":
            return super().held(streams, logprobs)
        ratio = (logprobs - streams.old_logprobs).double().exp()
        return beyond(ratio, streams.advantages, self.clip_low, self.clip_high)


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
