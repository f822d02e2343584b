"""The table of `castctl runs`."""

from __future__ import annotations

import datetime

from rich.table import Table
from rich.text import Text

from castctl.inspection.listing import RunRow
from castctl.report.marks import line, number
from castctl.report.page import STATES, plain_table, when


def runs_table(rows: list[RunRow]) -> Table:
    """One row a run, with its kind for a state where it does not train; one that cannot be read
    says why."""
    table = plain_table("run", "method", "model", "steps", "best", "reward", "state", "begun")
    for column in table.columns:
        column.no_wrap = column.header not in ("run", "model")
        column.justify = "right" if column.header in ("steps", "best", "reward") else "left"
    for row in rows:
        name, begun = Text(line(row.name), "bold"), _begun(row.created)
        if row.problem is not None:
            why = Text(f"cannot be read: {line(row.problem)}", "yellow")
            table.add_row(name, "", why, "", "", "", "", begun)
            continue
        best = "" if row.best is None else f"{100 * row.best:.1f} %"
        steps = "" if row.steps_of is None else f"{row.steps_done}/{row.steps_of}"
        state = row.state if row.kind == "train" else row.kind
        table.add_row(
            name, Text(line(row.method or "")), Text(line(row.model or "")), steps, best,
            number(row.reward), Text(line(state), STATES.get(state or "", "dim")), begun,
        )  # fmt: skip
    return table


def _begun(created: str) -> str:
    """Month, day and time of day of this year, the date of another."""
    moment = when(created)
    this_year = moment[:5] == f"{datetime.date.today():%Y-}"
    return moment[5:] if this_year else moment[:10]
