"""The course of a run as small plots, one beside the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from castctl.report.document import Picture, Sheet
from castctl.report.marks import number
from castctl.stages.evaluate.results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]

BLUE, ORANGE, GREEN, PURPLE, GREY = "#2F7FC1", "#D9730D", "#159570", "#A564B8", "#8A919C"
"""Told apart by all eyes, and seen on white as on black."""

GROUPS = {"mixed": BLUE, "all_correct": GREEN, "all_wrong": ORANGE, "single": GREY}
STAGES = {
    "rollout": BLUE, "verify": GREY, "score": GREEN, "shape": PURPLE, "train": ORANGE,
    "measure": "#6B7280", "eval": "#B8860B",
}  # fmt: skip
SIZE = (4.6, 2.7)
"""Inches of a plot."""

LINES = {
    "length": ("Length of completions", "tokens", {"length_mean": ("mean", BLUE)}),
    "entropy": ("Entropy", "nats a token", {"entropy_mean": ("mean", BLUE)}),
    "gap": ("Gap between teacher and policy", "RMS in nats", {"gap_rms": ("RMS", BLUE)}),
    "flips": (
        "Flipped tokens", "share in per cent",
        {"flipped_down_share": ("of positive advantages", BLUE),
         "flipped_up_share": ("of negative advantages", ORANGE)},
    ),
    "grad": ("Norm of the gradient", "", {"grad_norm": ("norm", BLUE)}),
}  # fmt: skip
"""Plots of lines: title, axis, and the measures with their labels."""


def curve_pictures(rows: Rows, evaluations: Sequence[Result] = ()) -> list[Picture]:
    """The plots that the measures of the steps allow; none of a single step."""
    if len(rows) < 2:
        return []
    pictures = []
    if _known(rows, "reward_mean"):
        words = _course("Mean reward", rows, "reward_mean")
        title = "Reward"
        if evaluations:
            means = [100 * result["avg"]["mean"] for result in evaluations]
            task = evaluations[0]["task"]
            words += f" Accuracy on {task} goes from {means[0]:.1f} to {means[-1]:.1f} per cent."
            title = "Reward, and accuracy held out (95 % intervals)"
        draw = partial(_draw_reward, rows, evaluations)
        pictures.append(Picture("curve-reward", title, words, draw))
    if _known(rows, "groups_mixed"):
        words = _course("The share of mixed groups", rows, "groups_mixed")
        shares = {f"groups_{kind}": (kind.replace("_", " "), c) for kind, c in GROUPS.items()}
        draw = partial(_draw_stack, rows, shares, 100, "per cent of the groups")
        pictures.append(Picture("curve-groups", "Kinds of groups", words, draw))
    for name, (title, unit, lines) in LINES.items():
        if there := {key: line for key, line in lines.items() if _varies(rows, key)}:
            words = " ".join(_course(f"{title}, {label}", rows, key)
                             for key, (label, _) in there.items())  # fmt: skip
            draw = partial(_draw_lines, rows, there, 100 if "per cent" in unit else 1, unit)
            pictures.append(Picture(f"curve-{name}", title, words, draw))
    stages = {f"seconds_{s}": (s, color) for s, color in STAGES.items()
              if _known(rows, f"seconds_{s}")}  # fmt: skip
    if stages:
        words = _course("Seconds of a step", rows, "seconds")
        draw = partial(_draw_stack, rows, stages, 1, "seconds of a step")
        pictures.append(Picture("curve-time", "Time by stage", words, draw))
    return pictures


def measures_sheet(rows: Rows) -> Sheet:
    """The numbers behind the curves, a row a step."""
    wanted = ["reward_mean", "groups_mixed", "length_mean", "entropy_mean", "gap_rms",
              "flipped_down_share", "flipped_up_share", "loss", "grad_norm", "clip_share",
              "kl_old_new", "eval_mean", "seconds"]  # fmt: skip
    there = [name for name in wanted if _known(rows, name)]
    return Sheet(
        title="Measures of every step",
        headings=["step", *(name.replace("_", " ") for name in there)],
        rows=[[str(row["step"]), *(number(_float(row.get(name)), 4) for name in there)]
              for row in rows],
    )  # fmt: skip


def _float(value: object) -> float | None:
    return value if isinstance(value, int | float) else None


def _values(rows: Rows, name: str) -> NDArray[np.float64]:
    found = (_float(row.get(name)) for row in rows)
    return np.array([np.nan if value is None else value for value in found], np.float64)


def _known(rows: Rows, name: str) -> bool:
    return bool(np.isfinite(_values(rows, name)).any())


def _varies(rows: Rows, name: str) -> bool:
    """Known and not zero throughout, which no plot is needed to say."""
    values = _values(rows, name)
    return bool(np.nan_to_num(values, posinf=0, neginf=0).any())


def _course(what: str, rows: Rows, name: str) -> str:
    """A curve in words."""
    values = _values(rows, name)
    known = values[np.isfinite(values)]
    if not len(known):
        return f"{what}."
    return (
        f"{what} over {len(known)} steps: from {known[0]:.3g} to {known[-1]:.3g}, "
        f"least {known.min():.3g}, greatest {known.max():.3g}."
    )


def _steps(rows: Rows) -> NDArray[np.int64]:
    return np.array([row["step"] for row in rows], np.int64)


def _figure(unit: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, color=GREY)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.set_ylabel(unit, fontsize=9)
    axes.set_xlabel("step", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    return figure, axes


def _legend(axes: Axes, columns: int = 3) -> None:
    axes.legend(fontsize=8.5, frameon=False, ncols=columns, loc="lower left",
                bbox_to_anchor=(-0.02, 1.0), borderaxespad=0.2, handlelength=1.2,
                columnspacing=1.2)  # fmt: skip


def _draw_reward(rows: Rows, evaluations: Sequence[Result]) -> Figure:
    figure, axes = _figure("mean reward")
    axes.plot(_steps(rows), _values(rows, "reward_mean"), color=BLUE, linewidth=1.3,
              label="reward in training")  # fmt: skip
    if evaluations:
        means = np.array([result["avg"]["mean"] for result in evaluations])
        bounds = [np.array([mean if result["avg"].get(end) is None else result["avg"][end]
                            for mean, result in zip(means, evaluations, strict=True)])
                  for end in ("low", "high")]  # fmt: skip
        axes.errorbar([result["step"] for result in evaluations], means,
                      yerr=(means - bounds[0], bounds[1] - means), color=ORANGE, marker="o",
                      markersize=4, capsize=3, linewidth=1.3,
                      label=f"avg@{evaluations[0]['k']} held out")  # fmt: skip
    _legend(axes)
    return figure


def _draw_stack(
    rows: Rows, measures: Mapping[str, tuple[str, str]], factor: float, unit: str
) -> Figure:
    figure, axes = _figure(unit)
    kept = {name: look for name, look in measures.items() if _varies(rows, name)}
    heights = [factor * np.nan_to_num(_values(rows, name)) for name in kept]
    labels, colors = [look[0] for look in kept.values()], [look[1] for look in kept.values()]
    axes.stackplot(_steps(rows), heights, labels=labels, colors=colors, linewidth=0, alpha=0.9)
    axes.margins(0)
    _legend(axes, 4)
    return figure


def _draw_lines(
    rows: Rows, measures: Mapping[str, tuple[str, str]], factor: float, unit: str
) -> Figure:
    figure, axes = _figure(unit)
    for name, (label, color) in measures.items():
        axes.plot(_steps(rows), factor * _values(rows, name), color=color, linewidth=1.3,
                  label=label)  # fmt: skip
    if len(measures) > 1:
        _legend(axes)
    return figure
