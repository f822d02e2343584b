"""How strengths change over a run."""

from __future__ import annotations

from dataclasses import dataclass

from castctl.errors import UserError


@dataclass(frozen=True)
class Moment:
    """A point of a run: its step, counted from 0, and how many there are; None = not known."""

    step: int = 0
    total: int | None = None


START = Moment()
"""The first step of a run of unknown length."""


def linear_decay(moment: Moment, over: int) -> float:
    """1 at step 0, falling linearly to 0 at step `over` and after; 1 throughout where it is 0."""
    return 1.0 if over == 0 else max(0.0, 1.0 - moment.step / over)


def warmup_and_decay(moment: Moment, warmup: int, decay: int) -> float:
    """min(1, k / warmup) * min(1, (T - k) / decay) at step k of T; a length of 0 makes its factor 1
    (SDPG, arXiv 2606.04036).

    Raises `UserError` where the decay needs T and nobody knows it.
    """
    rise = 1.0 if warmup == 0 else min(1.0, moment.step / warmup)
    if decay == 0:
        return rise
    if moment.total is None:
        raise UserError("a decay before the end needs the number of steps; set train.steps")
    return rise * min(1.0, max(0.0, (moment.total - moment.step) / decay))
