"""The common look of the diagnostics' figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from castctl.report.axes import step_axis
from castctl.report.marks import counted, line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Told = dict[str, Any]
"""An estimate as a diagnosis holds it: `mean`, `low` and `high`, or None."""


def panels(
    rows: int = 1,
    columns: int = 1,
    *,
    size: tuple[float, float] = (5.0, 3.4),
) -> tuple[Figure, list[Axes]]:
    """A figure with a grid of axes, in the order of reading; `size` is one panel's, in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] * columns, size[1] * rows), dpi=140, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    axes = [each for row in grid for each in row]
    for each in axes:
        each.grid(alpha=0.25)
        each.set_axisbelow(True)
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def name(axes: Axes, title: str, x: str, y: str) -> None:
    """Title and labels of a panel: texts of ours, with the units."""
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def label(text: object, limit: int = 24) -> str:
    """Untrusted text for a figure: short and on one line."""
    return line(text, limit)


def curve(
    axes: Axes, x: Sequence[float], told: Sequence[Told | None], title: str, color: str,
    *, scale: float = 1.0, marker: str = "o",
) -> None:  # fmt: skip
    """Estimates along x as a line, their 95 % intervals as a band; gaps where there are none."""
    means, lows, highs = bounds(told, scale)
    axes.plot(x, means, color=color, marker=marker, markersize=4, linewidth=1.4, label=title,
              clip_on=False)  # fmt: skip
    axes.fill_between(x, lows, highs, color=color, alpha=0.18, linewidth=0)


def points(
    axes: Axes, x: Sequence[float], told: Sequence[Told | None], title: str, color: str,
    *, scale: float = 1.0, marker: str = "o",
) -> None:  # fmt: skip
    """Estimates as points, their 95 % intervals as bars."""
    means, lows, highs = bounds(told, scale)
    spread = np.nan_to_num((means - lows, highs - means)).clip(0)
    bars = axes.errorbar(
        x, means, yerr=spread, color=color, marker=marker, markersize=5, linestyle="none",
        elinewidth=1.2, capsize=3, label=title,
    )  # fmt: skip
    for artist in bars.get_children():
        artist.set_clip_on(False)


def bounds(told: Sequence[Told | None], scale: float = 1.0) -> np.ndarray:
    """Rows of means, lows and highs (3, X); NaN where a number is not known."""
    rows = [[(each or {}).get(key) for key in ("mean", "low", "high")] for each in told]
    return scale * np.array(rows, np.float64).reshape(-1, 3).T


def logarithmic(axis: Axis) -> None:
    """A logarithmic axis with plain numbers: figures are drawn without mathematical type."""
    axes = axis.axes
    (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
    axis.set_major_formatter("{x:g}")


def legend_below(axes: Axes, columns: int) -> None:
    """The legend under the panel, where it hides nothing."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns, fontsize=8,
                frameon=False)  # fmt: skip


def from_zero(axes: Axes) -> None:
    """A y axis that begins at 0."""
    axes.update_datalim([(0, 0)], updatex=False)


def steps_of(by_step: Sequence[Told]) -> list[int]:
    """The numbers of the steps, as the log counts them."""
    return [counted(step["step"]) for step in by_step]


def along_steps(axes: Axes, by_step: Sequence[Told]) -> None:
    """An x axis of steps, which ends where they end."""
    step_axis(axes, steps_of(by_step))
