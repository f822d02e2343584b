"""RLRT: RLSD's mechanics with the teacher read in reverse, on correct completions only
(arXiv 2605.10781)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from castctl.methods.rlsd import RlsdShaping
from castctl.settings import Amount


class RlrtShaping(RlsdShaping):
    """w = clip(exp(-g)) where A > 0, and 1 where A < 0: tokens that the student chose and the
    teacher would not have are reinforced."""

    kind: Literal["rlrt"] = "rlrt"  # type: ignore[assignment]
    """`rlrt`: the teacher's doubt strengthens right completions (paper)."""
    eps_w: float = Field(1.0, ge=0, le=1)
    """The weight w is clipped to [1 - eps_w, 1 + eps_w]: 1.0 for base models; 0.5 for instruct and
    0.2 for thinking models are reported (paper)."""
    lam: float = Field(0.5, ge=0, le=1)
    """Strength of the shaping at step 0, and at every step without decay (paper)."""
    decay_steps: Amount = 0
    """Steps over which the strength falls linearly to 0; 0 is no decay (paper)."""

    def _direction(self, base_N: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(base_N > 0, -1.0, 0.0)
