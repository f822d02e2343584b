"""Which prompts a step takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def step_prompts(count: int, per_step: int, step: int, seed: int) -> NDArray[np.int64]:
    """Positions of the prompts of `step` (at most `count`, never one twice in a step).

    Every epoch is a fresh shuffle in which each prompt comes exactly once; a step may take
    the end of one epoch and the start of the next. The result depends on the arguments alone.
    """
    per_step = min(per_step, count)
    first, last = step * per_step, (step + 1) * per_step
    chosen: list[NDArray[np.int64]] = []
    tail = np.zeros(0, np.int64)
    for epoch in range(last // count + 1):
        order = np.random.default_rng([seed, epoch]).permutation(count)
        # The prompts that close the last epoch's unfinished step may not open this one's.
        room = per_step - len(tail)
        repeated = np.isin(order, tail)
        fresh = order[~repeated]
        order = np.concatenate([fresh[:room], _shuffled_in(order, fresh[:room])])
        start = epoch * count
        chosen.append(order[max(first - start, 0) : max(last - start, 0)])
        tail = (
            order[count - (start + count) % per_step :] if (start + count) % per_step else tail[:0]
        )
    return np.concatenate(chosen)


def further_prompts(
    taken: NDArray[np.int64], count: int, wanted: int, step: int, round: int, seed: int
) -> NDArray[np.int64]:
    """Positions of up to `wanted` prompts that `step` has not `taken` yet, for a further round."""
    rest = np.setdiff1d(np.arange(count), taken)
    return np.random.default_rng([seed, step, round]).permutation(rest)[:wanted]


def _shuffled_in(order: NDArray[np.int64], taken: NDArray[np.int64]) -> NDArray[np.int64]:
    return order[~np.isin(order, taken)]
