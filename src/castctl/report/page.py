"""What the pages about runs have in common: headlines, titles, plain tables, values, times."""

from __future__ import annotations

import datetime
import json
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from castctl.report.marks import line

STATES = {"finished": "green", "running": "cyan", "interrupted": "yellow"}
"""Colours of the states of a run."""

WIDEST = 10_000
"""Columns, more than any table wants."""


def headline(name: object, state: str) -> Text:
    """What a page is about, and its state in that state's colour."""
    return Text.assemble((line(name), "bold"), "  ", (line(state), STATES.get(state, "dim")))


def title(text: str) -> Text:
    """The title of a section of a page."""
    return Text(f"\n{text}", "bold")


def code_line(setting: str, code: str) -> Text:
    """That a recipe runs code, and which."""
    return Text(f"runs code: {setting}, {line(code, 400)}", "yellow")


class _Fitting(Table):
    """A table whose columns move together where the terminal is narrow, before numbers fold."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for left, right in ((1, 1), (0, 1), (0, 0)):
            self.padding = (0, right, 0, left)
            natural = self.__rich_measure__(console, options.update_width(WIDEST)).maximum
            if natural <= options.max_width:
                break
        yield from super().__rich_console__(console, options)


def plain_table(*headings: str, right: bool = True) -> Table:
    """A plain table whose columns after the first hold numbers, unless `right` is off."""
    kind = _Fitting if right else Table  # text folds well
    table = kind(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if right and index else "left", overflow="fold")
    return table


def value_text(value: Any) -> str:
    """A setting's value as it would be written in a recipe."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def when(created: object) -> str:
    """A manifest's time on this machine's clock."""
    try:
        moment = datetime.datetime.fromisoformat(str(created)).astimezone()
    except (ValueError, OverflowError):
        return line(created, 24)
    return moment.strftime("%Y-%m-%d %H:%M")
