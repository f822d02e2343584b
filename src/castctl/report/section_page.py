"""A section of a report on a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from castctl.report.document import Section, Sheet
from castctl.report.marks import line
from castctl.report.page import plain_table, title

LONGEST_PARAGRAPH = 2000


def section_page(section: Section) -> Group:
    """Its tables and paragraphs; plots are for files."""
    pages: list[RenderableType] = [Text(line(section.title), "bold")]
    for block in section.blocks:
        if isinstance(block, str):
            pages += [Text(), Text(line(block, LONGEST_PARAGRAPH))]
        elif isinstance(block, Sheet):
            pages += _sheet(block)
    return Group(*pages)


def _sheet(sheet: Sheet) -> list[RenderableType]:
    table = plain_table(*sheet.headings, right=sheet.right)
    for row in sheet.rows:
        table.add_row(*(Text(line(cell)) for cell in row))
    pages: list[RenderableType] = [title(sheet.title), table]
    return [*pages, Text(line(sheet.note, LONGEST_PARAGRAPH), "dim")] if sheet.note else pages
