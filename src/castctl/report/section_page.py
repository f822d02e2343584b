"""A section of a report on a terminal: what was found, then tables; plots are for files."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.text import Text

from castctl.report.document import Section, Sheet
from castctl.report.marks import line
from castctl.report.page import plain_table, title

LONGEST_PARAGRAPH = 2000


MORE = "Brackets: 95 % intervals. --full prints every table, and what they do not show."


def section_page(section: Section, full: bool) -> Group:
    """All its tables and paragraphs; the short form of the tables to read first, where not full."""
    pages: list[RenderableType] = [Text(line(section.title), "bold"), *_answer(section)]
    notes = _paragraphs(section.notes)
    if not full:
        sheets = [block for block in section.blocks if isinstance(block, Sheet) and block.first]
        tables = [page for sheet in sheets for page in _sheet(sheet.short())]
        return Group(*pages, *tables, *notes, Text(f"\n{MORE}", "dim"))
    pages += notes
    for block in section.blocks:
        if isinstance(block, str):
            pages += _paragraphs([block])
        elif isinstance(block, Sheet):
            pages += _sheet(block)
    return Group(*pages)


def _answer(section: Section) -> list[RenderableType]:
    return [Text(line(words, LONGEST_PARAGRAPH)) for words in section.answer]


def _paragraphs(texts: Iterable[str]) -> list[RenderableType]:
    return [Text(f"\n{line(words, LONGEST_PARAGRAPH)}") for words in texts]


def _sheet(sheet: Sheet) -> list[RenderableType]:
    table = plain_table(*sheet.headings, right=sheet.right)
    for row in sheet.rows:
        table.add_row(*(Text(line(cell)) for cell in row))
    pages: list[RenderableType] = [title(sheet.title), table]
    return [*pages, Text(line(sheet.note, LONGEST_PARAGRAPH), "dim")] if sheet.note else pages
