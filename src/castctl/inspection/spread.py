"""The spread of many numbers in a few."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from castctl.errors import UserError

BINS = 32


@dataclass(frozen=True)
class Spread:
    """Moments, quantiles and a histogram of `BINS` equal bins from `min` to `max`.

    `count` values are finite and described; `others` are not and left out.
    """

    count: int
    others: int
    mean: float
    std: float
    min: float
    q05: float
    median: float
    q95: float
    max: float
    histogram: list[int]


def spread_of(values: NDArray) -> Spread | None:
    """The spread of the finite values (population deviation); None where there are none."""
    finite = values[np.isfinite(values)].astype(np.float64)
    if not len(finite):
        return None
    low, q05, median, q95, high = np.quantile(finite, (0, 0.05, 0.5, 0.95, 1))
    return Spread(
        count=len(finite),
        others=len(values) - len(finite),
        mean=float(finite.mean()),
        std=float(finite.std()),
        min=float(low),
        q05=float(q05),
        median=float(median),
        q95=float(q95),
        max=float(high),
        histogram=np.histogram(finite, BINS, (low, high))[0].tolist(),
    )


def gaps(signals: pa.Table, where: str) -> NDArray[np.float64]:
    """The gap teacher - policy in nats of every token scored by both, flat.

    Raises `UserError` naming `where` if the two lists of a row differ in length.
    """
    names = ("policy_logprobs", "teacher_logprobs")
    scored = signals.filter(pc.and_(*(signals[name].is_valid() for name in names)))
    policy, teacher = (scored[name].combine_chunks() for name in names)
    if not policy.value_lengths().equals(teacher.value_lengths()):
        raise UserError(f"{where}: a row has more teacher_logprobs than policy_logprobs, or fewer")
    first, second = (array.flatten().to_numpy(zero_copy_only=False) for array in (policy, teacher))
    return second.astype(np.float64) - first
