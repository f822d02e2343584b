"""Which prompts a step takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def step_prompts(count: int, per_step: int, step: int, seed: int) -> NDArray[np.int64]:
    """Positions of the prompts of `step` (at most `count`, never one twice in a step).

    Every epoch is a fresh shuffle in which each prompt comes exactly once; a step may take
    the end of one epoch and the start of the next. The result depends on the arguments alone.
    """
    return _of_epochs(count, np.arange(step + 2) * min(per_step, count), [seed])


def mixed_prompts(
    source_P: NDArray[np.int64], share_S: NDArray[np.float64], per_step: int, step: int, seed: int
) -> NDArray[np.int64]:
    """Positions of the prompts of `step`, of P prompts from S sources: `per_step` times its share
    of each source, rounded up or down so that the mean over steps is exact, in a shuffled order.

    Every source has epochs of its own, as `step_prompts` has them. No source may have fewer prompts
    than its share of a step, rounded up. The result depends on the arguments alone.
    """
    starts_K = np.random.default_rng([seed, 0, 0, 0]).random(step + 1)
    counts_KS = np.array([_quotas(share_S, per_step, start) for start in starts_K])
    chosen = []
    for source in range(len(share_S)):
        places = np.flatnonzero(source_P == source)
        bounds = np.concatenate([[0], np.cumsum(counts_KS[:, source])])
        chosen.append(places[_of_epochs(len(places), bounds, [seed, source, 0])])
    return np.random.default_rng([seed, step, 0, 1]).permutation(np.concatenate(chosen))


def _quotas(share_S: NDArray[np.float64], number: int, start: float) -> NDArray[np.int64]:
    """How many of `number` each source gives (S), by systematic sampling from `start` in [0, 1)."""
    edges = np.round(number * np.concatenate([[0], np.cumsum(share_S)]), 9)
    edges = np.floor(edges + start)
    edges[-1] = number
    return np.diff(edges).astype(np.int64)


def _of_epochs(count: int, bounds: NDArray[np.int64], seeds: list[int]) -> NDArray[np.int64]:
    """What the last of several steps takes of an endless stream of epochs, each a shuffle of
    `count` positions; the steps begin and end at `bounds`, and none is longer than an epoch."""
    first, last = bounds[-2:]
    chosen = [np.zeros(0, np.int64)]
    tail = np.zeros(0, np.int64)
    for epoch, start in enumerate(range(0, int(last), count)):
        order = np.random.default_rng([*seeds, epoch]).permutation(count)
        # The prompts that close the last epoch's unfinished step may not open this one's.
        room = bounds[np.searchsorted(bounds, start, "right")] - start
        repeated = np.isin(order, tail)
        fresh = order[~repeated]
        order = np.concatenate([fresh[:room], _shuffled_in(order, fresh[:room])])
        chosen.append(order[max(first - start, 0) : max(last - start, 0)])
        end = start + count
        tail = order[count - (end - bounds[np.searchsorted(bounds, end, "right") - 1]) :]
    return np.concatenate(chosen)


def further_prompts(
    taken: NDArray[np.int64], count: int, wanted: int, step: int, round: int, seed: int
) -> NDArray[np.int64]:
    """Positions of up to `wanted` prompts that `step` has not `taken` yet, for a further round."""
    rest = np.setdiff1d(np.arange(count), taken)
    return np.random.default_rng([seed, step, round]).permutation(rest)[:wanted]


def mixed_further(
    taken: NDArray[np.int64],
    source_P: NDArray[np.int64],
    share_S: NDArray[np.float64],
    wanted: int,
    step: int,
    round: int,
    seed: int,
) -> NDArray[np.int64]:
    """The same by the shares of the sources; fewer of one that has no more."""
    random = np.random.default_rng([seed, step, round])
    rest = np.setdiff1d(np.arange(len(source_P)), taken)
    quotas = _quotas(share_S, wanted, random.random())
    more = [random.permutation(rest[source_P[rest] == source])[:quota]
            for source, quota in enumerate(quotas)]  # fmt: skip
    return random.permutation(np.concatenate(more))


def _shuffled_in(order: NDArray[np.int64], taken: NDArray[np.int64]) -> NDArray[np.int64]:
    return order[~np.isin(order, taken)]
