"""What a report is made of, whether it is read on a terminal or in a browser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Sheet:
    """A table of finished texts. Cells are plain text and untrusted: whoever shows them escapes
    them. Columns after the first hold numbers unless `right` is off."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    right: bool = True


@dataclass(frozen=True)
class Picture:
    """A plot: `name` is that of its file, `description` says in words what it shows."""

    name: str
    title: str
    description: str
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class Section:
    """A part of a report: paragraphs of plain text, tables and plots, in order."""

    id: str
    title: str
    blocks: list[str | Sheet | Picture] = field(default_factory=list)
