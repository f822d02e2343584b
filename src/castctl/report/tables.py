"""Tables of a step and of evaluations."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from castctl.report.console import printable
from castctl.report.marks import number, percent
from castctl.stages.evaluate.results import variant_of
from castctl.stages.evaluate.statistics import Estimate, paired_difference
from castctl.stages.measures import Measures

SHARES = ("share", "groups_", "verdict_", "eval_")
"""Pieces of the names of measures that are shares."""


def is_share(name: str) -> bool:
    """Whether a measure of this name is a share of something."""
    return any(piece in name for piece in SHARES)


def measure_text(name: str, value: float | None, digits: int = 4) -> str:
    """A measure of a step: a share in per cent, another number in a few digits, nothing of none."""
    return percent(value) if is_share(name) else number(value, digits)


def step_table(measures: Measures) -> Table:
    """The measures of a step; verdicts and group kinds that do not occur are left out."""
    table = Table("measure", "value")
    table.columns[1].justify = "right"
    for name, value in measures.items():
        absent = name.startswith(("groups_", "verdict_")) and value == 0
        if value is not None and not absent:
            table.add_row(name.replace("_", " "), _cell(name, value))
    return table


def _cell(name: str, value: float | list[float]) -> str:
    if isinstance(value, list):
        known = ((n, share) for n, share in enumerate(value) if not math.isnan(share))
        return ", ".join(f"{n} correct: {percent(s)}" for n, s in known) or "no token shaped"
    return measure_text(name, value)


def eval_table(
    results: Iterable[tuple[str, dict[str, Any]]], heading: str | None = None, full: bool = True
) -> Table:
    """One row an evaluation: avg@k with its interval over problems, pass@k, maj@k, and in full the
    share that was cut and the mean length.

    The first column is headed by the first one's task, unless `heading` names it.
    """
    results = list(results)
    first = results[0][1]
    k = str(first["k"]) if len({result["k"] for _, result in results}) == 1 else "k"
    table = Table()
    for title in (
        first["task"] if heading is None else heading,
        f"avg@{k} (95 % interval)",
        f"pass@{k}",
        f"maj@{k}",
        *(("cut", "length") if full else ()),
    ):
        table.add_column(Text(printable(title)), justify="right" if table.columns else "left")
    for label, result in results:
        cut, length = result["truncated_share"], result["length_mean"]
        if heading is None and (differs := variant_of(result)):
            label += f", {differs}"
        lengths = (
            percent(cut),
            "" if length is None else f"{length:.0f}",
        )
        table.add_row(
            Text(printable(label)),
            interval(Estimate(**result["avg"])),
            interval(Estimate(**result["pass"][str(result["k"])]), with_bounds=False),
            interval(Estimate(**result["maj"]), with_bounds=False),
            *(lengths if full else ()),
        )
    return table


def gain(before: dict[str, Any], after: dict[str, Any]) -> str:
    """How much avg@k rose, in points, with its interval paired over problems."""
    ids = list(before["by_problem"])
    first, second = (np.array([r["by_problem"][i] for i in ids]) for r in (before, after))
    difference = paired_difference(first, second)
    if difference.low is None or difference.high is None:
        return f"{100 * difference.mean:+.1f}"
    return (
        f"{100 * difference.mean:+.1f} "
        f"(95 % interval {100 * difference.low:+.1f} to {100 * difference.high:+.1f})"
    )


def interval(estimate: Estimate, with_bounds: bool = True) -> str:
    """A share in per cent with its interval."""
    mean = f"{100 * estimate.mean:.1f}"
    if not with_bounds or estimate.low is None or estimate.high is None:
        return mean
    return f"{mean} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def show(table: RenderableType) -> None:
    """Print a table, or a page of them, to standard output: as wide as the terminal or `COLUMNS`
    says, and 100 columns where neither does."""
    told = Console().is_terminal or "COLUMNS" in os.environ
    Console(width=None if told else 100).print(table)
