"""Group sequence policy optimization (GSPO, arXiv 2507.18071): one ratio for a whole completion.

s = exp(mean over the completion's tokens of l_new - l_old), the geometric mean of its tokens'
ratios (eq. 7). The output head forms the gradient chunk by chunk, so s is known before, from
log-probs of the same hidden states, and each token carries its part of the gradient of s.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from castctl.errors import UserError
from castctl.methods.surrogate import MAX_LOG_RATIO, PolicyLoss, beyond, clipped_losses
from castctl.ragged import means, offsets_of, row_of_value

if TYPE_CHECKING:
    from torch import Tensor

    from castctl.methods.objective import TokenStreams


class Gspo(PolicyLoss):
    """The clipped ratio of a completion."""

    kind: Literal["gspo"] = "gspo"
    """`gspo`: the clipped ratio of the whole completion, the geometric mean of its tokens' (paper:
    GSPO's)."""
    level: Literal["sequence", "token"] = "sequence"
    """`sequence`: -min(s A, clip(s) A) once a completion, GSPO (eq. 5); `token`: for each token
    with its own A and s pi / sg(pi), GSPO-token (eq. 13), which shaping needs (paper)."""
    range_low: float = Field(3e-4, ge=0, le=1)
    """s is clipped at 1 - range_low (paper)."""
    range_high: float = Field(4e-4, ge=0)
    """And at 1 + range_high (paper)."""
    of_completions: ClassVar[bool] = True

    @property
    def one_advantage(self) -> bool:
        return self.level == "sequence"

    def prepared(
        self, streams: TokenStreams, lengths_R: NDArray[np.int64], logprobs: Tensor | None
    ) -> TokenStreams:
        """With log s of each token's completion, 0 where the policy is the old one still.

        `sequence`: the gradient of s reaches every token of the completion alike, so their weights
        are averaged. Raises `UserError` where their advantages differ.
        """
        import torch

        owner = row_of_value(offsets_of(lengths_R))

        def mean_N(values: Tensor) -> Tensor:
            per_row = means(values.double().cpu().numpy(), owner, len(lengths_R))
            return torch.from_numpy(per_row[owner]).to(values)

        old, weights = streams.old_logprobs, streams.loss_weights
        log_s = torch.zeros_like(old) if logprobs is None else mean_N(logprobs - old)
        if self.one_advantage:
            first = np.cumsum(lengths_R) - lengths_R
            if (streams.advantages != streams.advantages[first[owner]]).any():
                raise UserError(
                    "the ratio of a whole completion pulls on one advantage, and the tokens of a "
                    "completion have several; set method.surrogate.level=token"
                )
            weights = mean_N(weights)
        return replace(streams, loss_weights=weights, completion_log_ratios=log_s)

    def losses(self, streams: TokenStreams, logprobs: Tensor) -> Tensor:
        """-min(s A, clip(s, 1 - low, 1 + high) A), with s as sg(s) pi / sg(pi): over a completion
        its gradient sums to that of s itself times the completion's length."""
        assert streams.completion_log_ratios is not None, "set by `prepared`"
        log_s = streams.completion_log_ratios.clamp(max=MAX_LOG_RATIO)
        ratio = (log_s + (logprobs - logprobs.detach())).exp()
        return clipped_losses(ratio, streams.advantages, self.range_low, self.range_high)

    def held(self, streams: TokenStreams, logprobs: Tensor) -> Tensor:
        """Those of completions whose ratio is beyond the clip."""
        assert streams.completion_log_ratios is not None, "set by `prepared`"
        ratio = streams.completion_log_ratios.double().exp()
        return beyond(ratio, streams.advantages, self.range_low, self.range_high)
