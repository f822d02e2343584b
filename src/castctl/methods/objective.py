"""The loss of one token: policy term, distillation and anchor together.

It reads streams and specifications, and does not know which method made them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from castctl.methods.anchors import Anchor, anchor_penalties
from castctl.methods.distillation import Distillation, NoDistillation
from castctl.methods.surrogate import PolicyLoss, Surrogate, ratios

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Objective:
    """What the loss is made of."""

    surrogate: PolicyLoss = field(default_factory=Surrogate)
    anchor: Anchor = field(default_factory=Anchor)
    distillation: NoDistillation | Distillation = field(default_factory=NoDistillation)

    @property
    def needs(self) -> frozenset[str]:
        """Signals it reads beside the log-probs of its ratio."""
        return self.anchor.needs | self.distillation.needs

    @property
    def every_token(self) -> bool:
        """Whether tokens without an advantage have a gradient too."""
        return self.anchor.kind != "none" or self.surrogate.entropy_bonus > 0


@dataclass(frozen=True)
class TokenStreams:
    """What the loss reads of `N` tokens; float32 tensors of shape (N), no gradient.

    `scale` is the token's share of the step's loss (see `token_scales`). `distill_weights` are
    final: gate, schedule and coefficient are in them. `completion_log_ratios` are in nats, one
    value for all tokens of a completion. None = not needed.
    """

    old_logprobs: Tensor
    advantages: Tensor
    loss_weights: Tensor
    scale: Tensor
    ref_logprobs: Tensor | None = None
    teacher_logprobs: Tensor | None = None
    distill_weights: Tensor | None = None
    completion_log_ratios: Tensor | None = None

    def __getitem__(self, part: slice) -> TokenStreams:
        """The streams of some of the tokens."""
        values = (getattr(self, each.name) for each in fields(self))
        return TokenStreams(*(None if value is None else value[part] for value in values))  # type: ignore[arg-type]


def token_losses(
    objective: Objective,
    streams: TokenStreams,
    logprobs: Tensor,
    entropies: Tensor,
    divergences: Tensor,
) -> Tensor:
    """Loss of each token (N), already scaled: their sum over a step is the step's loss.

    The policy loss times the loss weight, plus the distillation weight times the divergence from
    the teacher, plus the anchor, minus the entropy bonus. `logprobs`, `entropies` and
    `divergences` (N, nats, their terms clipped already) carry the gradient.
    """
    surrogate, anchor = objective.surrogate, objective.anchor
    losses = surrogate.losses(streams, logprobs) * streams.loss_weights
    if isinstance(objective.distillation, Distillation):
        assert streams.distill_weights is not None, "distillation reads its weights"
        distilled = _distillation_losses(objective.distillation, streams, logprobs, divergences)
        losses = losses + streams.distill_weights * distilled
    if anchor.kind != "none":
        assert streams.ref_logprobs is not None, "the anchor reads reference log-probs"
        penalties = anchor_penalties(anchor.kind, logprobs, streams.ref_logprobs)
        losses = losses + anchor.coefficient * penalties
    if surrogate.entropy_bonus > 0:
        losses = losses - surrogate.entropy_bonus * entropies
    return losses * streams.scale


def _distillation_losses(
    settings: Distillation, streams: TokenStreams, logprobs: Tensor, divergences: Tensor
) -> Tensor:
    """Divergence of each token (N), or for `sampled` the policy gradient of the reverse KL:
    -(l_T - l_old) rho, whose gradient at rho = 1 is that of KL(p || q) in expectation."""
    if settings.tokens == "sampled":
        assert streams.teacher_logprobs is not None, "needs the teacher's log-probs"
        gaps = streams.teacher_logprobs - streams.old_logprobs
        return -gaps * ratios(streams, logprobs)
    return divergences
