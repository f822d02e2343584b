"""How often a token's advantage has the sign of its gap, in correct and in wrong completions.

Where it always does, the verdict no longer decides a direction: the update follows the teacher.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from castctl.diagnosis.clusters import PromptSums
from castctl.diagnosis.data import Floats, StepData

SIDES = ("correct", "wrong")
"""Completions by their verdict; those without a reward are on neither side."""


def add_agreement(own: PromptSums, data: StepData, advantages_N: Floats) -> None:
    """Add a step's tokens whose gap and advantage (N) are both other than 0."""
    assert data.signals is not None and data.signals.tokens.gap_N is not None, "a gap was asked for"
    signs_N = np.sign(np.nan_to_num(data.signals.tokens.gap_N)) * np.sign(advantages_N)
    prompt_N = own.numbers(data.prompt_ids)[data.row_N]
    for side, rows_R in zip(SIDES, (data.correct_R, ~data.correct_R), strict=True):
        here_N = (rows_R & data.known_R)[data.row_N]
        own.add(f"signed_{side}", prompt_N[here_N & (signs_N != 0)])
        own.add(f"agreeing_{side}", prompt_N[here_N & (signs_N > 0)])


def agreement(total: PromptSums) -> dict[str, Any]:
    """By side, `tokens` with a gap and an advantage other than 0, and the `share` of them in which
    the two have one sign, with a 95 % interval over prompts; None without such tokens."""
    return {
        side: {
            "tokens": int(total.total(f"signed_{side}")),
            "share": total.share(f"agreeing_{side}", f"signed_{side}"),
        }
        for side in SIDES
    }
