"""Which completions a page shows: whole groups, spread evenly over the steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from castctl.errors import UserError
from castctl.shards.part import count_rows, count_values, read_column
from castctl.shards.stage import StepFolder
from castctl.stages.groups import group_numbers

STAGES = ("rollouts", "rewards", "signals", "advantages")


@dataclass(frozen=True)
class Chosen:
    """Rows (R) of one part of rollouts, those of a group together; `tokens` is about how many
    tokens they have."""

    folder: StepFolder
    part: int
    rows_R: NDArray[np.int64]
    tokens: int


@dataclass(frozen=True)
class Choice:
    """What was chosen out of `total` completions."""

    chosen: list[Chosen]
    total: int


def choose(steps: Iterable[StepFolder], limit: int, notes: list[str]) -> Choice:
    """Whole groups of about `limit` completions, spread evenly over the parts of all steps.

    Parts that cannot be read, or that a stage still lacks, become notes.
    """
    sizes = [(folder, part, rows) for folder in steps
             for part, rows in _parts(folder, notes)]  # fmt: skip
    total = sum(rows for *_, rows in sizes)
    seen = kept = 0
    chosen = []
    for folder, part, _ in sizes:
        try:
            number_R, tokens = _groups(folder, part)
        except UserError as error:
            notes.append(f"left out: {error}")
            continue
        counts_G = np.bincount(number_R)
        keep_G = np.zeros(len(counts_G), np.bool_)
        for group, count in enumerate(counts_G.tolist()):
            keep_G[group] = total <= limit or (kept < limit and kept * total <= seen * limit)
            seen += count
            kept += count * int(keep_G[group])
        rows_R = np.argsort(number_R, kind="stable")
        rows_R = rows_R[keep_G[number_R[rows_R]]]
        if len(rows_R):
            share = tokens * len(rows_R) // len(number_R)
            chosen.append(Chosen(folder, part, rows_R, share))
    return Choice(chosen, total)


def _parts(folder: StepFolder, notes: list[str]) -> list[tuple[int, int]]:
    """The parts, each with its rows, that every stage begun has: a step may be in the making."""
    begun = {stage: folder.parts(stage) for stage in STAGES if folder.parts(stage)}
    rollouts = begun.get("rollouts", [])
    whole = sorted(set(rollouts).intersection(*begun.values()))
    if left_out := len(rollouts) - len(whole):
        lacking = [stage for stage, parts in begun.items() if set(rollouts) - set(parts)]
        notes.append(
            f"{folder.path}: {left_out} of {len(rollouts)} parts are left out, which "
            f"{' and '.join(lacking)} lacks"
        )
    found = []
    for part in whole:
        try:
            found.append((part, count_rows(folder.part_path("rollouts", part))))
        except UserError as error:
            notes.append(f"left out: {error}")
    return found


def _groups(folder: StepFolder, part: int) -> tuple[NDArray[np.int64], int]:
    """For each row (R) the number of its group in the part, and the part's tokens."""
    path = folder.part_path("rollouts", part)
    number_R = group_numbers(pa.chunked_array(read_column(path, "rollouts", "prompt_id")))
    return number_R, count_values(path, "completion_token_ids")


def cut_rows(lengths_R: Sequence[int], rows: int, tokens: int) -> list[slice]:
    """Neighbours together, up to so many rows and tokens; a row longer than that stands alone."""
    cuts, start, held = [], 0, 0
    for row, length in enumerate(lengths_R):
        if row > start and (row - start == rows or held + length > tokens):
            cuts.append(slice(start, row))
            start, held = row, 0
        held += length
    return [*cuts, slice(start, len(lengths_R))] if len(lengths_R) else []
