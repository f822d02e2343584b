"""`metrics.parquet`: one row a step, rewritten whole and renamed."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from castctl.methods.groups import CORRECT
from castctl.runs.run import METRICS_REMEDY, Run
from castctl.shards.part import read_table, write_table
from castctl.shards.schema import REWARD
from castctl.stages.train.provenance import provenance_of

log = logging.getLogger(__name__)

Row = dict[str, Any]

KIND = "metrics"

_OF_SEVERAL = re.compile(rf"{REWARD}(.+)_mean")

OF_SCORING = "seconds_pass_"
"""Begins the names of times that are parts of the score stage's."""

TRAINED = "trained_"
"""Begins the names of what the update measured of the tokens that trained, where no scoring pass of
the policy measured it of all."""


def value_of(row: Mapping[str, Any], name: str) -> Any:
    """A measure of a step, of the tokens that trained where it is known of those alone; None where
    it is not known."""
    value = row.get(name)
    return row.get(TRAINED + name) if value is None else value


def named_steps(steps: list[int]) -> str:
    """Ascending steps in words, at most three stretches of them: `steps 0 to 4, 7`."""
    among = set(steps)
    starts = [step for step in steps if step - 1 not in among]
    ends = [step for step in steps if step + 1 not in among]
    runs = [str(a) if a == b else f"{a} to {b}" for a, b in zip(starts, ends, strict=True)]
    more = [f"and {len(runs) - 3} stretches more"] if len(runs) > 3 else []
    return f"step{'s' if len(steps) > 1 else ''} {', '.join([*runs[:3], *more])}"


class Metrics:
    """The rows so far; columns are the union of what the rows hold."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = (
            read_table(path, KIND, METRICS_REMEDY)[0].to_pylist() if path.exists() else []
        )

    def rewind(self, step: int) -> None:
        """Forget the rows of `step` and later, which are about to be made again."""
        self.rows = [row for row in self.rows if row["step"] < step]

    def missing(self, run: Run, done: int) -> list[int]:
        """Steps of the first `done` that have no row, but for those that were updated by hand."""
        there = {row["step"] for row in self.rows}
        lacking = (step for step in range(done) if step not in there)
        return [step for step in lacking if provenance_of(run.checkpoint(step + 1)) is None]

    def append(self, row: Row) -> None:
        """Add a step's row and write the file."""
        self.rows.append(row)
        names = list(dict.fromkeys(name for each in self.rows for name in each))
        columns = {name: [each.get(name) for each in self.rows] for name in names}
        write_table(self.path, KIND, pa.table(columns), {})


def correctness_mean(row: Row) -> Any:
    """A step's mean reward for correctness, whatever else was rewarded; None where it has none."""
    among_several = row.get(f"{REWARD}{CORRECT}_mean")
    return row.get("reward_mean") if among_several is None else among_several


def several_rewards(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The columns with the mean of each of several rewards, and the rewards' names."""
    found = (_OF_SEVERAL.fullmatch(column) for row in rows for column in row)
    return {match[0]: match[1] for match in found if match}


def tell_of_missing(metrics: Metrics, run: Run, start: int) -> None:
    """Warn of steps before the checkpoint `start` whose rows are lost, and write it down."""
    if lost := metrics.missing(run, start):
        log.warning(
            "%s lacks %s, though there is a checkpoint at the start of step %d; nothing makes "
            "those rows again", metrics.path, named_steps(lost), start,
        )  # fmt: skip
        run.record(lost_metrics=lost)
