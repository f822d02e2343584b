"""Engine: the plots of how much sampler and scorer differ, and of what the correction touches."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from castctl.report.colors import BLACK, BLUE, ORANGE, PINK
from castctl.report.diagnostics.engine_correction import touched_of
from castctl.report.diagnostics.figures import (
    along_steps,
    curve,
    from_zero,
    logarithmic,
    name,
    panels,
    points,
    steps_of,
)
from castctl.report.document import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TENTHS = [5 + 10 * n for n in range(10)]
"""The middles of the tenths of a completion, in per cent."""


def engine_picture(numbers: dict[str, Any]) -> Picture:
    """The size of the difference by step, position, log-prob and tail; with a correction also the
    share of tokens that it touches by position and log-prob."""
    words = (
        "Plots of the size of the difference of log-probs: by step, along the completion, by the "
        "sampler's log-prob, and the share of tokens beyond growing sizes."
    )
    if touched_of(numbers):
        words += (
            " Two more of the share of tokens that the correction masks or caps, along the "
            "completion and by the sampler's log-prob."
        )
    title = "Where and how much sampler and scorer differ"
    return Picture("engine-differences", title, words, lambda: _draw(numbers))


def bins_of(edges: list[float]) -> list[str]:
    """The bins of the sampler's log-prob in words."""
    inner = [f"{a:g} to {b:g}" for a, b in pairwise(edges)]
    return [f"below {edges[0]:g}", *inner, f"{edges[-1]:g} and above"]


def _draw(numbers: dict[str, Any]) -> Figure:
    done = touched_of(numbers)
    figure, (steps, position, logprob, tail, *more) = panels(2, 3 if done else 2)
    if done:
        _touched(more, done, numbers)
    by_step, by_logprob = numbers["by_step"], numbers["by_logprob"]
    draw = curve if len(by_step) > 1 else points
    draw(steps, steps_of(by_step), [s["size"] for s in by_step], "", BLUE)
    name(steps, "Mean size of the difference by step", "step", "mean |difference|, nats")
    along_steps(steps, by_step)
    curve(position, TENTHS, numbers["by_position"]["size"], "", BLUE)
    name(position, "Along the completion", "way through the completion, %",
         "mean |difference|, nats")  # fmt: skip
    _by_logprob(logprob, numbers["logprobs"], by_logprob["size"], ORANGE)
    name(logprob, "By the sampler's log-prob", "sampler's log-prob, nats",
         "mean |difference|, nats")  # fmt: skip
    if any(told and told["mean"] for told in by_logprob["size"]):
        logarithmic(logprob.yaxis)
        for artist in logprob.containers[0].get_children():
            artist.set_clip_on(True)  # an interval down to 0 would leave the figure
    _tail(tail, numbers)
    for each in (steps, position):
        from_zero(each)
    return figure


def _by_logprob(axes: Axes, edges: list[float], told: list[Any], color: str,
                scale: float = 1.0) -> None:  # fmt: skip
    names = bins_of(edges)[: len(told)]
    points(axes, list(range(len(told))), told, "", color, scale=scale, marker="s")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=7)


def _tail(axes: Axes, numbers: dict[str, Any]) -> None:
    from matplotlib.ticker import LogLocator

    found, made = numbers["tail"], numbers["correction"]
    shares = [100 * share if share else None for share in found["shares"]]
    axes.plot(found["sizes"], np.array(shares, np.float64), color=BLACK, marker="o", markersize=3)
    bounds = []
    if made.get("level") == "token":
        bounds = [bound for bound in (made["low"], made["high"]) if bound > 0 and bound != 1]
    for bound in bounds:
        axes.axvline(abs(math.log(bound)), color=BLACK, linewidth=0.8, linestyle=":")
    if any(found["shares"]):
        for axis in (axes.xaxis, axes.yaxis):
            logarithmic(axis)
        axes.xaxis.set_major_locator(LogLocator(base=100))  # each decade's number has no room
    told = " and ".join(f"{bound:g}" for bound in bounds)
    title = f"Tail (dotted: a ratio of {told})" if told else "Tail"
    name(axes, title, "|difference|, nats", "tokens that differ by more, %")


def _touched(panels: list[Axes], done: str, numbers: dict[str, Any]) -> None:
    position, logprob = panels
    by_position, by_logprob = (numbers[f"by_{by}"][done] for by in ("position", "logprob"))
    curve(position, TENTHS, by_position, "", PINK, scale=100)
    name(position, f"Tokens {done}, along the completion", "way through the completion, %",
         f"{done}, %")  # fmt: skip
    _by_logprob(logprob, numbers["logprobs"], by_logprob, PINK, scale=100)
    name(logprob, f"Tokens {done}, by the sampler's log-prob", "sampler's log-prob, nats",
         f"{done}, %")  # fmt: skip
    for each in (position, logprob):
        from_zero(each)
