"""Axes of plots: they end where the data ends, on round ticks that few digits write."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from castctl.report.document import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

ROUND = (1, 2, 5, 10)
"""What ticks count in, times a power of ten."""

TICKS, STEP_TICKS = 5, 6

LEAST = 0.05
"""The least that an axis spans, of the largest size on it: less would draw noise large, and need
many digits."""


def drawn(picture: Picture) -> Figure:
    """The picture's figure, with its axes settled."""
    figure = picture.draw()
    settle(figure)
    return figure


def settle(figure: Figure) -> None:
    """Let each axis that draws numbers reach from one round tick over all data to another.

    Axes with ticks or a scale of their own stay; one whose ends were set keeps them.
    """
    from matplotlib.ticker import AutoLocator

    for axes in figure.axes:
        found = {axes.xaxis: axes.dataLim.intervalx, axes.yaxis: axes.dataLim.intervaly}
        for axis, ends in found.items():
            if type(axis.get_major_locator()) is not AutoLocator:
                continue
            free = axes.get_autoscalex_on() if axis is axes.xaxis else axes.get_autoscaley_on()
            low, high = ends if free else axis.get_view_interval()
            if math.isfinite(low) and math.isfinite(high):
                set_ticks(axis, round_ticks(low, high), enclose=free)


def set_ticks(axis: Axis, ticks: Sequence[float], enclose: bool) -> None:
    """Mark these ticks; with `enclose` the axis ends at the first and the last of them."""
    if enclose:
        set_ends = axis.axes.set_xlim if axis is axis.axes.xaxis else axis.axes.set_ylim
        set_ends(ticks[0], ticks[-1])
    first, last = sorted(axis.get_view_interval())
    room = 1e-9 * (last - first)
    inside = [tick for tick in ticks if first - room <= tick <= last + room]
    axis.set_ticks(inside, tick_texts(inside))


def round_ticks(low: float, high: float) -> list[float]:
    """A few round numbers, evenly spaced, the first at most `low` and the last at least `high`."""
    from matplotlib.ticker import MaxNLocator

    least = LEAST * max(abs(low), abs(high))
    if not least:
        high = 1.0
    elif high - low < least:
        low, high = (low + high - least) / 2, (low + high + least) / 2
    ticks = MaxNLocator(TICKS, steps=ROUND).tick_values(low, high)
    return [float(tick) for tick in ticks]


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """Evenly spaced ticks with the digits that tell them apart, no more."""
    if len(ticks) < 2:
        return [f"{tick:.4g}" for tick in ticks]
    step, largest = ticks[1] - ticks[0], max(map(abs, ticks))
    if largest >= 1e6 or largest < 1e-3:
        zero = step / 1e6  # what is left of a difference of equal numbers
        digits = _exponent(largest) - _exponent(step)
        return [_minus("0" if abs(tick) < zero else f"{tick:.{digits}e}") for tick in ticks]
    digits = max(0, -_exponent(step))
    return [_minus(f"{round(tick, digits) + 0.0:,.{digits}f}") for tick in ticks]


def _exponent(value: float) -> int:
    return math.floor(math.log10(value) + 1e-9)


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def step_axis(axes: Axes, steps: Iterable[float]) -> None:
    """An x axis of whole numbers that ends where the steps, as the log counts them, end."""
    whole_numbers(axes)
    known = list(steps)
    first, last = min(known), max(known)
    alone = 0.5 * (first == last)
    axes.set_xlim(first - alone, last + alone)


def whole_numbers(axes: Axes) -> None:
    """An x axis of whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(STEP_TICKS, integer=True, steps=ROUND))


def alone(values: np.ndarray) -> list[int]:
    """Places of the values that no known neighbour joins, which a line would not show."""
    known = np.isfinite(values)
    joined = np.append(known[1:], False) | np.insert(known[:-1], 0, False)
    return np.flatnonzero(known & ~joined).tolist()
