"""Warnings of training that has nothing to learn from: no reward, or a teacher with no gap."""

from __future__ import annotations

import logging

from castctl.recipe.recipe import Recipe
from castctl.stages.measures import Measures
from castctl.stages.train.metrics import Row, correctness_mean

log = logging.getLogger(__name__)

ZERO_GAP = 1e-7
"""Nats of root mean square below which a gap is numerically zero."""


def warn_of_zero_rewards(recipe: Recipe, before: list[Row], step: int, measures: Measures) -> None:
    """Warn, now and then, of several steps in a row without a reward for correctness; `before` are
    the rows of the steps before."""
    rewards = [correctness_mean(row) for row in (*before, measures)]
    streak = next((n for n, reward in enumerate(reversed(rewards)) if reward), len(rewards))
    if streak and streak % recipe.train.warn_after_zero_rewards == 0:
        log.warning(
            "step %d: no completion of the last %d steps earned a reward; look at the "
            "completions and the verifier, or take easier problems",
            step + 1, streak,
        )  # fmt: skip


def warned_of_zero_gap(recipe: Recipe, step: int, measures: Measures) -> bool:
    """Say why a teacher has nothing to tell, where it has not; whether it was said. At first every
    teacher equals the policy."""
    spread = measures.get("gap_rms")
    if step == 0 or not isinstance(spread, float) or spread > ZERO_GAP:
        return False
    teacher = recipe.method.teacher
    why = {
        "current": "method.teacher.kind=current is the policy itself",
        "snapshot": f"the snapshot was renewed, as every {teacher.every} steps",
    }.get(teacher.kind, "the policy has not moved from its teacher; is optimizer.lr too low?")
    log.warning(
        "step %d: the teacher's gap is zero (RMS %.1e nats): %s. Tokens keep their base "
        "advantage in such a step; method.teacher.kind=ema or initial keeps a gap alive",
        step + 1, spread, why,
    )  # fmt: skip
    return True
