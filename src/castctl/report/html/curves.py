"""The course of a run as small plots, one beside the other."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from castctl.report.axes import alone, step_axis
from castctl.report.colors import (
    BLUE,
    COLORS,
    GREEN,
    GREY,
    GROUPS,
    NEGATIVE,
    ORANGE,
    PINK,
    POSITIVE,
    SKY,
    WINE,
)
from castctl.report.document import Picture, Sheet
from castctl.report.marks import counted, finite, percent
from castctl.report.tables import is_share, measure_text
from castctl.stages.evaluate.results import Result
from castctl.stages.train.metrics import TRAINED, several_rewards

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]

STAGES = {
    "rollout": BLUE, "verify": GREY, "score": GREEN, "shape": PINK, "train": ORANGE,
    "measure": SKY, "eval": WINE,
}  # fmt: skip
ROUNDING = 1e-9
"""Below, a measure is what float32 leaves of nothing."""
SIZE = (4.6, 2.7)
"""Inches of a plot."""

LINES = {
    "reward": ("Reward in training", "mean reward", {"reward_mean": ("mean", BLUE)}),
    "length": ("Length of completions", "tokens", {"length_mean": ("mean", BLUE)}),
    "entropy": ("Entropy", "nats a token", {"entropy_mean": ("mean", BLUE)}),
    "gap": ("Gap between teacher and policy", "RMS in nats", {"gap_rms": ("RMS", BLUE)}),
    "flips": (
        "Flipped tokens", "flipped, %",
        {"flipped_share": ("of all tokens", GREY),
         "flipped_down_share": ("of praised", POSITIVE),
         "flipped_up_share": ("of blamed", NEGATIVE)},
    ),
    "sampler": ("KL(sampler || scorer)", "nats a token", {"sampler_kl": ("k3", BLUE)}),
    "correction": (
        "Importance correction", "of all tokens, %",
        {"correction_masked_share": ("masked", NEGATIVE),
         "correction_capped_share": ("capped", ORANGE)},
    ),
    "grad": ("Norm of the gradient", "", {"grad_norm": ("norm", BLUE)}),
}  # fmt: skip
"""Plots of lines: title, axis, and the measures with their labels."""


def curve_pictures(rows: Rows, evaluations: Sequence[Result] = ()) -> list[Picture]:
    """The plots that the measures of the steps allow; none of a single step."""
    if len(rows) < 2:
        return []
    names = several_rewards(rows)
    each = dict(zip(names, zip(names.values(), itertools.cycle(COLORS)), strict=False))
    pictures = [_line(rows, "reward", each)] if _known(rows, "reward_mean") else []
    if evaluations:
        first, last = (percent(evaluations[at]["avg"]["mean"]) for at in (0, -1))
        words = f"Accuracy on {evaluations[0]['task']} goes from {first} to {last}."
        draw = partial(_draw_accuracy, evaluations, counted(rows[-1]["step"]))
        title = "Accuracy held out (bars: 95 % intervals)"
        pictures.append(Picture("curve-accuracy", title, words, draw))
    if _known(rows, "groups_mixed"):
        words = _course("The share of mixed groups", rows, "groups_mixed")
        shares = {f"groups_{kind}": (kind.replace("_", " "), c) for kind, c in GROUPS.items()}
        draw = partial(_draw_stack, rows, shares, "share of groups, %")
        pictures.append(Picture("curve-groups", "Kinds of groups", words, draw))
    pictures += [_line(rows, name) for name, (*_, lines) in LINES.items()
                 if name != "reward" and any(_varies(rows, key) for key in _there(rows, lines))
                 ]  # fmt: skip
    stages = {f"seconds_{s}": (s, color) for s, color in STAGES.items()
              if _known(rows, f"seconds_{s}")}  # fmt: skip
    if stages:
        words = _course("Seconds of a step", rows, "seconds")
        draw = partial(_draw_stack, rows, stages, "seconds of a step")
        pictures.append(Picture("curve-time", "Time by stage", words, draw))
    return pictures


def _line(rows: Rows, name: str, more: Mapping[str, tuple[str, str]] | None = None) -> Picture:
    """A plot of `LINES` with those of its measures, and of `more`, that are known."""
    title, unit, lines = LINES[name]
    there = _there(rows, {**lines, **(more or {})})
    words = " ".join(_course(f"{title}, {label}", rows, key) for key, (label, _) in there.items())
    return Picture(f"curve-{name}", title, words, partial(_draw_lines, rows, there, unit))


def _there(rows: Rows, lines: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """The measures that are known, of all tokens and of those that trained alone."""
    both = {
        key: (words, color)
        for name, (label, color) in lines.items()
        for key, words in ((name, label), (TRAINED + name, f"{label} of what trained"))
    }
    return {key: line for key, line in both.items() if _known(rows, key)}


def measures_sheet(rows: Rows) -> Sheet:
    """The numbers behind the curves, a row a step."""
    wanted = ["reward_mean", *several_rewards(rows),
              "groups_mixed", "length_mean", "entropy_mean", "gap_rms",
              "flipped_share", "flipped_down_share", "flipped_up_share", "loss", "grad_norm",
              "clip_share", "kl_old_new", "kl_reference", "sampler_kl", "correction_masked_share",
              "correction_capped_share", "correction_effective_share", "eval_mean",
              "seconds"]  # fmt: skip
    there = [key for name in wanted for key in (name, TRAINED + name) if _known(rows, key)]
    return Sheet(
        title="Measures of every step",
        headings=["step", *(name.replace("_", " ") for name in there)],
        rows=[[str(counted(row["step"])),
               *(measure_text(name, finite(row.get(name))) for name in there)] for row in rows],
        note="Steps are counted from 1, as the log counts them: step 1 is the folder step-00000. "
        "Praised and blamed are the tokens with a base advantage above and below 0, flipped down "
        "and up.",
    )  # fmt: skip


def _values(rows: Rows, name: str) -> NDArray[np.float64]:
    """A measure of every step, a share in per cent; NaN where there is no finite number."""
    found = (finite(row.get(name)) for row in rows)
    factor = 100 if is_share(name) else 1
    return np.array([np.nan if value is None else factor * value for value in found], np.float64)


def _known(rows: Rows, name: str) -> bool:
    return bool((~np.isnan(_values(rows, name))).any())


def _varies(rows: Rows, name: str) -> bool:
    """Known and not zero throughout, but for rounding, which no plot is needed to say."""
    return bool((np.abs(np.nan_to_num(_values(rows, name))) > ROUNDING).any())


def _course(what: str, rows: Rows, name: str) -> str:
    """A curve in words."""
    values = _values(rows, name)
    known = values[~np.isnan(values)]
    if not len(known):
        return f"{what}."
    told = (known[0], known[-1], known.min(), known.max())
    scale = 100 if is_share(name) else 1
    first, last, least, greatest = (measure_text(name, float(value / scale)) for value in told)
    return (
        f"{what} over {len(known)} steps: from {first} to {last}, least {least}, "
        f"greatest {greatest}."
    )


def _steps(rows: Rows) -> NDArray[np.int64]:
    """The numbers of the steps, as the log counts them."""
    return np.array([counted(row["step"]) for row in rows], np.int64)


def _figure(unit: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, color=GREY)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.set_ylabel(unit, fontsize=9)
    axes.set_xlabel("step", fontsize=9)
    return figure, axes


def _legend(axes: Axes, columns: int = 3) -> None:
    axes.legend(fontsize=8.5, frameon=False, ncols=columns, loc="lower left",
                bbox_to_anchor=(-0.02, 1.0), borderaxespad=0.2, handlelength=1.2,
                columnspacing=1.2)  # fmt: skip


def _draw_accuracy(evaluations: Sequence[Result], steps: int) -> Figure:
    """By the steps done before each evaluation."""
    figure, axes = _figure(f"avg@{evaluations[0]['k']}, %")
    at = [result["step"] for result in evaluations]
    means = np.array([result["avg"]["mean"] for result in evaluations], np.float64)
    bounds = [np.array([mean if result["avg"].get(end) is None else result["avg"][end]
                        for mean, result in zip(means, evaluations, strict=True)], np.float64)
              for end in ("low", "high")]  # fmt: skip
    spread = (100 * (means - bounds[0]), 100 * (bounds[1] - means))
    bars = axes.errorbar(at, 100 * means, yerr=spread, color=ORANGE, marker="o", markersize=4,
                         capsize=3, linewidth=1.3)  # fmt: skip
    for artist in bars.get_children():
        artist.set_clip_on(False)
    axes.set_xlabel("steps done", fontsize=9)
    step_axis(axes, [0, *at, steps])
    return figure


def _draw_stack(rows: Rows, measures: Mapping[str, tuple[str, str]], unit: str) -> Figure:
    figure, axes = _figure(unit)
    kept = {name: look for name, look in measures.items() if _varies(rows, name)}
    heights = np.array([_values(rows, name) for name in kept])
    known = ~np.isnan(heights).all(0)  # of a step where some are known the others are zero
    heights = np.where(known, np.nan_to_num(heights), np.nan)
    labels, colors = [look[0] for look in kept.values()], [look[1] for look in kept.values()]
    axes.stackplot(_steps(rows), heights, labels=labels, colors=colors, linewidth=0, alpha=0.9)
    if all(map(is_share, measures)):
        axes.set_ylim(0, 100)
    step_axis(axes, _steps(rows))
    _legend(axes, 4)
    return figure


def _draw_lines(rows: Rows, measures: Mapping[str, tuple[str, str]], unit: str) -> Figure:
    figure, axes = _figure(unit)
    for name, (label, color) in measures.items():
        values = _values(rows, name)
        axes.plot(_steps(rows), values, color=color, linewidth=1.3, label=label, clip_on=False)
        lone = alone(values)
        axes.plot(_steps(rows)[lone], values[lone], color=color, marker=".", linestyle="none",
                  clip_on=False)  # fmt: skip
    step_axis(axes, _steps(rows))
    if len(measures) > 1:
        _legend(axes)
    return figure
