"""The table of `castctl runs`."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from castctl.inspection.listing import RunRow
from castctl.report.marks import line, number
from castctl.report.page import STATES, plain_table, when


def runs_table(rows: list[RunRow]) -> Table:
    """One row a run; one that cannot be read says why."""
    table = plain_table("run", "method", "model", "steps", "best", "reward", "state", "begun")
    for column in table.columns:
        column.no_wrap = column.header not in ("run", "model")
        column.justify = "right" if column.header in ("steps", "best", "reward") else "left"
    for row in rows:
        name, begun = Text(line(row.name), "bold"), when(row.created)[:10]
        if row.problem is not None:
            why = Text(f"cannot be read: {line(row.problem)}", "yellow")
            table.add_row(name, "", why, "", "", "", "", begun)
            continue
        best = "" if row.best is None else f"{100 * row.best:.1f} %"
        table.add_row(
            name, Text(line(row.method)), Text(line(row.model)),
            f"{row.steps_done}/{row.steps_of}", best, number(row.reward),
            Text(line(row.state), STATES.get(row.state or "", "dim")), begun,
        )  # fmt: skip
    return table
