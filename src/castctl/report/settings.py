"""Settings with their values, where these come from, whose choice they are, and what they mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from castctl.report.marks import line
from castctl.report.page import value_text

if TYPE_CHECKING:
    from castctl.recipe.choices import ExplainedSetting

TABLE_WIDTH = 100
"""Columns of a terminal from which on a row and its meaning fit into a table."""

LONGEST_VALUE = 2000
"""Characters of a value, such as a template, that are shown."""


@dataclass(frozen=True)
class SettingsTable:
    """One section's settings: a table, or a paragraph each where it would not fit.

    Without `origins`, it is not said where a value that is no default comes from.
    """

    settings: Sequence[ExplainedSetting]
    origins: bool = True

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.max_width >= TABLE_WIDTH:
            yield self._table()
        else:
            for setting in self.settings:
                yield from self._paragraph(setting)

    def _paragraph(self, setting: ExplainedSetting) -> Iterator[RenderableType]:
        said = [f"{setting.key.rpartition('.')[2]} = {value_text(setting.value)}"]
        if setting.origin:
            default = f"default {value_text(setting.default)}"
            said.append(f"from {setting.origin}, {default}" if self.origins else default)
        if setting.choice:
            said.append(setting.choice)
        told = "; ".join(line(each, LONGEST_VALUE) for each in said)
        yield Text(told, "bold" if setting.origin else "")
        yield Padding(Text(setting.meaning, "dim"), (0, 0, 0, 4))

    def _table(self) -> Table:
        """Columns that would be empty are left out."""
        changed = any(setting.origin for setting in self.settings)
        chosen = any(setting.choice for setting in self.settings)
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        table.add_column("setting", no_wrap=True)
        table.add_column("value", max_width=24, overflow="fold")
        if changed:
            table.add_column("default", max_width=16, overflow="fold")
        if changed and self.origins:
            table.add_column("from", max_width=16, overflow="fold")
        if chosen:
            table.add_column("choice", max_width=16)
        table.add_column("meaning", ratio=1)
        for setting in self.settings:
            cells = [setting.key.rpartition(".")[2], value_text(setting.value)]
            if changed:
                cells.append(value_text(setting.default) if setting.origin else "")
            if changed and self.origins:
                cells.append(setting.origin or "")
            if chosen:
                cells.append(setting.choice or "")
            style = "bold" if setting.origin else ""
            shown = [Text(line(cell, LONGEST_VALUE), style) for cell in cells]
            table.add_row(*shown, Text(setting.meaning))
        return table


def facts_table(facts: dict[str, str]) -> Table:
    """Names, and beside each what is so."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    for name, text in facts.items():
        table.add_row(Text(name), Text(text))
    return table
