"""RLSD: the verifier keeps the direction, a teacher that sees the answer scales the size
(arXiv 2604.03128)."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from castctl.methods.groups import Groups
from castctl.methods.schedule import Moment, linear_decay
from castctl.methods.shaping import Floats, Shaped, TokenShaping
from castctl.methods.signals import TokenSignals
from castctl.ragged import spread
from castctl.settings import Amount


class RlsdShaping(TokenShaping):
    """A' = (1 - lam) A + lam A w, with w = clip(exp(sign(A) g))."""

    kind: Literal["rlsd"] = "rlsd"
    """`rlsd`: the privileged teacher's gap scales the advantage (paper)."""
    needs: ClassVar[frozenset[str]] = frozenset({"policy_logprobs", "teacher_logprobs"})

    eps_w: float = Field(0.2, ge=0, le=1)
    """The weight w is clipped to [1 - eps_w, 1 + eps_w] (paper)."""
    lam: float = Field(0.5, ge=0, le=1)
    """Strength of the shaping at step 0 (paper)."""
    decay_steps: Amount = 50
    """Steps over which the strength falls linearly to 0; 0 is no decay. Public codes differ: 50
    steps, or none (paper)."""

    def shape(
        self, base_R: Floats, signals: TokenSignals, groups: Groups, moment: Moment
    ) -> Shaped:
        """Token advantages (N) from base advantages (R) and the gap (N).

        The stored factor is 1 + lam (w - 1). A token without a gap keeps its base.
        """
        assert signals.gap_N is not None, "RLSD shapes by the teacher's gap"
        base_N = spread(base_R, signals.offsets)
        gap_N = np.where(np.isnan(signals.gap_N), 0.0, signals.gap_N)
        with np.errstate(over="ignore"):  # an overflow is clipped to the upper end
            ratio_N = np.exp(self._direction(base_N) * gap_N)
        lam = self.lam * linear_decay(moment, self.decay_steps)
        weights_N = 1 + lam * (np.clip(ratio_N, 1 - self.eps_w, 1 + self.eps_w) - 1)
        return Shaped(base_N * weights_N, weights_N)

    def _direction(self, base_N: Floats) -> Floats:
        """The sign with which the gap enters: the teacher's praise counts in right completions,
        its doubt in wrong ones."""
        return np.sign(base_N)
