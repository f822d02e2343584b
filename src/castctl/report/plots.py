"""Curves as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from castctl.comparison.numbers import Comparison, EntryNumbers
from castctl.report.axes import alone, settle, step_axis
from castctl.report.colors import COLORS
from castctl.report.comparison import short_name
from castctl.report.lettering import plain_text
from castctl.report.marks import line
from castctl.shards.part import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))
MARKERS = "osD^vP*X"
LEGEND_COLUMNS = 4

SMOOTHED = 25
"""Steps of which a running mean takes one more neighbour on either side."""


def draw_curves(comparison: Comparison, path: Path) -> None:
    """Reward and held-out accuracy by step as a PNG file; a colour and a dash an entry."""
    from matplotlib.figure import Figure

    entries = comparison.entries
    with plain_text(axes_grid=True, grid_alpha=0.25):
        rows_of_legend = -(-len(entries) // LEGEND_COLUMNS)
        size = (10, 8.5 + 0.25 * rows_of_legend)
        figure = Figure(figsize=size, dpi=140, layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        for number, entry in enumerate(entries):
            _draw_rewards(above, entry, number, comparison)
        curves = [
            _draw_evaluations(below, entry, number, len(entries))
            for number, entry in enumerate(entries)
        ]
        _label(above, below, comparison)
        settle(figure)
        names = [short_name(entry.name) for entry in entries]
        figure.legend(curves, names, loc="outside lower center", ncols=LEGEND_COLUMNS)
        with atomic_file(path) as stream:
            figure.savefig(stream, format="png")


def _style(number: int) -> dict[str, Any]:
    """Colour and dash of an entry by its number from 0; dashes change when colours begin anew."""
    turn = number // len(COLORS)
    return {"color": COLORS[number % len(COLORS)], "linestyle": DASHES[turn % len(DASHES)]}


def _reach(comparison: Comparison) -> int:
    """Neighbours on either side that a running mean takes in, by the longest run."""
    return max(entry.steps for entry in comparison.entries) // SMOOTHED


def _draw_rewards(axes: Axes, entry: EntryNumbers, number: int, comparison: Comparison) -> None:
    """The mean over seeds, and a thin line a seed, the fainter the more entries there are."""
    rewards = np.array([run.rewards for run in entry.runs], np.float64)
    steps = 1 + np.arange(rewards.shape[1])
    for seed in rewards:
        faint = min(0.35, 1.2 / len(comparison.entries))
        axes.plot(steps, seed, color=_style(number)["color"], linewidth=0.6, alpha=faint)
    means = _running_mean(_seed_means(rewards), _reach(comparison))
    axes.plot(steps, means, linewidth=1.7, **_style(number))
    lone = alone(means)
    axes.plot(steps[lone], means[lone], color=_style(number)["color"], marker=".", linestyle="none")


def _draw_evaluations(axes: Axes, entry: EntryNumbers, number: int, of: int) -> Any:
    """Accuracy with intervals; returns what stands for the entry in the legend."""
    at = np.array(list(entry.evaluations), np.float64)
    means, lows, highs = _bounds(entry)
    # Side by side, so that intervals at one step do not hide one another.
    shift = (number - (of - 1) / 2) * min(0.01, 0.06 / of) * entry.steps
    bars = axes.errorbar(
        at + shift, means, yerr=(means - lows, highs - means), linewidth=1.4, elinewidth=1.0,
        capsize=2.5, marker=MARKERS[number % len(MARKERS)], markersize=5, **_style(number),
    )  # fmt: skip
    for artist in bars.get_children():  # those of the ends are beside them
        artist.set_clip_on(False)
    return bars


def _seed_means(rewards: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over seeds a step, of those that have a reward; NaN where none has."""
    known = ~np.isnan(rewards)
    sums = np.where(known, rewards, 0.0).sum(0)
    return np.divide(sums, known.sum(0), out=np.full(len(sums), np.nan), where=known.any(0))


def _running_mean(values: NDArray[np.float64], reach: int) -> NDArray[np.float64]:
    """Each value's mean with up to `reach` neighbours on either side, of those that are known."""
    windows = [values[max(0, n - reach) : n + reach + 1] for n in range(len(values))]
    return np.array([_seed_means(window[:, None])[0] for window in windows])


def _bounds(entry: EntryNumbers) -> NDArray[np.float64]:
    """Rows of means, lows and highs in per cent, a column a step; without an interval all three
    are the mean."""
    found = [
        (each.mean, each.mean if each.low is None else each.low,
         each.mean if each.high is None else each.high)
        for each in entry.evaluations.values()
    ]  # fmt: skip
    return 100 * np.array(found, np.float64).reshape(-1, 3).T


def _label(above: Axes, below: Axes, comparison: Comparison) -> None:
    reach = _reach(comparison)
    thick = "mean over seeds" + (f" and {2 * reach + 1} steps" if reach else "")
    above.set_title(f"Reward in training (thick: {thick}; thin: each seed)", loc="left")
    above.set_ylabel("mean reward of a step")
    task = line(comparison.task, 40)
    below.set_title(
        f"Accuracy on {task}, {comparison.problems} problems (bars: 95 % intervals over problems)",
        loc="left",
    )
    below.set_ylabel(f"avg@{comparison.k} in per cent")
    below.set_xlabel("steps done (evaluations of one step are drawn side by side)")
    step_axis(below, [0, max(entry.steps for entry in comparison.entries)])
