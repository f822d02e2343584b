"""Plots of a gap's diagnosis, from its numbers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from castctl.diagnosis.diagnosis import Diagnosis
from castctl.diagnosis.pool import CELLS
from castctl.report.axes import whole_numbers
from castctl.report.colors import BLUE, CORRECT, INCORRECT, NEGATIVE, ORANGE, POSITIVE, RED, SKY
from castctl.report.diagnostics.figures import (
    along_steps,
    curve,
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

NAMES = {  # of cells: the sign of the gap, and the verdict
    "positive_correct": "positive, correct",
    "negative_correct": "negative, correct",
    "positive_incorrect": "positive, incorrect",
    "negative_incorrect": "negative, incorrect",
}
STYLES = {
    "positive_correct": (POSITIVE, "^"),
    "negative_correct": (NEGATIVE, "v"),
    "positive_incorrect": (SKY, "^"),
    "negative_incorrect": (ORANGE, "v"),
}
"""The sign by its colour, lighter in incorrect completions."""


def gap_pictures(diagnosis: Diagnosis) -> list[Picture]:
    """The plots of `opsd-gaps` or `self-gaps`; those of steps only where there are several."""
    numbers, prefix = diagnosis.numbers, diagnosis.name
    pictures = [
        Picture(
            f"{prefix}-histograms",
            "Gaps of tokens and of completions",
            "Two histograms, of the gap of single tokens on a logarithmic scale and of the mean "
            "gaps of completions, each for correct and for incorrect completions.",
            lambda: _histograms(numbers["histograms"]),
        ),
        Picture(
            f"{prefix}-noise",
            "Size and signal to noise of the gap, by entropy and along the completion",
            "Mean size of the gap and its mean over its standard deviation in each of the four "
            "cells, by the policy's entropy at the token and by the place in the completion.",
            lambda: _noise(numbers["decay"]),
        ),
        Picture(
            f"{prefix}-separation",
            "How well scores of a completion tell correct from incorrect",
            "The AUC of each score with its 95 % interval over prompts, among all completions, in "
            "mixed groups, and within prompts; 0.5 is chance.",
            lambda: _separation(numbers["separation"]),
        ),
    ]
    if len(numbers["by_step"]) > 1:
        pictures.append(
            Picture(
                f"{prefix}-steps",
                "The gap over the steps",
                "Mean gap of the four cells, and the AUC of the mean gap, step by step.",
                lambda: _steps(numbers["by_step"]),
            )
        )
    if len(numbers.get("alive", [])) > 1:
        pictures.append(
            Picture(
                f"{prefix}-alive",
                "How much of the gap is alive",
                "The gap's root mean square and the share of tokens beyond CAST's threshold, step "
                "by step, and the root mean square by the teacher's age.",
                lambda: _alive(numbers["alive"]),
            )
        )
    return pictures


def _histograms(found: dict[str, Any]) -> Figure:
    figure, (tokens, completions) = panels(1, 2)
    _histogram(tokens, found["token"])
    logarithmic(tokens.yaxis)
    name(tokens, "Tokens (end bins hold the rest)", "gap, nats", "tokens of each kind, %")
    _histogram(completions, found["completion"])
    name(completions, "Completions", "mean gap, nats",
         "completions of each kind, %")  # fmt: skip
    completions.legend(fontsize=8)
    return figure


def _histogram(axes: Axes, found: dict[str, Any]) -> None:
    edges = np.array(found["edges"])
    for verdict, color in (("correct", CORRECT), ("incorrect", INCORRECT)):
        counts = np.array(found[verdict], np.float64)
        shares = 100 * counts / max(counts.sum(), 1)
        axes.stairs(shares, edges, color=color, linewidth=1.5, label=verdict)
        axes.stairs(shares, edges, color=color, fill=True, alpha=0.12)
    axes.axvline(0, color="black", linewidth=0.8)


def _noise(decay: dict[str, Any]) -> Figure:
    kinds = [
        (key, title)
        for key, title in (
            ("entropy", "entropy of the policy at the token, nats"),
            ("position", "way through the completion, %"),
        )
        if decay[key] is not None
    ]
    figure, axes = panels(2, len(kinds))
    for column, (key, title) in enumerate(kinds):
        sizes, noise = axes[column], axes[len(kinds) + column]
        centers = np.array(decay[key]["centers"], np.float64)
        if key == "position":
            centers = 100 * centers
        for cell in CELLS:
            color, marker = STYLES[cell]
            found = decay[key]["cells"][cell]
            style: dict[str, Any] = {
                "color": color,
                "marker": marker,
                "markersize": 5,
                "linewidth": 1.3,
            }
            sizes.plot(
                centers, np.array(found["mean_size"], np.float64), label=NAMES[cell], **style
            )
            noise.plot(centers, np.array(found["snr"], np.float64), **style)
        if key == "entropy":  # deciles crowd at 0
            for each in (sizes, noise):
                each.set_xscale("symlog", linthresh=0.01)
                each.xaxis.set_major_formatter("{x:g}")
        name(sizes, "Mean size of the gap", title, "mean |g|, nats")
        logarithmic(sizes.yaxis)
        name(noise, "Signal to noise", title, "|mean g| / std g")
    axes[0].legend(fontsize=7)
    return figure


def _separation(found: dict[str, Any]) -> Figure:
    scores = {"mean_gap": "mean gap", "mean_positive_gap": "mean\npositive gap",
              "mean_negative_gap": "mean\nnegative gap", "mean_logprob": "log-prob\n(no teacher)",
              "length": "length\n(no teacher)"}  # fmt: skip
    figure, (axes,) = panels(1, 1, size=(8, 3.6))
    places = np.arange(len(scores))
    groups = (
        ("all completions", [found["all"][s] for s in scores], BLUE, "o"),
        ("mixed groups", [found["mixed"][s] for s in scores], ORANGE, "s"),
        ("within prompts", [found["within_prompt"][s]["auc"] for s in scores], RED, "D"),
    )
    for shift, (title, told, color, marker) in zip((-0.2, 0.0, 0.2), groups, strict=True):
        points(axes, (places + shift).tolist(), told, title, color, marker=marker)
    axes.axhline(0.5, color="black", linewidth=0.8, linestyle="--")
    axes.set_ylim(0, 1)
    axes.set_xticks(places, list(scores.values()))
    name(axes, "AUC, 95 % intervals over prompts; dashed: chance", "", "AUC")
    axes.legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.06))
    return figure


def _steps(steps: list[dict[str, Any]]) -> Figure:
    figure, (means, auc) = panels(1, 2)
    x = steps_of(steps)
    for cell in CELLS:
        color, marker = STYLES[cell]
        curve(means, x, [step["cells"][cell]["mean"] for step in steps], NAMES[cell], color,
              marker=marker)  # fmt: skip
    means.axhline(0, color="black", linewidth=0.8)
    name(means, "Mean gap of the cells", "step", "mean g, nats")
    means.legend(fontsize=7)
    curve(auc, x, [step["auc"] for step in steps], "mean gap", BLUE)
    auc.axhline(0.5, color="black", linewidth=0.8, linestyle="--")
    auc.set_ylim(0, 1)
    name(auc, "Correct against incorrect, by mean gap", "step", "AUC")
    for each in (means, auc):
        along_steps(each, steps)
    return figure


def _alive(steps: list[dict[str, Any]]) -> Figure:
    aged = [(step["age"], step["rms"]) for step in steps if None not in (step["age"], step["rms"])]
    figure, axes = panels(1, 3 if aged else 2, size=(4.2, 3.4))
    rms, beyond = axes[:2]
    x = steps_of(steps)

    def told(key: str) -> list[float]:
        return [np.nan if step[key] is None else step[key] for step in steps]

    rms.plot(x, told("rms"), color=BLUE, marker="o", markersize=3.5, linewidth=1.3)
    name(rms, "Spread of the gap", "step", "root mean square, nats")
    for key, title, color in (("beyond_tau", "tau", RED), ("beyond_tenth", "0.1 nats", ORANGE)):
        beyond.plot(x, 100 * np.array(told(key)), color=color, marker="o", markersize=3.5,
                    linewidth=1.3, label=f"beyond {title}")  # fmt: skip
    beyond.legend(fontsize=8)
    name(beyond, "Tokens with a large gap", "step", "share of tokens, %")
    if aged:
        _by_age(axes[2], np.array(aged, np.float64))
    for each in (rms, beyond):
        along_steps(each, steps)
    for each in axes[2:]:
        whole_numbers(each)
    return figure


def _by_age(axes: Axes, aged: np.ndarray) -> None:
    """Every step by its teacher's age (steps, 2), and the means."""
    ages, spreads = aged.T
    axes.plot(ages, spreads, color=BLUE, marker="o", linestyle="none", markersize=4, alpha=0.7)
    known = np.unique(ages)
    axes.plot(known, [spreads[ages == each].mean() for each in known], color="black", linewidth=1.3)
    name(axes, "By the age of the teacher", "steps since its renewal", "root mean square, nats")
